"Layers of S0's VAE with planar flows as the report lists them, and of the other configurations, against `genbook.models.flow_vae`."

import pytest
import torch
from test_shapes_vae import RELU, conv, describe, lin, up
from torch import nn

from genbook.models.flow_vae import CONFIGS, FlowVAE
from genbook.nn import n_parameters

ELU = ("ELU",)


@pytest.mark.parametrize("size", [28, 32])
def test_s0(size):
    """Report S0, "VAE with Planar Flows": the VAE's networks, 128 latent dimensions, "4 planar flow transformations".

    Four layers take 4 (2*128 + 1) numbers. Kernel 3, stride 2 and padding 1 are not in the report."""
    model, side = FlowVAE((3, size, size), **CONFIGS["conv_s0"]), size // 4
    features = 32 * side**2
    assert describe(model.encoder) == [conv(3, 16), RELU, conv(16, 32), RELU]
    assert describe(model.mu) == describe(model.logvar) == [lin(features, 128)]
    assert describe(model.decoder) == [lin(128, features), RELU, up(32, 16), RELU, up(16, 3)]
    assert model.head.out == "tanh"
    assert model.flow.layers == 4 and model.flow.dim == 128 and model.flow.theta.shape == (4, 257)
    assert describe(model.amortise) == [lin(features, 1028)] and model.amortise.bias is None
    x = torch.rand(2, 3, size, size)
    z, logq = model.posterior(x).rsample_and_log_prob(k=3)
    assert z.shape == (3, 2, 128) and logq.shape == (3, 2) and model.likelihood(z).loc.shape == (3, *x.shape)


@pytest.mark.parametrize("layers", [0, 2, 4, 10, 20, 40, 80])
def test_the_ladder(layers):
    "784-512-512-40 and back, with K (2*40 + 1) numbers an image: only the flow grows."
    model = FlowVAE((1, 28, 28), **(CONFIGS["mlp"] | dict(layers=layers)))
    assert describe(model.encoder) == [lin(784, 512), ELU, lin(512, 512), ELU]
    assert describe(model.mu) == [lin(512, 40)] and describe(model.decoder) == [lin(40, 512), ELU, lin(512, 512), ELU, lin(512, 784)]
    assert n_parameters(model) == 1_391_456 + 81 * layers * (512 + 1)


@pytest.mark.parametrize(("config", "dim", "hidden", "context"), [("iaf", 40, 320, 128), ("iaf_digits", 16, 128, 64)])
def test_iaf(config, dim, hidden, context):
    "Masked dim-hidden-2 dim in each step, the context into both layers; half of the weights are there, and steps alternate in direction."
    model = FlowVAE((1, 28, 28), **CONFIGS[config])
    assert [net.reverse for net in model.flow.nets] == [i % 2 == 1 for i in range(CONFIGS[config]["layers"])]
    for net in model.flow.nets:
        assert describe(net.masked) == [lin(dim, hidden), lin(hidden, 2 * dim)]
        assert describe(net.given) == [lin(context, hidden), lin(context, 2 * dim)]
        kept = [m.mask.mean().item() for m in net.masked]
        assert all(0.4 < share < 0.6 for share in kept), kept
    assert describe(model.amortise) == [lin(model.encoder.out_features, context)]


@pytest.mark.parametrize(("config", "dim", "hidden", "context"), [("realnvp", 40, 160, 128), ("realnvp_digits", 16, 128, 64)])
def test_couplings(config, dim, hidden, context):
    "Half of the numbers and the context in, scale and shift of the other half out, one hidden layer; the identity at the start."
    model = FlowVAE((1, 28, 28), **CONFIGS[config])
    assert len(model.flow.layers) == CONFIGS[config]["layers"]
    for layer in model.flow.layers:
        found = describe(layer.net)
        assert (found[0], found[-1]) == (lin(dim // 2 + context, hidden), lin(hidden, dim))
        assert not layer.net[-1].weight.any() and not layer.net[-1].bias.any()
    assert describe(model.amortise) == [lin(model.encoder.out_features, context)]


def test_a_wrong_number_of_layers_is_seen():
    model = FlowVAE((3, 32, 32), **(CONFIGS["conv_s0"] | dict(layers=5)))
    assert model.flow.theta.shape != (4, 257) and isinstance(model.amortise, nn.Linear)
