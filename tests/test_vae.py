"What a VAE refuses, the shapes of its terms, and the measures of its code."

import math

import pytest
import torch

from genbook.core import GenbookError
from genbook.data import Images
from genbook.measure.likelihood import kl_per_dim
from genbook.models.vae import CONFIGS, VAE, ImageHead, codes, knn_accuracy, normalised_bits, spectrum, variances, waterfill


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VAE((1, 28, 28), **CONFIGS["mlp"], levels=2)


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def binary(n=5):
    return torch.rand(n, 1, 28, 28, generator=noise()).round()


def test_terms_are_per_example_and_add_up(model):
    terms = model.loss(binary(), it=torch.tensor(0))
    assert [t.shape for t in terms] == [(5,)] * 4
    torch.testing.assert_close(terms.total, terms.rec + terms.beta * terms.kl)


def test_the_allowance_of_free_bits_is_in_the_total_alone():
    torch.manual_seed(0)
    generous = VAE((1, 28, 28), **CONFIGS["mlp"], levels=2, free_bits=0.5, beta=3.0)
    x = binary()
    terms, q = generous.loss(x), generous.posterior(x)
    each = kl_per_dim(q.mu, q.logvar)
    torch.testing.assert_close((terms.total - terms.rec).mean(), 3.0 * each.clamp(min=0.5).sum(), atol=1e-3, rtol=0)
    torch.testing.assert_close(terms.kl.mean(), each.sum(), atol=1e-3, rtol=0)


def test_bits_and_samples_of_the_posterior(model):
    x = binary()
    assert model.sample_posterior(x, 3).shape == (3, 5, 1, 28, 28)
    bits, bound = model.bits_per_dim(x, k=4, generator=noise()), model.iw_bound(x, 4, generator=noise())
    torch.testing.assert_close(bits, -bound / 784 / math.log(2))
    assert not hasattr(VAE((1, 28, 28), **CONFIGS["mlp_s2"]), "bits_per_dim")  # a density has none


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zdim": 0}, "zdim: 0 is not a whole number of at least 1"),
        ({"image_shape": (28, 28)}, "image_shape"),
        ({"image_shape": (1, 27, 27), "tower": "conv"}, "27x27"),
        ({"tower": "convolution"}, "did you mean 'conv"),
        ({"likelihood": "gauss"}, "did you mean 'gaussian'?"),
        ({"k": 4, "free_bits": 0.5}, "free_bits"),
    ],
)
def test_bad_arguments(change, words):
    with pytest.raises(GenbookError) as error:
        VAE(**{"image_shape": (1, 28, 28)} | change)
    assert words in str(error.value)


def test_labels_are_refused(model):
    with pytest.raises(GenbookError, match="not conditional"):
        model.sample(2, torch.tensor([1, 2]))


def test_heads():
    head = ImageHead((1, 8, 8), "discretized_logistic", levels=17, scale="shared", log_scale=-2.0)
    p = head(torch.rand(5, 3, 1, 8, 8))  # five samples of z for each of three images
    assert p.log_prob(torch.rand(3, 1, 8, 8)).shape == (5, 3) and head.discrete
    assert [ImageHead((1, 8, 8), "bernoulli", levels=n).discrete for n in (2, 17)] == [True, False]
    widths = ImageHead((3, 8, 8), "discretized_laplace", out="sigmoid", scale="decoder", log_scale=-1.0)
    assert (widths(torch.zeros(2, 6, 8, 8)).log_scale == -1.0).all()
    with pytest.raises(GenbookError, match="takes logits"):
        ImageHead((1, 8, 8), "bernoulli", out="tanh")


def grey(n=40):
    x = torch.randint(17, (n, 1, 8, 8), dtype=torch.uint8, generator=noise())
    return Images(x, torch.arange(n) % 2, levels=17)


def test_the_spectrum_holds_the_variance_of_the_pixels():
    for n in (40, 200):  # fewer and more images than pixels
        images = grey(n)
        x = images.float()[0].flatten(1)
        values = spectrum(images)
        torch.testing.assert_close(values.sum(), x.double().var(0, unbiased=False).sum())
        assert (values.diff() <= 1e-12).all()
    assert waterfill(torch.tensor([math.e**2, 1.0, 0.1]), 1.0).tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_codes_variances_and_bits():
    torch.manual_seed(0)
    images = grey()
    vae = VAE((1, 8, 8), levels=17, zdim=3, width=8)
    mu, logvar, y = codes(vae, images, n=30)
    q = vae.posterior(images.float(slice(0, 30))[0])
    torch.testing.assert_close(mu, q.mu.detach())
    torch.testing.assert_close(logvar, q.logvar.detach())
    assert torch.equal(y, images.y[:30])
    x = images.float()[0]
    found = variances(vae, images, x)
    assert found["sample_diversity"].value == pytest.approx(1.0)
    error = (vae.reconstruct(x) - x).square().mean() / x.var(0).mean()
    assert found["unexplained_variance"].value == pytest.approx(error.item(), rel=1e-5)
    assert (normalised_bits(vae, images) > 3).all()  # of independent noise: log2(17) = 4.09 bits at best


def test_neighbours_of_separate_classes_are_right():
    a, b = torch.zeros(10, 2), torch.full((10, 2), 5.0)
    y = torch.tensor([0] * 10 + [1] * 10)
    assert knn_accuracy(torch.cat([a, b]), y, torch.cat([a[:3], b[:3]]), torch.tensor([0, 0, 0, 1, 1, 0])).tolist() == [1, 1, 1, 1, 1, 0]
