"""Trainings on several devices: two processes on the CPU train one model of every kind that `list_models` knows.

Run as a script, this file is one of those processes: it trains the models that it is given and writes down what it has seen."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from genbook import create_model
from genbook.core import GenbookError, process_rank
from genbook.data import Batches
from genbook.datasets import load
from genbook.devices import SyncNorm, meet
from genbook.measure.cache import content_hash
from genbook.steps import Step, parts_of
from genbook.train import fit

ROOT = Path(__file__).parents[1]
STEPS, BATCH = 24, 32


def kinds():
    "Name -> arguments of the smallest model of every class, with and without batch norm: all families, found by `list_models`."
    from test_matrix import MODELS, SMALL, build, example

    found = {}
    for name in MODELS:
        model = example(name)
        key = type(model), any(isinstance(m, _BatchNorm) for m in model.modules())
        size = sum(p.numel() for p in model.parameters())
        if key not in found or size < found[key][0]:
            try:
                build(name, width=SMALL["width"])
                found[key] = size, name, SMALL
            except GenbookError:
                found[key] = size, name, {}
    return {name: config for _, name, config in found.values()}


def trained(name, config, device="cpu"):
    "A model after some steps on the embedded digits, and the terms of its losses by step."
    torch.manual_seed(0)
    model, images = create_model(name, (1, 8, 8), **{"levels": 17} | config), load("digits").train
    if hasattr(model, "adapt"):
        model.adapt(images.float(slice(0, 64))[0])
    if hasattr(model, "stages") and not hasattr(model, "loss"):
        model = getattr(model, model.stages[0])
    step = Step(model, lr=2e-3, ema=0.9, device=device)
    history = fit(step, Batches(images, BATCH, device=step.device), STEPS, log_every=1, capture=False, progress=False)
    return step, {k.removeprefix("train/"): history.column(k)[1] for k in history.rows[-1] if k.startswith("train/")}


def digest(tensors):
    return content_hash(*tensors) if tensors else ""


def normed(rank, n):
    "Outputs, gradients, second gradients and statistics of batch norm: of this rank's share of a batch, as lists of numbers."
    torch.manual_seed(0)
    net, x, w = nn.BatchNorm2d(3), torch.randn(8, 3, 5, 5), torch.randn(8, 3, 5, 5)
    net.__class__ = SyncNorm
    x = x.chunk(n)[rank].clone().requires_grad_()
    return [t.flatten().tolist() for t in through(net, x, w.chunk(n)[rank])]


def through(net, x, w):
    out = net(x)
    (first,) = torch.autograd.grad((out * w).sum(), x, create_graph=True)
    (out * w).sum().backward(retain_graph=True)
    once = [p.grad.clone() for p in (net.weight, net.bias)]
    (second,) = torch.autograd.grad(first.square().sum(), x)  # of a gradient penalty
    return out, first, second, net.running_mean, net.running_var, *once


def poisoned(folder, rank, name, config, device):
    "What a training says whose loss is not a number at its sixth step; the first process has the folder."
    model = create_model(name, (1, 8, 8), **{"levels": 17} | config)
    loss = model.loss

    def sick(x, y=None, *, it=None):
        terms = loss(x, y, it=it)
        return terms._replace(total=torch.where(it == 5, torch.nan, terms.total))

    model.loss = sick
    run = SimpleNamespace(dir=None if rank else folder, logs=None, resumed={}, history={})
    batches = Batches(load("digits").train, BATCH, device=device)
    try:
        fit(Step(model, device=device), batches, 8, run=run, every=2, log_every=2, progress=False, capture=False)
    except GenbookError as e:
        return str(e)


def main(folder, models, device="cpu"):
    rank, n = process_rank()
    torch.manual_seed(123 + rank)  # whatever a process begins with
    found = {}
    for name, config in json.loads(models).items():
        step, terms = trained(name, config, device)
        state = step.model.state_dict()
        found[name] = {
            "terms": terms,
            "weights": digest([*state.values(), *step.ema.state_dict()["avg"]]),
            "statistics": digest([v for k, v in state.items() if "running_" in k]),
            "noise": torch.randn(4).tolist(),
        }
    try:
        Batches(load("digits").train, 13)
    except GenbookError as e:
        found["thirteen"] = str(e)
    found["poisoned"] = poisoned(Path(folder), rank, *next(iter(json.loads(models).items())), device)
    meet()
    found["normed"] = normed(rank, n)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def environment(folder, rank, n):
    "What torchrun tells a process."
    interface = dict.fromkeys(["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"], "lo" if sys.platform == "linux" else "lo0")
    loopback = interface | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "TORCHELASTIC_RUN_ID": "test"}
    return loopback | {k: str(v) for k, v in ranks.items()} | {"GENBOOK_MEET": f"file://{folder}/meet"}


def by_two(folder, models, *device):
    "What each of two processes has seen."
    plain = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, str(folder), json.dumps(models), *device]
    start = lambda rank: subprocess.Popen(command, env=plain | environment(folder, rank, 2), stderr=subprocess.PIPE, text=True)
    processes = [start(rank) for rank in range(2)]
    try:
        errors = [p.communicate(timeout=400)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert not any(p.returncode for p in processes), "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


MODELS = {} if __name__ == "__main__" else kinds()


@pytest.fixture(scope="module")
def found(once):
    "What two processes have seen that train all models, one after the other."
    folder = once("devices", lambda folder: by_two(folder, MODELS))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def check_agreement(found, name):
    one, two = (f[name] for f in found)
    assert one["terms"] == two["terms"] and one["weights"] == two["weights"] and one["statistics"] == two["statistics"]
    assert one["noise"] != two["noise"] and not {*one["noise"]} & {*two["noise"]}
    assert all(math.isfinite(v) for values in one["terms"].values() for v in values)


def test_every_family_is_trained():
    from test_matrix import FAMILIES

    from genbook.lab.zoo import entries

    assert FAMILIES.keys() == {entries()[name].build for name in MODELS}
    assert any(isinstance(m, _BatchNorm) for name, config in MODELS.items() for m in create_model(name, (1, 8, 8), **config).modules())


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_have_equal_weights_and_noise_of_their_own(found, name):
    check_agreement(found, name)
    terms = found[0][name]["terms"]
    if "total" in terms:  # of two players neither loss has to fall
        assert sum(terms["total"][-6:]) < sum(terms["total"][:6])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_noise_learns_as_in_one_process(found, name):
    model = create_model(name, (1, 8, 8), **{"levels": 17} | MODELS[name])
    model = getattr(model, model.stages[0]) if hasattr(model, "stages") and not hasattr(model, "loss") else model
    if "critic" in parts_of(model):
        pytest.skip("draws codes")
    images = load("digits").train.float(slice(0, BATCH))[0]
    a, b = ((torch.manual_seed(s), model.loss(images).total.mean().item())[1] for s in (1, 2))
    if a != b:
        pytest.skip("draws noise")
    torch.testing.assert_close(found[0][name]["terms"]["total"], trained(name, MODELS[name])[1]["total"], rtol=1e-4, atol=1e-5)


def test_batch_norm_is_one_over_all_devices(found):
    "Outputs and gradients of the shares are those of the whole batch; so are the statistics."
    out, first, second, mean, var, weight, bias = ([torch.tensor(f["normed"][i]) for f in found] for i in range(7))
    torch.manual_seed(0)
    net, x, w = nn.BatchNorm2d(3), torch.randn(8, 3, 5, 5, requires_grad=True), torch.randn(8, 3, 5, 5)
    expected = through(net, x, w)
    for made, whole in zip((out, first, second), expected, strict=False):
        torch.testing.assert_close(torch.cat(made), whole.flatten(), rtol=1e-4, atol=1e-5)
    for made, whole in ((mean, net.running_mean), (var, net.running_var)):
        assert torch.equal(*made)
        torch.testing.assert_close(made[0], whole, rtol=1e-5, atol=1e-6)
    for made, whole in zip((weight, bias), expected[5:], strict=True):  # which the step averages
        torch.testing.assert_close(sum(made), whole, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_is_said_with_the_checkpoint_by_each(found):
    one, two = (f["poisoned"] for f in found)
    assert one == two and re.search(r"total = nan at step 6; last good checkpoint: \S+/checkpoint/main.pt, step 4$", one), one


def test_a_batch_that_cannot_be_divided_is_named(found):
    assert {f["thirteen"] for f in found} == {"batch_size: 13 is not a multiple of the 2 devices"}
    Batches(load("digits").train, 13)


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 6), (8, 3, 5, 5)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_batch_norm_of_one_process_is_the_usual_one(device, shape, tmp_path):
    "Without a group it is torch's; in a group of one it is its own formula, and the same."

    def once(net):
        torch.manual_seed(0)
        net, x = net.to(device), torch.randn(shape, device=device, requires_grad=True)
        out = net(x)
        (out * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum().backward()
        return out, x.grad, net.weight.grad, net.bias.grad, net.running_mean, net.running_var, net.num_batches_tracked, net.eval()(x)

    usual = once({2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3))
    for a, b in zip(once(SyncNorm(3)), usual, strict=True):
        assert torch.equal(a, b)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        for a, b in zip(once(SyncNorm(3)), usual, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL takes one process a GPU: needs two")
def test_nccl_trains_as_gloo_does(tmp_path):
    found = by_two(tmp_path, MODELS, "cuda")
    for name in MODELS:
        check_agreement(found, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
