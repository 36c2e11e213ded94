"Bounds of mutual information and of the divergence of the aggregate posterior, where the truth is known."

import math

import pytest
import torch

from genbook.measure.likelihood import evaluate, information
from genbook.ppca import PPCA
from genbook.prob import DiagonalNormal, StandardNormal, normal_log_prob


def codes(n, d, std, seed=0, modes=0.0, wide=1.0):
    """Posteriors of n images with this deviation, whose aggregate is known: in the first two dimensions two modes at +-`modes` of variance
    one, in the third a variance of `wide`^2, in the others the prior."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.ones(d, dtype=torch.float64)
    if d > 2:
        spread[2] = wide
    mu = torch.randn(n, d, generator=g, dtype=torch.float64) * (spread**2 - std**2).sqrt()
    mu[:, :2] += modes * (2 * torch.randint(0, 2, (n, 2), generator=g) - 1)
    return DiagonalNormal(mu, torch.full_like(mu, 2 * math.log(std)))


def truth(d, std, modes=0.0, wide=1.0):
    "Divergence of that aggregate from the prior, by quadrature over each dimension, and the information."
    t = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    log_p, area = normal_log_prob(t[:, None], torch.zeros(1), torch.zeros(1)), 24 / 20_000
    sides = torch.stack([normal_log_prob(t[:, None] - side * modes, torch.zeros(1), torch.zeros(1)) for side in (-1, 1)])
    two = sides.logsumexp(0) - math.log(2)
    kl = 2 * ((two.exp() * (two - log_p)).sum() * area).item() + (d > 2) * (0.5 * (wide**2 - 1) - math.log(wide))
    entropy = -2 * ((two.exp() * two).sum() * area).item() + (d - 2) * 0.5 * math.log(2 * math.pi * math.e) + (d > 2) * math.log(wide)
    return kl, entropy - d * (0.5 * math.log(2 * math.pi * math.e) + math.log(std))


def error(t):
    return t.std().item() / len(t) ** 0.5


def measured(q, seed=1000):
    d = q.mu.shape[1]
    return information(q, StandardNormal(d), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [360, 2000])
@pytest.mark.parametrize("d", [2, 16, 40])
def test_a_perfect_aggregate_posterior(d, n):
    "Its divergence is 0, whatever the code costs: the lower bound says so, the upper one is capped and says that it is."
    parts, (kl, known) = measured(codes(n, d, 0.1)), truth(d, 0.1)
    assert kl == pytest.approx(0, abs=1e-6) and known == pytest.approx(-d * math.log(0.1), abs=1e-6)
    assert 0 <= parts.kl_lower.mean() < 3 * error(parts.kl_lower) + 0.02
    assert abs(parts.upper.mean() - known) < 4 * error(parts.upper) + 0.02
    assert parts.lower.mean() <= math.log(n) + 1e-9 and parts.kl_upper.mean() > 0
    said = parts.metrics()
    capped = known > math.log(n) - 1 + 0.2
    assert [name for name, m in said.items() if "capped" in m.estimator] == (["mutual_information", "aggregate_kl"] if capped else [])
    if d > 2:  # what was reported as the divergence before
        assert parts.kl_upper.mean() > 0.8 * (known - math.log(n))


@pytest.mark.parametrize("d", [2, 16, 40])
@pytest.mark.parametrize(("modes", "wide"), [(2.0, 1.0), (4.0, 1.0), (3.0, 2.5)])
def test_a_mixture_lies_between_the_bounds(d, modes, wide):
    kl, known = truth(d, 0.3, modes, wide)
    parts = measured(codes(1500, d, 0.3, modes=modes, wide=wide))
    assert parts.kl_lower.mean() - 4 * error(parts.kl_lower) < kl < parts.kl_upper.mean() + 4 * error(parts.kl_upper)
    assert parts.lower.mean() - 4 * error(parts.lower) < known < parts.upper.mean() + 4 * error(parts.upper)
    assert parts.kl_lower.mean() > kl - 2.2  # a normal distribution misses that there are modes, the other codes that they are few
    torch.testing.assert_close(parts.lower + parts.kl_upper, parts.upper + parts.kl_lower)


def test_few_dimensions_are_decided():
    "Where the mixture of the other codes is a good density, both bounds are near the truth, which no normal distribution reaches."
    kl, known = truth(2, 0.3, 4.0)
    parts = measured(codes(4000, 2, 0.3, modes=4.0))
    assert abs(parts.kl_lower.mean() - kl) < 0.1 and abs(parts.upper.mean() - known) < 0.1
    assert "capped" not in parts.metrics()["mutual_information"].estimator and known < math.log(4000) - 1


@pytest.mark.parametrize("d", [2, 16])
def test_the_bounds_are_bounds_on_average(d):
    "Over many sets of few images, in the mean of each: no luck of one seed."
    kl, known = truth(d, 0.5, 1.5)
    found = [measured(codes(40, d, 0.5, seed=s, modes=1.5), 1000 + s) for s in range(40)]
    means = {name: torch.stack([getattr(p, name).mean() for p in found]) for name in found[0]._fields}
    assert means["lower"].mean() < known + 3 * error(means["lower"]) and means["upper"].mean() > known - 3 * error(means["upper"])
    assert means["kl_lower"].mean() < kl + 3 * error(means["kl_lower"]) and means["kl_upper"].mean() > kl - 3 * error(means["kl_upper"])


def test_the_mixtures_by_definition():
    "Every code under every posterior, with and without its own image, whatever the chunk."
    q = codes(7, 3, 0.4)
    parts = [information(q, StandardNormal(3), torch.Generator().manual_seed(0), chunk=c) for c in (1, 3, 1000)]
    z, logq = q.rsample_and_log_prob(torch.Generator().manual_seed(0))
    each = torch.stack([DiagonalNormal(m, v).log_prob(z) for m, v in zip(q.mu, q.logvar, strict=True)], 1)
    for p in parts:
        torch.testing.assert_close(p.lower, logq - (each.logsumexp(1) - math.log(7)))
    others = torch.stack([each[i][torch.arange(7) != i].logsumexp(0) - math.log(6) for i in range(7)])
    best = max(others, StandardNormal(3).log_prob(z), key=lambda t: t.mean())
    torch.testing.assert_close(parts[1].upper, logq - best)


def test_evaluate_measures_against_the_prior_of_the_model():
    "A prior that is the aggregate posterior, and not a standard normal: the divergence is 0."

    class Wide(StandardNormal):
        def log_prob(self, z):
            return normal_log_prob(z, torch.zeros_like(z), torch.full_like(z, 2 * math.log(3.0)))

    class Model(PPCA):
        def posterior(self, x):
            mu = 3 * math.sqrt(1 - 0.01) * torch.randn(len(x), 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            return DiagonalNormal(mu, torch.full_like(mu, 2 * math.log(0.3)))

    model = Model()
    model.prior = Wide(3)
    found = evaluate(model, PPCA().sample(100, torch.Generator().manual_seed(0)), k=2)
    assert 0 <= found["aggregate_kl__lower"].value < 0.2
    assert {"mutual_information__upper", "aggregate_kl"} <= found.keys()
