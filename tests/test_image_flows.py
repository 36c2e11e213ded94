"Both families with a likelihood by flows of images: training is deterministic and stays finite."

import math
from itertools import product

import pytest
import torch

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
