"Autoregressive flows beyond what the chapter asserts: sizes, orders, labels, guidance, precision, training and mistakes."

import math

import pytest
import torch

from genbook import datasets, from_pretrained
from genbook.bijections import check_bijection, log_det_jacobian, randomise
from genbook.core import GenbookError
from genbook.lab.pretrained import export
from genbook.lab.training import Training
from genbook.maf import LIMIT, MAF, Before, Guide, PatchFlow, Within
from genbook.measure.likelihood import evaluate
from genbook.models.autoregressive_flows import CONFIGS, TarFlow

KINDS = {
    "published": dict(patch=2, blocks=2),
    "switches": dict(patch=2, blocks=2, near=True, inner=12, conditionals="logistics", noise="variational", logit=True),
    "maf": dict(patch=None, blocks=2, inner=48, logit=True),
    "gaussian": dict(patch=2, blocks=2, noise="gaussian"),
    "labels": dict(patch=2, blocks=2, noise="gaussian", conditional=True, classes=3),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(kind="switches", shape=(1, 4, 4), levels=5, **how):
    net = dict(width=8, heads=2, layers=1, wide=2, noise_width=4)
    return randomise(TarFlow(shape, levels=levels, **(net | KINDS[kind] | how)), 0.2).eval()


def images(shape=(1, 4, 4), levels=5, n=3):
    return torch.randint(levels, (n, *shape), generator=generator()) / (levels - 1)


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and len(text) < 300 and all(w in text for w in words), text


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 2, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_inverse_and_jacobian_of_colour_and_of_oblongs(kind, shape):
    model = tiny(kind, shape).double()
    x = torch.randn(2, *shape, dtype=torch.float64, generator=generator())
    y = torch.tensor([0, 2]) if model.conditional else None
    assert check_bijection(model.flow, x, y, atol=1e-6).abs().min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_in_single_precision(kind):
    "To 1e-3 at 8 by 8 pixels, and the log-determinant to 1e-2 of that in float64."
    model = tiny(kind, (1, 8, 8))
    x = torch.randn(4, 1, 8, 8, generator=generator())
    with torch.no_grad():
        z, ldj = model.flow(x)
        torch.testing.assert_close(model.flow.inverse(z)[0], x, atol=1e-3, rtol=0)
        torch.testing.assert_close(ldj.double(), model.flow.double()(x.double())[1], atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_changes_no_sample(kind):
    model = tiny(kind).double()
    a, b = (model.sample(3, generator=generator(), cached=c) for c in (True, False))
    assert torch.equal(a, b)


def test_an_order_is_that_of_the_turned_image():
    "The map backwards, of an image that is turned by half a circle, is the map forwards."
    x = torch.randn(2, 1, 4, 4, generator=generator())
    forwards, backwards = (PatchFlow((1, 4, 4), 2, 1, width=8, heads=2, layers=1, inner=8) for _ in range(2))
    randomise(forwards, 0.3)
    backwards.load_state_dict(forwards.state_dict())
    backwards.blocks[0].backwards = True
    z, ldj = forwards(x)
    turned, ldj_turned = backwards(x.flip(2, 3))
    torch.testing.assert_close(turned.view(2, 4, 4).flip(1, 2).flatten(1), z)
    torch.testing.assert_close(ldj_turned, ldj)


def test_a_single_map_with_mixtures_is_a_product_of_mixtures():
    "Its density integrates to one over the last number, whatever the first ones are."
    core = randomise(MAF(3, conditionals="logistics", width=16).double(), 0.5)
    t = torch.linspace(-60, 60, 12001, dtype=torch.float64)
    x = torch.stack([torch.full_like(t, 0.3), torch.full_like(t, -1.1), t], 1)
    z, ldj = core(x)
    from genbook.maf import StandardLogistic

    logp = StandardLogistic(3).log_prob(z) + ldj
    first = StandardLogistic(2).log_prob(z[:1, :2]) + (core(x[:1])[1] - _last(core, x[:1]))
    torch.testing.assert_close(torch.trapezoid(logp.exp(), t), first.exp()[0], atol=1e-6, rtol=1e-5)


def _last(core, x):
    "The part of the log-determinant that belongs to the last number."
    return core.element(x, core.theta(x[:, None])[:, 0])[1][:, 2]


@pytest.mark.parametrize("kind", ["gaussian", "labels"])
def test_noisy_images_have_a_density_and_no_bits(kind):
    model = tiny(kind)
    found = evaluate(model, images(n=20), k=4)
    assert "bits_per_dim" not in found and found["log_prob"].estimator == "exact, density"
    assert "bits_per_dim" in evaluate(tiny("switches"), images(n=20), k=4)


def test_noise_is_that_of_the_argument():
    model = tiny("gaussian", (1, 8, 8), levels=17, sigma=0.1)
    x = images((1, 8, 8), 17, 400)
    u, logq = model.noise(x, generator())
    v = (x * 16 + u) / 17
    assert abs((v - x).std().item() - 0.1) < 0.002 and not logq.any()
    torch.testing.assert_close((x * 16 + model.noise(x, middle=True)[0]) / 17, x)


def test_a_denoised_gaussian_is_the_posterior_mean():
    "Values normal with mean m and deviation s, and noise: the mean given v is known; an affine map of no patch before it is that model."
    model = tiny("gaussian", (1, 1, 2), patch=1, blocks=1, sigma=0.2).double()
    for p in model.flow.parameters():
        torch.nn.init.zeros_(p)
    m, s = 0.3, 0.4  # of the values in [-1, 1], clean
    total = math.sqrt(s**2 + (2 * 0.2) ** 2)
    model.flow.blocks[0].within.out.bias.data = torch.tensor([LIMIT * math.atanh(math.log(total) / LIMIT), m], dtype=torch.float64)
    v = torch.rand(4, 1, 1, 2, dtype=torch.float64, generator=generator())
    noisy = 2 * v - 1
    wanted = (m + s**2 / total**2 * (noisy - m) + 1) / 2
    torch.testing.assert_close(model.denoise(v), wanted, atol=1e-10, rtol=0)


def test_training_leaves_labels_out_at_the_rate_that_it_says():
    model = tiny("labels", drop=0.4).train()
    seen = []
    model.flow.blocks[0].before.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    for _ in range(40):
        model.loss(images(n=50), torch.ones(50, dtype=torch.int64))
    share = (torch.cat(seen) < 0).double().mean().item()
    assert abs(share - 0.4) < 4 * math.sqrt(0.24 / 2000)
    model.eval().loss(images(n=50), torch.ones(50, dtype=torch.int64))
    assert (seen[-1] == 1).all()


def test_guidance_moves_away_from_the_model_without_a_label():
    "More weight, farther; and a model without labels is guided by its attention."
    model, z = tiny("labels"), torch.randn(4, 16, generator=generator())
    y = torch.tensor([1] * 4)
    plain = model.noisy(z, y)
    moves = [(model.noisy(z, y, guide=Guide(w)) - plain).norm().item() for w in (0.0, 0.5, 1.0)]
    assert moves[0] == 0 < moves[1] < moves[2]
    free = tiny("gaussian", layers=2)
    even = [free.noisy(z, guide=Guide(1.0, t)) - free.noisy(z) for t in (1.0, 3.0)]
    assert even[0].abs().max() < 1e-5 < even[1].abs().max()


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: tiny(shape=(1, 6, 6), patch=4), ("patch: 4", "6x6")),
        (lambda: tiny(patch=0), ("patch: 0",)),
        (lambda: tiny(blocks=0), ("blocks: 0",)),
        (lambda: tiny(layers=-1), ("layers: -1",)),
        (lambda: tiny(width=10, heads=4), ("dim: 10", "4")),
        (lambda: tiny(heads=0), ("heads: 0",)),
        (lambda: tiny(inner=-1), ("inner: -1",)),
        (lambda: tiny(conditionals="spline"), ("conditionals: 'spline'", "affine")),
        (lambda: tiny(noise="normal"), ("noise: 'normal'", "gaussian")),
        (lambda: tiny("gaussian", logit=True), ("logit:", "Gaussian")),
        (lambda: tiny("gaussian", sigma=0.0), ("sigma: 0.0",)),
        (lambda: tiny("labels", drop=1.0), ("drop: 1.0",)),
        (lambda: tiny("labels", classes=0), ("classes: 0",)),
        (lambda: tiny("labels").sample(2, 3), ("y:", "0 to 2")),
        (lambda: tiny("labels").sample(2, torch.tensor([1, 2, 0])), ("y:", "(3,)")),
        (lambda: tiny("labels").log_prob(images(), 1.5), ("y:", "float")),
        (lambda: tiny().sample(2, 1), ("y:", "not conditional")),
        (lambda: tiny().sample(0), ("n: 0",)),
        (lambda: tiny().sample(2, guidance=1.0), ("guidance:", "conditional")),
        (lambda: tiny().sample(2, guidance=-1.0), ("guidance: -1.0",)),
        (lambda: tiny().sample(2, guidance=1.0, attention=0.0), ("attention 0.0",)),
        (lambda: tiny().log_prob(images(), k=0), ("k: 0",)),
        (lambda: MAF(0), ("dim: 0",)),
        (lambda: Before((2, 2), 4, width=0), ("width: 0",)),
        (lambda: Within(4, 2, 8, 1.5), ("inner: 1.5",)),
    ],
)
def test_mistakes_get_one_line(wrong, words):
    with pytest.raises(GenbookError) as error:
        wrong()
    one_line(error, *words)


def test_training_is_deterministic_and_the_export_is_the_model(tmp_path):
    small, losses = {"width": 16, "inner": 16}, []
    for _ in range(2):
        made = Training("tarflow", "digits", None, "digits", small, {"steps": 6, "batch_size": 16}, seed=3, device="cpu")
        losses.append(made.fit(progress=False).first["total"])
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
    export(made.model, tmp_path / "model", name="tarflow_digits", config=small)
    twin, x = from_pretrained(tmp_path / "model"), datasets.load("digits").test.float(slice(0, 5))[0]
    a, b = (m.log_prob(x, generator=generator()) for m in (twin, made.model))
    torch.testing.assert_close(a, b, atol=0.5, rtol=0)  # weights are kept in half precision


def test_the_jacobian_of_a_configuration_of_the_book_at_its_own_size():
    "On a corner of a digit: the derivative of the code by its last four pixels is a triangle whose diagonal is the log-determinant's."
    model = TarFlow((1, 8, 8), levels=17, **CONFIGS["digits"]).double().eval()
    randomise(model.flow, 0.05)
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(log_det_jacobian(model.flow, x), model.flow(x)[1], atol=1e-8, rtol=0)
