"Densities of codes, the stages of an autoencoder, and what it refuses."

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from genbook import datasets
from genbook.core import GenbookError
from genbook.models.ae import AE, CONFIGS, CodeMixture, PrincipalMixture, code_density, pca_errors

DOUBLE = {"dtype": torch.float64}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def density(z, mean, sd):
    return Normal(mean, sd).log_prob(z[:, 0]).exp()


def test_a_mixture_is_what_it_says_in_one_dimension():
    two, points = CodeMixture(1, 2), torch.linspace(-3, 3, 7)[:, None]
    torch.testing.assert_close(two.log_prob(points).exp(), density(points, 0.0, 1.0))  # it has not learned yet
    tril = torch.tensor([[[0.5]], [[0.1]]])
    two.load_state_dict({"weights": torch.tensor([0.25, 0.75]), "means": torch.tensor([[-1.0], [2.0]]), "scale_tril": tril})
    expected = 0.25 * density(points, -1.0, 0.5) + 0.75 * density(points, 2.0, 0.1)
    torch.testing.assert_close(two.log_prob(points).exp(), expected, atol=1e-6, rtol=1e-4)
    draws = two.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert (draws < 0.5).float().mean().item() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 20_000) ** 0.5)  # four standard errors
    assert draws[draws < 0.5].std().item() == pytest.approx(0.5, abs=4 * 0.5 / (2 * 5_000) ** 0.5)
    learned = CodeMixture(1, 2).learn(draws).means.flatten().sort().values
    torch.testing.assert_close(learned, torch.tensor([-1.0, 2.0]), atol=0.03, rtol=0)


def test_codes_that_cannot_be_learned_from():
    codes = torch.randn(30, 1)
    for m, data, words in ((4, codes[:3], "at least as many codes, there are 3"), (1, codes / 0, "30 codes are not finite")):
        with pytest.raises(GenbookError, match=words):
            CodeMixture(1, m).learn(data)
    with pytest.raises(GenbookError, match="codes of 400 numbers need at least 256 of them, there are 20"):
        PrincipalMixture(400).learn(torch.randn(20, 400))


def test_a_mixture_of_principal_components_gives_back_a_gaussian():
    "With one component its covariance can be written down: U Sigma U^T + s^2 (I - U U^T)."
    torch.manual_seed(0)
    low, points = PrincipalMixture(12, components=1, rank=3), torch.randn(6, 12)
    torch.testing.assert_close(low.log_prob(points), Normal(0.0, 1.0).log_prob(points).sum(1), atol=1e-4, rtol=0)
    axes, widths = torch.linalg.qr(torch.randn(12, 12, **DOUBLE))[0][:, :3], torch.tensor([3.0, 2.0, 1.0], **DOUBLE)
    eye = torch.eye(12, **DOUBLE)
    covariance = axes @ (widths**2).diag() @ axes.T + 0.3**2 * (eye - axes @ axes.T)
    source = MultivariateNormal(torch.arange(12, **DOUBLE), covariance)
    low.double().learn(source.sample((20_000,)))
    near = source.mean + points
    torch.testing.assert_close(low.log_prob(near), source.log_prob(near), atol=1.0, rtol=0)
    torch.testing.assert_close(torch.cov(low.sample(20_000).T), covariance, atol=0.3, rtol=0)
    inner = low.mixture.scale_tril[0] @ low.mixture.scale_tril[0].T
    said = low.axes @ inner @ low.axes.T + low.rest**2 * (eye - low.axes @ low.axes.T)
    again = MultivariateNormal(low.center + low.axes @ low.mixture.means[0], said)
    torch.testing.assert_close(low.log_prob(points.double()), again.log_prob(points.double()), atol=1e-6, rtol=0)
    assert low.sample(5, temperature=0.0).sub(again.mean).abs().max() < 1e-6


def test_which_density_a_code_gets():
    assert [type(code_density(d)) for d in (256, 512, 2048)] == [CodeMixture, CodeMixture, PrincipalMixture]


@pytest.mark.parametrize("config", CONFIGS)
def test_shapes_and_loss(config):
    model, x = AE((3, 16, 16), **CONFIGS[config]), torch.rand(2, 3, 16, 16)
    assert model.reconstruct(x).shape == x.shape and model.encode(x).shape == (2, model.zdim)
    terms = model.loss(x)
    torch.testing.assert_close(terms.total, terms.mse * 3 * 16 * 16)


@pytest.mark.parametrize(
    ("shape", "change", "words"),
    [
        ((1, 8, 8), {"zdim": 0}, "zdim: 0 is not a whole number of at least 1"),
        ((1, 8, 8), {"components": 0}, "components: 0 is not a whole number of at least 1"),
        ((1, 8, 8), {"squash": "softmax"}, "squash: 'softmax' is not one of sigmoid, tanh"),
        ((1, 30, 30), {"tower": "conv"}, "needs multiples of 4 pixels"),
    ],
)
def test_bad_arguments(shape, change, words):
    with pytest.raises(GenbookError, match=words):
        AE(shape, **change)


def test_stages(digits):
    model = AE((1, 8, 8), zdim=2, components=3).eval()
    assert model.stage("autoencoder", digits.train) == (model, digits.train)
    learner, codes = model.stage("density", digits.train)
    assert codes.shape == (len(digits.train), 2)
    learner.learn(codes)
    means = model.decode(model.density.means)
    calm = model.sample(5, temperature=0.0)  # no spread: the decoded means
    assert ((calm[:, None] - means).abs().flatten(2).amax(2).min(1).values < 1e-6).all()
    with pytest.raises(GenbookError, match="stage: 'prior' is not one of autoencoder, density"):
        model.stage("prior", digits.train)
    with pytest.raises(GenbookError, match="not conditional"):
        model.sample(2, torch.tensor([1, 2]))
    with pytest.raises(GenbookError, match="2000 Gaussians need at least as many codes, there are 1257"):
        AE((1, 8, 8), components=2000).stage("autoencoder", digits.train)


def test_principal_components(digits):
    x = digits.train.float()[0].flatten(1).double()
    eigenvalues = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x))
    assert pca_errors(digits.train, digits.train, 8).mean().item() * 64 == pytest.approx(eigenvalues[:-8].sum().item(), abs=1e-5)
    with pytest.raises(GenbookError, match="65 components are more than 64"):
        pca_errors(digits.train, digits.test, 65)
