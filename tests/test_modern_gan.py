"Switches of `genbook.models.modern_gan`, beyond what its chapter and the matrix check."

import pytest
import torch
from test_matrix_gan import digits, labels

from genbook import create_model, data, toys
from genbook.core import GenbookError
from genbook.lab.runs import Run
from genbook.measure.variety import modes_covered
from genbook.models.flows import Draws
from genbook.models.modern_gan import ModernGAN, PlaneModern
from genbook.optim import cosine
from genbook.steps import Step
from genbook.style import mixed
from genbook.train import fit

SMALL = {"width": 4, "zdim": 4}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"growing": 5}, "growing: 5 needs net='growing'"),
        ({"net": "growing", "growing": -1}, "growing: -1 is not a whole number"),
        ({"share": 1.5}, "share: 1.5 is not in (0, 1]"),
        ({"replay": -2}, "replay: -2 is not a whole number"),
        ({"seeking": -1.0}, "seeking: -1.0 is not a number from 0"),
        ({"overfit": 0.5}, "overfit: 0.5 with augment=''"),
        ({"overfit": 1.5, "augment": "cutout"}, "overfit: 1.5"),
        ({"rise": 0}, "rise: 0 is not a whole number"),
        ({"path": 1.0}, "path: 1.0 needs a generator by styles"),
        ({"net": "style", "mixing": -0.1}, "mixing: -0.1 is not in [0, 1]"),
        ({"net": "style", "attention": True}, "attention: a generator by styles"),
        ({"net": "mlp", "attention": True}, "attention: this network has no map"),
        ({"net": "stile"}, "did you mean 'style'?"),
        ({"loss": "relativstic"}, "did you mean 'relativistic'?"),
    ],
)
def test_bad_arguments_get_one_line(settings, words):
    with pytest.raises(GenbookError) as error:
        ModernGAN((1, 8, 8), **(SMALL | settings))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_bad_requests_get_one_line():
    "A truncation below 0, or of a model without styles; a crossing beyond the layers; a level that there is not."
    model = ModernGAN((1, 8, 8), net="style", **SMALL).eval()
    w = model.generator.styles(torch.randn(2, 4))
    grown = ModernGAN((1, 8, 8), net="growing", **SMALL)
    for ask, words in [
        (lambda: model.sample(1, truncation=-1), "truncation: -1"),
        (lambda: grown.sample(1, truncation=0.5), "truncation: 0.5 needs a generator by styles"),
        (lambda: model.sample(1, 3), "y: this model is not conditional"),
        (lambda: mixed(w, w, 4), "crossing: 4 is not a whole number from 0 to 3"),
        (lambda: grown.generator.grow(7), "level: 7 is not in [0, 1]"),
    ]:
        with pytest.raises(GenbookError) as error:
            ask()
        assert words in str(error.value) and "\n" not in str(error.value)


def test_networks_that_grow_are_resumed_where_they_were(tmp_path):
    "Bit for bit, in the middle of a fade."

    def train(folder, steps):
        torch.manual_seed(0)
        step = Step(ModernGAN((1, 8, 8), net="growing", growing=5, **SMALL), lr=1e-3, ema=0.9, device="cpu")
        fit(step, data.Batches(digits(), 8), steps, run=Run(folder), every=3, log_every=1, progress=False)
        return step

    whole, _ = train(tmp_path / "a", 6), train(tmp_path / "b", 4)
    torch.manual_seed(99)
    resumed = train(tmp_path / "b", 6)
    assert whole.model.generator.level == resumed.model.generator.level == 1
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("net", ["growing", "dcgan_plain", "resnet"])
def test_networks_without_a_configuration_of_their_own(net):
    "Finite losses of both players, a value an example, and images."
    model = create_model("modern_gan_digits", (3, 16, 16), net=net, width=8, attention=net != "growing", deviation=net != "growing")
    x = torch.rand(5, 3, 16, 16)
    for terms in (model.critic_loss(x, labels(5)), model.generator_loss(x, labels(5))):
        assert terms.total.shape == (5,) and terms.total.isfinite().all()
    assert model.eval().sample(2).shape == (2, 3, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_all_25_modes(seed):
    "Pairs under two penalties reach all of 5 by 5 Gaussians within a minute of one thread."
    at = torch.arange(-2.0, 3.0)
    grid = toys.Mixture(torch.cartesian_prod(at, at), 0.1)
    torch.manual_seed(seed)
    model = PlaneModern(2, zdim=2, width=128, depth=3, weight=0.05)
    step = Step(model, lr=1e-3, betas=(0.0, 0.99), schedule=cosine(1200), ema=0.99, device="cpu")
    history = fit(step, Draws(grid.sample, 256), 1200, progress=False)
    reached, near = modes_covered(step.eval_model().sample(2500), grid.centres, grid.std, least=10)
    assert reached == 25 and near > 0.3 and history.cpu_seconds < 60
