"""Properties of every model in `list_models()` that has two players: `critic_loss` and `generator_loss`.

What any model with `sample` must do is in `test_matrix.py`.
"""

import copy

import pytest
import torch
from test_matrix import MODELS, SIZES, build, having, images, randomise, unless_refused

from genbook import create_model, data
from genbook.core import GenbookError
from genbook.lab.runs import Run
from genbook.steps import Step
from genbook.train import fit

PLAYERS = having("critic_loss", "generator_loss")


def labels(n):
    return torch.arange(n) % 10


def losses(model, x, seed=0):
    "Both losses' terms for images, with the same noise each time."
    for f in (model.critic_loss, model.generator_loss):
        torch.manual_seed(seed)
        yield f(x, labels(len(x)), it=torch.tensor(7))


def digits(n=96):
    "A few images of the digits' size, as a split."
    g = torch.Generator().manual_seed(0)
    return data.Images((torch.rand(n, 1, 8, 8, generator=g) * 16).round().byte(), labels(n), levels=17)


def stepper(name, k=1, **kwargs):
    "A step with `k` updates of the critic."
    settings = {"lr": 1e-3, "betas": (0.5, 0.999), "parts": {"critic": {"times": k}}, "device": "cpu"}
    return Step(build(name), **settings | kwargs)


def parameters(model):
    return {player: [p.detach().clone() for p in getattr(model, player).parameters()] for player in ("generator", "critic")}


def turns(step, x, y):  # player -> (gradients of both players, parameters before, parameters after)
    "One step, looked at after the update of each player."
    model, seen, hold = step.model, {}, getattr(step.model, "after_step", lambda player, terms: None)
    before = [parameters(model)]

    def after_step(player, terms):
        hold(player, terms)
        gradients = {other: [p.grad for p in getattr(model, other).parameters()] for other in ("generator", "critic")}
        seen[player] = gradients, before[-1], parameters(model)
        before.append(seen[player][2])
        for p in model.parameters():
            p.grad = None

    model.after_step = after_step
    step(x, y)
    assert list(seen) == ["critic", "generator"]
    return seen


def test_there_are_some():
    assert sum(hasattr(build(n), "critic_loss") for n in MODELS) >= 6


# ---- shapes


@pytest.mark.parametrize("size", SIZES)
@PLAYERS
def test_every_size_and_channel(name, size):
    "Builds at 8 to 64 pixels, grey and colour: finite losses, a value an example or a statistic of the batch, and images in [0, 1]."
    for c in (1, 3):
        shape = (c, size, size)
        model = build(name, shape)
        for terms in losses(model, images(shape, n=3)):
            assert terms._fields[0] == "total"
            for term, value in terms._asdict().items():
                assert value.shape in ((), (3,)) and value.dtype == torch.float32 and value.isfinite().all(), term
        out = model.sample(3)
        assert out.shape == (3, *shape) and 0 <= out.min() and out.max() <= 1


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 9, 9), (1, 30, 30), (1, 12, 20)])
@PLAYERS
def test_other_image_sizes_work_or_are_refused(name, shape):
    "Never a traceback from within a network."
    if model := unless_refused(name, shape):
        assert all(terms.total.isfinite().all() for terms in losses(model, images(shape)))


@pytest.mark.parametrize("levels", [2, 17, 256])
@PLAYERS
def test_levels(name, levels):
    "Takes data sets of 2, 17 (the digits) and 256 levels."
    assert all(terms.total.isfinite().all() for terms in losses(build(name, levels=levels), images(levels=levels)))


@pytest.mark.parametrize("zdim", [1, 5])
@PLAYERS
def test_latent_size_is_the_one_asked_for(name, zdim):
    assert build(name, zdim=zdim).prior.sample(2).shape == (2, zdim)


@pytest.mark.parametrize("zdim", [0, -3, 1.5])
@PLAYERS
def test_latent_size_must_be_positive(name, zdim):
    with pytest.raises(GenbookError, match=f"zdim: {zdim}") as error:
        create_model(name, (1, 8, 8), zdim=zdim)
    assert "\n" not in str(error.value)


# ---- gradients


@PLAYERS
def test_gradients_reach_all_of_the_own_parameters_and_none_of_the_others(name):
    "A constant that is added to all scores may change nothing: then, and only then, the head's bias is left alone."
    step = stepper(name)
    model, x, y = randomise(step.model), images(n=16), labels(16)
    with torch.no_grad():  # the hinge, for one, knows no constant as long as all scores are within the margin
        scores = torch.stack([model.score(x, y), model.score(model.fake(16, y), y)])
        free = torch.allclose(*(model.objective.critic(*(scores + c)).mean() for c in (0.0, 1e-3)), rtol=0, atol=1e-6)
    for player, (gradients, before, after) in turns(step, x, y).items():
        other = {"critic": "generator", "generator": "critic"}[player]
        names = [n for n, _ in getattr(model, player).named_parameters()]
        dead = [n for n, g in zip(names, gradients[player], strict=True) if g is None or not g.isfinite().all() or not g.any()]
        assert [n for n in dead if not (free and player == "critic" and n.startswith("head") and n.endswith("bias"))] == []
        assert all(g is None for g in gradients[other])
        assert all(torch.equal(a, b) for a, b in zip(before[other], after[other], strict=True))
        assert sum(not torch.equal(a, b) for a, b in zip(before[player], after[player], strict=True)) >= len(names) - len(dead)


@PLAYERS
def test_the_critics_loss_does_not_reach_the_generator(name):
    "Not even where the generator's weights want a gradient: its images are made without one."
    model = randomise(build(name))
    total = next(losses(model, images(n=8))).total.mean()
    gradients = torch.autograd.grad(total, list(model.generator.parameters()), allow_unused=True)
    assert all(g is None for g in gradients)


@PLAYERS
def test_losses_are_determined_by_the_seed(name):
    model, x = randomise(build(name)).eval(), images()
    for a, b, c in zip(losses(model, x), losses(model, x), losses(model, x, seed=1), strict=True):
        assert torch.equal(a.total, b.total) and not torch.equal(a.total, c.total)


@PLAYERS
def test_losses_are_float32_under_bfloat16(name):
    model, x = build(name), images()
    exact = list(losses(copy.deepcopy(model), x))
    with torch.autocast("cpu", torch.bfloat16):
        half = list(losses(model, x))
    for a, b in zip(exact, half, strict=True):
        assert b.total.dtype == torch.float32 and not torch.equal(a.total, b.total)
        torch.testing.assert_close(a.total.mean(), b.total.mean(), rtol=0.1, atol=0.2)


# ---- steps


@PLAYERS
def test_each_critic_update_sees_fresh_images(name):
    "k updates of the critic on k different batches, then one of the generator; an epoch of the critic is one pass over the data."
    step, split, seen = stepper(name, k=3), digits(), {"critic": [], "generator": []}
    for player, method in [("critic", "critic_loss"), ("generator", "generator_loss")]:
        original = getattr(step.model, method)

        def spy(x, *args, player=player, original=original, **kwargs):
            seen[player].append(x)
            return original(x, *args, **kwargs)

        setattr(step.model, method, spy)
    batches = data.Batches(split, 8, k=3)
    fit(step, batches, batches.steps_per_epoch, progress=False)
    assert len(seen["critic"]) == 12 == len(split) // 8 and len(seen["generator"]) == 4 and step.it == 4
    rows = torch.cat(seen["critic"]).flatten(1)
    assert len(rows.unique(dim=0)) == len(split), "an image came twice before the others had come once"


@PLAYERS
def test_average_of_the_generator_warms_up(name):
    "avg += (1 - d_t)(weight - avg) with d_t = min(d, (1 + t)/(10 + t)), for the generator's weights and no others."
    step, y = stepper(name, ema=0.5), labels(8)
    mean = [p.detach().clone() for p in step.model.generator.parameters()]
    for t in range(12):
        step(images(n=8), y)
        d = min(0.5, (1 + t) / (10 + t))
        mean = [d * m + (1 - d) * p.detach() for m, p in zip(mean, step.model.generator.parameters(), strict=True)]
    model = step.eval_model()
    for m, p in zip(mean, model.generator.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), m, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(model.critic.parameters(), step.model.critic.parameters(), strict=True))


@PLAYERS
def test_stopped_and_resumed_is_the_same(name, tmp_path):
    "Weights of both players, averages, optimisers and history, bit for bit."

    def train(folder, steps):
        torch.manual_seed(0)
        step = stepper(name, k=2, ema=0.9)
        history = fit(step, data.Batches(digits(), 8, k=2), steps, run=Run(folder), every=3, log_every=1, progress=False)
        return step, history

    (whole, expected), _ = train(tmp_path / "a", 6), train(tmp_path / "b", 3)
    torch.manual_seed(99)  # whatever the new process begins with
    resumed, history = train(tmp_path / "b", 6)
    flat = torch.utils._pytree.tree_leaves
    for a, b in zip(flat(whole.state_dict()), flat(resumed.state_dict()), strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b
    untimed = lambda h: [{k: v for k, v in row.items() if k not in ("time", "of")} for row in h.rows]
    assert untimed(history) == untimed(expected) and len(expected.rows) == 6


@pytest.mark.gpu
@PLAYERS
def test_same_on_the_gpu(name):
    "Losses of the CPU from the same examples, samples from a generator of the device, and a step that runs as a graph or says why not."
    model = randomise(build(name)).eval()
    x = images()
    here = model.score(x, labels(5))
    step = Step(model, lr=1e-4, betas=(0.5, 0.999), parts={"critic": {"times": 2}}, device="cuda")
    torch.testing.assert_close(model.score(x.cuda(), labels(5).cuda()).cpu(), here, rtol=1e-2, atol=1e-3)
    assert model.sample(4, generator=torch.Generator("cuda").manual_seed(0)).is_cuda
    history = fit(step, data.Batches(digits(), 8, k=2, device="cuda"), 8, log_every=1, progress=False, capture=True)
    assert len(history.rows) == 8
