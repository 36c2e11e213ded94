"What the training notebook cannot check: graph capture on a GPU, precision, compile, averages with batch norm."

import copy
import subprocess
import sys
import warnings
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from genbook import create_model
from genbook.core import GenbookError
from genbook.data import Batches, Images
from genbook.datasets import load
from genbook.history import EarlyStopping
from genbook.lab.runs import Run
from genbook.optim import KL_SCHEDULES, OPTIMIZERS, cosine, make_optimizer
from genbook.steps import Part, Step, Train
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


def test_the_time_of_a_run_is_that_of_all_its_processes(images, tmp_path):
    "Also where several trainings have checkpoints; what follows the last one is lost with its process."

    def process(steps, minutes):
        run = Run(tmp_path / "a")
        run._began -= 60 * minutes  # as if it had begun then
        for name in ("one", "two"):
            torch.manual_seed(0)
            fit(Step(Net(), device="cpu"), Batches(images, 64), steps, name=name, run=run, every=2, progress=False)
        return run.resumed, run.finish()

    first, again = process(4, 10), process(6, 5)  # the lock goes with the first process
    assert again[0] == {"one": 4, "two": 4} and 10 <= first[1]["minutes"] < 11
    assert 15 <= again[1]["minutes"] < 16 and again[1]["cpu_minutes"] > first[1]["cpu_minutes"]


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


# ---- what people give to a training that does not fit


def refused(f, *words):
    "`f` raises `GenbookError` with one line that contains all `words`."
    with pytest.raises(GenbookError) as error:
        f()
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


def vae(**how):
    return create_model("vae_mlp", **{"image_shape": (1, 8, 8), "levels": 17, "width": 8, "zdim": 2} | how)


def go(data, model=None, **how):
    return fit(Step(model or vae(), device="cpu"), data, **{"steps": 2, "progress": False} | how)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: 2 * x - 1, "images: values from -1 to 1; allowed: 0 to 1"),
        (lambda x: 16 * x, "images: values from 0 to 16; allowed: 0 to 1"),
        (lambda x: x * float("nan"), "values from nan to nan"),
        (lambda x: (255 * x).byte(), "torch.uint8"),
        (lambda x: x[..., 1:], "shape (1, 8, 7), but the model was made for (1, 8, 8)"),
        (lambda x: x[:, 0], "shape (8, 8), but the model was made for (1, 8, 8)"),
        (lambda x: x * 0.97, "values between the 17 levels"),
    ],
)
def test_batches_that_hold_no_images_of_the_model(change, words, images):
    x, y = images.float(slice(0, 64))
    model = vae(likelihood="discretized_logistic") if "levels" in words else vae()
    refused(lambda: go(DataLoader(TensorDataset(change(x), y), batch_size=16), model), words)
    refused(lambda: go([change(x)], model), words)


def test_levels_shapes_and_labels_that_differ_from_the_model(images):
    refused(lambda: go(Batches(images, 16), vae(levels=256)), "17 levels, but the model was made for 256")
    refused(lambda: go(Batches(images, 16), vae(image_shape=(1, 16, 16))), "shape (1, 8, 8)", "(1, 16, 16)")
    go(Batches(images, 16), create_model("gan_digits", (1, 8, 8)))  # which has no probability that levels would be of
    x, y = images.float(slice(0, 64))
    model = create_model("cgan_digits", (1, 8, 8), levels=17, classes=5)
    refused(lambda: go(Batches(images, 16), model), "y: labels from 0 to 9", "5 classes: 0 to 4")
    refused(lambda: go([(x, y)], model), "y: labels from 0 to 9")


def test_batches_that_are_none(images):
    x = images.float(slice(0, 64))[0]
    refused(lambda: go(DataLoader(TensorDataset(x[:0]), batch_size=4)), "gives nothing more")
    refused(lambda: go([]), "gives nothing more")
    refused(lambda: go([(x, x, x)]), "a batch of (Tensor, Tensor, Tensor)")
    refused(lambda: go([{"image": x}]), "a batch of (dict, NoneType)")
    refused(lambda: go([x.numpy()]), "a batch of (ndarray, NoneType)")
    refused(lambda: go(Batches(images, 16), steps=0), "steps: 0 is not a whole number of at least 1")
    refused(lambda: go(Batches(images, 16), steps=2.5), "steps: 2.5")
    refused(lambda: go(Batches(images, 16), every=0), "every: 0")
    refused(lambda: go(Batches(images, 16), log_every=-1), "log_every: -1")


def test_steps_that_are_none(images):
    refused(lambda: Step(nn.Linear(2, 2)), "Linear has neither `loss` nor `parts`")
    refused(lambda: fit(nn.Linear(2, 2), Batches(images, 16), 2), "step: Linear is not a Step")
    refused(lambda: Step(Net().requires_grad_(False)), "none of its parameters wants a gradient")
    refused(lambda: Step(Net(), optimizer="adamm"), "optimizer: 'adamm'", "did you mean 'adam")
    for bad in ({"lr": 0}, {"lr": "1e-3"}, {"lr": float("nan")}, {"clip": 0.0}, {"weight_decay": -1}, {"ema": 1.5}, {"betas": (0.9, 1.0)}):
        refused(lambda bad=bad: Step(Net(), device="cpu", **bad), "is not ")
    refused(lambda: Part(Net(), times=0), "times: 0")
    refused(lambda: make_optimizer([], lr=1e-3), "nothing to train")
    for name in ("steps", "batch_size", "k", "every", "patience"):
        for value in (0, -1, 2.5, "9", True):
            refused(lambda name=name, value=value: Train(**{name: value}), f"{name}: {value!r} is not a whole number of at least 1")
    for bad in ({"lr": -1}, {"epochs": 0}, {"warmup": -1}, {"clip": 0}, {"gamma": 0}, {"ema": 0}, {"beta1": 1}, {"critic_lr": 0}):
        refused(lambda bad=bad: Train(**bad), f"{[*bad][0]}: {[*bad.values()][0]} is not")
    assert set(OPTIMIZERS) and Train(epochs=0.5, warmup=0, weight_decay=0).total(10) == 5
    for kind, bad in {
        "linear": {"steps": -1},
        "cyclical": {"period": 0},
        "cosine_cyclical": {"warmup": -1},
        "constant": {"beta": -1},
    }.items():
        refused(lambda kind=kind, bad=bad: KL_SCHEDULES[kind](**bad), f"{[*bad][0]}: {[*bad.values()][0]} is not")


@pytest.mark.parametrize("shape", [28, 28.0, None, "28", (28, 28), (1, 28.0, 28), (1, 0, 28), [[1], 28, 28], (True, 8, 8)])
def test_sizes_that_are_none(shape):
    refused(lambda: vae(image_shape=shape), "image_shape: ", "(channels, height, width)")
    assert vae(image_shape=[1, 8, 8]).image_shape == (1, 8, 8)


def test_the_old_steps_take_what_they_name(images):
    "`LossStep` and `AdversarialStep` are names of a version ago; a GAN in the first is trained by its parts."
    from genbook import train as module

    with pytest.warns(DeprecationWarning):
        loss_step, adversarial = module.LossStep, module.AdversarialStep
    gan = create_model("gan_digits", (1, 8, 8), levels=17)
    fit(loss_step(gan, device="cpu"), Batches(images, 16), 2, progress=False)
    refused(lambda: adversarial(vae(), device="cpu"), "parts: 'critic' is not one of model")


# ---- what a training says


def test_nothing_to_watch_is_said_before_the_training(images):
    refused(lambda: go(Batches(images, 16), stop=EarlyStopping()), "watches 'valid/total', but there is no validation")
    refused(lambda: Train(patience=3).step(create_model("gan_digits", (1, 8, 8)), 10, "cpu"), "patience: 3", "no loss to watch")
    Train(patience=3).step(vae(), 10, "cpu")


def test_schedules_that_end_after_the_training_are_said(images):
    with pytest.warns(UserWarning, match="weight of the KL divergence is still rising at the last of 6 steps: 0.0025 of 1"):
        go(Batches(images, 16), vae(kl="linear", kl_args={"steps": 2000}), steps=6)
    with pytest.warns(UserWarning, match="learning rate of model is still rising at the last of 6 steps: 0.012 of 1"):
        fit(Step(Net(), schedule=cosine(6, warmup=500), device="cpu"), Batches(images, 16), 6, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(Batches(images, 16), vae(kl="linear", kl_args={"steps": 6}), steps=7)
        go(Batches(images, 16), vae(kl="cyclical", kl_args={"period": 4}), steps=6)
        step = Train(steps=2000, warmup=500).step(vae(kl="linear", kl_args={"steps": 1000}), 10, "cpu")
        fit(step, Batches(images, 16), 6, progress=False)  # the beginning of a longer one
        step = Train(steps=6, warmup=500).step(vae(), 10, "cpu")  # half of all
        fit(step, Batches(images, 16), 6, progress=False)


def test_averages_get_statistics_from_a_loader(images):
    x, y = images.float(slice(0, 320))
    step = Step(Net(), lr=1e-3, ema=0.9, device="cpu")
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    seen = []
    fit(step, loader, 30, every=10, valid=lambda model: seen.append(model) or {"n": 0.0}, progress=False)
    rng = torch.get_rng_state()
    with torch.no_grad():
        for model in (seen[-1], step.eval_model(loader)):
            h = model.net[1](x.flatten(1))
            assert (model.net[2].running_mean - h.mean(0)).abs().max() < 0.1 * h.std(0).max()
    assert torch.equal(rng, torch.get_rng_state())
    with pytest.warns(UserWarning, match="averaged weights keep the batch-norm statistics"):
        step.eval_model()


def test_validation_with_a_loader_does_not_disturb_training(images):
    def trained(every):
        torch.manual_seed(0)
        step = Step(Net(), lr=1e-3, ema=0.9, device="cpu")
        loader = DataLoader(TensorDataset(*images.float(slice(0, 200))), batch_size=64, shuffle=True)
        fit(step, loader, 20, every=every, valid=lambda model: {"n": 0.0}, progress=False)
        return step.model.net[1].weight

    assert torch.equal(trained(3), trained(20))


def test_the_bar_shows_total_rate_and_time_left(images, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    fit(Step(Net(), device="cpu"), Batches(images, 16), 600, log_every=100, name="small")
    shown = capsys.readouterr().err
    assert "small" in shown and "/600 [" in shown and "it/s" in shown and "<00:" in shown and "loss " in shown


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_step_as_torch_does(name, monkeypatch):
    "The same weights to the last bit, before and after a state is loaded; hooks and closures are called."

    def trained(calls):
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), torch.randn(8, 5)
        optimizer = make_optimizer(net.parameters(), name, lr=0.01, weight_decay=0.1)
        optimizer.register_step_post_hook(lambda *_: calls.append("hook"))

        def closure():
            calls.append("closure")
            optimizer.zero_grad()
            loss = net(x).square().sum()
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
            optimizer.load_state_dict(optimizer.state_dict())
        return torch.cat([p.detach().flatten() for p in net.parameters()]), type(optimizer)

    ours, theirs = [], []
    weights, kind = trained(ours)
    plain = kind.__mro__[1]
    assert plain.__module__.startswith("torch.optim") and plain.__name__ == kind.__name__
    monkeypatch.setitem(OPTIMIZERS, name, plain)
    assert weights.equal(trained(theirs)[0]) and ours == theirs == ["closure", "hook"] * 4


def test_training_does_not_load_the_compiler():
    "`torch._dynamo` takes two seconds to import, which is more than most trainings of a chapter; `torch.optim` loads it at its first step."
    code = """
import sys
from genbook.data import Batches
from genbook.datasets import load
from genbook import create_model
from genbook.optim import OPTIMIZERS
from genbook.steps import Step
from genbook.train import fit
for name in OPTIMIZERS:
    step = Step(create_model("vae_mlp_digits", (1, 8, 8), levels=17), optimizer=name, clip=1.0, ema=0.9, device="cpu")
    fit(step, Batches(load("digits").train, 16), 2, progress=False)
    step.load_state_dict(step.state_dict())
print("torch._dynamo" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stdout + found.stderr
