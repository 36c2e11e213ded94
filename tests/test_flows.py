"""Every bijection of `bijections` and `models.flows`, the flows made of them, and planar layers where other implementations fail.

A bijection that joins one of them has to join `MAPS`, or `test_every_bijection_is_covered` fails.
"""

import inspect
import math
import statistics
import time

import pytest
import torch
from torch import nn

from genbook import bijections, optim
from genbook.bijections import (
    MARGIN,
    Affine,
    AffineCoupling,
    Bijection,
    Compose,
    Inverse,
    Permutation,
    SplineCoupling,
    log_det_jacobian,
    spline,
    spline_inverse,
)
from genbook.core import GenbookError, assert_close
from genbook.models import flows
from genbook.models.flows import (
    CONFIGS,
    Draws,
    Flow,
    Planar,
    Radial,
    ReverseKL,
    admissible,
    fit_posterior,
    forward_kl,
    planar,
    planar_inverse,
    planar_posterior,
    planar_u,
    plane_flow,
    radial,
    radial_inverse,
    reverse_kl,
)
from genbook.prob import StandardNormal
from genbook.steps import Step
from genbook.toys import ENERGIES, Energy, toy
from genbook.train import fit

MAPS = {  # name: (how to make it, d, elements of the condition)
    "planar": (lambda: Planar(2, 3), 2, 0),
    "planar, 6 dimensions": (lambda: Planar(6, 3), 6, 0),
    "planar, per example": (lambda: Planar(3, 4), 3, 28),
    "planar, none": (lambda: Planar(2, 0), 2, 0),
    "radial": (lambda: Radial(2, 3), 2, 0),
    "radial, per example": (lambda: Radial(5, 2), 5, 14),
    "affine": (lambda: AffineCoupling(2), 2, 0),
    "affine, 5 dimensions, conditional": (lambda: AffineCoupling(5, cond_dim=3), 5, 3),
    "spline": (lambda: SplineCoupling(2), 2, 0),
    "spline, 5 dimensions, conditional": (lambda: SplineCoupling(5, bins=5, bound=3.0, cond_dim=2), 5, 2),
    "permutation": (lambda: Permutation([2, 0, 1]), 3, 0),
    "inverse planar": (lambda: Inverse(Compose(Affine((2,)), Planar(2, 3))), 2, 0),
    **{f"flow {name}": (lambda name=name: plane_flow(name, layers=3).bijection, 2, 0) for name in CONFIGS},
}


def randomise(module):
    "All parameters drawn anew, so that a zero at the start hides nothing; networks give numbers of the order that training does."
    with torch.no_grad():
        for key, p in module.named_parameters():
            p.normal_(std=0.6 * p.shape[1] ** -0.5 if key.endswith("weight") else 0.3)
    return module


def made(name, dtype, b=12):
    "The map with all of its parameters drawn at random, points and a condition."
    make, dim, cond_dim = MAPS[name]
    f = make().to(dtype)
    return randomise(f), 1.5 * torch.randn(b, dim, dtype=dtype), torch.randn(b, cond_dim, dtype=dtype) if cond_dim else None


matrix = pytest.mark.parametrize("name", MAPS)
trained = pytest.mark.parametrize("name", [n for n, (make, _, _) in MAPS.items() if sum(p.numel() for p in make().parameters())])


def test_every_bijection_is_covered():
    classes = [
        c for module in (bijections, flows) for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__
    ]
    found = {c for c in classes if issubclass(c, Bijection)}
    bases = {b for c in found for b in c.__mro__[1:]}  # Stack and Coupling do nothing by themselves
    there = {type(m) for make, _, _ in MAPS.values() for m in make().modules()}
    assert found - bases <= there and len(found - bases) >= 5


@matrix
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["float64", "float32"])
def test_inverse(name, dtype, atol):
    f, x, cond = made(name, dtype, 200)
    y, ldj = f(x, cond)
    back, ldj_back = f.inverse(y, cond)
    assert y.dtype == ldj.dtype == dtype and ldj.shape == (200,)
    assert_close(back, x, atol=atol)
    assert_close(ldj_back, -ldj, atol=10 * atol)
    there, _ = f(f.inverse(x, cond)[0], cond)  # and the other way round
    assert_close(there, x, atol=atol)


@matrix
def test_log_determinant(name):
    f, x, cond = made(name, torch.float64)
    assert_close(f(x, cond)[1], log_det_jacobian(f, x, cond), atol=1e-8)
    assert_close(f.inverse(x, cond)[1], log_det_jacobian(Inverse(f), x, cond), atol=1e-6)
    if sum(p.numel() for p in f.parameters()):
        assert f(x, cond)[1].abs().max() > 1e-3  # otherwise a sign could be wrong unseen


@trained
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradient_reaches_every_parameter(name, direction):
    f, x, cond = made(name, torch.float64, 2000)
    y, ldj = (f if direction == "forward" else f.inverse)(2 * x, cond)  # wide: each bin of a spline gets some
    (StandardNormal(x.shape[1]).log_prob(y) + ldj).mean().backward()
    for key, p in f.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key
        assert (p.grad != 0).all(), key  # not one of its numbers is dead


@matrix
def test_examples_do_not_mix(name):
    f, x, cond = made(name, torch.float64)
    y, ldj = f(x, cond)
    one, ldj_one = f(x[3:4], None if cond is None else cond[3:4])
    assert_close(one[0], y[3], atol=1e-12)
    assert_close(ldj_one[0], ldj[3], atol=1e-12)


@pytest.mark.parametrize("kind", [Planar, Radial])
def test_several_samples_an_example(kind):
    "x of shape (k, b, d) with conditions of shape (b, n), as importance sampling needs."
    f = kind(3, 2).double()
    x, cond = torch.randn(7, 5, 3).double(), torch.randn(5, f.cond_dim).double()
    y, ldj = f(x, cond)
    assert ldj.shape == (7, 5)
    for i in range(7):
        assert_close(f(x[i], cond)[0], y[i], atol=1e-12)
        assert_close(f(x[i], cond)[1], ldj[i], atol=1e-12)
    assert_close(f.inverse(y, cond)[0], x, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, (_, _, cond_dim) in MAPS.items() if cond_dim])
def test_condition_matters(name):
    f, x, cond = made(name, torch.float64)
    assert (f(x, cond)[0] - f(x, cond + 0.5)[0]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("config", CONFIGS)
def test_flow_is_determined_by_the_generator(config):
    flow = plane_flow(config, layers=2)
    a, b, c = (flow.sample(50, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert a.shape == (50, 2) and a.equal(b) and not a.equal(c)
    assert (flow.sample(500, temperature=0.1).std() < flow.sample(500).std()).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_flow_saves_and_loads(config):
    flow, other = plane_flow(config, layers=2), plane_flow(config, layers=2)
    randomise(flow)
    other.load_state_dict(flow.state_dict())
    x = torch.randn(20, 2)
    assert flow.log_prob(x).equal(other.log_prob(x))
    assert flow.loss(x).total.equal(-flow.log_prob(x)) and flow.loss(x).total.shape == (20,)


@pytest.mark.parametrize("config", CONFIGS)
def test_density_of_a_draw_is_the_density_there(config):
    flow = randomise(plane_flow(config, layers=3).double())
    x, logp = flow.push(flow.noise(100))
    assert_close(logp, flow.log_prob(x), atol=1e-6)


# ---- planar layers


def adversarial(dtype=torch.float32):
    "u and w of all sizes from 1e-18 to 1e4, at all angles, opposite ones and zero among them: (n, 2) each."
    size = torch.tensor([0.0, 1e-18, 1e-9, 1e-3, 1.0, 30.0, 1e4], dtype=dtype)
    angle = torch.linspace(0, 2 * torch.pi, 17, dtype=dtype)
    su, sw, angle = (t.flatten() for t in torch.meshgrid(size, size, angle, indexing="ij"))
    w = sw[:, None] * torch.tensor([0.8, 0.6], dtype=dtype)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    return su[:, None] * (turn @ torch.tensor([0.8, 0.6], dtype=dtype)), w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planar_constraint(dtype):
    "w.u_hat > -1 whatever u and w are, and nothing that training needs is infinite."
    u, w = (t.requires_grad_() for t in adversarial(dtype))
    u_hat, slope = planar_u(u, w)
    assert (slope >= MARGIN - 1).all()
    exact = (u_hat.detach().double() * w.detach().double()).sum(-1)
    size = u.detach().norm(dim=-1).double() * w.detach().norm(dim=-1).double()
    assert ((exact - slope.detach().double()).abs() <= 8 * torch.finfo(dtype).eps * (1 + size)).all()
    b = torch.zeros(len(u), dtype=dtype, requires_grad=True)
    for x in (torch.zeros(len(u), 2, dtype=dtype), torch.randn(len(u), 2, dtype=dtype)):
        y, ldj = planar(x, u, w, b)
        assert ldj.isfinite().all() and (ldj >= torch.tensor(MARGIN).log() - 1e-3).all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum() + ldj.sum(), (u, w, b)))


def test_planar_constraint_test_can_fail():
    "The rule with the norm instead of its square, and no rule at all, fold where this one does not."
    u, w = adversarial(torch.float64)
    u, w = u[w.norm(dim=-1) > 0], w[w.norm(dim=-1) > 0]
    a = (w * u).sum(-1, keepdim=True)
    wrong = u + (torch.nn.functional.softplus(a) - 1 - a) * w / w.norm(dim=-1, keepdim=True)
    assert ((w * u).sum(-1) < -1).any() and ((w * wrong).sum(-1) < -1).any()


def test_each_example_has_layers_of_its_own():
    "A batch with a condition is the same as one flow for each example, also with several samples an example."
    flow = randomise(Planar(3, 4).double())
    x, cond = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, flow.cond_dim, dtype=torch.float64)
    y, ldj = flow(x, cond)
    for i in range(5):
        alone = Planar(3, 4).double()
        alone.load_state_dict({"theta": flow.theta + cond[i].view(4, 7)})
        assert_close(alone(x[i : i + 1])[0][0], y[i], atol=1e-12)
        assert_close(alone(x[i : i + 1])[1][0], ldj[i], atol=1e-12)
    assert_close(flow(x.expand(6, 5, 3), cond)[0], y.expand(6, 5, 3), atol=1e-12)
    assert_close(flow.inverse(y, cond)[0], x, atol=1e-8)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e3])
def test_eighty_planar_layers_of_any_size_are_finite(size):
    deep = Planar(2, 80)
    with torch.no_grad():
        deep.theta.normal_().mul_(size)
    y, ldj = deep(torch.randn(200, 2))
    gradient = torch.autograd.grad(ldj.mean() + y.mean(), deep.theta)[0]
    assert all(t.isfinite().all() for t in (y, ldj, *deep.inverse(y), gradient))
    assert ldj.min() >= 80 * torch.tensor(MARGIN).log() - 1


def test_planar_is_monotone_along_w():
    u, w = adversarial(torch.float64)
    keep = (w.norm(dim=-1) > 1e-4) & (u.norm(dim=-1) < 1e3) & (w.norm(dim=-1) < 1e3)
    u, w = u[keep], w[keep]
    t = torch.linspace(-40, 40, 801).double()[:, None, None] / w.norm(dim=-1, keepdim=True).clamp(min=1)
    y, _ = planar(t * w / w.norm(dim=-1, keepdim=True), u, w, torch.full((len(u),), 0.3).double())
    assert ((y * w).sum(-1).diff(dim=0) > 0).all()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 2e-3)], ids=["float64", "float32"])
def test_planar_inverse_of_steep_layers(dtype, atol):
    "Layers at the margin, where the map is flattest."
    u = torch.randn(500, 3, dtype=dtype) * 20
    w, x, b = torch.randn(500, 3, dtype=dtype), torch.randn(500, 3, dtype=dtype), torch.randn(500, dtype=dtype)
    y, ldj = planar(x, u, w, b)
    back, ldj_back = planar_inverse(y, u, w, b)
    assert ldj.min() < -5
    assert ((back - x).norm(dim=-1) * ldj.exp().clamp(max=1)).max() < atol  # in units of what the layer makes of it


def test_derivatives_of_the_numeric_inverse():
    x, u, w = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(planar_inverse, (x, u, w, torch.randn(4, dtype=torch.float64, requires_grad=True)))
    alpha, beta = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(radial_inverse, (x, u, alpha + 0.1, beta))
    theta = torch.randn(4, 2, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spline_inverse, (x, theta))


def test_radial_at_its_limits():
    centre = torch.zeros(1, 3)
    x = torch.cat([torch.zeros(1, 3), 1e-20 * torch.ones(1, 3), 1e4 * torch.ones(1, 3)]).requires_grad_()
    for raw in (-1e4, 0.0, 1e4):
        for log_alpha in (-8.0, 0.0, 8.0):
            for f in (radial, radial_inverse):
                alpha = torch.tensor(log_alpha).exp()
                y, ldj = f(x, centre, alpha, alpha * admissible(torch.tensor(raw)))
                assert y.isfinite().all() and ldj.isfinite().all()
                assert torch.autograd.grad(y.sum() + ldj.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
def test_spline_of_extreme_numbers(size):
    theta = size * torch.randn(400, 23)
    x = torch.linspace(-6, 6, 400).requires_grad_()
    y, ldj = spline(x, theta)
    back, _ = spline_inverse(y, theta)
    assert ldj.isfinite().all() and torch.autograd.grad(ldj.sum() + y.sum(), x)[0].isfinite().all()
    assert back.isfinite().all() and (y.abs() <= 5.001)[x.abs() < 5].all() and (y == x)[x.abs() >= 5].all()
    one = theta[:1].expand(4001, -1).double()
    assert (spline(torch.linspace(-6, 6, 4001).double(), one)[0].diff() > 0).all()


def test_eighty_planar_layers():
    "At the start and after 200 steps: all finite, and better than without layers."
    target, deep = Energy("u1"), planar_posterior(80)
    before = reverse_kl(deep, target, 2000)
    history = fit_posterior(deep, target.log_prob, 200, batch_size=64, lr=1e-2, device="cpu", log_every=20, progress=False)
    after = reverse_kl(deep, target, 2000)
    assert before.isfinite().all() and after.isfinite().all() and all(p.isfinite().all() for p in deep.parameters())
    assert all(v == v for row in history.rows for v in row.values())
    assert after.mean() < 0.5 < before.mean()


def test_u1_by_eight_layers():
    "K = 8 reaches 0.4 nats in 15 s, K = 0 stays above 3: medians over three seeds."
    target, kls, seconds = Energy("u1"), {0: [], 8: []}, []
    for k in kls:
        for seed in range(3):
            torch.manual_seed(seed)
            flow, began = planar_posterior(k), time.process_time()
            fit_posterior(flow, target.log_prob, 300, seed=seed, device="cpu", progress=False)
            seconds.append(time.process_time() - began)
            kls[k].append(reverse_kl(flow, target, 20_000).mean().item())
    assert statistics.median(kls[8]) <= 0.4 and statistics.median(kls[0]) > 3, kls
    assert max(seconds) < 15, seconds


# ---- targets, training, mistakes


def test_energies_as_printed_have_no_normalising_constant():
    "The wall does not change the energies inside of it, and without it U2 to U4 do not decay."
    x = torch.tensor([[-3.9, 0.3], [0.0, 0.0], [3.9, -0.5]])
    far = torch.tensor([[40.0, 0.0], [44.0, 0.0]])
    for name, u in ENERGIES.items():
        assert u(x).isfinite().all()
        if name != "u1":
            wall = 0.5 * ((far[:, 0] - 4) / 0.4) ** 2
            assert_close((u(far) - wall)[0], (u(far) - wall)[1], atol=2e-2)  # periodic in x1


@pytest.mark.parametrize("name", ["two_moons", "rings", "eight_gaussians"])
def test_forward_kl_of_the_truth_is_zero(name):
    target = toy(name)

    class Truth(nn.Module):
        _like = torch.zeros(())
        log_prob = staticmethod(target.log_prob)

    assert_close(forward_kl(Truth(), target, 100), torch.zeros(100), atol=0)


class Correlated:
    "N(0, [[1, rho], [rho, 1]]) with rho = 0.9."

    rho = 0.9

    def sample(self, n, generator=None):
        eps = torch.randn(n, 2, generator=generator)
        return torch.stack([eps[:, 0], self.rho * eps[:, 0] + (1 - self.rho**2) ** 0.5 * eps[:, 1]], -1)

    def log_prob(self, x):
        rest = (x[..., 1] - self.rho * x[..., 0]) / (1 - self.rho**2) ** 0.5
        return StandardNormal(2).log_prob(torch.stack([x[..., 0], rest], -1)) - 0.5 * math.log(1 - self.rho**2)


def likeliest(flow, target, lr):
    "150 steps of maximum likelihood."
    fit(Step(flow, lr=lr, schedule=optim.lr_schedule("cosine", 150), device="cpu"), Draws(target.sample), 150, progress=False)
    return flow


def test_training_finds_the_known_optimum():
    "The best independent coordinates for a correlated Gaussian, by each divergence, and none left where a coupling can do it."
    torch.manual_seed(0)
    target, g = Correlated(), torch.Generator().manual_seed(0)
    ideal, variance = -0.5 * math.log(1 - target.rho**2), 1 - target.rho**2
    covering = likeliest(Flow(Affine((2,)), StandardNormal(2)), target, 0.05)
    inside = Flow(Affine((2,)), StandardNormal(2))
    fit_posterior(inside, target.log_prob, 150, lr=0.05, device="cpu", progress=False)
    for flow, kl, wanted in ((covering, forward_kl, 1.0), (inside, reverse_kl, variance)):
        assert_close((-2 * flow.bijection.log_scale).exp().mean(), wanted, rtol=0.1, atol=0)
        assert_close(kl(flow, target, 20_000, g).mean(), ideal, atol=0.06)
    coupled = likeliest(plane_flow("affine", layers=1), target, 0.01)
    assert abs(forward_kl(coupled, target, 20_000, g).mean()) < 0.02


def test_reverse_kl_is_a_sum_over_the_plane():
    "The mean over draws of a trained flow against a sum over a grid, for which the flow is inverted."
    torch.manual_seed(0)
    target, flow = Energy("u4"), planar_posterior(4)
    fit_posterior(flow, target.log_prob, 60, device="cpu", progress=False)
    values = reverse_kl(flow, target, 10_000, torch.Generator().manual_seed(0)).double()
    t = (torch.arange(280).double() + 0.5) / 20 - 7
    grid = torch.cartesian_prod(t, t)
    with torch.no_grad():
        logq = flow.double().log_prob(grid)
    assert_close(logq.exp().sum() / 400, 1.0, atol=5e-3)
    summed = (logq.exp() * (logq - target.log_prob(grid))).sum() / 400
    assert_close(values.mean(), summed, atol=4 * (values.std() / 100).item() + 5e-3)


def test_parameters_of_planar_flows():
    "A scale and shift, and u, w and b of each layer."
    assert sum(p.numel() for p in plane_flow("planar").parameters()) == 4 + 32 * 5


def test_reverse_weight():
    "`kl` is the divergence whatever the weight is; `total` is what is minimised."
    flow, target, z = planar_posterior(2), Energy("u2"), torch.randn(50, 2)
    x, logp = flow.push(z)
    plain = ReverseKL(flow, target.log_prob).loss(z)
    assert_close(plain.kl, plain.total, atol=0)
    half = ReverseKL(flow, target.log_prob, optim.RampWeight(10)).loss(z, it=torch.tensor(5))
    assert_close(half.kl, plain.kl, atol=1e-6)
    assert_close(half.total, logp - 0.5 * target.log_prob(x), atol=1e-5)


def test_training_resumes_with_the_same_draws(tmp_path):
    "Stopped after 6 of 12 steps and started again, it ends where the uninterrupted training does."
    from genbook.lab.runs import Run

    def train(steps, run=None):
        torch.manual_seed(0)
        flow = plane_flow("affine", layers=2)
        step = Step(flow, lr=1e-2, device="cpu")
        fit(step, Draws(toy("pinwheel").sample, 32), steps, run=run, every=6, progress=False)
        return torch.cat([p.detach().flatten() for p in flow.parameters()])

    whole = train(12)
    train(6, Run(tmp_path / "runs" / "x" / "y"))
    assert train(12, Run(tmp_path / "runs" / "x" / "y")).equal(whole)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: plane_flow("plannar"), ["config", "did you mean 'planar'?"]),
        (lambda: plane_flow("planar", width=3), ["width"]),
        (lambda: plane_flow("spline", layers=0), ["layers"]),
        (lambda: AffineCoupling(1), ["dim"]),
        (lambda: AffineCoupling(2, cond_dim=3)(torch.zeros(1, 2)), ["cond", "none"]),
        (lambda: Planar(2, 2)(torch.zeros(1, 2), torch.zeros(1, 9)), ["cond", "9"]),
        (lambda: Planar(0), ["dim"]),
        (lambda: Permutation([0, 2]), ["order"]),
        (lambda: Energy("u5"), ["energy", "u1"]),
        (lambda: Draws(None, 0), ["batch_size"]),
    ],
)
def test_mistakes_get_one_line(mistake, words):
    with pytest.raises(GenbookError) as error:
        mistake()
    text = str(error.value)
    assert "\n" not in text and all(w in text for w in words), text


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("lr", [1e-4, 1e-3, 3e-3])
def test_no_nan_in_twenty_seeds(config, lr):
    for seed in range(20):
        torch.manual_seed(seed)
        flow = plane_flow(config, layers=4)
        fit(Step(flow, lr=lr, device="cpu"), Draws(toy("checkerboard").sample, 128, seed=seed), 120, progress=False)
        assert flow.log_prob(torch.randn(500, 2) * 4).isfinite().all()


@pytest.mark.gpu
def test_reverse_kl_runs_as_a_graph():
    "With capture=True a step that cannot be recorded is an error; the numeric inverse of planar layers is in it."
    target = Energy("u1")
    for flow in (planar_posterior(4), Flow(Compose(Affine((2,)), Planar(2, 4)), StandardNormal(2))):
        fit_posterior(flow, target.log_prob, 30, device="cuda", capture=True, progress=False)
        assert all(p.isfinite().all() for p in flow.parameters())
