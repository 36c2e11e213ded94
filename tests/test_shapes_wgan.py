"S3's WGAN and the networks of SNGAN, layer by layer, against the configurations of `genbook.models.wgan`."

import pytest
import torch
from test_shapes_gan import listing, s3_critic, s3_generator, settings

from genbook import create_model
from genbook.lab.claims import load_claims
from genbook.lab.experiments import load_experiments
from genbook.models.wgan import CONFIGS, WGAN
from genbook.nn import n_parameters

# S3, "Examples of WGAN models": x 32 with z 100, x 16 with z 20; 64 pixels, not printed, by the same rule
LISTED = {
    32: (100, s3_generator(100, 512, 256, 128, c=1), s3_critic(1, 64, 128, 256, features=4096, last="LeakyReLU")),
    16: (20, s3_generator(20, 256, 128, c=1), s3_critic(1, 64, 128, features=2048, last="LeakyReLU")),
    64: (100, s3_generator(100, 1024, 512, 256, 128, c=1), s3_critic(1, 64, 128, 256, 512, features=8192, last="LeakyReLU")),
}


@pytest.mark.parametrize("size", LISTED)
def test_layers_are_those_of_the_report(size):
    zdim, generator, critic = LISTED[size]
    model = WGAN((1, size, size), **(CONFIGS["clip_s3"] | {"zdim": zdim}))
    assert listing(model.generator) == generator
    assert listing(model.critic) == critic
    assert all(layer.bias is not None for layer in model.modules() if isinstance(layer, torch.nn.modules.conv._ConvNd))
    assert model.loss_name == "wasserstein" and model.kind == "none" and model.clip == 0.01


def test_without_batch_norm_only_that_is_missing():
    plain = create_model("wgan_clip_s3", (1, 32, 32), net="dcgan_s3_plain", zdim=100)
    assert listing(plain.critic) == [layer for layer in LISTED[32][2] if layer[0] != "BatchNorm2d"]
    assert listing(plain.generator) == LISTED[32][1]


def test_sngan_has_the_weights_of_the_paper():
    "Miyato et al. 2018, table 4: CIFAR-10, three blocks of 256 up from 4x4; four of 128, two of them down; a sum over pixels."
    model = create_model("wgan_sngan", (3, 32, 32))
    c, d = 256, 128
    block = 2 * (9 * c * c + c) + (c * c + c) + 4 * c  # two convolutions, a 1x1 convolution, two batch norms
    assert n_parameters(model.generator) == 128 * 16 * c + 16 * c + 3 * block + 2 * c + 9 * c * 3 + 3 == 4_276_739
    first = (9 * 3 * d + d) + (9 * d * d + d) + (3 * d + d)
    plain = 2 * (9 * d * d + d)
    assert n_parameters(model.critic) == first + (plain + d * d + d) + 2 * plain + d + 1 == 1_053_825
    shapes, x = [], torch.rand(2, 3, 32, 32)
    for block in model.critic.features:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(128, 16, 16), (128, 8, 8), (128, 8, 8), (128, 8, 8), (128, 8, 8), (128,)]


@pytest.mark.parametrize("size, up_blocks, down_blocks", [(8, 1, 1), (16, 2, 1), (28, 2, 1), (32, 3, 2), (64, 4, 3)])
def test_depth_follows_the_image_size(size, up_blocks, down_blocks):
    model = create_model("wgan_sngan", (1, size, size), width=8)
    count = lambda net, kind: sum(isinstance(m, kind) for m in net.modules())
    blocks = [m for m in model.critic.features if hasattr(m, "skip")]
    assert sum(hasattr(m, "skip") for m in model.generator) == up_blocks and len(blocks) == down_blocks + 2
    assert count(model.critic, torch.nn.AvgPool2d) == down_blocks and count(model.critic, torch.nn.BatchNorm2d) == 0


def test_every_wgan_of_the_reports_is_an_experiment():
    "S3: 16, 32 and 64 pixels with latent sizes 2, 20 and 100, five critic steps, 50 epochs of CIFAR-10 (once 100) and 25 of MNIST."
    found = {n: e for n, e in load_experiments().items() if e.notebook == "models/31_wgan"}
    printed = [p for p in load_claims().printed if p.experiment in found]
    assert {p.report for p in printed} == {"S3"} and all(found[p.experiment].chosen for p in printed)
    for name, epochs in (("wgan-clip-s3-mnist", 25), ("wgan-clip-s3-cifar10", 50)):
        plan = settings(name)
        assert found[name].grid == {"size": [16, 32, 64], "zdim": [2, 20, 100]} and (plan["train.k"], plan["train.epochs"]) == (5, epochs)
        assert plan["config"] == "clip_s3" and plan["dataset"] == name.rpartition("-")[2]
    assert settings("wgan-clip-s3-cifar10-long")["train.epochs"] == 100
    assert {p.experiment for p in printed} == {"wgan-clip-s3-mnist", "wgan-clip-s3-cifar10", "wgan-clip-s3-cifar10-long"}


def test_with_batch_norm_a_score_depends_on_the_company_of_its_image():
    "S3's critic before any training: by a quarter of the spread of scores, which the limit of the weights does not limit."
    x, spread, change = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0)), {}, {}
    for net in ("dcgan_s3", "dcgan_s3_plain"):
        torch.manual_seed(0)
        model = WGAN((1, 32, 32), **(CONFIGS["clip_s3"] | {"net": net}))
        with torch.no_grad():
            whole, few = model.score(x), model.score(x[:4])
        spread[net], change[net] = whole.std().item(), (whole[:4] - few).abs().max().item()
    assert change["dcgan_s3"] > 0.1 * spread["dcgan_s3"] and change["dcgan_s3_plain"] < 1e-3 * spread["dcgan_s3_plain"]
    assert spread["dcgan_s3"] > 3 * spread["dcgan_s3_plain"]
