"A VAE and a GAN in one, beyond what its chapter and the matrix check."

import copy

import pytest
import torch
from test_matrix import images, randomise
from test_matrix_gan import digits

from genbook import create_model, data, datasets
from genbook.core import GenbookError
from genbook.lab.runs import Run
from genbook.measure.distances import laplacian, sharpness
from genbook.measure.protocol import protocol
from genbook.models.vae_gan import VAEGAN, code_distance
from genbook.steps import Step
from genbook.train import fit

SMALL = {"width": 4, "zdim": 4}
VAE = {"pixels": 1.0, "similar": 0.0, "adversarial": 0.0}
AAE = VAE | {"match": "critic"}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"gamma": -0.5}, "gamma: -0.5 is not a number from 0"),
        ({"beta": -1.0}, "beta: -1.0 is not a number from 0"),
        ({"pixels": -1}, "pixels: -1 is not a number from 0"),
        ({"similar": float("nan")}, "similar: nan is not a number from 0"),
        ({"perceptual": -2.0}, "perceptual: -2.0"),
        ({"adversarial": -1.0}, "adversarial: -1.0"),
        ({"held": -1.0}, "held: -1.0"),
        ({"similar": 0.0}, "pixels, similar, perceptual: all are 0"),
        (VAE | {"gamma": 0.5}, "gamma: 0.5 weighs against an adversarial term"),
        (VAE | {"layer": 1}, "layer: 1 is of a critic of images"),
        (VAE | {"held": 1.0}, "held: 1.0 is of a critic of images"),
        ({"held": 1.0}, "allowed: net='dcgan_plain'"),
        ({"layer": 0}, "layer: 0 is not a whole number"),
        ({"layer": 9}, "the critic has only 2; allowed: 1 to 2"),
        ({"match": "critc"}, "did you mean 'critic'?"),
        ({"net": "dcgan_plane"}, "did you mean 'dcgan_plain'?"),
        ({"code_width": 0, "match": "critic"}, "code_width: 0 is not a whole number"),
        ({"width": 0}, "width: 0 is not a whole number"),
    ],
)
def test_bad_arguments_get_one_line(settings, words):
    with pytest.raises(GenbookError) as error:
        VAEGAN((1, 28, 28), **(SMALL | settings))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 9, 9), (1, 30, 30)])
def test_sizes_that_do_not_halve_get_one_line(shape):
    with pytest.raises(GenbookError) as error:
        VAEGAN(shape, **SMALL)
    assert f"{shape[1]}x{shape[2]}" in str(error.value) and "\n" not in str(error.value)


def test_a_perceptual_loss_needs_eyes():
    model = VAEGAN((1, 8, 8), **(SMALL | VAE), perceptual=1.0)
    with pytest.raises(GenbookError, match="perceptual: there are no features to compare"):
        model.loss(images())


@pytest.mark.parametrize("settings", [{}, {"net": "dcgan_plain", "held": 1.0}, {"match": "critic"}, AAE, VAE | {"similar": 0.5}])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_every_loss_is_finite_an_example(settings, shape):
    "At 8, 28 and 32 pixels, grey and colour; and reconstructions and samples are images."
    model, x = VAEGAN(shape, **(SMALL | settings)), images(shape, n=3)
    for _, loss in model.parts().values():
        terms = getattr(model, loss)(x, it=torch.tensor(7))
        assert terms._fields[0] == "total"
        for name, value in terms._asdict().items():
            assert value.shape == (3,) and value.dtype == torch.float32 and value.isfinite().all(), name
    for made in (model.eval().reconstruct(x), model.sample(3)):
        assert made.shape == x.shape and 0 <= made.min() and made.max() <= 1


@pytest.mark.parametrize("settings", [{}, {"match": "critic"}, AAE, VAE | {"similar": 0.5}])
def test_a_step_moves_each_part_by_its_own_loss(settings):
    "Every parameter of the part and none of another; together the parts are the whole model."
    model = randomise(VAEGAN((1, 8, 8), **(SMALL | settings)))
    parts, x = model.parts(), images(n=16)
    every = [p for module, _ in parts.values() for p in module.parameters()]
    assert {id(p) for p in every} == {id(p) for p in model.parameters()} and len(every) == len({id(p) for p in every})
    hold, before = model.after_step, copy.deepcopy(model.state_dict())

    def look(part, terms):
        hold(part, terms)
        own = {id(p) for p in parts[part][0].parameters()}
        for name, p in model.named_parameters():
            assert (not torch.equal(p, before[name])) == (id(p) in own), (part, name)
        before.update(copy.deepcopy(model.state_dict()))

    model.after_step = look
    Step(model, lr=1e-3, device="cpu")(x)


def test_all_losses_are_float32_under_bfloat16():
    model, x = VAEGAN((1, 8, 8), **SMALL, match="critic").eval(), images()
    for _, loss in model.parts().values():
        torch.manual_seed(0)
        exact = getattr(model, loss)(x).total
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            half = getattr(model, loss)(x).total
        assert half.dtype == torch.float32 and not torch.equal(exact, half)
        torch.testing.assert_close(exact, half, rtol=0.1, atol=1.0)


def test_stopped_and_resumed_is_the_same(tmp_path):
    "Bit for bit, with both critics and the width that follows the squared error."

    def train(folder, steps):
        torch.manual_seed(0)
        step = Step(VAEGAN((1, 8, 8), **SMALL, levels=17, match="critic"), lr=1e-3, ema=0.9, device="cpu")
        fit(step, data.Batches(digits(), 8), steps, run=Run(folder), every=3, log_every=1, progress=False)
        return step

    whole, _ = train(tmp_path / "a", 6), train(tmp_path / "b", 3)
    torch.manual_seed(99)
    resumed = train(tmp_path / "b", 6)
    assert whole.model.head.log_scale != -2
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_critic_brings_codes_to_the_prior():
    "Without any divergence codes go where they like; a critic of codes brings them back."
    ds = datasets.load("digits")
    found = {}
    for name, beta in (("free", 0.0), ("matched", 100.0)):
        torch.manual_seed(0)
        model = create_model("vae_gan_aae_digits", (1, 8, 8), levels=17, zdim=4, beta=beta)
        step = Step(model, lr=2e-3, betas=(0.5, 0.99), parts={"critic": {"lr": 6e-3}}, device="cpu")
        fit(step, data.Batches(ds.train, 64), 250, every=250, progress=False)
        found[name] = code_distance(step.eval_model(), ds.test)["frechet_codes"].value
    assert found["matched"] < 0.3 * found["free"], found


# ---- sharpness


def test_sharpness_of_waves_is_known():
    "The response to a wave is a factor that depends on its length alone; of grey and colour alike, and at any brightness."
    at = torch.arange(26, dtype=torch.float64)
    wave = lambda k: (0.5 + 0.3 * torch.cos(2 * torch.pi * k / 24 * at))[None, None, None].expand(2, 3, 26, 26)
    factor = lambda k: 2 - 2 * torch.cos(torch.tensor(2 * torch.pi * k / 24, dtype=torch.float64))
    torch.testing.assert_close(laplacian(wave(3)), -factor(3) * (wave(3) - 0.5)[..., 1:-1, 1:-1])
    for a, b in ((1, 3), (5, 2)):
        found = sharpness(wave(a), wave(b))
        assert abs(found.value / (factor(a) / factor(b)).square().item() - 1) < 1e-9 and found.se < 1e-9
        assert abs(sharpness(0.5 * wave(a), wave(b)).value / found.value - 0.25) < 1e-9
    assert sharpness(torch.full((2, 1, 8, 8), 0.7), wave(3)).value == 0


def test_sharpness_refuses_what_has_none():
    for a, b, words in [
        (torch.rand(2, 1, 2, 9), torch.rand(2, 1, 2, 9), "x: shape (2, 1, 2, 9)"),
        (torch.rand(2, 1, 8, 8), torch.ones(3, 1, 8, 8), "3 images without any edge"),
        (2 * torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), "images: values from"),
    ]:
        with pytest.raises(GenbookError) as error:
            sharpness(a, b)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_the_protocol_has_it():
    "Of images, beside that of training images; blurred samples are seen."

    class Blurred(torch.nn.Module):
        def sample(self, n, *, generator=None):
            x = ds.valid.float(torch.arange(n) % len(ds.valid))[0]
            return torch.nn.functional.avg_pool2d(x, 3, 1, 1)

    ds = datasets.load("digits")
    _, found = protocol(Blurred(), ds, n=200, draws=1)
    assert found["sharpness"].value < 0.3 < 0.9 < found["sharpness__real"].value < 1.1
