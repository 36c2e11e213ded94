"""The same numbers as other people's code, of equal weights or inputs.

`pip install genbook[peers]`, then `pytest -m slow tests/test_peers.py`; what is not installed is skipped."""

import pytest
import torch

from genbook.bijections import AffineCoupling, randomise, spline, spline_inverse, spline_knots
from genbook.measure.distances import density_coverage, frechet_distance, mmd, precision_recall
from genbook.models.flows import planar, planar_u, radial

pytestmark = pytest.mark.slow


def sets(n=120, m=140, f=12):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, f, generator=g).double(), 1.2 * torch.randn(m, f, generator=g).double() + 0.3


def test_prdc():
    "Precision, recall, density and coverage of Naeem et al., whose neighbours are counted as ours are."
    prdc = pytest.importorskip("prdc")
    a, b = sets()
    for k in (3, 5):
        theirs = prdc.compute_prdc(b.numpy(), a.numpy(), nearest_k=k)
        ours = [*precision_recall(a, b, k=k), *density_coverage(a, b, k=k)]
        wanted = [theirs[name] for name in ("precision", "recall", "density", "coverage")]
        assert [m.value for m in ours] == pytest.approx(wanted, abs=1e-12)


def test_torch_fidelity():
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kernel_mmd

    a, b = sets(2000, 2000, 64)
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-9)
    assert mmd(a[:500], b[:500]).item() == pytest.approx(kernel_mmd(a[:500].numpy(), b[:500].numpy()), rel=1e-9)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs.detach().to(ours.dtype), rtol=1e-9, atol=1e-10)


def points(n, d, seed=1):
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_planar_of_normflows(seed):
    "Equal ridges: their constraint is a softplus and ours an exponential linear unit, so the raw u are made to give the same."
    nf = pytest.importorskip("normflows")
    x, (u, w), b = points(50, 3), points(2, 3, seed), points(1, 1, seed + 9)[0]
    fixed, slope = planar_u(u, w)
    raw = fixed + (torch.log(torch.expm1(slope + 1)) - slope) / (w**2).sum() * w
    theirs = nf.flows.Planar((3,), u=raw[None], w=w[None], b=b)(x)
    for a, other in zip(planar(x, u, w, b[0]), theirs, strict=True):
        close(a, other)


@pytest.mark.parametrize("seed", range(5))
def test_radial_of_normflows(seed):
    nf = pytest.importorskip("normflows")
    x, centre, (alpha, beta) = points(50, 4), points(1, 4, seed), points(2, 1, seed + 9)[:, 0]
    peer = nf.flows.Radial((4,), z_0=centre).double()
    with torch.no_grad():
        peer.alpha.copy_(alpha), peer.beta.copy_(beta)
    strength = torch.nn.functional.softplus(beta) - alpha.abs()
    for a, other in zip(radial(x, centre, alpha.abs(), strength), peer(x), strict=True):
        close(a, other)


def test_affine_coupling_of_normflows():
    "The network of ours as theirs: there and back, and both log-determinants."
    nf = pytest.importorskip("normflows")
    ours, x = randomise(AffineCoupling(6, width=16)).double(), points(40, 6)

    def numbers(kept):  # shift and log-scale, alternating
        s, t = ours._scale_and_shift(ours.net(kept).unflatten(-1, (-1, 2)))
        return torch.stack([t, s], -1).flatten(1)

    class Map(torch.nn.Module):
        def forward(self, kept):
            return numbers(kept)

    peer = nf.flows.AffineCoupling(Map())
    with torch.no_grad():
        for a, b in ((ours, peer), (ours.inverse, peer.inverse)):
            (y, ldj), (theirs, log_det) = a(x), b([x[:, :3], x[:, 3:]])
            close(y, torch.cat(theirs, 1)), close(ldj, log_det)


def test_spline_of_zuko():
    "Equal knots: values, inverses and slopes inside and outside of the box."
    zuko = pytest.importorskip("zuko")
    theta = points(200, 23)
    x = torch.linspace(-6, 6, 200, dtype=torch.float64)
    peer = zuko.transforms.MonotonicRQSTransform(theta[:, :8], theta[:, 8:16], theta[:, 16:], bound=5.0)
    peer.horizontal, peer.vertical, peer.derivatives = spline_knots(theta, 5.0)
    y, slope = spline(x, theta)
    theirs = peer.call_and_ladj(x)
    close(y, theirs[0]), close(slope, theirs[1])
    close(spline_inverse(y, theta)[0], peer.inv(y))


def test_density_of_a_coupling_flow_of_zuko():
    "A chain of our couplings by hand, and the density that zuko makes of the same transforms."
    zuko = pytest.importorskip("zuko")
    couplings, x = [randomise(AffineCoupling(2, width=8, depth=1)).double() for _ in range(3)], points(60, 2)
    z, ldj = x, 0.0
    with torch.no_grad():
        for layer in couplings:
            (z, part) = layer(z)
            ldj = ldj + part
        normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).double(), 1.0), 1)
        peer = zuko.distributions.NormalizingFlow(zuko.transforms.ComposedTransform(*map(_zuko_coupling, couplings)), normal)
        close(normal.log_prob(z) + ldj, peer.log_prob(x))


def _zuko_coupling(layer):
    "zuko's coupling of two numbers, whose transform of the second has the shift and scale of ours."
    import zuko

    def given(kept):
        s, t = layer._scale_and_shift(layer.net(kept).unflatten(-1, (-1, 2)))
        affine = zuko.transforms.MonotonicAffineTransform(t, s)
        affine.log_scale = s  # theirs is bounded in another way
        affine.scale = s.exp()
        return zuko.transforms.DependentTransform(affine, 1)

    return zuko.transforms.CouplingTransform(given, torch.tensor([True, False]))
