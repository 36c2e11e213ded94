"Penalties, clipping, spectral norms, losses and augmentation of `genbook.models.wgan`, beyond what its chapter checks."

import copy

import pytest
import torch
from test_matrix_gan import digits, images

from genbook import data
from genbook.core import GenbookError
from genbook.datasets import load
from genbook.lab.runs import Run
from genbook.models.wgan import (
    AUGMENTATIONS,
    CONFIGS,
    HELD_LOSSES,
    WGAN,
    PlaneWGAN,
    Residual,
    diff_augment,
    gradient_penalty,
    slope,
    zero_centred,
)
from genbook.steps import Step
from genbook.train import fit

TINY = {"net": "mlp", "zdim": 4, "width": 12}


def stepper(model, k=1, **kwargs):
    "A step with `k` updates of the critic."
    settings = {"lr": 1e-3, "betas": (0.0, 0.9), "parts": {"critic": {"times": k}}, "device": "cpu"}
    return Step(model, **settings | kwargs)


def matrices(model):
    "The weights of the critic's layers as matrices."
    return [m.weight.detach().flatten(1) for m in model.critic.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]


# ---- penalties


@pytest.mark.parametrize("kind", ["gp", "one-sided", "r1", "r1r2"])
@pytest.mark.parametrize("net", ["mlp", "dcgan_plain", "resnet", "resnet_layer_norm"])
def test_penalty_is_the_one_of_finite_differences(net, kind):
    "Of every example, in float64, with the input of the critic (2x - 1) as the unit of length."
    penalty, one_sided = ("gp", True) if kind == "one-sided" else (kind, False)
    model = WGAN((1, 8, 8), net=net, width=6, penalty=penalty, one_sided=one_sided, weight=3.0).double()
    with torch.no_grad():
        for p in model.critic.parameters():
            p.mul_(3.0) if p.dim() > 1 else p.normal_(std=0.3)  # slopes on either side of 1
    x, fake = torch.rand(2, 3, 1, 8, 8, dtype=torch.float64)
    torch.manual_seed(5)
    value = model.penalty(x, fake)
    torch.manual_seed(5)
    t = torch.rand(3, 1, 1, 1, dtype=torch.float64)

    def squared(at):
        h, out = 1e-6, 0.0
        with torch.no_grad():
            for i in range(64):
                e = torch.zeros(64, dtype=torch.float64).index_fill_(0, torch.tensor(i), h).view(1, 8, 8)
                out = out + ((model.score(at + e) - model.score(at - e)) / (2 * 2 * h)) ** 2  # a step of h in x is one of 2h inside
        return out

    if penalty == "gp":
        norm = squared(t * x + (1 - t) * fake).sqrt()
        expected = 3 * ((norm - 1).clamp_min(0) if one_sided else norm - 1) ** 2
    else:
        expected = 1.5 * (squared(x) + (squared(fake) if penalty == "r1r2" else 0))
    torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [gradient_penalty, lambda f, x, y: zero_centred(f, x)], ids=["gp", "r1"])
def test_gradients_of_a_penalty_pass_gradcheck(kind):
    "The double backward pass, with respect to every weight."
    x, y = torch.randn(2, 4, 3, dtype=torch.float64)
    w, v = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64, requires_grad=True)

    def total(w, v):
        torch.manual_seed(0)
        return kind(lambda t: (t @ w).tanh() @ v, x, y).mean()

    assert torch.autograd.gradcheck(total, (w, v))


def test_penalty_of_an_example_is_its_own():
    "Unlike with batch norm, the slope at an example does not depend on the others."
    model = WGAN((1, 8, 8), net="resnet_layer_norm", width=8)
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(slope(model.score, x)[:2], slope(model.score, x[:2]), rtol=1e-4, atol=1e-6)


def test_no_nan_where_the_critic_is_flat():
    model = PlaneWGAN(width=8)
    with torch.no_grad():
        for p in model.critic.parameters():
            p.zero_()
    terms = model.critic_loss(torch.randn(5, 2))
    gradients = torch.autograd.grad(terms.total.mean(), list(model.critic.parameters()), allow_unused=True)
    torch.testing.assert_close(terms.penalty, torch.full((5,), 10.0), rtol=1e-4, atol=0)
    assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("config", ["digits", "r1_digits", "rals_digits", "gp"])
def test_penalties_are_in_full_precision_under_bfloat16(config):
    model = WGAN((1, 8, 8), **(CONFIGS[config] | {"width": 8}))
    x, fake = torch.rand(2, 4, 1, 8, 8)
    torch.manual_seed(1)
    exact = model.penalty(x, fake)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        same = model.penalty(x, fake)
    assert same.dtype == torch.float32 and torch.equal(same, exact)


@pytest.mark.parametrize("penalty", ["gp", "r1", "r1r2"])
def test_penalty_and_batch_norm_are_refused_together(penalty):
    with pytest.raises(GenbookError, match="batch norm") as error:
        WGAN((1, 32, 32), net="dcgan_s3", penalty=penalty)
    assert "\n" not in str(error.value)


# ---- clipping


@pytest.mark.parametrize("net", ["mlp", "dcgan_s3", "resnet"])
def test_clip_range_is_held_before_and_after_every_step(net):
    "All that is trained, scales of batch norm too; the generator is left alone. Running statistics are not weights, and leave the range."
    model = WGAN((1, 16, 16), net=net, width=8, penalty="none", clip=0.02)
    step, largest = stepper(model, k=2, lr=0.1), lambda net: max(p.abs().max().item() for p in net.parameters())
    for _ in range(4):
        assert largest(model.critic) <= 0.02 < largest(model.generator)
        step(images((1, 16, 16), n=8)[None].expand(2, -1, -1, -1, -1))
    assert largest(model.critic) == pytest.approx(0.02)
    if net == "dcgan_s3":
        assert max(b.abs().max() for n, b in model.critic.named_buffers() if "running" in n) > 0.02


def test_clipping_drives_the_weights_to_the_limit():
    "Two thirds of a critic's weights on the digits after sixty steps; of those that are penalised, none is near."
    limit, ds = 0.01, load("digits")
    torch.manual_seed(0)
    step = stepper(WGAN((1, 8, 8), levels=17, **CONFIGS["clip_digits"] | {"clip": limit, "init": limit / 2}), k=3)
    share = lambda: (torch.cat([w.flatten() for w in matrices(step.model)]).abs() > 0.9 * limit).double().mean().item()
    before = share()
    fit(step, data.Batches(ds.train, 64, k=3), 60, progress=False)
    assert before < 0.1 and share() > 0.4


@pytest.mark.parametrize("value", [0.0, -0.01])
def test_clip_value_must_be_positive(value):
    with pytest.raises(GenbookError, match="positive"):
        WGAN((1, 8, 8), **TINY, penalty="none", clip=value)


# ---- spectral norm


@pytest.mark.parametrize("net", ["mlp", "dcgan_plain", "resnet"])
def test_spectral_norms_stay_at_one(net):
    "Through training, with one power iteration a pass."
    model = WGAN((1, 8, 8), net=net, width=16, loss="hinge", penalty="none", spectral=True)
    step = stepper(model, lr=2e-4)  # Miyato's
    for _ in range(30):
        step(images(n=16))
    norms = [torch.linalg.matrix_norm(w, 2).item() for w in matrices(model.eval())]
    assert len(norms) >= 2 and all(1 - 1e-3 < s < 1.05 for s in norms), norms


def test_only_the_critic_is_normed_and_every_layer_of_it():
    model = WGAN((1, 8, 8), **CONFIGS["sngan"] | {"width": 8})
    layers = [m for m in model.critic.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert model.normed == layers and all(hasattr(m, "parametrizations") for m in layers)
    assert not any(hasattr(m, "parametrizations") for m in model.generator.modules())


def test_evaluation_leaves_the_power_iteration_alone():
    model, x = WGAN((1, 8, 8), **CONFIGS["sngan_digits"] | {"width": 8}), images()
    vectors = lambda: [b.clone() for b in model.critic.buffers()]
    model.score(x)
    before = vectors()
    model.eval().score(x)
    assert all(torch.equal(a, b) for a, b in zip(before, vectors(), strict=True))
    model.train().score(x)
    assert not all(torch.equal(a, b) for a, b in zip(before, vectors(), strict=True))
    other = copy.deepcopy(model).eval()
    assert torch.equal(other.score(x), model.eval().score(x)) and other.normed[0] is not model.normed[0]


@pytest.mark.parametrize("config", ["sngan_digits", "clip_s3", "rals"])
def test_resumed_bit_for_bit_with_all_buffers(config, tmp_path):
    "Vectors of the power iteration and running statistics are in the checkpoint; augmentation and penalties draw the same numbers."

    def train(folder, steps):
        torch.manual_seed(0)
        step = stepper(WGAN((1, 8, 8), **(CONFIGS[config] | {"width": 8})), k=2, ema=0.9)
        fit(step, data.Batches(digits(), 8, k=2), steps, run=Run(folder), every=2, log_every=1, progress=False)
        return step.state_dict()

    whole, _ = train(tmp_path / "a", 4), train(tmp_path / "b", 2)
    torch.manual_seed(99)
    resumed, flat = train(tmp_path / "b", 4), torch.utils._pytree.tree_leaves
    assert any("_u" in k or "running" in k for k in whole["model"]) or config == "rals"
    assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(flat(whole), flat(resumed), strict=True))


# ---- losses


@pytest.mark.parametrize("loss", HELD_LOSSES)
def test_the_generator_goes_to_the_data(loss):
    "Real points at +3 and then at -3: the sign of every term, through both players."
    for target in (3.0, -3.0):
        torch.manual_seed(0)
        held = {"one_sided": True} if loss == "wasserstein" else {"penalty": "r1", "weight": 0.1}
        model = PlaneWGAN(1, zdim=2, width=16, loss=loss, **held)
        step, mean = stepper(model, k=2, lr=5e-3), lambda m=model: m.sample(200, generator=torch.Generator().manual_seed(0)).mean().item()
        start = mean()
        for _ in range(60):
            step(target + 0.1 * torch.randn(2, 32, 1))
        assert (mean() - start) * target > 0.5, (target, start, mean())


@pytest.mark.parametrize("loss", HELD_LOSSES)
def test_the_sign_of_every_term(loss):
    "With real scores at 0.3 and generated ones at 0.2: who wants which of them higher."
    o, real, fake = HELD_LOSSES[loss], torch.full((4,), 0.3, requires_grad=True), torch.full((4,), 0.2, requires_grad=True)
    up_real, up_fake = torch.autograd.grad(o.critic(real, fake).sum(), (real, fake))
    assert (up_real < 0).all() and (up_fake > 0).all()
    total = o.generator(fake, real if o.paired else None).sum()
    up_fake, up_real = torch.autograd.grad(total, (fake, real), allow_unused=True)
    assert (up_fake < 0).all() and ((up_real > 0).all() if o.paired else up_real is None)


@pytest.mark.parametrize("loss", HELD_LOSSES)
def test_losses_are_per_example_and_paired_ones_see_real_images(loss):
    model, x = PlaneWGAN(loss=loss, width=8, penalty="none"), torch.randn(6, 2)
    torch.manual_seed(0)
    a = model.generator_loss(x).total
    torch.manual_seed(0)
    b = model.generator_loss(x + 5).total
    assert a.shape == (6,) == model.critic_loss(x).total.shape and torch.equal(a, b) != HELD_LOSSES[loss].paired


def test_smoothing_is_refused_where_there_is_no_target():
    with pytest.raises(GenbookError, match="no target"):
        WGAN((1, 8, 8), **TINY, smoothing=0.9)


# ---- augmentation


@pytest.mark.parametrize("policy", [*AUGMENTATIONS, "color,translation,cutout"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20), (3, 64, 64)])
def test_augmentation_is_a_differentiable_random_map(policy, shape):
    x = (2 * torch.rand(6, *shape) - 1).requires_grad_()
    torch.manual_seed(0)
    a = diff_augment(x, policy)
    torch.manual_seed(0)
    b = diff_augment(x, policy)
    assert a.shape == x.shape and torch.equal(a, b) and not torch.equal(a, diff_augment(x, policy))
    g = torch.autograd.grad(a.square().sum(), x)[0]
    assert g.isfinite().all() and g.flatten(1).any(1).all()
    same = diff_augment(x[:1].expand(50, -1, -1, -1), policy)
    assert len(same.detach().flatten(1).unique(dim=0)) > (4 if shape[1] == 8 else 20)  # each image is changed in its own way


def test_real_and_generated_images_are_changed_alike():
    "The policy of both is the model's, drawn anew: over many draws an image looks the same on either side, pixel by pixel."
    model, seen = WGAN((1, 8, 8), **TINY, penalty="none", augment="color,translation,cutout"), []
    x = torch.rand(1, 1, 8, 8).expand(4000, -1, -1, -1)
    model.critic.forward = lambda t: (seen.append(t), t.flatten(1).sum(1))[1]
    model.fake = lambda n, y=None: x
    model.critic_loss(x)
    model.generator_loss(x)
    real, fake, again = seen
    for other in (fake, again):
        assert not torch.equal(real, other)
        error = ((real.var(0) + other.var(0)) / 4000).sqrt()
        assert ((real.mean(0) - other.mean(0)).abs() / error).max() < 4.5
    seen.clear()
    model.policy = ""
    model.critic_loss(x)
    assert torch.equal(seen[0], 2 * x - 1)


def test_the_gradient_reaches_the_generator_through_the_augmentation():
    model = WGAN((1, 8, 8), **TINY, penalty="none", augment="color,translation,cutout")
    total = model.generator_loss(images()).total.mean()
    assert all(g.any() for g in torch.autograd.grad(total, list(model.generator.parameters())))


@pytest.mark.parametrize("policy", ["colour", "color;cutout", "cut"])
def test_unknown_augmentation(policy):
    with pytest.raises(GenbookError, match="augment") as error:
        WGAN((1, 8, 8), **TINY, augment=policy)
    assert "\n" not in str(error.value)


# ---- blocks


@pytest.mark.parametrize("resample, side", [("up", 16), ("down", 4), (None, 8)])
def test_residual_block_is_skip_and_body(resample, side):
    x, block = torch.randn(2, 6, 8, 8), Residual(6, 10, torch.nn.BatchNorm2d, resample=resample)
    with torch.no_grad():
        assert block(x).shape == (2, 10, side, side)
        for p in block.body.parameters():
            p.zero_()
        torch.testing.assert_close(block(x), block.skip(x))


# ---- exactly what the augmentations do


def test_a_translation_is_a_shift_with_zeros():
    "Each image is one of nine shifts by at most a pixel, and all of them occur."
    x = torch.rand(200, 3, 8, 6, dtype=torch.float64) * 2 - 1
    moved, same = AUGMENTATIONS["translation"](x), []
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            rows, cols = slice(max(-a, 0), 8 + min(-a, 0)), slice(max(-b, 0), 6 + min(-b, 0))
            same.append((moved.roll((-a, -b), (2, 3)) == x)[:, :, rows, cols].flatten(1).all(1))
    assert (torch.stack(same).sum(0) == 1).all() and (torch.stack(same).sum(1) > 8).all()


def test_a_cutout_is_a_rectangle_in_all_channels():
    x = torch.rand(200, 3, 8, 6, dtype=torch.float64) + 0.1
    hole = AUGMENTATIONS["cutout"](x) == 0
    assert hole.any(1).sum((1, 2)).max() == 12  # 4 x 3, less at the border
    assert (hole.any(1) == hole.all(1)).all() and 6 < hole.any(1).sum((1, 2)).double().mean() < 12


def test_brightness_alone_moves_the_mean():
    x = torch.rand(200, 3, 8, 6, dtype=torch.float64) * 2 - 1
    change = AUGMENTATIONS["color"](x).mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert change.abs().max() <= 0.5 + 1e-9 and change.std() > 0.1


@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_is_held(config):
    choice = CONFIGS[config]
    assert choice.get("penalty", "gp") != "none" or choice.get("clip") or choice.get("spectral")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 64, 64)])
@pytest.mark.parametrize("config", CONFIGS)
def test_shapes_of_all_configurations(config, shape):
    model, x = WGAN(shape, **(CONFIGS[config] | dict(width=8))), torch.rand(3, *shape)
    assert model.sample(2).shape == (2, *shape)
    assert model.critic_loss(x).total.shape == model.generator_loss(x).total.shape == (3,)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: WGAN((1, 30, 30)), "not 30x30"),
        (lambda: WGAN((1, 28, 28), penalty="gpp"), "did you mean 'gp'?"),
        (lambda: PlaneWGAN(augment="cutouts"), "augment"),
        (lambda: diff_augment(torch.zeros(1, 1, 8, 8), "colour"), "did you mean 'color'?"),
    ],
)
def test_mistakes_get_one_line(mistake, words):
    with pytest.raises(GenbookError) as error:
        mistake()
    assert words in str(error.value) and "\n" not in str(error.value)
