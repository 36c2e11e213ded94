"Likelihood evaluation: what a notebook should not check. Chunking, seeds, global state, errors."

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genbook import create_model, datasets
from genbook.core import GenbookError
from genbook.data import Codes
from genbook.measure.annealing import ais_gap, ais_nll
from genbook.measure.likelihood import elbo, evaluate, iw_bound_from, iw_nll, likelihood_table, log_weights
from genbook.prob import LIKELIHOODS, DiagonalNormal, Gaussian, StandardNormal, likelihood, n_params


class Tiny(nn.Module):
    "A VAE on 1x4x4 images with batch normalisation and dropout, which evaluation has to switch off."

    def __init__(self, name="bernoulli", levels=2, d=3):
        super().__init__()
        self.levels, self.name, self.prior, self.calls = levels, name, StandardNormal(d), []
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Dropout(0.5), nn.Linear(12, 2 * d))
        self.decoder = nn.Linear(d, 16 * n_params(name, levels=levels))

    def posterior(self, x):
        return DiagonalNormal(*self.encoder(x).chunk(2, -1))

    def likelihood(self, z):
        self.calls.append(len(z))
        return likelihood(self.name, self.decoder(z).unflatten(-1, (-1, 4, 4)), levels=self.levels, log_scale=-1.0)


class PlainAutoencoder(nn.Module):
    def reconstruct(self, x):
        return x * 0.5


def images(n=230, levels=2):
    return torch.randint(0, levels, (n, 1, 4, 4), generator=torch.Generator().manual_seed(1)) / (levels - 1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tiny()


def values(result):
    return {name: m.value for name, m in result.items()}


def test_result_does_not_depend_on_the_batch_size(model):
    expected = values(evaluate(model, images(), k=70, batch_size=100_000))
    for batch_size in (7, 333, 1000):
        model.calls.clear()
        assert values(evaluate(model, images(), k=70, batch_size=batch_size)) == pytest.approx(expected, abs=1e-5)
        assert sorted(model.calls)[-1] == max(batch_size, 100)  # 100: the reconstructions of a block


def test_same_seed_same_result_and_another_seed_another(model):
    first, second, other = (values(evaluate(model, images(), k=20, seed=s)) for s in (3, 3, 4))
    assert first == second
    assert all(first[name] != other[name] for name in ("elbo", "iw_nll", "ess", "mutual_information", "aggregate_kl"))
    assert first["mse"] == other["mse"]


def test_first_images_and_samples_are_the_same_alone(model):
    x = images()
    whole = elbo(model, x[:200], samples=1).value * 200
    parts = elbo(model, x, n=100).value * 100
    assert elbo(model, x[:100]).value * 100 == pytest.approx(parts, abs=1e-6)
    assert whole != pytest.approx(2 * parts, abs=1e-3)
    result = evaluate(model, x, k=60, elbo_samples=7)
    assert result["elbo"].value == pytest.approx(elbo(model, x, samples=7).value, abs=1e-6)
    assert result["iw_nll"].value == pytest.approx(iw_nll(model, x, 60).value, abs=1e-6)
    assert iw_nll(model, x, 1).value == pytest.approx(-elbo(model, x).value, abs=1e-6)


def test_more_samples_do_not_loosen_the_bound(model):
    bounds = [iw_nll(model, images(), k) for k in (1, 8, 64, 512)]
    assert all(a.value > b.value for a, b in zip(bounds, bounds[1:], strict=False))


def test_global_state_is_untouched(model):
    model.train()
    model.encoder[4].eval()  # a part that was in evaluation mode stays so
    before, statistics = torch.get_rng_state(), model.encoder[2].running_mean.clone()
    result = evaluate(model, images(), k=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.encoder[2].running_mean, statistics)
    assert model.training and model.encoder[2].training and not model.encoder[4].training
    assert all(p.grad is None for p in model.parameters())
    torch.rand(7)  # results do not depend on the global state either
    assert values(evaluate(model, images(), k=5)) == values(result)


def test_training_flags_come_back_after_an_error(model):
    before = torch.get_rng_state()
    with pytest.raises(GenbookError, match="do not fit"):
        evaluate(model.train(), torch.zeros(3, 1, 2, 8), k=2)
    assert model.training and model.encoder[2].training
    assert torch.equal(torch.get_rng_state(), before)


def test_global_noise_is_seeded_for_models_that_use_it(model):
    class Careless(Tiny):
        def posterior(self, x):
            q = super().posterior(x)
            return SimpleNamespace(rsample_and_log_prob=lambda generator, k=None: q.rsample_and_log_prob(k=k))

        def reconstruct(self, x):
            return x

    careless = Careless()
    before = torch.get_rng_state()
    first = values(evaluate(careless, images(), k=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert values(evaluate(careless, images(), k=5)) == first
    assert "active_units" not in first and first["mse"] == 0


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_metrics_that_apply(name, levels):
    torch.manual_seed(0)
    result = evaluate(Tiny(name, levels), images(60, levels), k=3, split="valid")
    discrete = name not in ("bernoulli", "gaussian") or (name == "bernoulli" and levels == 2)
    assert ("bits_per_dim" in result) == discrete == ("density" not in result["elbo"].estimator)
    assert all(result[m].estimator.startswith("bound, ") for m in {"elbo", "iw_nll", "bits_per_dim"} & set(result))
    parts = {"mutual_information", "mutual_information__upper", "aggregate_kl", "aggregate_kl__lower"}
    assert parts | {"elbo", "rec", "kl", "iw_nll", "ess", "mse", "active_units"} == set(result) - {"bits_per_dim"}
    assert all(math.isfinite(m.value) and m.split == "valid" and m.n == 60 for m in result.values())
    if discrete:
        assert result["bits_per_dim"].value == pytest.approx(result["iw_nll"].value / 16 / math.log(2))
        assert result["bits_per_dim"].se == pytest.approx(result["iw_nll"].se / 16 / math.log(2))


class Independent(nn.Module):
    "Pixels, or codes, that know nothing of each other, all with the same probabilities: log P(x) is exact."

    def __init__(self, levels=2, shape=(1, 4, 4)):
        super().__init__()
        self.levels, self.image_shape, self.logits = levels, shape, nn.Parameter(torch.linspace(0, 1, levels))

    def log_prob(self, x):
        u = x if x.dtype == torch.int64 else (x * (self.levels - 1)).round().long()
        return self.logits.log_softmax(0)[u].flatten(1).sum(1)


class Noisy(Independent):
    "The same times a noise of mean 1: the bound by k samples is too low, and the less so the larger k is."

    def log_prob(self, x, *, k=1, generator=None):
        noise = 2 * torch.rand(k, len(x), generator=generator, device=x.device)
        return super().log_prob(x) + noise.mean(0).log()


def test_an_exact_likelihood_is_called_exact():
    x = images(60, 17)
    model = Independent(17)
    result = evaluate(model, x, split="valid")
    assert set(result) == {"log_prob", "bits_per_dim"} and {m.estimator for m in result.values()} == {"exact"}
    assert result["log_prob"].value == pytest.approx(model.log_prob(x).mean().item()) and result["log_prob"].n == 60
    assert result["bits_per_dim"].value == pytest.approx(-result["log_prob"].value / 16 / math.log(2))
    assert result["bits_per_dim"].se == pytest.approx(result["log_prob"].se / 16 / math.log(2)) and result["log_prob"].split == "valid"


def test_a_bound_says_its_samples_and_is_determined_by_the_seed():
    x, model = images(230), Noisy()
    before = torch.get_rng_state()
    result = {k: evaluate(model, x, k=k) for k in (1, 8, 500)}
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert [r["bits_per_dim"].estimator for r in result.values()] == ["bound, k=1", "bound, k=8", "bound, k=500"]
    nats = [r["log_prob"].value for r in result.values()]
    truth = Independent().log_prob(x).mean().item()
    assert nats[0] < nats[1] - 0.1 < truth and nats[2] == pytest.approx(truth, abs=0.01)
    assert values(evaluate(model, x, k=8)) == values(result[8]) != values(evaluate(model, x, k=8, seed=1))
    first, rest = evaluate(model, x, k=8, n=100), evaluate(model, x[:200], k=8)
    assert first["log_prob"] == evaluate(model, x[:100], k=8)["log_prob"] and rest["log_prob"].n == 200
    first, second, whole = (evaluate(model, part, k=8)["log_prob"].value for part in (x[:100], x[100:200], x[:200]))
    assert 2 * whole == pytest.approx(first + second, abs=0.1) and 2 * whole != pytest.approx(first + second, abs=1e-6)  # noise by block


@pytest.mark.parametrize(("says", "estimator"), [("exact", "exact"), ("ODE", "ODE, k=8"), ("bound", "bound, k=8")])
def test_a_model_can_say_what_its_likelihood_is(says, estimator):
    model = Noisy()
    model.likelihood_is = says
    assert {m.estimator for m in evaluate(model, images(20), k=8).values()} == {estimator}
    plain = Independent()
    plain.likelihood_is = says
    assert {m.estimator for m in evaluate(plain, images(20), k=8).values()} == {says}
    model.likelihood_is = "ode"
    with pytest.raises(GenbookError, match="likelihood_is: 'ode' is not one of exact, bound, ODE"):
        evaluate(model, images(20), k=8)


def test_codes_are_evaluated_as_images_are():
    x = torch.randint(0, 5, (40, 3, 3))
    model = Independent(5, (3, 3))
    a, b = evaluate(model, x), evaluate(model, Codes(x, levels=5))
    assert a == b and a["bits_per_dim"].value == pytest.approx(-model.log_prob(x).mean().item() / 9 / math.log(2))
    with pytest.raises(GenbookError, match="images: values from 0 to 5; allowed: 0 to 4"):
        evaluate(model, x + (x == 4))


def test_a_density_has_nats_and_no_bits():
    class Density(nn.Module):
        def log_prob(self, x):
            return -x.square().flatten(1).sum(1)

    result = evaluate(Density(), 3 * torch.randn(30, 2))  # points of the plane
    assert set(result) == {"log_prob"} and result["log_prob"].estimator == "exact, density"
    with pytest.raises(GenbookError, match="images: 1 of 30 are not finite"):
        evaluate(Density(), torch.randn(30, 2).index_fill(0, torch.tensor([3]), math.nan))


@pytest.mark.parametrize("name", ["realnvp_digits", "mixture", "vae_mlp_digits", "flow_vae_mlp_digits", "fvae_digits", "ae_digits"])
def test_every_family_with_a_likelihood_is_evaluated(name):
    model, ds = create_model(name, (1, 8, 8), levels=17).eval(), datasets.load("digits")
    result = evaluate(model, ds.test, k=2, n=20)
    assert ("bits_per_dim" in result) != name.startswith("ae") and all(math.isfinite(m.value) and m.n == 20 for m in result.values())
    if "bits_per_dim" in result:
        assert result["bits_per_dim"].estimator in ("bound, k=2", "exact")
        x, generator = ds.test.float(slice(0, 20))[0], torch.Generator().manual_seed(0)
        with torch.no_grad():
            expected = -model.log_prob(x, k=2, generator=generator).mean() / 64 / math.log(2)
        if not hasattr(model, "posterior"):  # of the first block, from its own generator
            assert result["bits_per_dim"].value == pytest.approx(expected.item(), rel=1e-5)


def test_what_has_no_likelihood_is_refused():
    with pytest.raises(GenbookError, match="GAN has none of posterior, log_prob and reconstruct"):
        evaluate(create_model("gan_digits", (1, 8, 8)), datasets.load("digits").test)


@pytest.mark.parametrize("kind", [Tiny, Independent])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: 2 * x - 1, "images: values from -1 to 1; allowed: 0 to 1"),
        (lambda x: 255 * x, "images: values from 0 to 255; allowed: 0 to 1"),
        (lambda x: x * math.nan, "images: values from nan to nan; allowed: 0 to 1"),
        (lambda x: x.index_fill(0, torch.tensor([7]), math.nan), "images: values from nan to nan"),
        (lambda x: x.byte(), "images: torch.uint8 (30, 1, 4, 4); allowed: float (n, c, h, w) in [0, 1]"),
        (lambda x: x.long(), "images: torch.int64 (30, 1, 4, 4); allowed: float"),
        (lambda x: x[:0], "images: torch.float32 (0, 1, 4, 4); allowed: float"),
        (lambda x: torch.rand_like(x), "images: values between the 2 levels of the model; allowed: multiples of 1/1"),
        (lambda x: images(30, 17), "images: values between the 2 levels of the model"),
        (lambda x: x.numpy(), "images: ndarray is neither a tensor nor a split"),
        (lambda x: datasets.load("digits"), "images: DataSet is neither a tensor nor a split of a data set; allowed: ds.test"),
        (lambda x: datasets.load("digits").test, "images: 17 levels, but the model was made for 2"),
    ],
)
def test_images_of_another_kind_get_one_line(kind, spoil, words):
    with pytest.raises(GenbookError) as error:
        evaluate(kind(), spoil(images(30)), k=2)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_images_of_another_size_get_one_line():
    with pytest.raises(GenbookError, match=r"images: shape \(1, 8, 8\), but the model was made for \(1, 4, 4\)"):
        evaluate(Independent(), torch.zeros(5, 1, 8, 8))


def test_a_plain_autoencoder_has_a_reconstruction_error_only():
    result = evaluate(PlainAutoencoder(), images(50))
    assert set(result) == {"mse"} and result["mse"].value == pytest.approx(0.25 * images(50).mean().item(), abs=1e-6)


def test_information_adds_up_and_is_bounded(model):
    result = evaluate(model, images(), k=200)
    for pair in (("mutual_information", "aggregate_kl"), ("mutual_information__upper", "aggregate_kl__lower")):
        parts = [result[name] for name in pair]
        assert abs(sum(p.value for p in parts) - result["kl"].value) < 4 * sum(p.se**2 for p in parts) ** 0.5 + 1e-3
    assert result["mutual_information"].value <= min(math.log(230), result["mutual_information__upper"].value)
    assert 0 <= result["aggregate_kl__lower"].value <= result["aggregate_kl"].value


def test_importance_weighted_objective_has_gradients(model):
    loss = -iw_bound_from(log_weights(model, images(8), 4)).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "encoder.1.bias" not in n)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, "k: 0"),
        ({"k": 2.5}, "k: 2.5"),
        ({"elbo_samples": -1}, "elbo_samples"),
        ({"n": 0}, "n: 0"),
        ({"n": 999}, "230"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_counts(model, arguments, words):
    with pytest.raises(GenbookError, match=words):
        evaluate(model, images(), **arguments)


class Grey:
    "A split of a data set as `evaluate` sees it."

    levels, image_shape = 256, (1, 4, 4)

    def __init__(self):
        self.x = (images(30, 256) * 255).to(torch.uint8)

    def __len__(self):
        return len(self.x)

    def float(self, idx, generator=None):
        return torch.bernoulli(self.x[idx] / 255, generator=generator), None


def test_images_of_other_levels_are_an_error(model):
    with pytest.raises(GenbookError, match="256 levels, but the model was made for 2"):
        evaluate(model, Grey(), k=2)


def test_a_split_that_is_binarised_anew_gives_the_same_result(model):
    split = Grey()
    split.levels = 2
    first = values(evaluate(model, split, k=5))
    torch.rand(3)
    assert values(evaluate(model, split, k=5)) == first


class LinearGaussian(nn.Module):
    "Probabilistic PCA in float64, whose evidence is a normal density; no encoder."

    def __init__(self):
        super().__init__()
        self.W = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        self.prior = StandardNormal(2)

    def likelihood(self, z):
        return Gaussian((z @ self.W.T).unflatten(-1, (1, 2, 3)), math.log(0.7))

    def log_evidence(self, x):
        cov = self.W @ self.W.T + 0.49 * torch.eye(6, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), cov).log_prob(x.flatten(1))


def test_annealing_finds_the_exact_evidence_without_an_encoder():
    model, gen = LinearGaussian(), torch.Generator().manual_seed(0)
    x = (model.likelihood(torch.randn(30, 2, dtype=torch.float64, generator=gen)).loc).clamp(0, 1)
    truth = -model.log_evidence(x).mean().item()
    rough, fine = (ais_nll(model, x, chains=64, steps=steps, leapfrog=4) for steps in (4, 200))
    assert fine.value == pytest.approx(truth, abs=0.015) and abs(rough.value - truth) > 2 * abs(fine.value - truth)
    assert fine.n == 30 and "64 chains, 200 temperatures" in fine.estimator and fine.estimator.endswith("density")
    assert fine.se == pytest.approx(model.log_evidence(x).std().item() / 30**0.5, rel=0.05)


def test_annealing_agrees_with_importance_sampling_and_leaves_no_trace(model):
    before = torch.get_rng_state()
    annealed = ais_nll(model.train(), images(50), chains=16, steps=30, leapfrog=5)
    assert torch.equal(torch.get_rng_state(), before) and model.training and all(p.grad is None for p in model.parameters())
    assert annealed == ais_nll(model, images(50), chains=16, steps=30, leapfrog=5)
    assert annealed.value == pytest.approx(iw_nll(model, images(50), 5000).value, abs=0.03)


@pytest.mark.parametrize("name", ["bernoulli", "discretized_logistic", "categorical"])
def test_the_gap_of_two_way_annealing_closes(name):
    torch.manual_seed(0)
    model = Tiny(name, 2 if name == "bernoulli" else 17)
    model.decoder.weight.data *= 4  # so that the posterior is far from the prior
    rough, fine = (ais_gap(model, 40, chains=4, steps=steps, leapfrog=4) for steps in (2, 40))
    assert rough.value > 3 * fine.value > -3 * fine.se and rough.value > 3 * rough.se
    assert fine.split == "samples" and fine.n == 40


def test_what_annealing_cannot_do():
    class Noisy(Tiny):
        def likelihood(self, z):
            p = super().likelihood(z)
            return SimpleNamespace(log_prob=lambda x: p.log_prob(x) + torch.rand(len(x)), discrete=True)

    with pytest.raises(GenbookError, match="model: PlainAutoencoder has no `likelihood`"):
        ais_nll(PlainAutoencoder(), images(5))
    with pytest.raises(GenbookError, match="an estimate with noise"):
        ais_nll(Noisy(), images(5), chains=2, steps=2)
    with pytest.raises(GenbookError, match="density"):
        ais_gap(Tiny("gaussian", 256), 5, chains=2, steps=2)
    for bad in ({"chains": 0}, {"steps": 1.5}, {"leapfrog": -1}, {"n": 999}):
        with pytest.raises(GenbookError, match=next(iter(bad))):
            ais_nll(Tiny(), images(), **bad)


def test_the_table_says_what_may_be_compared(model):
    measured = {"vae": evaluate(model, images(60), k=20), "ae": evaluate(PlainAutoencoder(), images(60))}
    measured["density"] = evaluate(Tiny("gaussian", 256), images(60, 256), k=3)
    table = likelihood_table(measured, (1, 4, 4), 2)
    assert [(r["model"], r["estimate"]) for r in table] == [(m, e) for m in ("vae", "density") for e in ("elbo", "iw_nll")]
    assert [r["of"] for r in table] == ["probability, 2 levels"] * 2 + ["density: not comparable"] * 2
    assert [r["bits/dim"] is None for r in table] == [False] * 2 + [True] * 2
    assert table[0]["nats"] == -measured["vae"]["elbo"].value and table[0]["nats"] > table[1]["nats"]
    assert table[1]["ess"] == measured["vae"]["ess"].value and table[1]["se"] == measured["vae"]["iw_nll"].se


def test_the_table_says_what_is_exact():
    ode = Independent()
    ode.likelihood_is = "ODE"
    measured = {"exact": evaluate(Independent(), images(60)), "bound": evaluate(Noisy(), images(60), k=8), "ode": evaluate(ode, images(60))}
    measured["bits alone"] = {"bits_per_dim": measured["exact"]["bits_per_dim"]}
    table = likelihood_table(measured, (1, 4, 4), 2)
    assert [(r["model"], r["estimate"]) for r in table] == [(m, "log_prob") for m in ("exact", "bound", "ode")] + [
        ("bits alone", "bits_per_dim")
    ]
    assert [r["says"] for r in table] == ["exact", "upper bound, k samples", "ODE, to its tolerance", "exact"]
    assert table[0]["nats"] == pytest.approx(table[3]["nats"]) and table[0]["bits/dim"] == pytest.approx(table[3]["bits/dim"])


def test_a_binarisation_and_the_posterior_have_noise_of_their_own():
    "The levels of white that a split is binarised at, and the noise of a posterior, are not two forms of the same numbers."
    seen = {}

    class Split:
        levels, image_shape = 2, (1, 4, 4)
        x = torch.zeros(100, 1)

        def __len__(self):
            return 100

        def float(self, idx, generator):
            seen["pixels"] = torch.rand(100, 16, generator=generator)
            return (seen["pixels"] < 0.5).float().view(100, 1, 4, 4), None

    class Listening(Tiny):
        def posterior(self, x):
            q = super().posterior(x)

            def draw(generator=None, k=None):
                seen["codes"] = torch.rand(100, 16, generator=generator)
                seen["global"] = torch.rand(100, 16)
                return q.rsample_and_log_prob(generator, k=k)

            return SimpleNamespace(rsample_and_log_prob=draw, mean=q.mean)

    evaluate(Listening(), Split(), k=2)
    names = [*seen]
    for a, b in ((a, b) for a in names for b in names if a < b):
        assert (seen[a] - seen[b]).abs().min() > 0 and abs(torch.corrcoef(torch.stack([seen[a], seen[b]]).flatten(1))[0, 1]) < 0.1
