"""Training throughput beside plain loops, beside a peer and beside what the machine can do; sampling, start-up, what a run costs besides.

    python benchmarks/throughput.py [NAME...] [--rounds 7] [--device cpu]      NAME: vae, realnvp, dcgan, start-up, runs

Every variant of a case trains the same network with the same batch size and optimiser. Each round times each variant once, in another
order; a ratio is the median over rounds of the ratio within a round, so that a slow minute of the machine hits both sides. Operations
are those of convolutions and matrix products, forward and backward, as torch counts them; the machine's own rate is that of a product
of two matrices of 1,024 rows and columns, timed in the same rounds.
"""

import argparse
import contextlib
import io
import logging
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import nbformat
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from genbook.core import project_root
from genbook.data import Batches, Images
from genbook.models import gan, realnvp, vae
from genbook.nn import n_parameters
from genbook.steps import Step
from genbook.train import fit

GENBOOK = [sys.executable, "-c", "from genbook.lab.cli import main; main()"]


@dataclass
class Case:
    "A network and how it is trained."

    about: str
    network: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    levels: int
    batch: int
    steps: int  # of one round
    how: dict = field(default_factory=dict)  # arguments of the step
    variants: dict = field(default_factory=dict)  # name -> arguments of the step
    plain: Callable | None = None  # the same by hand; None: `plain_loop`
    peer: Callable | None = None

    def images(self) -> Images:
        n, generator = self.batch * self.steps, torch.Generator().manual_seed(0)
        x = torch.randint(0, self.levels, (n, *self.image_shape), generator=generator, dtype=torch.uint8)
        return Images(x=x, y=torch.zeros(n, dtype=torch.int64), levels=self.levels)


def synchronise(device):
    if device != "cpu":
        torch.cuda.synchronize()


def made(case, images, device, **kwargs):
    "Step and batches of a case."
    return Step(case.network(), lr=2e-4, device=device, **case.how | kwargs), Batches(images, case.batch, device=device)


def fit_loop(case, images, device, **kwargs):
    "The project's own loop."
    step, batches = made(case, images, device, **kwargs)
    fit(step, batches, min(20, case.steps), progress=False)  # first steps allocate, and on CUDA record the graph
    step.it.zero_()

    def run():
        fit(step, batches, case.steps, progress=False, every=10**9, log_every=10**9)
        step.it.zero_()
        synchronise(device)

    return run


def operations(case, images, device) -> float:
    "Floating-point operations of one iteration."
    step, batches = made(case, images, device)
    with FlopCounterMode(display=False) as counter:
        step(*batches.fetch(next(iter(batches))))
    return counter.get_total_flops()


def matrix_product(device, n=1024):
    "A product of two matrices, some times, and its operations."
    a, times = torch.randn(n, n, device=device), 8

    def run():
        for _ in range(times):
            a @ a
        synchronise(device)

    return run, times * 2 * n**3


def shuffled(images, batch, device):
    "Batches in a random order, as one would write it by hand with resident data."
    x = images.x.to(device)
    for idx in torch.randperm(len(x), device=device).split(batch):
        yield x[idx].float() / (images.levels - 1)


def plain_loop(case, images, device):
    "What one would write by hand, with resident data and the fused optimiser."
    model = case.network().to(device)
    opt = torch.optim.Adam(model.parameters(), lr=2e-4, fused=True)
    it = torch.zeros((), dtype=torch.int64, device=device)

    def run():
        for x in shuffled(images, case.batch, device):
            opt.zero_grad()
            model.loss(x, it=it).total.mean().backward()
            opt.step()
        synchronise(device)

    return run


def plain_players(case, images, device):
    "The same for two players: an update of the critic, then one of the generator."
    model = case.network().to(device)
    optimizers = [torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True) for net in (model.critic, model.generator)]

    def run():
        for x in shuffled(images, case.batch, device):
            for optimizer, loss in zip(optimizers, (model.critic_loss, model.generator_loss), strict=True):
                optimizer.zero_grad()
                loss(x).total.mean().backward()
                optimizer.step()
        synchronise(device)

    return run


def pythae_loop(case, images, device):
    "One epoch of Pythae's own trainer on as many images."
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.WARNING)
    x = images.x.float() / (images.levels - 1)
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), num_epochs=1, per_device_train_batch_size=case.batch, learning_rate=2e-4, no_cuda=device == "cpu"
    )
    model = PythaeVAE(VAEConfig(input_dim=case.image_shape, latent_dim=16, reconstruction_loss="bce"))
    trainer = BaseTrainer(model=model, train_dataset=BaseDataset(x, torch.zeros(len(x))), training_config=config)
    trainer.prepare_training()

    def run():
        with contextlib.redirect_stderr(io.StringIO()):
            trainer.train_step(1)
        synchronise(device)

    return run


def mlp_vae():
    return vae.VAE((1, 28, 28), levels=2, tower="mlp", width=512, depth=1, zdim=16, act="relu")


def multi_scale():
    return realnvp.RealNVP((1, 28, 28), **realnvp.CONFIGS["uva"])


def dcgan():
    return gan.GAN((3, 32, 32), **gan.CONFIGS["dcgan"])


CASES = {
    "vae": Case("784-512-16 Bernoulli VAE", mlp_vae, (1, 28, 28), 2, 64, 200, peer=pythae_loop),
    "realnvp": Case("multi-scale RealNVP", multi_scale, (1, 28, 28), 256, 16, 3, variants={"fit, bf16": {"precision": "bf16-mixed"}}),
    "dcgan": Case("DCGAN", dcgan, (3, 32, 32), 256, 64, 3, how={"betas": (0.5, 0.999)}, plain=plain_players),
}


def timed(run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def interleaved(runs, rounds):
    "Seconds of each round of each variant, a first round left out."
    times, order = {name: [] for name in runs}, random.Random(0)
    for i in range(rounds + 1):
        for name in order.sample(list(runs), len(runs)):
            seconds = timed(runs[name])
            if i:
                times[name].append(seconds)
    return times


def train(case, rounds, device):
    "Images per second of each variant, the ratios of `fit` to the others, and its operations per second beside the machine's."
    images = case.images()
    product, product_flops = matrix_product(device)
    runs = {"fit": fit_loop(case, images, device)} | {n: fit_loop(case, images, device, **kw) for n, kw in case.variants.items()}
    runs["plain loop"] = (case.plain or plain_loop)(case, images, device)
    if case.peer is not None:
        try:
            runs["pythae"] = case.peer(case, images, device)
        except ImportError:
            print("pythae is not installed: pip install pythae")
    times = interleaved(runs | {"product": product}, rounds)
    products = times.pop("product")
    where = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    size = f"{n_parameters(case.network()):,} parameters, {case.image_shape[1]} px, batch {case.batch}"
    print(f"{case.about}, {size}, {where}, {rounds} rounds of {case.steps} steps")
    for name, ts in times.items():
        print(f"  {name:16} {len(images) / statistics.median(ts):12,.0f} images/s")
    base = [n for n in times if n not in ("fit", *case.variants)]
    for ours, theirs in [("fit", n) for n in base] + [(n, "plain loop") for n in case.variants]:
        ratios = [b / a for a, b in zip(times[ours], times[theirs], strict=True)]
        print(f"  {f'{ours} / {theirs}':24} {statistics.median(ratios):6.2f}  (from {min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    flops = case.steps * operations(case, images, device)
    rates = [flops / t / 1e9 for t in times["fit"]]
    machine = [product_flops / t / 1e9 for t in products]
    share = statistics.median(a / b for a, b in zip(rates, machine, strict=True))
    print(
        f"  fit: {statistics.median(rates):,.1f} GFLOP/s, {share:.0%} of the machine's matrix product ({statistics.median(machine):,.1f}); "
        f"{flops / len(images) / 1e6:,.1f} MFLOP an image",
        flush=True,
    )


def sampling(names, rounds, device, n=16):
    "Milliseconds for `n` images of each network."
    models = {name: CASES[name].network().to(device).eval() for name in names}

    def draw(model):
        model.sample(n)
        synchronise(device)

    print(f"sampling, {n} images at a time")
    for name, ts in interleaved({name: lambda m=m: draw(m) for name, m in models.items()}, rounds).items():
        print(f"  {name:16} {1000 * statistics.median(ts):12.1f} ms")


def start_up():
    "Median seconds of whole processes."
    print("start-up, seconds")
    for label, command in {
        "import torch": [sys.executable, "-c", "import torch"],
        "import genbook": [sys.executable, "-c", "import genbook"],
        "import genbook.models.vae": [sys.executable, "-c", "import genbook.models.vae"],
        "genbook --help": [*GENBOOK, "--help"],
        "genbook list": [*GENBOOK, "list"],
    }.items():
        run = lambda c=command: subprocess.run(c, check=True, capture_output=True)
        print(f"  {label:26} {statistics.median(timed(run) for _ in range(3)):.2f}")


NOTEBOOK = """from genbook.lab.runs import Run
run = Run(run_dir)
run.finish();"""


def around_the_cells(folder, n):
    "Seconds of `genbook run` with `n` runs of a notebook that does nothing, one at a time, less those of the notebook's cells."
    first = nbformat.v4.new_code_cell("seed: int = 0  # seed\nrun_dir: str | None = None  # folder")
    first.metadata["tags"] = ["parameters"]
    (folder / "nbs").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(NOTEBOOK)]), folder / "nbs/10_nothing.ipynb")
    shutil.copy(project_root() / "settings.ini", folder)
    (folder / "experiments").mkdir()
    (folder / "experiments/10_nothing.yaml").write_text(f"notebook: 10_nothing\nexperiments: {{nothing: {{seeds: {[*range(n)]}}}}}\n")
    began = time.perf_counter()
    subprocess.run([*GENBOOK, "run", "nothing", "--workers", "1"], cwd=folder, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    books = [nbformat.read(path, 4) for path in folder.glob("runs/nothing/*/notebook.ipynb")]
    assert len(books) == n
    return seconds - sum(c.metadata["papermill"]["duration"] for book in books for c in book.cells)


def kernel_start():
    "Seconds until a kernel answers."
    from jupyter_client.manager import start_new_kernel

    began = time.perf_counter()
    manager, client = start_new_kernel(kernel_name="python3", extra_arguments=["--log-level=50"])
    seconds = time.perf_counter() - began
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return seconds


def per_run(rounds=3, n=4):
    "What `genbook run` costs beyond the cells of its notebooks and the starts of their kernels."
    first, further = [], []
    for _ in range(rounds):
        kernel = kernel_start()
        with tempfile.TemporaryDirectory() as tmp:
            one, many = (around_the_cells(Path(tmp, str(k)), k) - k * kernel for k in (1, n))
        first.append(one)
        further.append((many - one) / (n - 1))
    print(f"genbook run, seconds a run beyond its cells and the kernel's start ({kernel:.2f}), {rounds} rounds")
    for label, seconds in {"the first of a start": first, "each further one": further}.items():
        print(f"  {label:26} {statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", choices=[*CASES, "start-up", "runs", []], metavar="NAME", help=", ".join([*CASES, "start-up", "runs"])
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="of a round, instead of those of each case")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    names = args.names or [*CASES, "start-up", "runs"]
    for name in CASES:
        if name in names:
            train(replace(CASES[name], steps=args.steps or CASES[name].steps), args.rounds, args.device)
    drawn = [name for name in CASES if name in names]
    if drawn:
        sampling(drawn, args.rounds, args.device)
    if "start-up" in names:
        start_up()
    if "runs" in names:
        per_run()


if __name__ == "__main__":
    main()
