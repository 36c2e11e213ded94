"Latent models: both stages as one model, both priors, sizes and channels, mistakes."

import math

import pytest
import torch

from genbook import from_pretrained
from genbook.bijections import randomise
from genbook.core import GenbookError
from genbook.data import Batches
from genbook.lab.pretrained import export
from genbook.lab.training import Training
from genbook.measure.likelihood import evaluate
from genbook.models.latent import CodeFlow, Encoding, Latent, Posteriors, gains

HOW = {"steps": 30, "batch_size": 32, "warmup": 1, "every": 30, "prior": {"steps": 20}}
SMALL = dict(channels=2, width=8, depth=0, halvings=1, prior_args=dict(width=8, depth=1))
FLOW = SMALL | dict(prior="flow", prior_args=dict(couplings=(2,), width=8))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and len(text) < 300 and all(w in text for w in words), text


@pytest.fixture(scope="module", params=[SMALL | {"conditional": True}, FLOW], ids=["matching", "flow"])
def trained(request):
    config = "digits" if "prior" not in request.param else "digits_flow"
    made = Training("latent", "digits", None, config, request.param, HOW, device="cpu")
    made.fit(progress=False)
    return made, config, request.param


def test_both_stages_are_trained_kept_and_measured(trained, tmp_path):
    made, config, args = trained
    model, ds = made.model, made.data
    assert list(made.histories) == ["main", "prior"] and not any(p.requires_grad for p in model.parameters())
    rows = made.histories["main"].rows
    assert rows[-1]["valid/total"] < made.histories["main"].first["total"][0]
    found = evaluate(model, ds.test, k=2, n=8) | gains(model, ds.test, n=8, steps=4)
    kind = "ODE, k=2" if config == "digits" else "bound, k=2"
    assert found["bits_per_dim"].estimator == kind and found["bits_per_dim__learned"].value > found["bits_per_dim__pixels"].value - 9
    twin = from_pretrained(export(model, tmp_path / "model", name=f"latent_{config}", config=args))
    assert torch.allclose(twin.scale, model.scale, rtol=1e-2) and twin.scale.ne(1).any()
    a, b = (m.sample(4, generator=generator()) for m in (model, twin))
    assert a.shape == (4, 1, 8, 8) and (a - b).abs().mean() < 0.1  # weights are kept in half precision


def test_codes_have_unit_variance_and_labels_go_with_them(trained):
    made, *_ = trained
    prior, codes = made.model.stage("prior", made.data.train)
    z, y = codes.float(generator=generator())
    numbers = z.numel() / z.shape[1]
    assert prior is made.model.prior and torch.equal(y, made.data.train.y)
    assert z.mean((0, 2, 3)).abs().max() < 5 / numbers**0.5
    assert (z.var((0, 2, 3)) - 1).abs().max() < 10 * (2 / numbers) ** 0.5  # tails are heavier than a normal's
    again = codes.float(generator=generator(1))[0]
    assert not torch.equal(z, again)  # a code is drawn anew each time


def test_a_seed_decides_both_stages():
    runs = []
    for _ in range(2):
        made = Training("latent", "digits", None, "digits", SMALL, HOW | {"steps": 4, "prior": {"steps": 3}}, seed=5, device="cpu")
        made.fit(progress=False)
        runs.append({k: v.clone() for k, v in made.model.state_dict().items()})
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())


@pytest.mark.parametrize("size", [8, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", [SMALL, FLOW], ids=["matching", "flow"])
def test_sizes_and_channels(how, channels, size):
    shape = (channels, size, size)
    model = Latent(shape, levels=5, **how | {"halvings": 1 if size == 8 else 2}).eval()
    x = torch.randint(0, 5, (2, *shape)) / 4
    assert model.codes(x).shape == (2, *model.codec.code_shape)
    terms = model(x)
    assert terms.total.shape == (2,) and terms.total.isfinite().all()
    z = model.codes(x).detach()
    assert model.prior.loss(z).total.isfinite().all()
    quick = {"steps": 1} if "prior" not in how else {}
    for made in (model.reconstruct(x), model.sample(2, generator=generator(), **quick)):
        assert made.shape == x.shape and 0 <= made.min() and made.max() <= 1


def test_guidance_and_labels_reach_the_codes():
    torch.manual_seed(0)
    model = randomise(Latent((1, 8, 8), conditional=True, classes=3, **SMALL), 0.2).eval()
    draw = lambda y, w: model.sample(3, y, guidance=w, steps=2, generator=generator())
    assert not torch.equal(draw(0, 0.0), draw(1, 0.0)) and not torch.equal(draw(0, 0.0), draw(0, 2.0))


def test_the_bound_with_the_standard_normal_is_that_of_the_codec():
    "The terms of `parts_of_bound` with the first prior are those of a VAE, whatever the scale of the codes."
    model = randomise(Latent((1, 8, 8), levels=17, **FLOW).double(), 0.2).eval()
    model.shift.fill_(0.5), model.scale.fill_(3.0)
    x = torch.randint(0, 17, (4, 1, 8, 8)).double() / 16
    with torch.no_grad():
        parts = model.parts_of_bound(x, generator=generator())
        z, logq = model.codec.posterior(x).rsample_and_log_prob(generator())
        wanted = model.codec.likelihood(z).log_prob(x) + model.codec.prior.log_prob(z) - logq
    torch.testing.assert_close(parts["pixels"] + parts["standard"] - parts["posterior"], wanted)
    unit = model.codec.prior.log_prob((z - 0.5) / 3.0) - model.codec.zdim * math.log(3.0)
    torch.testing.assert_close(parts["gaussian"], unit)


def test_a_constant_channel_is_no_division_by_zero():
    still = Posteriors(torch.ones(9, 2, 3, 3), torch.full((9, 2, 3, 3), 0.5), torch.zeros(9).long())
    mean, std = still.moments()
    assert mean.flatten().tolist() == [1.0, 1.0] and std.flatten().tolist() == [0.5, 0.5]
    x, y = Batches(still, 4).fetch(torch.tensor([0, 3, 8]))
    assert x.shape == (3, 2, 3, 3) and y.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Latent((1, 9, 8)), ("image_shape", "9x8", "halved 2 times")),
        (lambda: Latent((1, 8, 8), prior="flwo"), ("prior: 'flwo'", "did you mean 'flow'?")),
        (lambda: Latent((1, 8, 8), prior="flow", conditional=True), ("conditional: True", "takes no labels")),
        (lambda: Latent((1, 8, 8), channels=0), ("channels: 0",)),
        (lambda: Latent((1, 8, 8), beta=-1.0), ("beta: -1.0",)),
        (lambda: Latent((1, 8, 8), levels=1), ("levels: 1",)),
        (lambda: Encoding((1, 8, 8), likelihood="guassian"), ("likelihood: 'guassian'", "did you mean 'gaussian'?")),
        (lambda: CodeFlow((2, 7, 7), couplings=(2, 2)), ("couplings: (2, 2)", "7x7")),
        (lambda: CodeFlow((2, 4, 4), couplings=()), ("couplings: ()",)),
        (lambda: CodeFlow((2, 4, 4), coupling="afine"), ("coupling: 'afine'", "did you mean 'affine'?")),
        (lambda: Latent((1, 8, 8), **FLOW).sample(2, 3), ("y:", "without labels")),
        (lambda: Latent((1, 8, 8), **FLOW).sample(2, guidance=1.0), ("guidance:", "one pass")),
        (lambda: Latent((1, 8, 8), **FLOW).sample(2, steps=4), ("steps:", "one pass")),
        (lambda: Latent((1, 8, 8), **FLOW).sample(2, temperature=0.0), ("temperature: 0.0",)),
        (lambda: Latent((1, 8, 8), **FLOW).log_prob(torch.zeros(1, 1, 8, 8), 1), ("y:", "no labels")),
        (lambda: Latent((1, 8, 8), **SMALL).sample(2, steps=0), ("steps: 0",)),
        (lambda: Latent((1, 8, 8), **SMALL).sample(2, guidance=-1.0), ("guidance: -1.0",)),
        (lambda: Latent((1, 8, 8), **SMALL).sample(2, guidance=1.0), ("guidance: 1.0", "trained without labels")),
        (lambda: Latent((1, 8, 8), **SMALL).sample(2, sampler="hein"), ("sampler: 'hein'", "did you mean 'heun'?")),
        (lambda: Latent((1, 8, 8), **SMALL).log_prob(torch.zeros(1, 1, 8, 8), k=0), ("k: 0",)),
        (lambda: Latent((1, 8, 8), **SMALL).log_prob(torch.zeros(1, 1, 8, 8), steps=0), ("steps: 0",)),
        (lambda: Latent((1, 8, 8), **SMALL).stage("prio", None), ("stage: 'prio'", "did you mean 'prior'?")),
    ],
)
def test_mistakes_get_one_line(wrong, words):
    with pytest.raises(GenbookError) as error:
        wrong()
    one_line(error, *words)
