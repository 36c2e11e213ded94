"Layers of the VAEs of the five source reports, as the reports list them, against the configurations of `genbook.models.vae`."

import pytest
import torch
from torch import nn

from genbook.models.vae import CONFIGS, VAE


def lin(n_in, n_out):
    return ("Linear", n_in, n_out)


def conv(c_in, c_out, kernel=3, stride=2, padding=1):
    return ("Conv2d", c_in, c_out, kernel, stride, padding)


def up(c_in, c_out, kernel=3, stride=2, padding=1, output_padding=1):
    return ("ConvTranspose2d", c_in, c_out, kernel, stride, padding, output_padding)


def bn(c):
    return ("BatchNorm2d", c)


def act(name, *args):
    return (name, *args)


def same(square):  # kernel, stride or padding: equal in both directions
    value = set(square) if isinstance(square, tuple) else {square}
    assert len(value) == 1
    return value.pop()


def describe(module):
    "The layers with weights and the activations, in order, in the words of the lists below."
    out = []
    for m in module.modules():
        if isinstance(m, nn.Linear):
            out.append(lin(m.in_features, m.out_features))
        elif isinstance(m, nn.ConvTranspose2d):
            out.append(up(m.in_channels, m.out_channels, *map(same, (m.kernel_size, m.stride, m.padding, m.output_padding))))
        elif isinstance(m, nn.Conv2d):
            out.append(conv(m.in_channels, m.out_channels, *map(same, (m.kernel_size, m.stride, m.padding))))
        elif isinstance(m, nn.BatchNorm2d):
            assert (m.eps, m.momentum, m.affine, m.track_running_stats) == (1e-5, 0.1, True, True)
            out.append(bn(m.num_features))
        elif isinstance(m, nn.LeakyReLU):
            out.append(act("LeakyReLU", m.negative_slope))
        elif isinstance(m, nn.Upsample):
            out.append(act("Upsample", m.scale_factor))
        elif isinstance(m, (nn.ReLU, nn.GELU, nn.ELU)):
            out.append(act(type(m).__name__))
    return out


LEAKY, RELU, GELU, UP2 = act("LeakyReLU", 0.2), act("ReLU"), act("GELU"), act("Upsample", 2.0)


def s3_encoder(c, *widths, h):  # "VAE x 32 - z_dim 100": a stride-2 convolution, batch norm, LeakyReLU for each width; then the h-layer
    sizes, layers = (c, *widths), []
    for c_in, c_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [conv(c_in, c_out), bn(c_out), LEAKY]
    return [*layers, lin(*h)]


def s3_decoder(z, z_linear, *widths, c):  # transposed convolutions, batch norm, ReLU; the final layer goes to twice the size and back
    layers = [lin(z, z_linear)]
    for c_in, c_out in zip(widths[:-1], widths[1:], strict=True):
        layers += [up(c_in, c_out), bn(c_out), RELU]
    return [*layers, up(32, 32), bn(32), RELU, conv(32, c)]


# name: (configuration, arguments, image shape, encoder, (mu, logvar), decoder, output)
REPORTS = {
    # S2, section 3: Linear(dim_input, 256), ReLU, Linear(256, 2*dim_latent), which is two heads;
    # Linear(dim_latent, 256), ReLU, Linear(256, 784), Sigmoid
    "S2": ("mlp_s2", {"zdim": 20}, (1, 28, 28), [lin(784, 256), RELU], lin(256, 20), [lin(20, 256), RELU, lin(256, 784)], "sigmoid"),
    # S4, "Architecture": (3, 64, 64), 512, 512, 16; 16, 512, 512, (3, 64, 64); LeakyReLU(0.2) after each hidden layer
    "S4": (
        "mlp_s4",
        {},
        (3, 64, 64),
        [lin(12288, 512), LEAKY, lin(512, 512), LEAKY],
        lin(512, 16),
        [lin(16, 512), LEAKY, lin(512, 512), LEAKY, lin(512, 12288)],
        None,
    ),
    # S0, "Autoencoder": Conv2d(3, 16), ReLU, Conv2d(16, 32), ReLU; ConvTranspose2d(32, 16), ReLU, ConvTranspose2d(16, 3), Tanh.
    # "VAE": fully connected layers in between, latent size 128 (64 and 256 tried). Kernel 3, stride 2 and padding 1 are not in the report.
    **{
        f"S0, z {z}": (
            "conv_s0",
            {"zdim": z},
            (3, 32, 32),
            [conv(3, 16), RELU, conv(16, 32), RELU],
            lin(32 * 8 * 8, z),
            [lin(z, 32 * 8 * 8), RELU, up(32, 16), RELU, up(16, 3)],
            "tanh",
        )
        for z in (64, 128, 256)
    },
    # S1, "Part 1: Architecture", shared by the VAE, latent size 128
    "S1": (
        "conv_s1",
        {},
        (1, 28, 28),
        [conv(1, 16), GELU, conv(16, 16, stride=1), GELU, conv(16, 32), GELU, conv(32, 32, stride=1), GELU],
        lin(32 * 7 * 7, 128),
        [
            *(lin(128, 32 * 7 * 7), up(32, 32, stride=1, output_padding=0), GELU, UP2, up(32, 16, stride=1, output_padding=0), GELU),
            *(up(16, 16, stride=1, output_padding=0), GELU, UP2, up(16, 1, stride=1, output_padding=0)),
        ],
        None,
    ),
    # S3, the listings "VAE x 32 - z_dim 100" and "VAE x 16 - z_dim 20"
    "S3 x 32, z 100": (
        "conv_s3",
        {"zdim": 100},
        (1, 32, 32),
        s3_encoder(1, 32, 64, 128, 256, h=(1024, 256)),
        lin(256, 100),
        s3_decoder(100, 2048, 512, 256, 128, 64, 32, c=1),
        "tanh",
    ),
    "S3 x 16, z 20": (
        "conv_s3",
        {"zdim": 20},
        (1, 16, 16),
        s3_encoder(1, 32, 64, 128, h=(512, 128)),
        lin(128, 20),
        s3_decoder(20, 1024, 256, 128, 64, 32, c=1),
        "tanh",
    ),
    # S3, "VAE x 64": not printed; the same rule once more, in colour
    "S3 x 64, z 2": (
        "conv_s3",
        {"zdim": 2},
        (3, 64, 64),
        s3_encoder(3, 32, 64, 128, 256, 512, h=(2048, 512)),
        lin(512, 2),
        s3_decoder(2, 4096, 1024, 512, 256, 128, 64, 32, c=3),
        "tanh",
    ),
}


@pytest.mark.parametrize("report", REPORTS)
def test_layers(report):
    config, kwargs, shape, enc, head, dec, out = REPORTS[report]
    model = VAE(shape, **(CONFIGS[config] | kwargs))
    assert describe(model.encoder) == enc
    assert describe(model.mu) == describe(model.logvar) == [head]
    assert describe(model.decoder) == dec
    assert model.head.out == out
    x = torch.rand(2, *shape)
    assert model.likelihood(model.encode(x)).loc.shape == x.shape


@pytest.mark.parametrize("config", CONFIGS)
def test_two_heads(config):
    "Mean and log-variance have weights of their own."
    model = VAE((1, 32, 32), **CONFIGS[config])
    assert isinstance(model.mu, nn.Linear) and isinstance(model.logvar, nn.Linear)
    assert not torch.equal(model.mu.weight, model.logvar.weight)


def test_a_wrong_width_is_seen():
    config, kwargs, shape, enc, *_ = REPORTS["S1"]
    assert describe(VAE(shape, **(CONFIGS[config] | {"width": 32})).encoder) != enc
