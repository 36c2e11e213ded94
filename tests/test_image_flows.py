"Both families with a likelihood by flows of images: training is deterministic and stays finite."

import math
from itertools import product

import pytest
import torch

from genbook import image_flows
from genbook.datasets import load
from genbook.models import fvae, realnvp
from genbook.steps import Step

SMALL = {
    realnvp.RealNVP: {"couplings": (2, 2, 2), "width": 8, "depth": 1, "noise_couplings": 2, "noise_width": 4},
    fvae.FVAE: fvae.CONFIGS["digits"] | {"width": 8, "kl": "linear", "kl_args": {"steps": 20}},
}
SWITCHES = {"actnorm": True, "mix": True, "coupling": "logistics", "base": "learned"}
FAMILIES = pytest.mark.parametrize("family", SMALL)


def train(family, lr, seed=0, steps=12, **change):
    "(losses, trained model)."
    torch.manual_seed(seed)
    x = load("digits").train.float()[0]
    model = family((1, 8, 8), levels=17, **(SMALL[family] | change))
    model.adapt(x[:128])
    step = Step(model, lr=lr, clip=1.0, device="cpu")
    return [step(x[64 * (i % 19) : 64 * (i % 19) + 64])["total"].item() for i in range(steps)], model


def is_finite(*args, **change):
    losses, model = train(*args, **change)
    return all(map(math.isfinite, losses)) and all(p.isfinite().all() for p in model.parameters())


@FAMILIES
def test_training_is_deterministic_and_helps(family):
    (a, model), (b, other) = train(family, 5e-3), train(family, 5e-3)
    assert a == b and all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert a != train(family, 5e-3, seed=1)[0] and a[-1] < a[0] - 64


@FAMILIES
def test_no_nan_quickly(family):
    assert is_finite(family, 3e-3, 0, 8) and is_finite(family, 3e-3, 1, 8, **SWITCHES)


def test_no_nan_with_free_bits():
    assert is_finite(fvae.FVAE, 3e-3, 1, 8, **SWITCHES, free_bits=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@FAMILIES
def test_no_nan(family, seed):
    for lr, change in product([1e-4, 3e-3], [{}, SWITCHES]):
        assert is_finite(family, lr, seed, 40, **change)


def mixtures(dtype, spread, n=4000, components=5):
    "Log-weights, means and log-scales of random mixtures, and logits: the wider the spread, the flatter between the modes."
    g = torch.Generator().manual_seed(0)
    weights, means, scales = spread * torch.randn(3, n, components, generator=g, dtype=torch.float64)
    logit = 2 * torch.randn(n, generator=g, dtype=torch.float64)
    return [t.to(dtype) for t in (logit, weights.log_softmax(-1), means, 5 * (scales / 5).tanh())]


@pytest.mark.parametrize(("spread", "most"), [(0.3, 8), (1.0, 20), (3.0, 45)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_quantile_of_a_mixture_is_exact_and_quickly_found(dtype, spread, most, monkeypatch):
    "Its logit is the one that was asked for, up to the rounding of x and of the logit itself, in few steps."
    logit, *components = mixtures(dtype, spread)
    parts, calls = image_flows.mixture_parts, []
    monkeypatch.setattr(image_flows, "mixture_parts", lambda *args: calls.append(1) or parts(*args))
    x = image_flows.mixture_quantile(logit, *components, -1)
    log_f, log_rest, log_density = parts(x.double(), *(t.double() for t in components), -1)
    slope = (log_density - log_f - log_rest).exp()
    allowed = 8 * torch.finfo(dtype).eps * (1 + logit.double().abs() + x.double().abs() * slope)
    assert len(calls) <= most
    assert ((log_f - log_rest - logit).abs() <= allowed).double().mean() > 0.999  # the others are on edges of plateaus
    quantiles = components[1] + components[2].exp() * logit[:, None]
    assert (x >= quantiles.amin(1)).all() and (x <= quantiles.amax(1)).all()
