"RealNVP: the layers of the reports, exactness of the flow in both precisions, gradients, determinism, and the discrete probability."

from itertools import product

import pytest
import torch
from torch import nn

from genbook.bijections import log_det_jacobian
from genbook.core import GenbookError
from genbook.datasets import load
from genbook.image_flows import ActNorm, Conv1x1, ImageCoupling, Squeeze
from genbook.measure.likelihood import bits_per_dim
from genbook.models.realnvp import CONFIGS, RealNVP, flow_bits, multi_scale
from genbook.nn import n_parameters

SWITCHES = {
    "affine": {},
    "actnorm": {"actnorm": True},
    "mix": {"mix": True},
    "logistics": {"coupling": "logistics"},
    "learned": {"learned": True},
    "squash": {"squash": True},
    "all": {"actnorm": True, "mix": True, "coupling": "logistics", "learned": True, "squash": True},
}
SCALES = [(2,), (1, 2), (2, 2, 2), (0, 2, 2)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randomise(module, seed=0):
    "Weights away from the near-identity at the start, which would hide mistakes."
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5 if p.ndim == 4 else 0.1 * torch.randn_like(p))
    return module


def tiny(levels=3, shape=(1, 4, 4), **config):
    return randomise(
        RealNVP(shape, levels=levels, **({"couplings": (2, 1, 1), "width": 4, "depth": 1, "noise_couplings": 2, "noise_width": 4} | config))
    )


def images(shape=(1, 4, 4), levels=3, n=5):
    return torch.randint(levels, (n, *shape), generator=generator()) / (levels - 1)


# ---- the flow


@pytest.mark.parametrize("couplings", SCALES, ids=str)
@pytest.mark.parametrize("name", SWITCHES)
def test_inverse_and_jacobian(name, couplings):
    "To 1e-6 in float64; the log-determinant against the full Jacobian, and minus that of the inverse."
    for c in (1, 2):
        flow = randomise(multi_scale((c, 4, 4), couplings, 4, depth=1, **SWITCHES[name])).double()
        x = torch.randn(2, c, 4, 4, dtype=torch.float64, generator=generator())
        z, ldj = flow(x)
        back, ldj_back = flow.inverse(z)
        assert z.shape == (2, 16 * c) and ldj.shape == (2,) and ldj.abs().min() > 1e-3
        torch.testing.assert_close(back, x, atol=1e-6, rtol=0)
        torch.testing.assert_close(ldj_back, -ldj, atol=1e-6, rtol=0)
        torch.testing.assert_close(log_det_jacobian(flow, x), ldj, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SWITCHES)
def test_inverse_in_single_precision(name):
    "To 1e-4, and the log-determinant to 1e-3 of that in float64."
    flow = randomise(multi_scale((1, 8, 8), (2, 2, 2), 8, depth=2, **SWITCHES[name]))
    x = torch.randn(4, 1, 8, 8, generator=generator())
    z, ldj = flow(x)
    torch.testing.assert_close(flow.inverse(z)[0], x, atol=1e-4, rtol=0)
    torch.testing.assert_close(ldj.double(), flow.double()(x.double())[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", SWITCHES)
def test_log_determinants_are_float32_under_bfloat16(name):
    flow = randomise(multi_scale((1, 8, 8), (2, 2, 2), 8, depth=1, **SWITCHES[name]))
    x = torch.randn(4, 1, 8, 8, generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        z, ldj = flow(x)
        back, _ = flow.inverse(z)
    assert z.dtype == ldj.dtype == back.dtype == torch.float32
    assert not torch.equal(ldj, flow(x)[1])  # the networks did run in bfloat16
    assert (back - x).abs().median() < 0.05


def test_squeeze_keeps_neighbours_together():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert Squeeze()(x)[0][0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert torch.equal(Squeeze().inverse(Squeeze()(x)[0])[0], x)


def test_conditions_of_any_size():
    "A condition reaches every stage, resized, and the flow stays invertible."
    flow = randomise(multi_scale((1, 8, 8), (1, 1, 1), 4, depth=1, cond_channels=2)).double()
    x, cond = (torch.randn(2, c, 8, 8, dtype=torch.float64, generator=generator(c)) for c in (1, 2))
    z, _ = flow(x, cond)
    torch.testing.assert_close(flow.inverse(z, cond)[0], x, atol=1e-8, rtol=0)
    assert not torch.equal(flow(x, cond.flip(0))[0], z)


# ---- the networks of the reports


@pytest.mark.parametrize(
    ("config", "change", "count"), [("uva", {}, 1_711_818), ("single", {}, 628_388), ("single", {"noise": "uniform"}, 556_312)]
)
def test_parameter_counts_of_the_tutorial(config, change, count):
    assert n_parameters(RealNVP((1, 28, 28), **(CONFIGS[config] | change))) == count


@pytest.mark.parametrize(
    ("config", "couplings", "hidden"), [("uva", (2, 2, 4), (32, 48, 64)), ("s1", (4, 4, 4), (32, 48, 64)), ("single", (8,), (32,))]
)
def test_layers_of_the_reports(config, couplings, hidden):
    "S1: 4 couplings of noise, 4 at 28x28x1, squeeze, 4 at 14x14x4, split, squeeze to 7x7x8, 4. UvA: the same with 2, 2 and 4."
    model = RealNVP((1, 28, 28), **CONFIGS[config])
    assert len(model.noise.flow.maps) == 4
    shapes, hooks = {}, []
    for i, stage in enumerate(model.flow.stages):
        for m in stage.maps:
            hooks.append(m.register_forward_hook(lambda m, args, out, i=i: shapes.setdefault(i, []).append((type(m), out[0].shape[1:]))))
    model.loss(images((1, 28, 28), 256, 2))
    for i, (n, size) in enumerate(zip(couplings, [(1, 28, 28), (4, 14, 14), (8, 7, 7)], strict=False)):
        assert shapes[i] == [(Squeeze, size)] * (i > 0) + [(ImageCoupling, size)] * n
    for stage, width in zip(model.flow.stages, hidden, strict=True):
        nets = [m.net for m in stage.maps if isinstance(m, ImageCoupling)]
        assert {net[0].out_channels for net in nets} == {width} and {
            sum(isinstance(x, nn.Conv2d) for x in net.modules()) for net in nets
        } == {8}
        assert all(block.squash == (config == "s1") for net in nets for block in net if hasattr(block, "squash"))


def test_masks_alternate():
    "Each number is transformed by every second coupling: chessboard first, channels after a squeeze."
    for stage in RealNVP((1, 28, 28), **CONFIGS["s1"]).flow.stages:
        masks = [m.mask for m in stage.maps if isinstance(m, ImageCoupling)]
        for a, b in zip(masks, masks[1:], strict=False):
            assert torch.equal(a + b, torch.ones_like(a)) and a.mean() == 0.5


# ---- the model


@pytest.mark.parametrize("noise", ["uniform", "variational"])
@pytest.mark.parametrize("name", ["affine", "all"])
def test_gradient_reaches_every_parameter(name, noise):
    config = {k: v for k, v in SWITCHES[name].items() if k != "learned"} | ({"base": "learned"} if name == "all" else {})
    model = tiny(noise=noise, shape=(1, 8, 8), **config)
    named = dict(model.named_parameters())
    g = torch.autograd.grad(model.loss(images((1, 8, 8), n=16)).total.mean(), list(named.values()), allow_unused=True)
    assert not [n for n, v in zip(named, g, strict=True) if v is None or not v.isfinite().all() or not v.any()]


@pytest.mark.parametrize("noise", ["uniform", "variational"])
def test_probabilities_of_all_images(noise):
    "The weights are unbiased for P(x), so over all 16 images of four binary pixels they sum to one; the bounds sum to less."
    model = tiny(2, (1, 2, 2), couplings=(2, 1), noise=noise).double()
    x = torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64).view(16, 1, 2, 2)
    with torch.no_grad():
        log_w = torch.cat([model.log_weights(x.repeat(250, 1, 1, 1), 1, generator(i)).view(250, 16) for i in range(8)])
    total, se = log_w.exp().mean(0).sum(), (log_w.exp().var(0).sum() / len(log_w)).sqrt()
    assert abs(total - 1) < 4 * se < 0.1
    assert log_w.mean(0).exp().sum() < total - se


def test_log_prob_is_the_loss_and_tightens():
    model, x = tiny(), images()
    with torch.no_grad():
        one = torch.stack([model.log_prob(x, generator=generator(i)) for i in range(200)])
        many = torch.stack([model.log_prob(x, k=16, generator=generator(i)) for i in range(20)])
        terms = model.loss(x.repeat(200, 1, 1, 1))
    loss = -terms.total.view(200, 5)
    error = ((one.var(0) + loss.var(0)) / 200).sqrt()
    assert ((one.mean(0) - loss.mean(0)).abs() < 5 * error).all()
    assert (many.mean(0) > one.mean(0) + 2 * one.std(0) / 200**0.5).all()
    torch.testing.assert_close(terms.bpd, bits_per_dim(-terms.total, 16))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_code_of_an_image_is_exact(levels):
    model, x = tiny(levels, (1, 8, 8)).double(), images((1, 8, 8), levels).double()
    assert model.encode(x).shape == (5, 64)
    torch.testing.assert_close(model.decode(model.encode(x)), x, atol=1e-6, rtol=0)


def test_samples_are_images_of_that_many_levels_and_follow_the_model():
    "Frequencies of all images of two binary pixels against their probabilities."
    model = tiny(2, (1, 1, 2), couplings=(3,))
    x = model.sample(20_000, generator=generator())
    torch.manual_seed(1)
    assert torch.equal(x, model.sample(20_000, generator=generator())) and set(x.unique().tolist()) <= {0.0, 1.0}
    every = torch.tensor(list(product([0.0, 1.0], repeat=2))).view(4, 1, 1, 2)
    with torch.no_grad():
        p = model.log_prob(every, k=4000, generator=generator()).exp()
    share = torch.stack([(x == e).flatten(1).all(1).float().mean() for e in every])
    assert ((share - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt() + 0.01).all() and share.max() - share.min() > 0.02


def test_samples_take_no_labels():
    with pytest.raises(GenbookError, match="not conditional"):
        tiny().sample(2, torch.tensor([1, 2]))


def test_terms_of_the_loss_are_one_an_image():
    model, x = tiny(levels=17, shape=(3, 8, 8)), images((3, 8, 8), 17)
    terms = model.loss(x)
    assert [t.shape for t in terms] == [(5,)] * 3
    same = [model.log_prob(x, k=2, generator=generator()) for _ in range(2)]
    assert torch.equal(*same) and model.sample(2, generator=generator()).shape == (2, 3, 8, 8)


def test_uniform_noise_is_where_variational_noise_starts():
    noise = RealNVP((1, 8, 8), levels=17, **CONFIGS["digits"]).noise
    u, logq = noise(images((1, 8, 8), 17, 200), generator())
    assert logq.abs().max() < 1 and abs(u.mean() - 0.5) < 0.01 and abs(u.std() - 12**-0.5) < 0.01


def test_adapt_normalises_every_layer_and_leaves_nothing_behind():
    model = RealNVP((1, 8, 8), levels=17, **(CONFIGS["wide"] | {"width": 8, "noise_width": 4}))
    norms = [m for m in model.modules() if isinstance(m, ActNorm)]
    x, seen = images((1, 8, 8), 17, 64), []
    torch.manual_seed(0)
    model.adapt(x)
    hooks = [m.register_forward_hook(lambda m, args, out: seen.append(out[0])) for m in norms]
    torch.manual_seed(0)
    model.loss(x)
    assert len(seen) == len(norms) == 16 and [h.remove() for h in hooks]
    for y in seen:
        torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(y.shape[1]), atol=1e-3, rtol=0)
        torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(y.shape[1]), atol=1e-2, rtol=0)
    before = [m.shift.clone() for m in norms]
    model.loss(x.flip(0) * 0.5)
    assert all(torch.equal(a, m.shift) for a, m in zip(before, norms, strict=True))


def test_mixing_starts_as_a_rotation():
    torch.manual_seed(0)
    w = Conv1x1(6).weight()
    torch.testing.assert_close(w @ w.T, torch.eye(6), atol=1e-5, rtol=0)


def test_bits_of_a_data_set():
    "The same images in one batch or several, fewer bits with more draws, and an error for draws that do not divide."
    model, ds = RealNVP((1, 8, 8), levels=17, couplings=(2,), width=4, depth=1), load("digits")
    bits = flow_bits(model, ds.test, (1, 4), n=60)
    assert bits[4].value < bits[1].value and bits[1].n == 60 and bits[4].estimator == "bound, k=4" and bits[1].se > 0
    assert abs(flow_bits(model, ds.test, (1, 4), n=60, batch_size=17)[4].value - bits[4].value) < 0.1
    with torch.no_grad():
        direct = bits_per_dim(model.log_prob(ds.test.float(slice(0, 60))[0], k=4, generator=generator()), 64).mean()
    assert abs(direct - bits[4].value) < 1e-5
    with pytest.raises(GenbookError, match="divisors"):
        flow_bits(model, ds.test, (3, 4), n=5)


# ---- mistakes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise": "unifrom"}, ["noise", "did you mean 'uniform'"]),
        ({"coupling": "afine"}, ["coupling", "did you mean 'affine'"]),
        ({"base": "learnt"}, ["base", "did you mean 'learned'"]),
        ({"levels": 1}, ["levels", "1"]),
        ({"image_shape": (1, 30, 30)}, ["30x30", "4"]),
        ({"couplings": (2, 2), "width": (8, 8, 8)}, ["width", "3"]),
        ({"width": 0}, ["width", "0"]),
    ],
)
def test_mistakes_get_one_line(change, words):
    with pytest.raises(GenbookError) as error:
        RealNVP(**({"image_shape": (1, 8, 8)} | change))
    assert "\n" not in str(error.value) and all(w in str(error.value) for w in words), error.value
