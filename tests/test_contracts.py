"""What a new family has to write: three models of less than 40 lines, each trained, exported, loaded, sampled and measured like any other.

A prior over codes, a model of two stages, and a model whose `sample` has settings of its own."""

import inspect
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genbook import datasets, from_pretrained
from genbook.core import GenbookError
from genbook.data import Batches, Codes, DataSet, Images
from genbook.lab import zoo
from genbook.lab.pretrained import export
from genbook.lab.runs import Run
from genbook.lab.training import Training
from genbook.lab.zoo import create_model, register_model
from genbook.measure.distances import label_accuracy
from genbook.measure.judge import classifier
from genbook.measure.likelihood import evaluate
from genbook.measure.protocol import protocol
from genbook.steps import Step, parts_of
from genbook.train import fit, mean_loss


class Loss(NamedTuple):
    total: Tensor  # (b,)


class Prior(nn.Module):
    "Codes in the order of reading, each given the ones before it by a masked linear layer."

    def __init__(self, image_shape, *, levels=4):
        super().__init__()
        self.image_shape, self.levels, self.n = tuple(image_shape), levels, image_shape[0] * image_shape[1]
        self.weight = nn.Parameter(torch.zeros(self.n, levels, self.n, levels))  # (to, code, from, code)
        self.bias = nn.Parameter(torch.zeros(self.n, levels))
        self.register_buffer("before", torch.ones(self.n, self.n).tril(-1)[:, None, :, None])

    def logits(self, x):  # codes (b, h, w) -> (b, n, levels)
        one_hot = F.one_hot(x.flatten(1), self.levels).to(self.bias.dtype)
        return torch.einsum("icjd,bjd->bic", self.weight * self.before, one_hot) + self.bias

    def log_prob(self, x):  # exact, nats (b,)
        chosen = self.logits(x).log_softmax(-1).gather(-1, x.flatten(1)[..., None])
        return chosen.flatten(1).sum(1)

    def loss(self, x, y=None, *, it=None):
        return Loss(-self.log_prob(x))

    @torch.no_grad()
    def sample(self, n, y=None, *, temperature=1.0, generator=None):
        x = torch.zeros(n, self.n, dtype=torch.int64, device=self.bias.device)
        for i in range(self.n):
            p = (self.logits(x)[:, i] / temperature).softmax(-1)
            x[:, i] = torch.multinomial(p, 1, generator=generator)[:, 0]
        return x.unflatten(1, self.image_shape)


class Codec(nn.Module):
    "An autoencoder whose code is a grid of four levels; the gradient goes straight through the rounding."

    def __init__(self, image_shape, width):
        super().__init__()
        self.image_shape, dims = image_shape, image_shape[1] * image_shape[2]
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(dims, width), nn.ReLU(), nn.Linear(width, 16), nn.Sigmoid())
        self.decoder = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, dims), nn.Sigmoid())

    def encode(self, x):  # (b, 1, h, w) -> codes (b, 4, 4)
        return (3 * self.encoder(x)).round().long().unflatten(1, (4, 4))

    def decode(self, codes):
        return self.decoder(codes.flatten(1) / 3).unflatten(1, self.image_shape)

    def loss(self, x, y=None, *, it=None):
        z = self.encoder(x)
        rounded = z + ((3 * z).round() / 3 - z).detach()
        return Loss((self.decoder(rounded) - x.flatten(1)).square().sum(1))


class TwoStages(nn.Module):
    "A codec, and then a prior of its codes."

    stages = ("codec", "prior")

    def __init__(self, image_shape, *, levels=256, width=64):
        super().__init__()
        self.image_shape, self.levels = tuple(image_shape), levels
        self.codec, self.prior = Codec(self.image_shape, width), Prior((4, 4), levels=4)

    def stage(self, name, images):  # what is trained, and on what
        if name == "codec":
            return self.codec, images
        with torch.no_grad():
            return self.prior, Codes(self.codec.encode(images.float()[0]), images.y, levels=4)

    def sample(self, n, y=None, **how):
        return self.codec.decode(self.prior.sample(n, **how))


class FlowMatching(nn.Module):
    "A straight path from noise to an image of a class: the velocity is learnt, and followed in steps, with guidance towards the class."

    def __init__(self, image_shape, *, levels=256, classes=10, width=128):
        super().__init__()
        self.image_shape, self.levels, self.classes, dims = tuple(image_shape), levels, classes, image_shape[1] * image_shape[2]
        self.label = nn.Embedding(classes + 1, width)  # the last one: no class
        self.inward, self.outward = (
            nn.Linear(dims + 1, width),
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dims)),
        )

    def velocity(self, x, t, y):
        return self.outward(self.inward(torch.cat([x, t], 1)) + self.label(y))

    def loss(self, x, y=None, *, it=None):
        x1, x0, t = 2 * x.flatten(1) - 1, torch.randn_like(x.flatten(1)), torch.rand_like(x[:, 0, 0, :1])
        none = torch.full((len(x),), self.classes, device=x.device)
        y = none if y is None else torch.where(torch.rand(len(x), device=x.device) < 0.1, none, y)
        return Loss((self.velocity(x0 + t * (x1 - x0), t, y) - (x1 - x0)).square().sum(1))

    @torch.no_grad()
    def sample(self, n, y=None, *, steps=16, guidance=1.0, generator=None):
        x = torch.randn(n, self.image_shape[1] * self.image_shape[2], generator=generator)
        none = torch.full((n,), self.classes)
        y = torch.randint(self.classes, (n,), generator=generator) if y is None else torch.as_tensor(y).expand(n)
        for i in range(steps):
            t = torch.full((n, 1), i / steps)
            plain = self.velocity(x, t, none)
            x = x + (plain + guidance * (self.velocity(x, t, y) - plain)) / steps
        return (x / 2 + 0.5).clamp(0, 1).unflatten(1, self.image_shape)


@pytest.fixture(autouse=True)
def registered(monkeypatch, tmp_path):
    "The three models are in the zoo while a test runs; what is slow is kept in a folder of its own."
    monkeypatch.setattr(zoo, "_registered", {})
    for cls in (Prior, TwoStages, FlowMatching):
        register_model(cls)
    monkeypatch.setenv("GENBOOK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def shades(digits):
    "The digits in four shades, four by four, as codes."
    shade = lambda s: Codes((s.x[:, 0, ::2, ::2].long() * 3 + 8) // 16, s.y, levels=4)
    return DataSet("shades", 4, digits.classes, (4, 4), *map(shade, digits.splits.values()))


@pytest.mark.parametrize("cls", [Prior, Codec, TwoStages, FlowMatching])
def test_a_family_is_short(cls):
    assert len(inspect.getsource(cls).splitlines()) < 40


def there_and_back(folder, model, name, source=None, **how):
    "The model that comes back from an export; samples and weights are those of the model."
    made = export(source or model, folder, **({} if source else {"name": name}))
    assert f"import {type(model).__module__}" in (made / "README.md").read_text()
    twin = from_pretrained(made)
    assert type(twin) is type(model) and twin.state_dict().keys() == model.state_dict().keys()
    a, b = (m.sample(5, generator=torch.Generator().manual_seed(0), **how) for m in (model, twin))
    assert torch.equal(a, b) and len(a.unique(dim=0)) > 1
    return twin


def plain_fit(model, images, steps, lr):
    "Trained by `fit` alone, in evaluation mode."
    step = Step(model, lr=lr, device="cpu")
    history = fit(step, Batches(images, 64), steps, log_every=10, progress=False).column("train/total")[1]
    assert sum(history[-3:]) < 0.9 * sum(history[:3])
    return step.eval_model()


def test_a_prior_over_codes(shades, tmp_path):
    untrained = create_model("Prior", (4, 4), levels=4)
    model = there_and_back(tmp_path / "prior", plain_fit(create_model("Prior", (4, 4), levels=4), shades.train, 200, 0.02), "Prior")
    bits = [evaluate(m, shades.test)["bits_per_dim"] for m in (untrained, model)]
    assert bits[0].value == pytest.approx(2.0) and bits[1].value < 1.2 and bits[1].estimator == "exact"
    every = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 2, 2)
    small = create_model("Prior", (2, 2), levels=2)
    with torch.no_grad():
        small.weight.normal_(), small.bias.normal_()
        assert small.log_prob(every).exp().sum().item() == pytest.approx(1.0, abs=1e-5)  # it is a probability
    samples, found = protocol(model, shades, n=180, draws=2, device="cpu", temperature=0.9)
    _, worse = protocol(untrained, shades, n=180, draws=2, device="cpu")
    assert samples.shape == (180, 4, 4) and samples.dtype == torch.int64 and 0 <= samples.min() and samples.max() <= 3
    assert found["frechet_classifier"].value < 0.5 * worse["frechet_classifier"].value and not found["copies"].value > 0.3


def test_a_model_of_two_stages(digits, tmp_path):
    "By `Training`, which gives each stage its own data, and keeps one model in the run."
    how = {"steps": 300, "batch_size": 64, "lr": 3e-3, "every": 100, "prior": {"steps": 200, "lr": 0.02}}
    run = Run(tmp_path / "run")
    made = Training("TwoStages", "digits", train_args=how, seed=1, device="cpu", data=digits)
    untrained = create_model("TwoStages", (1, 8, 8), levels=17).eval()
    made.fit(run, progress=False)
    model, x = made.model, digits.test.float()[0]
    assert list(made.histories) == ["main", "prior"] and len(made.histories["prior"].rows) > 5
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    errors = [(m.codec.decode(m.codec.encode(x)) - x).square().mean().item() for m in (untrained, model)]
    assert errors[1] < 0.5 * errors[0]
    codes = Codes(model.codec.encode(x), levels=4)
    assert evaluate(model.prior, codes)["bits_per_dim"].value < 0.8 * evaluate(untrained.prior, codes)["bits_per_dim"].value
    run.finish()
    twin = there_and_back(tmp_path / "two", model, "TwoStages", source=run.dir)
    samples, found = protocol(twin, digits, n=180, draws=2, device="cpu")
    _, worse = protocol(untrained, digits, n=180, draws=2, device="cpu")
    assert samples.shape == (180, 1, 8, 8)
    assert found["frechet_classifier"].value < 0.5 * worse["frechet_classifier"].value


def test_a_model_whose_sampler_has_settings(digits, tmp_path):
    torch.manual_seed(0)
    untrained = create_model("FlowMatching", (1, 8, 8), levels=17).eval()
    trained = plain_fit(create_model("FlowMatching", (1, 8, 8), levels=17), digits.train, 400, 3e-3)
    assert mean_loss(trained, digits.valid)["total"] < 0.5 * mean_loss(untrained, digits.valid)["total"]
    model = there_and_back(tmp_path / "flow", trained, "FlowMatching", steps=4, guidance=2.0)
    measured = lambda model, **how: protocol(model, digits, n=180, draws=2, device="cpu", **how)
    samples, found = measured(model, steps=20)
    coarse, _ = measured(model, steps=1)
    assert samples.shape == (180, 1, 8, 8) and not torch.equal(samples, coarse)
    assert found["frechet_classifier"].value < 0.5 * measured(untrained, steps=20)[1]["frechet_classifier"].value
    y, judge = digits.test.y[:180], classifier(digits, device="cpu")
    right = {
        g: label_accuracy(model.sample(180, y, generator=torch.Generator().manual_seed(0), guidance=g), y, judge).value for g in (0.0, 2.0)
    }
    assert right[0.0] < 0.3 < 0.8 < right[2.0], right
    with pytest.raises(TypeError, match="guidence"):
        measured(model, guidence=2.0)


def test_codes_that_are_none_get_one_line():
    with pytest.raises(GenbookError, match="x: codes from 0 to 4; allowed with 4 levels: 0 to 3"):
        Codes(torch.arange(5).view(5, 1, 1), levels=4)
    with pytest.raises(GenbookError, match=r"x: int64 \(n, h, w\)"):
        Codes(torch.zeros(5, 1, 1), levels=4)
    with pytest.raises(GenbookError, match="x: uint8"):
        Images(torch.zeros(5, 1, 8, 8, dtype=torch.int64), torch.zeros(5))


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_model_that_is_called_gives_the_terms_of_its_loss(family, digits):
    "`model(x, y)` means the same for all: what `loss` gives; of two players both, by the name of the part; of stages the first."
    build, known = next(entry for name, entry in zoo.entries().items() if entry.build.__module__ == zoo.FAMILIES[family][0])
    model = build((1, 8, 8), levels=17, **known)
    x, y = digits.train.float(slice(0, 8))
    if hasattr(model, "adapt"):
        model.adapt(x)
    torch.manual_seed(1)
    got = model(x, y)
    torch.manual_seed(1)
    trained = getattr(model, model.stages[0]) if hasattr(model, "stages") and not hasattr(model, "loss") else model
    wanted = {part: getattr(trained, loss)(x, y) for part, (_, loss) in parts_of(trained).items()}
    assert set(got) == set(wanted) if len(wanted) > 1 else type(got) is type(wanted["model"])
    for terms, again in zip(got.values() if len(wanted) > 1 else [got], wanted.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(terms, again, strict=True)) and terms.total.shape == (8,)
    if len(wanted) == 1:
        got.total.mean().backward()
        assert any(p.grad is not None and p.grad.any() for p in model.parameters())
