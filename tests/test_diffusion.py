"""What a diffusion model refuses, in one line each, and what its chapter cannot check."""

import math

import pytest
import torch

from genbook.bijections import randomise
from genbook.core import GenbookError
from genbook.models.diffusion import Diffusion, log_density, variational_bound
from genbook.paths import path
from genbook.samplers import DDIM, Churn, timesteps

SMALL = dict(width=8, depth=1)


@pytest.fixture(scope="module")
def told():
    torch.manual_seed(0)
    return randomise(Diffusion((1, 8, 8), levels=17, conditional=True, classes=3, **SMALL), 0.1).eval()


@pytest.fixture(scope="module")
def free():
    torch.manual_seed(0)
    return randomise(Diffusion((1, 8, 8), levels=17, **SMALL), 0.1).eval()


def refused(call, *words):
    with pytest.raises(GenbookError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and len(text) < 300 and all(w in text for w in words), text


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"steps": 0}, ("steps: 0", "at least 1")),
        ({"steps": -3}, ("steps: -3",)),
        ({"steps": 2.5}, ("steps: 2.5",)),
        ({"guidance": -1.0}, ("guidance: -1.0",)),
        ({"guidance": math.nan}, ("guidance: nan",)),
        ({"sampler": "hein"}, ("sampler: 'hein'", "did you mean 'heun'?")),
        ({"temperature": 0.0}, ("temperature: 0.0",)),
        ({"y": 3}, ("y: labels from 3 to 3", "0 to 2")),
        ({"y": torch.tensor([0, 1, 2])}, ("y:", "shape (3,)")),
        ({"y": torch.tensor([0.5, 1.0])}, ("y: torch.float32",)),
        ({"y": True}, ("y: torch.bool",)),
    ],
)
def test_a_mistake_in_sampling_gets_one_line(told, how, words):
    refused(lambda: told.sample(2, **how), *words)


def test_guidance_needs_labels(told, free):
    refused(lambda: free.sample(2, guidance=1.0), "guidance: 1.0", "trained without labels")
    refused(lambda: free.sample(2, 1), "not conditional")
    kept = Diffusion((1, 8, 8), conditional=True, dropped=0.0, **SMALL)
    refused(lambda: kept.sample(2, guidance=1.0), "guidance: 1.0", "dropped=0")
    assert free.sample(2, guidance=1.0, guide=lambda x: x.flatten(1).sum(1), steps=2).isfinite().all()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"path": "cosin"}, ("path: 'cosin'", "did you mean 'cosine'?")),
        ({"path_args": {"low": -1.0}}, ("low: -1.0",)),
        ({"predict": "nois"}, ("predict: 'nois'", "did you mean 'noise'?")),
        ({"net": "unit"}, ("net: 'unit'", "did you mean 'unet'?")),
        ({"dropped": 1.0}, ("dropped: 1.0",)),
        ({"spread": 0.0}, ("spread: 0.0",)),
        ({"levels": 1}, ("levels: 1",)),
        ({"depth": 0}, ("depth: 0",)),
    ],
)
def test_a_mistake_in_building_gets_one_line(how, words):
    refused(lambda: Diffusion((1, 8, 8), **(SMALL | how)), *words)


def test_likelihood_refuses_counts_below_one(told):
    x = torch.zeros(2, 1, 8, 8)
    refused(lambda: told.log_prob(x, steps=0), "steps: 0")
    refused(lambda: told.log_prob(x, k=0), "k: 0")
    refused(lambda: told.bound(x, k=0), "k: 0")
    refused(lambda: told.log_prob(x, 7), "y: labels from 7 to 7")


def test_labels_are_dropped_in_training_alone(told):
    y = torch.zeros(10_000, dtype=torch.int64)
    assert told.some(y).equal(y)
    told.train()
    try:
        share = (told.some(y) == told.classes).float().mean().item()
    finally:
        told.eval()
    assert abs(share - 0.1) < 0.02


def test_a_label_for_all_is_that_label_for_each(told):
    x = torch.randint(0, 17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 16
    one, each = (told.log_prob(x, y, k=2, steps=2, generator=torch.Generator().manual_seed(1)) for y in (1, torch.ones(3).long()))
    assert one.equal(each) and not one.equal(told.log_prob(x, 2, k=2, steps=2, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", ["linear", "cosine", "ve", "edm", "straight"])
def test_noise_of_one_gaussian_has_its_likelihood(name):
    "Data N(0, s^2) in three dimensions: density and bound against the closed form; a factor of the field is seen."
    p, s, double = path(name), 0.5, {"dtype": torch.float64}
    z = s * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), **double)

    def denoise(xt, t, factor=1.0):
        alpha, sigma = (v.view(-1, 1) if v.ndim else v for v in (p.alpha(t), p.sigma(t)))
        return factor * alpha * s**2 / (alpha**2 * s**2 + sigma**2) * xt

    start = torch.tensor(p.span[0], **double)
    spread = (p.alpha(start) ** 2 * s**2 + p.sigma(start) ** 2).sqrt()
    exact = torch.distributions.Normal(0.0, spread).log_prob(z).sum(1)
    found = log_density(denoise, p, z[:200], torch.ones_like(z[:200]), 40)  # of a linear field of one factor any signs are exact
    assert (found - exact[:200]).abs().max() < 0.05 and (found - exact[:200]).mean().abs() < 0.01
    wrong = log_density(lambda x, t: denoise(x, t, 0.9), p, z[:200], torch.ones_like(z[:200]), 40)
    assert (wrong - exact[:200]).mean() < -0.5
    u = (torch.arange(4000, **double) + 0.5) / 4000
    source = torch.Generator().manual_seed(2)
    gap = variational_bound(denoise, p, z, u[torch.randperm(4000, generator=source)], source) - exact
    assert gap.mean().abs() < 4 * gap.std() / 4000**0.5


def test_churn_and_eta_change_the_walk_and_keep_its_size(free):
    def drawn(how):
        return free.sample(16, sampler=how, steps=10, generator=torch.Generator().manual_seed(0))

    plain, chance, churned = drawn("heun"), drawn(DDIM(0.5)), drawn(Churn(churn=5.0, steps=10))
    assert not plain.equal(chance) and not plain.equal(churned)
    assert len(timesteps(free.path, 10)) == 11


def test_guidance_grows_in_proportion_and_a_guide_that_says_nothing_changes_nothing(told):
    model, y, t = told.double(), torch.tensor([0, 2]), torch.tensor(0.5).double()
    xt = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        none, one, three = (model.guided(y, w)(xt, t) for w in (0.0, 1.0, 3.0))
        torch.testing.assert_close(none, model.denoise(xt, t, y))
        torch.testing.assert_close(one, 2 * model.denoise(xt, t, y) - model.denoise(xt, t))
        torch.testing.assert_close(three - none, 3 * (one - none))
        assert (one - none).abs().max() > 1e-6
        flat, bright = (model.guided(y, 2.0, guide)(xt, t) for guide in (lambda x: 0 * x.flatten(1).sum(1), lambda x: x.flatten(1).sum(1)))
    torch.testing.assert_close(flat, none)
    assert (bright - none).abs().max() > 1e-6
    told.float()


def test_shapes_of_colour_and_few_levels():
    model = Diffusion((3, 8, 8), levels=5, conditional=True, classes=3, **SMALL)
    x, y = torch.randint(0, 5, (2, 3, 8, 8)) / 4, torch.tensor([0, 2])
    assert [t.shape for t in model.loss(x, y)] == [(2,)] * 2
    assert model.images(model.values(x)).equal(x) and model.values(x).abs().max() <= 1
    assert model.sample(2, steps=2).shape == (2, 3, 8, 8)
    assert model.log_prob(x, steps=2).shape == model.bound(x, y).shape == (2,)
