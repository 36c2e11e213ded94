"f-VAE: the layers of its configurations, the flow given a code, bounds over code and noise, the discrete probability, training."

import math
from itertools import product

import pytest
import torch
from torch import nn

from genbook.bijections import log_det_jacobian
from genbook.core import GenbookError
from genbook.image_flows import ImageCoupling, Squeeze
from genbook.measure.likelihood import evaluate, iw_bound_from
from genbook.models.fvae import CONFIGS, FVAE, FlowHead
from genbook.models.realnvp import CONFIGS as FLOWS
from genbook.models.realnvp import RealNVP
from genbook.nn import n_parameters
from genbook.prob import normal_log_cdf

SIZES = {"digits": ((1, 8, 8), 17), "mnist": ((1, 28, 28), 256), "color": ((3, 32, 32), 256)}
NOISES = ["uniform", "variational"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(shape=(1, 4, 4), levels=3, n=5):
    return torch.randint(levels, (n, *shape), generator=generator()) / (levels - 1)


def named(config, **change):
    "A configuration at its own size."
    shape, levels = SIZES[config]
    return FVAE(shape, levels=levels, **(CONFIGS[config] | change))


def tiny(shape=(1, 4, 4), levels=3, scale=0.25, **change):
    "A small model with weights away from the near-identity of the start."
    config = {
        "zdim": 2,
        "tower": "mlp",
        "tower_width": 6,
        "tower_depth": 1,
        "cond_channels": 2,
        "couplings": (2, 1),
        "width": 4,
        "depth": 1,
    }
    model = FVAE(shape, levels=levels, **(config | {"noise_couplings": 2, "noise_width": 4} | change))
    g = generator(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(2 * scale * torch.randn(p.shape, generator=g) / (p[0].numel() if p.ndim > 1 else 4) ** 0.5)
    return model


# ---- the networks


@pytest.mark.parametrize(
    ("config", "stages", "features"),
    [
        ("digits", [(2, (1, 8, 8), 16), (4, (4, 4, 4), 16)], 8),
        ("mnist", [(2, (1, 28, 28), 32), (2, (4, 14, 14), 48), (4, (8, 7, 7), 64)], 16),
        ("color", [(4, (3, 32, 32), 56), (6, (12, 16, 16), 88), (6, (24, 8, 8), 120)], 32),
    ],
)
def test_layers(config, stages, features):
    "Couplings, sizes and widths of every scale; each coupling's network sees its pixels and the features of the code."
    model = named(config)
    shapes, hooks = {}, []
    for i, stage in enumerate(model.head.flow.stages):
        for m in stage.maps:
            hooks.append(m.register_forward_hook(lambda m, args, out, i=i: shapes.setdefault(i, []).append((type(m), out[0].shape[1:]))))
    model.loss(images(*SIZES[config], n=2))
    for i, (n, size, width) in enumerate(stages):
        assert shapes[i].count((ImageCoupling, size)) == n and shapes[i].count((Squeeze, size)) == (i > 0)
        for m in model.head.flow.stages[i].maps:
            if isinstance(m, ImageCoupling):
                assert (m.net[0].in_channels, m.net[0].out_channels) == (size[0] + features, width)
    assert sum(isinstance(m, ImageCoupling) for m in model.head.flow.modules()) == sum(n for n, _, _ in stages)


@pytest.mark.parametrize(("config", "flow"), [("mnist", "uva"), ("color", "wide")])
def test_as_large_as_the_flow_of_chapter_21(config, flow):
    "Within a tenth of the parameters of the RealNVP that it is compared with."
    other = RealNVP(SIZES[config][0], **FLOWS[flow])
    assert abs(n_parameters(named(config)) / n_parameters(other) - 1) < 0.1


def test_towers_are_mirrored():
    model = named("mnist")
    x = images((1, 28, 28), 256, 2)
    assert model.encoder(x).shape == (2, 64 * 7 * 7) and model.decoder(torch.randn(2, 32)).shape == (2, 16, 28, 28)


# ---- the flow, given a code


@pytest.mark.parametrize("config", CONFIGS)
def test_inverse_given_a_code(config):
    "To 1e-6 in float64 and 1e-4 in float32, for each configuration at 8x8 and random codes."
    model = FVAE((1, 8, 8), levels=17, **(CONFIGS[config] | {"width": 8, "noise_width": 4}))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.head.parameters():
            p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5 if p.ndim == 4 else 0.1 * torch.randn_like(p))
    x = torch.randn(4, 1, 8, 8, generator=generator())
    cond = model.decoder(torch.randn(4, model.zdim, generator=generator()))
    z, ldj = model.head.flow(x, cond)
    torch.testing.assert_close(model.head.flow.inverse(z, cond)[0], x, atol=1e-4, rtol=0)
    flow, x, cond = model.head.flow.double(), x.double(), cond.double()
    exact, exact_ldj = flow(x, cond)
    torch.testing.assert_close(flow.inverse(exact, cond)[0], x, atol=1e-6, rtol=0)
    torch.testing.assert_close(ldj.double(), exact_ldj, atol=1e-3, rtol=0)
    assert (flow(x, cond.flip(0))[0] - exact).abs().max() > 1e-3  # the code matters


@pytest.mark.parametrize("scales", [(3,), (0, 3), (2, 2, 1)], ids=str)
def test_log_determinant_given_a_code(scales):
    model = tiny(couplings=scales, scale=0.5).double()
    x, cond = torch.randn(2, 1, 4, 4, generator=generator()).double(), model.likelihood(torch.randn(2, 2).double()).cond
    _, ldj = model.head.flow(x, cond)
    assert ldj.abs().min() > 1e-3
    torch.testing.assert_close(log_det_jacobian(model.head.flow, x, cond), ldj, atol=1e-6, rtol=0)


# ---- likelihood and bounds


def test_a_batch_of_codes_for_a_batch_of_images():
    "log_prob broadcasts over leading dimensions, row by row what single calls give."
    model, x, z = tiny(noise="uniform"), images(), torch.randn(3, 5, 2, generator=generator())
    together = model.likelihood(z, generator()).log_prob(x)
    g = generator()
    apart = torch.stack([model.likelihood(one, g).log_prob(x) for one in z])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=0)
    assert model.likelihood(z).sample(generator()).shape == (3, 5, 1, 4, 4) == model.likelihood(z).middle.shape


def test_exact_where_the_evidence_is_known():
    "All parameters zero: pixels are Gaussian on the logit scale, whatever the code; the weights' mean is its integral, the bounds below."
    model = tiny((1, 2, 2), noise="uniform").double()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    x = images((1, 2, 2)).double()
    edge = lambda level: model.head.logit((level / 3).view(-1, 1, 1, 1))[0].flatten()
    mass = lambda level: normal_log_cdf(edge(level + 1)).exp() - normal_log_cdf(edge(level)).exp()
    exact = mass((2 * x).flatten().round()).view(5, 4).log().sum(1)
    with torch.no_grad():
        w = model.log_weights(x, 4000, generator())
        elbo = model.elbo(x.repeat(400, 1, 1, 1), generator=generator(1)).view(400, 5)
    assert ((w.exp().mean(0) / exact.exp() - 1).abs() < 4 * w.exp().std(0) / exact.exp() / 4000**0.5).all()
    assert (elbo.mean(0) < exact - 2 * elbo.std(0) / 20).all()
    assert ((elbo.mean(0) - w.mean(0)).abs() < 5 * elbo.std(0) / 20).all()


@pytest.mark.parametrize("noise", NOISES)
def test_probabilities_of_all_images(noise):
    "The joint weights are unbiased for P(x), so over all 16 images of four binary pixels they sum to one; the bounds sum to less."
    model = tiny((1, 2, 2), 2, noise=noise).double()
    x = torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64).view(16, 1, 2, 2)
    with torch.no_grad():
        log_w = torch.cat([model.log_weights(x.repeat(250, 1, 1, 1), 1, generator(i)).view(250, 16) for i in range(8)])
    total, se = log_w.exp().mean(0).sum(), (log_w.exp().var(0).sum() / len(log_w)).sqrt()
    assert abs(total - 1) < 4 * se < 0.1
    assert log_w.mean(0).exp().sum() < total - se


@pytest.mark.parametrize("noise", NOISES)
def test_samples_follow_the_model(noise):
    "Frequencies of all images of two binary pixels against their probabilities; the generator decides, and temperature narrows."
    model = tiny((1, 1, 2), 2, couplings=(3,), noise=noise, scale=0.4)
    x = model.sample(20_000, generator=generator())
    torch.manual_seed(1)
    assert torch.equal(x, model.sample(20_000, generator=generator())) and set(x.unique().tolist()) <= {0.0, 1.0}
    every = torch.tensor(list(product([0.0, 1.0], repeat=2))).view(4, 1, 1, 2)
    with torch.no_grad():
        w = model.log_weights(every.repeat(400, 1, 1, 1), 40, generator()).exp().view(40, 400, 4).flatten(0, 1)
    share = torch.stack([(x == e).flatten(1).all(1).float().mean() for e in every])
    error = (w.var(0) / len(w) + share * (1 - share) / 20_000).sqrt()
    assert ((share - w.mean(0)).abs() < 5 * error).all() and error.max() < 0.02 and share.max() - share.min() > 0.02
    assert torch.equal(model.sample(3, generator=generator(), noise=0), model.decode(torch.randn(3, 2, generator=generator())))


def test_objectives_agree():
    "Minus the loss is the bound in mean, with one draw and with several; bpd is the same in bits."
    one, x = tiny(), images(n=4)
    many = tiny(k=6)
    with torch.no_grad():
        for model, k in ((one, 1), (many, 6)):
            loss = -model.loss(x.repeat(300, 1, 1, 1)).total.view(300, 4)
            bound = model.iw_bound(x.repeat(300, 1, 1, 1), k, generator=generator()).view(300, 4)
            error = ((loss.var(0) + bound.var(0)) / 300).sqrt()
            assert ((loss.mean(0) - bound.mean(0)).abs() < 5 * error).all()
        terms = one.loss(x)
    torch.testing.assert_close(terms.bpd, (terms.rec + terms.kl) / (16 * math.log(2)))
    assert (terms.kl > 0.01).all()


def test_evaluate_depends_on_the_seed_alone():
    "Joint bounds through `likelihood.evaluate`: the same numbers for any size of batch, and the order of the bounds."
    model, x = tiny(noise="variational"), images(n=12)
    a, b, c = (evaluate(model, x, k=20, batch_size=n, seed=s) for n, s in ((2000, 0), (7, 0), (2000, 1)))
    assert abs(a["iw_nll"].value - b["iw_nll"].value) < 1e-3 and a["iw_nll"].value != c["iw_nll"].value
    assert -a["iw_nll"].value > a["elbo"].value and "bits_per_dim" in a
    with torch.no_grad():
        direct = iw_bound_from(model.log_weights(x.repeat(30, 1, 1, 1), 20, generator())).view(30, 12).mean(1)
    assert abs(direct.mean() + a["iw_nll"].value) < 4 * direct.std()


def test_gradient_reaches_encoder_tower_flow_and_noise():
    model = tiny((1, 8, 8), base="learned", actnorm=True, mix=True)
    g = torch.autograd.grad(model.loss(images((1, 8, 8), n=16)).total.mean(), list(model.parameters()), allow_unused=True)
    assert not [n for (n, _), v in zip(model.named_parameters(), g, strict=True) if v is None or not v.isfinite().all() or not v.any()]


def test_adapt_normalises_every_layer():
    torch.manual_seed(0)
    model = FVAE((1, 8, 8), levels=17, **(CONFIGS["color"] | {"width": 8, "noise_width": 4, "tower_width": 8}))
    x = images((1, 8, 8), 17, 64)
    torch.manual_seed(0)
    model.adapt(x)
    seen, norms = [], [m for m in model.modules() if type(m).__name__ == "ActNorm"]
    hooks = [m.register_forward_hook(lambda m, args, out: seen.append(out[0])) for m in norms]
    torch.manual_seed(0)
    model.loss(x)
    assert len(seen) == len(norms) == 16 and [h.remove() for h in hooks]
    for y in seen:
        torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(y.shape[1]), atol=1e-3, rtol=0)


# ---- mistakes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise": "unifrom"}, ["noise", "did you mean 'uniform'"]),
        ({"tower": "resnets"}, ["tower", "did you mean 'resnet'"]),
        ({"cond_channels": 0}, ["cond_channels", "0"]),
        ({"levels": 1}, ["levels", "1"]),
        ({"image_shape": (1, 30, 30), "couplings": (2, 2, 2)}, ["30x30", "4"]),
        ({"image_shape": (1, 9, 9), "couplings": (2,)}, ["9x9", "even"]),
        ({"couplings": (2, 2), "width": (8, 8, 8)}, ["width", "3"]),
        ({"k": 3, "free_bits": 0.5}, ["free_bits", "0.5"]),
        ({"kl": "liner"}, ["kl_schedule", "linear"]),
    ],
)
def test_mistakes_get_one_line(change, words):
    with pytest.raises(GenbookError) as error:
        FVAE(**({"image_shape": (1, 8, 8), "couplings": (2,), "width": 8} | change))
    assert "\n" not in str(error.value) and all(w in str(error.value) for w in words), error.value


def test_the_encoder_is_convolutional():
    assert all(any(isinstance(m, nn.Conv2d) for m in named(config).encoder.modules()) for config in CONFIGS)


def test_a_likelihood_of_several_codes_for_several_images():
    "Seven codes for each of five images; draws lie on the grid of levels."
    config = dict(levels=17, couplings=(2, 2), width=8, depth=1, noise_couplings=2, noise_width=4, cond_channels=3)
    p = FlowHead((1, 8, 8), **config)(torch.randn(7, 5, 3, 8, 8, generator=generator()), generator())
    assert p.log_prob(images((1, 8, 8), 17)).shape == (7, 5)
    drawn = p.sample(generator())
    assert drawn.shape == p.middle.shape == (7, 5, 1, 8, 8)
    assert drawn.mul(16).sub(drawn.mul(16).round()).abs().max() < 1e-5 and 0 <= p.mean.min() and p.mean.max() <= 1


def test_terms_of_the_loss():
    model, x = named("digits"), images((1, 8, 8), 17)
    terms = model.loss(x, it=torch.tensor(0))
    assert [t.shape for t in terms] == [(5,)] * 5
    torch.testing.assert_close(terms.total, terms.rec + terms.beta * terms.kl, atol=1e-4, rtol=0)
    torch.testing.assert_close(terms.bpd, (terms.rec + terms.kl) / (64 * math.log(2)), atol=1e-5, rtol=0)
    assert named("digits", k=4).loss(x).total.shape == (5,)


def test_the_same_generator_gives_the_same_numbers():
    model, x = named("digits"), images((1, 8, 8), 17)
    assert torch.equal(model.log_prob(x, k=3, generator=generator()), model.log_prob(x, k=3, generator=generator()))
    assert torch.equal(model.sample(2, generator=generator()), model.sample(2, generator=generator()))
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x)))
    with pytest.raises(GenbookError, match="not conditional"):
        model.sample(2, torch.tensor([1, 2]))
