"Layers of S1's conditional GAN, as the report lists them, against the configuration `s1` of `genbook.models.cgan`."

import pytest
import torch
from test_shapes_vae import act, bn, conv, describe, lin, up

from genbook.models.cgan import CGAN, CONFIGS, PlaneCritic

LEAKY, RELU = act("LeakyReLU", 0.2), act("ReLU")

# "Input: [z (128-dim), label (10-dim one-hot)]; Concat + Linear(128 x 256*7*7) + ReLU; Reshape to (256, 7, 7)": with the label, 138
GENERATOR = [
    lin(138, 256 * 7 * 7),
    RELU,
    up(256, 128, 4, 2, 1, 0),
    bn(128),
    RELU,
    up(128, 64, 4, 2, 1, 0),
    bn(64),
    RELU,
    conv(64, 1, 3, 1, 1),
]
# "Label + Linear(10, 28*28) + Reshape + Concat with image [2, 28, 28]"; the sigmoid at the end is part of the loss
PLANE = [lin(10, 28 * 28)]
CRITIC = [conv(2, 64, 4, 2, 1), LEAKY, conv(64, 128, 4, 2, 1), bn(128), LEAKY, conv(128, 256, 4, 2, 1), bn(256), LEAKY]
HEAD = [conv(256, 1, 3, 1, 0)]


@pytest.fixture
def model():
    return CGAN((1, 28, 28), **CONFIGS["s1"])


def test_layers(model):
    critic = model.critic
    assert type(critic) is PlaneCritic and model.zdim == 128 and model.matching == 10 and not model.squared
    assert describe(model.generator) == GENERATOR
    assert describe(critic.plane) == PLANE and describe(critic.features) == CRITIC and describe(critic.head) == HEAD


def test_maps_between_the_layers(model):
    "[14x14], [28x28] in the generator; [2, 28, 28], [14x14], [7x7], [3x3], [1x1] in the critic."
    sizes, kinds = [], (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    for m in model.modules():
        if isinstance(m, kinds):
            m.register_forward_hook(lambda m, args, out: sizes.append((args[0].shape[1], *out.shape[1:])))
    y = torch.arange(4)
    fake = model.decode(model.noise(4), y)
    assert sizes == [(256, 128, 14, 14), (128, 64, 28, 28), (64, 1, 28, 28)]
    sizes.clear()
    model.score(fake, y)
    assert sizes == [(2, 64, 14, 14), (64, 128, 7, 7), (128, 256, 3, 3), (256, 1, 1, 1)]


def test_output_is_that_of_a_tanh(model):
    z, y = model.noise(4), torch.arange(4)
    raw = model.generator(z, model.weights(4, y))
    torch.testing.assert_close(2 * model.decode(z, y) - 1, raw.tanh())


def test_parameters(model):
    "Counted by hand from the listing."
    size = lambda *layers: sum(n_in * n_out * k * k + n_out for n_in, n_out, k in layers)
    generator = size((138, 12544, 1), (256, 128, 4), (128, 64, 4), (64, 1, 3)) + 2 * (128 + 64)
    critic = size((10, 784, 1), (2, 64, 4), (64, 128, 4), (128, 256, 4), (256, 1, 3)) + 2 * (128 + 256)
    for network, count in ((model.generator, generator), (model.critic, critic)):
        assert sum(p.numel() for p in network.parameters()) == count
