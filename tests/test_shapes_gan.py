"Layers of the GANs of the source reports, as the reports list them, against `genbook.models.gan`; and that all of them are experiments."

import math

import pytest
import torch
from test_shapes_vae import RELU, act, bn, conv, describe, lin
from torch import nn

from genbook.lab.claims import load_claims
from genbook.lab.experiments import budget, get_experiment, load_experiments
from genbook.lab.jobs import expand, flat
from genbook.models.gan import CONFIGS, GAN

LEAKY = act("LeakyReLU", 0.2)


def up(c_in, c_out, stride=2, padding=1):  # kernel 4
    return ("ConvTranspose2d", c_in, c_out, 4, stride, padding, 0)


def down(c_in, c_out):
    return conv(c_in, c_out, 4)


def listing(module):
    "As `describe`, with one-dimensional batch norm, dropout and sigmoids."
    out = []
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d):
            out.append(bn(m.num_features))
        elif isinstance(m, nn.Dropout):
            out.append(act("Dropout", m.p))
        elif isinstance(m, nn.Sigmoid):
            out.append(act("Sigmoid"))
        elif not list(m.children()):
            out += describe(m)
    return out


def s3_generator(z, *widths, c):  # "GAN x 32 - z_dim 100"
    out = [up(z, widths[0], 1, 0), bn(widths[0]), RELU]
    for c_in, c_out in zip(widths[:-1], widths[1:], strict=True):
        out += [up(c_in, c_out), bn(c_out), RELU]
    return [*out, up(widths[-1], c)]


def s3_critic(c, *widths, features, last="Sigmoid"):
    out = [down(c, widths[0]), LEAKY]
    for c_in, c_out in zip(widths[:-1], widths[1:], strict=True):
        out += [down(c_in, c_out), bn(c_out), LEAKY]
    return [*out[:-1], act(last) if last == "Sigmoid" else LEAKY, lin(features, 1)]


D3 = act("Dropout", 0.3)
S4_GENERATOR = [
    *(up(100, 512, 1, 0), bn(512), RELU, up(512, 256), bn(256), RELU, up(256, 128), bn(128), RELU),
    *(up(128, 64), bn(64), RELU, up(64, 3)),
]
S4_CRITIC = [
    *(down(3, 64), LEAKY, down(64, 128), bn(128), LEAKY, down(128, 256), bn(256), LEAKY),
    *(down(256, 512), bn(512), LEAKY, conv(512, 1, 4, 1, 0)),
]

# name: (configuration, arguments, image shape, generator, critic)
REPORTS = {
    # S0, section 4: input, 256, 512, 1024, output with LeakyReLU; input, 1024, 512, 256, 1 with LeakyReLU and dropout
    "S0": (
        "fc_s0",
        {},
        (1, 28, 28),
        [lin(128, 256), LEAKY, lin(256, 512), LEAKY, lin(512, 1024), LEAKY, lin(1024, 784)],
        [lin(784, 1024), LEAKY, D3, lin(1024, 512), LEAKY, D3, lin(512, 256), LEAKY, D3, lin(256, 1)],
    ),
    # S1, "Part 1: Vanilla GAN": Linear, LeakyReLU(0.2), BatchNorm, four times. First layer 100 x 128, latent size 128
    **{
        f"S1, z {z}": (
            "fc_s1",
            {"zdim": z},
            (1, 28, 28),
            [
                *(lin(z, 128), LEAKY, bn(128), lin(128, 256), LEAKY, bn(256)),
                *(lin(256, 512), LEAKY, bn(512), lin(512, 1024), LEAKY, bn(1024), lin(1024, 784)),
            ],
            [lin(784, 512), LEAKY, lin(512, 256), LEAKY, lin(256, 1)],
        )
        for z in (100, 128)
    },
    # S3, the listings "GAN x 32 - z_dim 100" and "GAN x 16 - z_dim 20"
    "S3 x 32, z 100": (
        "lsgan_s3",
        {"zdim": 100},
        (1, 32, 32),
        s3_generator(100, 512, 256, 128, c=1),
        s3_critic(1, 64, 128, 256, features=4096),
    ),
    "S3 x 16, z 20": ("lsgan_s3", {"zdim": 20}, (1, 16, 16), s3_generator(20, 256, 128, c=1), s3_critic(1, 64, 128, features=2048)),
    # S3, "GAN x 64": not printed; the same rule once more, in colour
    "S3 x 64, z 2": (
        "lsgan_s3",
        {"zdim": 2},
        (3, 64, 64),
        s3_generator(2, 1024, 512, 256, 128, c=3),
        s3_critic(3, 64, 128, 256, 512, features=8192),
    ),
    "S3 x 32, corrected": (
        "lsgan_s3_corrected",
        {},
        (3, 32, 32),
        s3_generator(100, 512, 256, 128, c=3),
        s3_critic(3, 64, 128, 256, features=4096, last="LeakyReLU"),
    ),
    # S4, "DCGAN Architecture" with fm = 64
    "S4": ("dcgan_s4", {}, (3, 64, 64), S4_GENERATOR, S4_CRITIC),
}


@pytest.mark.parametrize("report", REPORTS)
def test_layers(report):
    config, kwargs, shape, generator, critic = REPORTS[report]
    model = GAN(shape, **(CONFIGS[config] | kwargs))
    assert listing(model.generator) == generator
    assert listing(model.critic) == critic
    assert model.sample(2).shape == (2, *shape)


def test_a_wrong_width_is_seen():
    *_, shape, generator, _ = REPORTS["S4"]
    assert listing(GAN(shape, **(CONFIGS["dcgan_s4"] | {"width": 32})).generator) != generator


def test_biases_are_those_of_the_listings():
    "S3's print shows convolutions with a bias also before batch norm; ours of S4 have one only where no batch norm follows."
    has = lambda net: [m.bias is not None for m in net.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    s3, s4 = (GAN((3, 64, 64), **CONFIGS[c]) for c in ("lsgan_s3", "dcgan_s4"))
    assert all(has(s3.generator) + has(s3.critic))
    assert has(s4.generator) == [False] * 4 + [True] and has(s4.critic) == [True, False, False, False, True]


def test_output_is_tanh_of_the_last_layer():
    "Images of [-1, 1] in the reports, of [0, 1] here; the critic sees [-1, 1]."
    model, z = GAN((3, 64, 64), **CONFIGS["dcgan_s4"]).eval(), torch.randn(2, 100)
    torch.testing.assert_close(model.decode(z), (model.generator(z).tanh() + 1) / 2)
    torch.testing.assert_close(model.score(model.decode(z)), model.critic(model.generator(z).tanh()))


def test_a_sigmoid_before_the_last_layer_halves_what_the_first_layer_learns():
    "S3's listing ends its convolutions in a sigmoid where one on the output was probably meant."
    lengths = []
    for name in ("lsgan_s3", "lsgan_s3_corrected"):
        torch.manual_seed(0)
        model, x = GAN((1, 32, 32), **CONFIGS[name]), torch.rand(32, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        (g,) = torch.autograd.grad(model.score(x).sum(), model.critic.features[0].weight)
        lengths.append(g.norm().item())
    assert 0 < lengths[0] < 0.5 * lengths[1]


def test_losses_that_s4_prints_are_the_answers_that_the_chapter_reads_in_them():
    assert abs(math.exp(-0.2932) - 0.746) < 5e-4 and abs(math.exp(-8.1885) - 0.0003) < 5e-5


@pytest.mark.parametrize("config, std", [("dcgan_s4", 0.02), ("lsgan_s3", None)])
def test_initialisation(config, std):
    "DCGAN's N(0, 0.02) and N(1, 0.02) where it is used; otherwise torch's own, which is uniform and wider."
    model = GAN((3, 64, 64), **CONFIGS[config])
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)])
    scales = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    if std is None:
        assert (scales == 1).all() and abs(weights.std() - 0.02) > 0.002
    else:
        assert abs(weights.mean()) < 1e-3 and abs(weights.std() - std) < 1e-3
        assert abs(scales.mean() - 1) < 5e-3 and abs(scales.std() - std) < 5e-3


def settings(name):
    "Every parameter of the experiment's first run by one name each."
    return flat(expand(get_experiment(name))[0].params)


def gans():
    "The experiments of chapter 30, each with what the reports printed of it."
    printed = load_claims().printed
    return {n: [p for p in printed if p.experiment == n] for n, e in load_experiments().items() if e.notebook == "models/30_gan"}


def of(report):
    return [n for n, printed in gans().items() if report in {p.report for p in printed}]


def test_every_gan_of_the_reports_is_an_experiment():
    "S3's WGAN and S1's conditional GAN come with chapters 31 and 32."
    assert {p.report for printed in gans().values() for p in printed} == {"S0", "S1", "S2", "S3", "S4"}
    datasets = lambda report: {settings(n)["dataset"] for n in of(report)}
    assert datasets("S1") == {"mnist", "fashion"} and datasets("S2") == {"mnist"} and datasets("S4") == {"cats64"}
    for dataset in ("mnist", "cifar10"):
        grids = [get_experiment(n).grid for n in of("S3") if settings(n)["dataset"] == dataset]
        assert {"size": [16, 32, 64], "zdim": [2, 20, 100]} in grids
    assert any(settings(n).get("train.k") == 3 for n in of("S3"))


def test_the_numbers_of_the_reports_are_those_of_the_experiments():
    s4 = settings("dcgan-cats64")
    assert s4 | {"train.batch_size": 128, "train.lr": 2e-4, "train.epochs": 50, "config": "dcgan_s4"} == s4
    s0 = settings("gan-fc-s0-mnist")
    assert (s0["train.critic_lr"], s0["train.lr"], CONFIGS["fc_s0"]["smoothing"]) == (4e-4, 1e-4, 0.9)
    s1 = settings("gan-fc-s1-mnist")
    trained = [s1[f"train.{name}"] for name in ("lr", "beta1", "beta2")]
    assert (*trained, CONFIGS["fc_s1"]["zdim"]) == (2e-4, 0.5, 0.999, 128)
    e = get_experiment("gan-fc-s1-mnist")
    assert e.reported == {"epochs": 1000} and budget(e) == f"epochs: 1000 in the report, {e.train['epochs']} here"
    s4 = {p.says: (p.value, [m.metric for m in p.metric]) for p in gans()["dcgan-cats64"]}
    assert s4["after 50 epochs"] == (132.7, [("fid__n1000",), ("fid__n1000_floor",)]) and s4["after 10 epochs"][0] == 164.5
    share, metrics = s4["2412 of 999000 ordered pairs"]
    assert abs(share - 2412 / 999_000) < 2e-5 and metrics == [("similar_pairs__pixels",)]


@pytest.mark.parametrize("name", [n for n, printed in gans().items() if printed])
def test_what_a_report_leaves_out_is_marked(name):
    assert get_experiment(name).chosen
