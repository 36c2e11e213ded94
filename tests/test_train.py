"What the training notebook cannot check: graph capture on a GPU, precision, compile, averages with batch norm."

import copy
import warnings
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genbook.data import Batches, Images
from genbook.datasets import load
from genbook.optim import cosine
from genbook.steps import Step
from genbook.train import fit, mean_loss

Loss = namedtuple("Loss", "total rec")


class Net(nn.Module):
    "A small autoencoder with batch norm and noise."

    def __init__(self, dims=64, sync=False):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(dims, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, dims))
        self.sync = sync

    def loss(self, x, y=None, *, it=None):
        out = self.net(x + 0.1 * torch.randn_like(x))
        rec = (out.float() - x.flatten(1)).pow(2).sum(1)
        if self.sync:
            rec = rec * float(rec.mean().item() > -1)
        return Loss(rec, rec)


@pytest.fixture(scope="module")
def images():
    return load("digits").train


def train(images, steps=60, model=None, device="cpu", capture="auto", **kwargs):
    torch.manual_seed(0)
    model = model or Net()
    step = Step(model, lr=1e-3, schedule=cosine(steps, 5), device=device, clip=10.0, **kwargs)
    return step, fit(step, Batches(images, 64, device=step.device), steps, every=20, log_every=1, capture=capture, progress=False)


def test_eval_model_estimates_batch_norm_for_the_average(images):
    step, _ = train(images, ema=0.9)
    batches = Batches(images, 64)
    raw, estimated = copy.deepcopy(step.model).eval(), step.eval_model(batches)
    step.ema.copy_to(raw)  # averaged weights with the statistics of the last ones
    assert not torch.allclose(raw.net[2].running_mean, estimated.net[2].running_mean)
    assert mean_loss(estimated, images)["total"] < 1.02 * mean_loss(raw, images)["total"]
    with torch.no_grad():
        h = estimated.net[1](images.float()[0].flatten(1))
    assert (estimated.net[2].running_mean - h.mean(0)).abs().max() < 0.15 * h.std(0).max()


def test_validation_does_not_disturb_training(images):
    one, _ = train(images)
    torch.manual_seed(0)
    step = Step(Net(), lr=1e-3, schedule=cosine(60, 5), device="cpu", clip=10.0)
    valid = load("digits").valid
    fit(step, Batches(images, 64), 60, every=7, log_every=13, valid=lambda m: mean_loss(m, valid), progress=False)
    for a, b in zip(one.model.parameters(), step.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bf16_stays_close_and_keeps_fp32_losses(images):
    _, full = train(images)
    step, half = train(images, precision="bf16-mixed")
    a, b = (torch.tensor(h.column("train/total")[1]) for h in (full, half))
    assert next(step.model.parameters()).dtype == torch.float32
    assert ((a - b).abs() / a).max() < 0.05 and not torch.equal(a, b)


@pytest.mark.slow
def test_compiled_loss_agrees(images):
    _, eager = train(images)
    with torch._inductor.config.patch(fallback_random=True):  # the same noise as without
        _, compiled = train(images, compile=True)
    a, b = (torch.tensor(h.column("train/total")[1]) for h in (eager, compiled))
    assert ((a - b).abs() / a).max() < 1e-3


def test_what_a_look_saw_comes_back_with_the_checkpoint(images, tmp_path):
    def run(steps):
        torch.manual_seed(0)
        step, folder = Step(Net(), lr=1e-3, device="cpu"), SimpleNamespace(dir=tmp_path, logs=None, resumed={}, history={})
        return fit(step, Batches(images, 64), steps, run=folder, every=10, look=lambda m: m.net[1].weight[0], progress=False)

    first, whole, again = run(20), run(40), run(40)  # stopped halfway, ended, started once more
    assert list(first.frames) == [10, 20] and list(whole.frames) == list(again.frames) == [10, 20, 30, 40]
    assert all(torch.equal(whole.frames[it], again.frames[it]) for it in whole.frames) and again.resumed_from == 40
    assert torch.equal(first.frames[20], whole.frames[20]) and not torch.equal(whole.frames[20], whole.frames[40])


@pytest.mark.gpu
def test_graphed_and_eager_losses_agree(images):
    images = images.to("cuda")
    _, eager = train(images, device="cuda", capture=False, ema=0.99)
    _, graphed = train(images, device="cuda", capture=True, ema=0.99)
    a, b = (torch.tensor(h.column("train/total")[1]) for h in (eager, graphed))
    assert ((a[-20:].mean() - b[-20:].mean()).abs() / a[-20:].mean()) < 0.05  # other noise after capture, same course
    assert len(set(b.tolist())) == len(b)  # each replay draws new noise and new data


@pytest.mark.gpu
def test_failed_capture_goes_on_eagerly_with_usable_generators(images):
    images = images.to("cuda")
    with pytest.warns(UserWarning, match="goes on without a CUDA graph"):
        step, history = train(images, model=Net(sync=True), device="cuda")
    assert len(history.rows) == 60
    assert torch.randn(3, device="cuda").isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(images, device="cuda", capture=True)


class Brightness(nn.Module):
    "A loss without noise."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, x, y=None, *, it=None):
        rec = self.scale * x.flatten(1).sum(1)
        return Loss(rec, rec)


@pytest.mark.parametrize(("n", "batch_size"), [(150, 100), (100, 100), (7, 100), (101, 50), (None, 999), (10**6, 999)])
def test_mean_loss_is_of_the_first_n_images(images, n, batch_size):
    x = images.float()[0][:n]
    assert mean_loss(Brightness(), images, n=n, batch_size=batch_size)["rec"] == pytest.approx(x.flatten(1).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("n", [65, 64, 129, 100])
def test_statistics_are_of_whole_batches(images, n):
    "Whatever is left over: with one image in it batch norm would fail, and every batch weighs the same."
    some = Images(images.x[:n], images.y[:n], levels=images.levels)
    step = Step(Net(), lr=1e-3, ema=0.9, device="cpu")
    fit(step, Batches(some, 64), 3, progress=False)
    model = step.eval_model(Batches(some, 64))
    assert model.net[2].num_batches_tracked == n // 64 and (model.net[2].running_var != 1).all()
