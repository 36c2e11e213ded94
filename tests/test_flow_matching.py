"Flow matching: pairs within labels, jumps in training and in sampling, mistakes."

import math

import pytest
import torch

from genbook import create_model, from_pretrained
from genbook.bijections import randomise
from genbook.core import GenbookError, assert_close
from genbook.lab.pretrained import export
from genbook.lab.training import Training
from genbook.models.flow_matching import COUPLINGS, FlowMatching, transport

SMALL = dict(width=8, depth=1, conditional=True, classes=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and len(text) < 300 and all(w in text for w in words), text


def test_transport_gives_the_same_noise_within_each_label():
    torch.manual_seed(0)
    x, eps, y = torch.randn(40, 1, 4, 4), torch.randn(40, 1, 4, 4), torch.randint(0, 3, (40,))
    paired = transport(x, eps, y)
    for label in range(3):
        mine, theirs = (t[y == label].flatten(1) for t in (paired, eps))
        assert mine[mine[:, 0].argsort()].equal(theirs[theirs[:, 0].argsort()])
    assert (x - paired).square().sum() < (x - eps).square().sum()
    assert transport(x[:1], eps[:1]).equal(eps[:1])


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_pairs_are_made_in_training_alone(coupling):
    model, x = FlowMatching((1, 8, 8), coupling=coupling, **SMALL), torch.rand(12, 1, 8, 8)
    y = torch.arange(12) % 3
    found = {}
    for training in (True, False):
        torch.manual_seed(1)
        found[training] = model.train(training).pairs(x, y)[1]
    assert found[True].equal(found[False]) == (coupling == "independent")


@pytest.mark.parametrize("jumps", ["mean", "halves", "distilled"])
def test_jumps_are_trained_sampled_and_kept(jumps, tmp_path):
    how = {"steps": 12, "batch_size": 16, "warmup": 2, "every": 6}
    made = Training("flow_matching", "digits", None, f"digits_{jumps}", {"width": 8}, how, device="cpu")
    before = made.model.sample(4, 1, generator=generator())
    made.fit(progress=False)
    twin = from_pretrained(export(made.model, tmp_path / "model", name=f"flow_matching_digits_{jumps}", config={"width": 8}))
    one, four = (made.model.sample(4, 1, steps=k, generator=generator()) for k in (1, 4))
    assert not one.equal(before) and not one.equal(four)
    assert one.equal(twin.sample(4, 1, generator=generator()))  # one step, where nothing is said
    guided = made.model.sample(4, 1, guidance=2.0, steps=3, generator=generator())
    assert not guided.equal(made.model.sample(4, 1, sampler="heun", steps=3, generator=generator()))


def test_velocities_are_learned_as_without_a_student():
    how, found = {"steps": 4, "batch_size": 16, "warmup": 2, "jumps": {"steps": 3}}, {}
    for config in ("digits", "digits_distilled"):
        train = how if config != "digits" else {k: v for k, v in how.items() if k != "jumps"}
        made = Training("flow_matching", "digits", None, config, {"width": 8}, train, device="cpu")
        made.fit(progress=False)
        found[config] = made.model
    assert all(v.equal(found["digits_distilled"].net.state_dict()[k]) for k, v in found["digits"].net.state_dict().items())
    few, net = (dict(m.named_parameters()) for m in (found["digits_distilled"].few, found["digits_distilled"].net))
    assert not few["leave.2.weight"].equal(net["leave.2.weight"])  # the student has moved on


def test_a_student_begins_as_its_teacher_and_jumps_further_and_further():
    model = randomise(FlowMatching((1, 8, 8), jumps="distilled", **SMALL), 0.3).eval()
    student, _ = model.stage("jumps", None)
    xt, t, y = torch.randn(3, 1, 8, 8), torch.tensor(0.6), torch.tensor([0, 1, 2])
    with torch.no_grad():
        assert_close(model.average(xt, t, 0.2 * t, y), model.ask(xt, t, y))
    low, high = model.path.span
    for it, longest in ((0, 8), (999, 8), (1000, 4), (2000, 2), (3000, 1), (10**6, 1)):
        t, s = student.jumps(400, 100, torch.tensor(it))
        steps = ((high - low) / (t - s)).round()
        assert (steps[:100] == 16).all() and steps[100:].min() == longest and steps[100:].max() == 8
        assert abs((steps[100:] == longest).double().mean() - (1 if longest == 8 else 0.5 + 0.5 / (4 - math.log2(longest)))) < 0.13
        assert s.min() >= low - 1e-6 and t.max() <= high + 1e-6
        ends = (t - low) / (high - low) * steps  # whole steps of a walk
        assert_close(ends, ends.round(), atol=1e-4, rtol=0)


def test_a_jump_of_no_length_is_the_velocity():
    model = randomise(FlowMatching((1, 8, 8), jumps="mean", **SMALL), 0.3).eval()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor(0.4)
    with torch.no_grad():
        assert model.average(x, t, t).equal(model.ask(x, t))
        assert not model.average(x, t, 0.5 * t).equal(model.ask(x, t))


@pytest.mark.parametrize("whole", [0.0, 0.5, 1.0])
def test_some_jumps_go_all_the_way_to_the_data(whole):
    torch.manual_seed(0)
    model, seen = FlowMatching((1, 8, 8), jumps="halves", whole=whole, **SMALL), []
    model.halves = lambda xt, v, t, s, y=None: (seen.append((t, s)), (xt, 0 * xt))[1]
    model.loss(torch.rand(200, 1, 8, 8), torch.zeros(200, dtype=torch.int64))
    ((t, s),) = seen
    low = model.path.span[0]
    assert len(s) == 100 and (s <= t).all() and (s >= low).all()
    assert abs((s == low).double().mean() - whole) <= 4 * (whole * (1 - whole) / 100) ** 0.5


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"jumps": "meen"}, ["jumps", "did you mean 'mean'?"]),
        ({"coupling": "optimal"}, ["coupling", "independent, transport"]),
        ({"share": 0.0}, ["share", "0.0"]),
        ({"share": 2.0}, ["share", "2.0"]),
        ({"whole": 1.5}, ["whole", "1.5"]),
        ({"whole": -0.1}, ["whole", "-0.1"]),
        ({"steps": 0}, ["steps", "0"]),
        ({"jumps": "distilled", "halving": 0}, ["halving", "0"]),
        ({"path": "strait"}, ["path", "did you mean 'straight'?"]),
        ({"jumps": "mean", "predict": "noise"}, ["predict", "velocity"]),
        ({"width": 0}, ["width"]),
        ({"jump": "mean"}, ["jump"]),
    ],
)
def test_wrong_arguments_get_one_line(wrong, words):
    with pytest.raises(GenbookError) as error:
        create_model("flow_matching_digits", (1, 8, 8), **wrong)
    one_line(error, *words)


@pytest.mark.parametrize(
    "config, how, words",
    [
        ({}, {"steps": 0}, ["steps", "0"]),
        ({}, {"sampler": "jump"}, ["'jump'", "learned jumps"]),
        ({}, {"sampler": "heunn"}, ["sampler", "did you mean 'heun'?"]),
        ({}, {"guidance": -1.0}, ["guidance", "-1"]),
        ({"jumps": "mean"}, {"sampler": "jump", "guidance": 1.0}, ["'jump'", "without guidance"]),
        ({"conditional": False}, {"guidance": 1.0}, ["guidance", "trained without labels"]),
        ({"conditional": False}, {"y": 1}, ["y", "not conditional"]),
        ({"dropped": 0.0}, {"guidance": 1.0}, ["guidance", "dropped=0"]),
        ({}, {"y": 3}, ["y", "0 to 2"]),
        ({}, {"temperature": 0.0}, ["temperature", "0"]),
    ],
)
def test_wrong_samples_get_one_line(config, how, words):
    model = FlowMatching((1, 8, 8), **(SMALL | config))
    with pytest.raises(GenbookError) as error:
        model.sample(2, **how)
    one_line(error, *words)
