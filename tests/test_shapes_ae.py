"""Layers of the autoencoders of S0 and S1, and of S3's towers, against the reports' listings; and the two stages of an autoencoder.

A listing is a list of layers in PyTorch's own words. S3 prints its networks so; S0 and S1 name channels, kernels and activations.
"""

import pytest
import torch
from safetensors.torch import load_file

from genbook.core import GenbookError
from genbook.data import Images
from genbook.lab.runs import Run
from genbook.lab.training import Training
from genbook.lab.zoo import create_model
from genbook.models.ae import AE, CONFIGS, CodeMixture, PrincipalMixture
from genbook.nn import TOWERS, decoder, encoder, layers


def conv(c_in, c_out, stride=2):
    return f"Conv2d({c_in}, {c_out}, kernel_size=(3, 3), stride=({stride}, {stride}), padding=(1, 1))"


def up(c_in, c_out):  # a transposed convolution that doubles the image
    return f"ConvTranspose2d({c_in}, {c_out}, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1))"


def flat(c_in, c_out):  # one that keeps its size
    return f"ConvTranspose2d({c_in}, {c_out}, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"


def norm(c):
    return f"BatchNorm2d({c}, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"


def linear(n_in, n_out):
    return f"Linear(in_features={n_in}, out_features={n_out}, bias=True)"


def reshape(*shape):
    return f"Unflatten(dim=1, unflattened_size={shape})"


GELU, LEAKY, FLATTEN = "GELU(approximate='none')", "LeakyReLU(negative_slope=0.2)", "Flatten(start_dim=1, end_dim=-1)"

# S0, "1. Autoencoder": Conv2d(3→16) → ReLU → Conv2d(16→32) → ReLU → ConvTranspose2d(32→16) → ReLU → ConvTranspose2d(16→3) → Tanh.
# Kernel 3, stride 2 and padding 1 are chosen; the code is the feature map.
S0 = [conv(3, 16), "ReLU()", conv(16, 32), "ReLU()"], [up(32, 16), "ReLU()", up(16, 3)]

# S1, "Part 1: Autoencoder Compression, Architecture"
S1_ENCODER = [
    *(conv(1, 16), GELU),  # Conv2d(1, 16, k=3, p=1, s=2) + GELU  [14x14]
    *(conv(16, 16, stride=1), GELU),  # Conv2d(16, 16, k=3, p=1) + GELU
    *(conv(16, 32), GELU),  # Conv2d(16, 32, k=3, p=1, s=2) + GELU  [7x7]
    *(conv(32, 32, stride=1), GELU),  # Conv2d(32, 32, k=3, p=1) + GELU
    FLATTEN,
]
S1_DECODER = [
    reshape(32, 7, 7),  # Reshape to (32, 7, 7)
    *(flat(32, 32), GELU),  # ConvTranspose2d(32, 32, k=3, p=1) + GELU
    "Upsample(scale_factor=2.0, mode='nearest')",  # Upsample(scale=2) [14x14]
    *(flat(32, 16), GELU),  # ConvTranspose2d(32, 16, k=3, p=1) + GELU
    *(flat(16, 16), GELU),  # ConvTranspose2d(16, 16, k=3, p=1) + GELU
    "Upsample(scale_factor=2.0, mode='nearest')",  # Upsample(scale=2) [28x28]
    flat(16, 1),  # ConvTranspose2d(16, 1, k=3, p=1)
]

# S3, the printed networks "VAE x 32 – z_dim 100" and "VAE x 16 – z_dim 20", up to the heads for mu and std and the final Tanh
S3_ENCODER = {
    32: [
        *(conv(1, 32), norm(32), LEAKY),
        *(conv(32, 64), norm(64), LEAKY),
        *(conv(64, 128), norm(128), LEAKY),
        *(conv(128, 256), norm(256), LEAKY),
        FLATTEN,
        linear(1024, 256),  # h_layer
    ],
    16: [
        *(conv(1, 32), norm(32), LEAKY),
        *(conv(32, 64), norm(64), LEAKY),
        *(conv(64, 128), norm(128), LEAKY),
        FLATTEN,
        linear(512, 128),  # h_layer
    ],
}
S3_DECODER = {
    32: [
        linear(100, 2048),  # z_linear
        reshape(512, 2, 2),
        *(up(512, 256), norm(256), "ReLU()"),
        *(up(256, 128), norm(128), "ReLU()"),
        *(up(128, 64), norm(64), "ReLU()"),
        *(up(64, 32), norm(32), "ReLU()"),
        *(up(32, 32), norm(32), "ReLU()", conv(32, 1)),  # final_layer
    ],
    16: [
        linear(20, 1024),  # z_linear
        reshape(256, 2, 2),
        *(up(256, 128), norm(128), "ReLU()"),
        *(up(128, 64), norm(64), "ReLU()"),
        *(up(64, 32), norm(32), "ReLU()"),
        *(up(32, 32), norm(32), "ReLU()", conv(32, 1)),  # final_layer
    ],
}


def listing(module):
    return [repr(m).replace("affine=True, bias=True", "affine=True") for m in layers(module)]  # newer torch prints the bias of norms


def test_s0_autoencoder():
    model = AE((3, 32, 32), **CONFIGS["conv_s0"])
    assert listing(model.encoder) == [*S0[0], FLATTEN]
    assert listing(model.decoder) == [reshape(32, 8, 8), *S0[1]]
    assert listing(model.head) == ["Identity()"] and model.squash == "tanh"
    assert model.zdim == 32 * 8 * 8


@pytest.mark.parametrize("d", [8, 16, 32, 64, 128, 256])
def test_s1_autoencoder(d):
    model = AE((1, 28, 28), **(CONFIGS["conv_s1"] | {"zdim": d}))
    assert listing(model.encoder) == S1_ENCODER
    assert listing(model.head) == [linear(32 * 7 * 7, d)]  # Flatten -> Linear(32*7*7 x latent_dim)
    assert listing(model.decoder) == [linear(d, 32 * 7 * 7), *S1_DECODER]  # Linear(latent_dim x 32*7*7)
    assert model.squash is None
    x = torch.rand(2, 1, 28, 28)
    sizes = [tuple(x.shape[1:]) for m in model.encoder if (x := m(x)).dim() == 4]
    assert sizes[::2] == [(16, 14, 14), (16, 14, 14), (32, 7, 7), (32, 7, 7)]


@pytest.mark.parametrize(("size", "d"), [(32, 100), (16, 20)])
def test_s3_towers(size, d):
    assert listing(encoder("conv_batchnorm", (1, size, size))) == S3_ENCODER[size]
    assert listing(decoder("conv_batchnorm", (1, size, size), d)) == S3_DECODER[size]


def test_s3_depth_follows_from_the_image_size():  # "MODEL x 2^y" has y - 1 convolutions
    for y in (4, 5, 6):
        tower = encoder("conv_batchnorm", (3, 2**y, 2**y))
        assert sum(m.startswith("Conv2d") for m in listing(tower)) == y - 1
    assert listing(tower)[-1] == linear(512 * 2 * 2, 512)


def test_s3_pads_28_to_32():
    assert listing(encoder("conv_batchnorm", (1, 28, 28)))[1:] == S3_ENCODER[32]
    *inner, crop = layers(decoder("conv_batchnorm", (1, 28, 28), 100))
    assert listing(torch.nn.Sequential(*inner)) == S3_DECODER[32]
    x = torch.arange(32.0 * 32).view(1, 1, 32, 32)
    assert torch.equal(crop(x), x[:, :, 2:30, 2:30])


def test_s2_and_s4_towers():
    # S2: Linear(784, 256), ReLU; Linear(d, 256), ReLU, Linear(256, 784). S4: 12,288-512-512-16 and back, LeakyReLU(0.2)
    options = dict(width=256, depth=1, act="relu")
    assert listing(encoder("mlp", (1, 28, 28), **options)) == [FLATTEN, linear(784, 256), "ReLU()"]
    assert listing(decoder("mlp", (1, 28, 28), 2, **options)) == [linear(2, 256), "ReLU()", linear(256, 784), reshape(1, 28, 28)]
    options = dict(width=512, depth=2, act="leaky_relu")
    assert listing(encoder("mlp", (3, 64, 64), **options)) == [FLATTEN, linear(12288, 512), LEAKY, linear(512, 512), LEAKY]
    hidden = [linear(16, 512), LEAKY, linear(512, 512), LEAKY, linear(512, 12288)]
    assert listing(decoder("mlp", (3, 64, 64), 16, **options)) == [*hidden, reshape(3, 64, 64)]


@pytest.mark.parametrize("tower", TOWERS)
def test_memory_format_changes_no_value(tower):
    "Feature maps are kept channels-last for speed: the same numbers as the plain sequence of layers."
    torch.manual_seed(0)
    enc, dec = encoder(tower, (3, 16, 16)).double(), decoder(tower, (3, 16, 16), 5).double()
    x, z = torch.rand(4, 3, 16, 16, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    for module, value in ((enc, x), (dec, z)):
        plain = torch.nn.Sequential(*module)
        torch.testing.assert_close(module(value), plain(value), atol=1e-9, rtol=0)


# ---- two stages: the autoencoder, then the density of its codes


def trained(run=None, **changes):
    "A tiny autoencoder of the digits after both stages."
    settings = {"model_args": {"width": 16, "components": 3}, "train_args": {"steps": 30, "ema": 0.9}} | changes
    made = Training("ae", "digits", config="digits", device="cpu", **settings)
    made.fit(run, progress=False)
    return made


def drawn(model, **how):
    return model.sample(5, generator=torch.Generator().manual_seed(0), **how)


def test_two_stages_come_back_as_one_model(tmp_path):
    "What a run keeps of both stages, loaded into a model that is built anew, makes the same samples."
    run = Run(tmp_path / "run")
    model = trained(run).model
    about = run.model
    twin = create_model(about["name"], about["image_shape"], **about["config"]).eval()
    assert not torch.equal(drawn(twin), drawn(model))
    twin.load_state_dict(load_file(run.dir / "model.safetensors"))
    assert torch.equal(drawn(twin), drawn(model)) and twin.density.weights.shape == (3,)


def test_the_density_learns_from_the_weights_that_are_kept():
    "Codes of the averaged weights, in evaluation mode: learning from the codes of the kept model gives the same density again."
    made = trained(model_args={"tower": "conv_batchnorm", "width": 4, "components": 3})
    module, codes = made.model.stage("density", made.data.train)
    assert module is made.model.density and torch.equal(codes, made.images) and not made.model.training
    again = CodeMixture(made.model.zdim, 3).learn(codes, seed=made.seed)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())


def test_before_the_second_stage_codes_are_standard_normal():
    model = AE((1, 8, 8), **CONFIGS["digits"]).eval()
    z = torch.randn(6, 8)
    torch.testing.assert_close(model.density.log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1))
    assert drawn(model, temperature=0.0).flatten(1).std(0).max() < 1e-6  # one code, so one image


def test_a_density_of_a_large_code_is_one_of_its_principal_components():
    "S0's feature map at 32 pixels has 2,048 numbers; two full covariances of it would be 8 million."
    model = AE((1, 32, 32), **CONFIGS["conv_s0"], components=2).eval()
    assert isinstance(model.density, PrincipalMixture) and sum(b.numel() for b in model.buffers()) < 1_000_000
    images = Images(torch.randint(256, (300, 1, 32, 32), dtype=torch.uint8), torch.zeros(300, dtype=torch.int64))
    density, codes = model.stage("density", images)
    density.learn(codes)
    torch.testing.assert_close(density.sample(300).var(0).sum(), codes.var(0).sum(), rtol=0.1, atol=0)
    twin = AE((1, 32, 32), **CONFIGS["conv_s0"], components=2).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(drawn(twin), drawn(model))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"components": 0}, "components: 0 is not a whole number of at least 1"),
        ({"components": 1258}, "components: 1258 Gaussians need at least as many codes, there are 1257"),
    ],
)
def test_bad_components_are_told_before_the_training(change, words):
    with pytest.raises(GenbookError) as error:
        Training("ae", "digits", config="digits", model_args=change, device="cpu")
    assert str(error.value) == words
