"Ladders of latent variables: levels and grids, free bits, codes that are drawn anew, export, mistakes."

import pytest
import torch

from genbook import create_model, datasets, from_pretrained
from genbook.core import GenbookError
from genbook.lab.experiments import get_experiment
from genbook.lab.jobs import expand
from genbook.lab.pretrained import export
from genbook.lab.training import Training, replayed, training_of
from genbook.measure.likelihood import evaluate
from genbook.models.hierarchy import HierarchicalVAE, grids_of, kl_levels

HOW = {"steps": 60, "batch_size": 32, "warmup": 5, "every": 30, "lr": 3e-3}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained():
    made = Training("hierarchy", "digits", None, "conv_digits", {"kl_args": {"steps": 20}}, HOW, device="cpu")
    made.fit(progress=False)
    return made


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and len(text) < 300 and all(w in text for w in words), text


@pytest.mark.parametrize("side, grids", [(28, [14, 7, 4]), (8, [4, 2, 1]), (32, [16, 8, 4]), (64, [32, 16, 8]), (6, [3, 2, 1])])
def test_grids_are_halved_and_rounded_up(side, grids):
    assert grids_of((1, side, side), 3, "conv") == [(n, n) for n in grids]
    model = HierarchicalVAE((3, side, side), zdims=(1, 2, 3), width=8, repeat=2)
    shapes = [(z, n, n) for z, n in zip((1, 2, 3), grids, strict=True) for _ in range(2)]
    assert [level.shape for level in model.ladder] == shapes[::-1] and model.zdim == sum(z * n * n for z, n, _ in shapes)
    assert model.loss(torch.rand(2, 3, side, side))._fields[4:] == tuple(f"kl_{i}" for i in range(1, 7))


def test_free_bits_are_for_each_channel_of_each_level():
    "A model whose posteriors are its priors pays the whole allowance and says no divergence; one far from them pays none."
    model = HierarchicalVAE((1, 8, 8), levels=2, zdims=(2, 3), width=8, free_bits=0.5).double()
    x = torch.randint(0, 2, (4, 1, 8, 8), generator=generator()).double()
    with torch.no_grad():
        for level in model.ladder:
            level.posterior.weight.zero_(), level.posterior.bias.zero_()
        silent = model.loss(x)
        for level in model.ladder:
            level.posterior.bias[: level.shape[0]] = 3.0  # means of 3: 4.5 nats a number
        loud = model.loss(x)
    torch.testing.assert_close(silent.total - silent.rec, torch.full((4,), 2.5).double())
    assert silent.kl.abs().max() < 1e-12
    numbers = torch.tensor([2 * 16, 3 * 4]).double()
    for kl, n in zip((loud.kl_1, loud.kl_2), numbers, strict=True):
        torch.testing.assert_close(kl, (4.5 * n).expand(4))
    torch.testing.assert_close(loud.total - loud.rec, loud.kl)


@pytest.mark.parametrize("top_first, weights", [(True, (2.0, 0.2, 0.02)), (False, (0.02, 0.02, 0.02))])
def test_the_ramp_begins_at_the_top(top_first, weights):
    "A hundredth of the ramp: level 1 pays in full, or as little as the others; at its end, and in validation, all pay alike."
    how = dict(kl="linear", kl_args={"steps": 100}, beta=2.0, top_first=top_first)
    model, x = HierarchicalVAE((1, 8, 8), levels=2, zdims=(2, 3, 4), width=8, **how).double(), torch.ones(3, 1, 8, 8).double()
    for it, expected in ((torch.tensor(1), weights), (torch.tensor(100), (2.0, 2.0, 2.0)), (None, (2.0, 2.0, 2.0))):
        terms = model.loss(x, it=it)
        paid = sum(w * getattr(terms, f"kl_{i}") for i, w in enumerate(expected, 1))
        torch.testing.assert_close(terms.total - terms.rec, paid, rtol=1e-5, atol=1e-7)
        assert paid.min() > 0
    assert all(w.item() == 0 for w in HierarchicalVAE((1, 8, 8), width=8, beta=0.0).weights(torch.tensor(0.0)))


def test_levels_drawn_anew_leave_those_above_alone(trained):
    model, x = trained.model, trained.data.test.float(slice(0, 5))[0]
    z, sizes = model.encode(x), model.sizes
    assert torch.equal(model.redraw(z, 0), z)
    for below in (1, 2, 3):
        new, kept = model.redraw(z, below, generator=generator()), sum(sizes[: 3 - below])
        assert torch.equal(new[:, :kept], z[:, :kept]) and (new[:, kept:] != z[:, kept:]).all()
    again = model.redraw(z, 3, generator=generator(1))
    assert torch.equal(again, torch.randn(5, model.zdim, generator=generator(1)))
    for wrong in (-1, 4):
        with pytest.raises(GenbookError) as error:
            model.redraw(z, wrong)
        one_line(error, f"below: {wrong}", "0 and 3")


def test_training_raises_the_bound_and_levels_add_up(trained):
    model, test = trained.model, trained.data.test
    torch.manual_seed(0)
    untrained = create_model("hierarchy_conv_digits", (1, 8, 8), levels=17).eval()
    after, before = (evaluate(m, test, k=8) for m in (model, untrained))
    assert after["bits_per_dim"].value < 0.9 * before["bits_per_dim"].value and after["mse"].value < 0.7 * before["mse"].value
    levels = kl_levels(model, test)
    assert list(levels) == ["kl__level1", "kl__level2", "kl__level3"] and all(kl.value > 0 for kl in levels.values())
    assert sum(kl.value for kl in levels.values()) == pytest.approx(after["kl"].value, rel=0.05)
    terms = [sum(r[f"train/kl_{i}"] for i in (1, 2, 3)) for r in trained.histories["main"].rows if "train/kl" in r]
    assert terms == pytest.approx([r["train/kl"] for r in trained.histories["main"].rows if "train/kl" in r], rel=1e-4)


def test_a_posterior_said_outright_is_the_same_distribution():
    "Said outright or in units of the prior, the code is what it was if the head says the same Gaussian."
    torch.manual_seed(0)
    outright = HierarchicalVAE((1, 2, 2), levels=2, tower="mlp", zdims=(3,), width=4, residual=False).double()
    units = HierarchicalVAE((1, 2, 2), levels=2, tower="mlp", zdims=(3,), width=4).double()
    units.load_state_dict(outright.state_dict())
    x = torch.randint(0, 2, (5, 1, 2, 2), generator=generator()).double()
    with torch.no_grad():
        bias = torch.tensor([0.4, -1.0, 0.2, 0.3, -0.5, 1.0]).double()
        outright.ladder[0].prior.weight.zero_(), outright.ladder[0].prior.bias.copy_(bias)
        q, latent = outright.posterior(x), units.posterior(x)  # N(mu, v) of z, and the same numbers of the code
        codes, logq = q.rsample_and_log_prob(generator(1), k=7)
        z = bias[:3] + (0.5 * bias[3:]).exp() * codes
        torch.testing.assert_close(latent.log_prob(z) + 0.5 * bias[3:].sum(), logq)


def test_without_a_path_upper_levels_reach_the_image_through_the_latents_below():
    torch.manual_seed(0)
    for path in (True, False):
        model = HierarchicalVAE((1, 8, 8), levels=2, zdims=(2, 2), width=8, path=path).double()
        with torch.no_grad():
            model.ladder[1].prior.weight.zero_()  # what is drawn below does not depend on the state
            z = torch.randn(2, model.zdim, generator=generator()).double()
            z[1, model.sizes[0] :] = z[0, model.sizes[0] :]  # only the top level differs
            a, b = model.decode(z)
        assert torch.equal(a, b) != path


@pytest.mark.parametrize("likelihood, scale, levels", [("bernoulli", "fixed", 2), ("bernoulli", "fixed", 17), ("gaussian", "shared", 17),
    ("discretized_logistic", "channel", 17), ("logistic_mixture", "fixed", 17)])  # fmt: skip
def test_bits_only_of_discrete_images(likelihood, scale, levels):
    model = HierarchicalVAE((3, 8, 8), levels=levels, zdims=(1, 2), width=8, likelihood=likelihood, scale=scale).eval()
    x = torch.randint(levels, (2, 3, 8, 8), generator=generator()) / (levels - 1)
    assert hasattr(model, "bits_per_dim") == model.likelihood(model.encode(x)).discrete
    assert model.log_prob(x, k=3, generator=generator()).isfinite().all()


def test_the_export_is_the_model(trained, tmp_path):
    settings = {"free_bits": 0.5, "kl": "linear", "kl_args": {"steps": 20}}
    twin = from_pretrained(export(trained.model, tmp_path / "model", name="hierarchy_conv_digits", config=settings))
    x = trained.data.test.float(slice(0, 8))[0]
    assert (twin.reconstruct(x) - trained.model.reconstruct(x)).abs().max() < 0.02  # weights are kept in half precision
    assert twin.free_bits == 0.5


def test_the_experiments_repeat_themselves():
    "The first steps of a training, and of one with every cure taken away, without a notebook."
    for name in ("evaluate-hierarchy-digits", "hierarchy-cures-digits-none"):
        job = expand(get_experiment(name))[0]
        first, second = (replayed(training_of(job)) for _ in range(2))
        assert first == second and min(first["terms"]["kl"]) > 0
    assert datasets.load("digits").levels == 17


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(zdims=()), ("zdims: 0", "at least 1")),
        (dict(zdims=(2, 0), width=8), ("zdims: 0", "at least 1")),
        (dict(width=(8, 8)), ("width: 2 numbers", "3 levels")),
        (dict(width=0), ("width: 0", "at least 1")),
        (dict(zdims=(1, 1, 1, 1), width=8), ("4 levels that halve", "more than 8", "8x8")),
        (dict(tower="cnov"), ("tower: 'cnov'", "did you mean 'conv'?")),
        (dict(beta=-1.0), ("beta: -1.0",)),
        (dict(free_bits=-0.5), ("free_bits: -0.5",)),
        (dict(repeat=0), ("repeat: 0", "at least 1")),
        (dict(depth=-1), ("depth: -1", "at least 0")),
        (dict(likelihood="bernouli"), ("likelihood", "did you mean 'bernoulli'?")),
        (dict(scale="shared"), ("'bernoulli' takes logits",)),
    ],
)
def test_mistakes_get_one_line(wrong, words):
    with pytest.raises(GenbookError) as error:
        HierarchicalVAE((1, 8, 8), **wrong)
    one_line(error, *words)


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 28, 27), (1, 4, 28)])
def test_sides_that_do_not_halve(shape):
    with pytest.raises(GenbookError) as error:
        HierarchicalVAE(shape)
    one_line(error, "image_shape", f"{shape[1]}x{shape[2]}", "halve")
    assert HierarchicalVAE(shape, tower="mlp", width=8).loss(torch.rand(1, *shape)).total.isfinite().all()
