"""Training throughput beside a bare loop and beside Pythae's trainer, and start-up times, in one process, interleaved.

    python benchmarks/throughput.py [--rounds 7] [--steps 200] [--device cpu]

Every variant trains the same network, a 784-512-16 Bernoulli VAE, with batch size 64 and Adam. Each round times each variant once, in turn;
a ratio is the median over rounds of the ratio within a round, so that a slow minute of the machine hits both sides.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from genbook.data import Batches, Images
from genbook.models.vae import VAE
from genbook.train import LossStep, fit

BATCH = 64


def network() -> VAE:
    return VAE((1, 28, 28), levels=2, tower="mlp", width=512, depth=1, zdim=16, act="relu")


def fit_loop(images, steps, device):
    "The project's own loop."
    step, batches = LossStep(network(), lr=1e-3, device=device), Batches(images, BATCH, device=device)
    fit(step, batches, 20, progress=False)  # first steps allocate, and on CUDA record the graph
    step.it.zero_()

    def run():
        fit(step, batches, steps, progress=False, every=10**9)
        if step.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def bare_loop(images, steps, device):
    "What one would write by hand, with resident data and the fused optimiser."
    dev = torch.device(device)
    model, x = network().to(dev), images.x.to(dev)
    opt = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def run():
        perm = torch.randperm(len(x), device=dev)
        for i in range(steps):
            j = (i * BATCH) % (len(x) - BATCH)
            batch = x[perm[j : j + BATCH]].float() / (images.levels - 1)
            opt.zero_grad()
            model.loss(batch, it=torch.zeros((), dtype=torch.int64, device=dev)).total.mean().backward()
            opt.step()
        if dev.type == "cuda":
            torch.cuda.synchronize()

    return run


def pythae_loop(images, steps, device):
    "One epoch of Pythae's own trainer on as many images."
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.WARNING)
    x = images.x[: steps * BATCH].float() / (images.levels - 1)
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), num_epochs=1, per_device_train_batch_size=BATCH, learning_rate=1e-3, no_cuda=device == "cpu"
    )
    model = PythaeVAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=16, reconstruction_loss="bce"))
    trainer = BaseTrainer(model=model, train_dataset=BaseDataset(x, torch.zeros(len(x))), training_config=config)
    trainer.prepare_training()

    def run():
        with contextlib.redirect_stderr(io.StringIO()):
            trainer.train_step(1)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def timed(run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def start_up(command) -> float:
    "Median seconds of a whole process."
    return statistics.median(timed(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(3))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    n = args.steps * BATCH
    images = Images(
        x=torch.randint(0, 2, (n, 1, 28, 28), generator=generator, dtype=torch.uint8), y=torch.zeros(n, dtype=torch.int64), levels=2
    )
    loops = {"fit": fit_loop, "bare loop": bare_loop}
    try:
        import pythae

        loops[f"pythae {getattr(pythae, '__version__', '')}".strip()] = pythae_loop
    except ImportError:
        print("pythae is not installed: pip install pythae")
    runs = {name: make(images, args.steps, args.device) for name, make in loops.items()}
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for i in range(args.rounds):
        for name in sorted(runs, key=lambda k: hash((k, i))):  # in another order each round
            times[name].append(timed(runs[name]))
    where = f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"784-512-16 VAE, batch {BATCH}, {where}, {args.rounds} rounds of {args.steps} steps")
    for name, ts in times.items():
        print(f"  {name:16} {n / statistics.median(ts):12,.0f} images/s")
    for name in list(times)[1:]:
        ratios = [b / a for a, b in zip(times["fit"], times[name], strict=True)]
        print(f"  fit / {name:10} {statistics.median(ratios):6.2f}  (from {min(ratios):.2f} to {max(ratios):.2f})")
    print("start-up, seconds")
    script = os.path.join(os.path.dirname(sys.executable), "genbook")
    for label, command in {
        "import torch": [sys.executable, "-c", "import torch"],
        "import genbook": [sys.executable, "-c", "import genbook"],
        "import genbook.models.vae": [sys.executable, "-c", "import genbook.models.vae"],
        "genbook --help": [script, "--help"],
        "genbook list": [script, "list"],
    }.items():
        print(f"  {label:26} {start_up(command):.2f}")


if __name__ == "__main__":
    main()
