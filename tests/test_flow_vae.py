"Flow posteriors: invertible in both precisions, finite with many layers, a probability of discrete images, what training minimises."

from itertools import product

import pytest
import torch
from torch import nn

from genbook.bijections import log_det_jacobian
from genbook.core import GenbookError
from genbook.data import Batches
from genbook.datasets import load
from genbook.measure.likelihood import active_units, evaluate, information, log_weights
from genbook.models.flow_vae import CONFIGS, IAF, MADE, Couplings, FlowPosterior, FlowVAE, active_dims, amortised_flow, gaussian_gap
from genbook.models.flows import Planar
from genbook.models.vae import VAE
from genbook.nn import n_parameters
from genbook.prob import DiagonalNormal, normal_log_prob
from genbook.steps import Step
from genbook.train import fit

KINDS = {
    "planar": dict(flow="planar", layers=5),
    "iaf": dict(flow="iaf", layers=3, flow_width=16, context=6),
    "realnvp": dict(flow="realnvp", layers=4, flow_width=16, context=6),
}
TINY = dict(tower="mlp", width=16, depth=1, zdim=4, likelihood="discretized_logistic", scale="shared", levels=17)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randomise(module, std):
    "Away from the start, where a flow is nearly the identity."
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=std)
    return module


def tiny(kind, **options):
    "A small model whose posterior differs from image to image and from a Gaussian."
    model = FlowVAE((1, 8, 8), **(TINY | KINDS[kind] | options))
    randomise(model.flow, 0.3), randomise(model.amortise, 0.3)
    return model.eval().requires_grad_(False)


def images(n=6, levels=17, shape=(1, 8, 8)):
    return torch.randint(levels, (n, *shape), generator=generator()) / (levels - 1)


# ---- the posterior


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_inverse(kind, dtype, atol):
    "To 1e-6 in float64 and 1e-4 in float32, for each image's own flow, and the density of a draw is the density there."
    q = tiny(kind).to(dtype).posterior(images(50).to(dtype))
    z0, _ = q.base.rsample_and_log_prob(k=20)
    z, ldj = q.flow(z0, q.cond)
    back, ldj_back = q.flow.inverse(z, q.cond)
    assert z.shape == (20, 50, 4) and ldj.shape == (20, 50) and (z - z0).abs().max() > 0.1
    torch.testing.assert_close(back, z0, atol=atol, rtol=0)
    torch.testing.assert_close(ldj_back, -ldj, atol=10 * atol, rtol=0)
    z, logq = q.rsample_and_log_prob(generator(), k=20)
    torch.testing.assert_close(q.log_prob(z), logq, atol=20 * atol, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_jacobian(kind):
    q = tiny(kind).double().posterior(images(8).double())
    z0 = q.base.rsample_and_log_prob()[0]
    ldj = q.flow(z0, q.cond)[1]
    assert ldj.abs().min() > 1e-4
    torch.testing.assert_close(ldj, log_det_jacobian(q.flow, z0, q.cond), atol=1e-8, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_has_its_own_flow(kind):
    "The posterior of an image does not depend on the batch, and differs between images."
    model, x = tiny(kind).double(), images().double()
    together, alone = model.posterior(x), model.posterior(x[2:3])
    z = torch.randn(7, 1, 4, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(together.log_prob(z.expand(7, 6, 4))[:, 2:3], alone.log_prob(z), atol=1e-10, rtol=0)
    torch.testing.assert_close(together.centre[2:3], alone.centre, atol=1e-12, rtol=0)
    assert (together.cond - together.cond[:1])[1:].abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_starts_near_the_identity(kind):
    "However many layers there are: log-determinants and displacements are small."
    for layers in (1, 8, 80):
        flow, _ = amortised_flow(kind, 16, layers, 32, **({} if kind == "planar" else dict(context=8)))
        z = torch.randn(500, 16, generator=generator())
        y, ldj = flow(z, torch.zeros(500, flow.cond_dim))
        assert ((y - z).norm(dim=-1) / 4).mean() < (0.3 if kind == "planar" else 1.5), (layers, "displacement")
        assert ldj.abs().mean() < (0.5 if kind == "planar" else 3), (layers, "log-determinant")


@pytest.mark.parametrize("reverse", [False, True])
def test_autoregressive_order(reverse):
    "Changing input j changes only outputs after it, or only those before it, and the context changes all."
    net = randomise(MADE(6, 3, width=24, depth=2, reverse=reverse), 0.5)
    z, context = torch.randn(6, generator=generator()), torch.randn(3, generator=generator())
    before = torch.stack(net(z, context))
    for j in range(6):
        changed = (torch.stack(net(z + torch.eye(6)[j], context)) != before).any(0)
        assert changed.tolist() == [i < j if reverse else i > j for i in range(6)]
    assert (torch.stack(net(z, context + 1)) != before).all()


def test_gates():
    "Closed gates replace, open ones keep: y = m/sigma_0 and y = z/sigma_0."
    flow = IAF(3, 1, context=2, depth=0)
    z, cond = torch.randn(5, 3), torch.zeros(5, 2)
    with torch.no_grad():
        for p in flow.parameters():
            p.zero_()
        flow.nets[0].masked[0].bias[:3] = 0.7
        for s, expected in ((-50.0, torch.full((5, 3), 0.7)), (50.0, z)):
            flow.nets[0].masked[0].bias[3:] = s
            torch.testing.assert_close(flow(z, cond)[0], expected / torch.sigmoid(torch.tensor(1.5)), atol=1e-5, rtol=1e-5)


# ---- the model


def all_images(kind):
    "Of 2x2 pixels with three levels, 81, and a model of them whose posteriors are wide enough for importance weights without a tail."
    model = FlowVAE((1, 2, 2), **(TINY | KINDS[kind] | dict(levels=3, width=8, zdim=2))).double()
    randomise(model, 0.3), randomise(model.flow, 0.4 if kind == "planar" else 0.2)
    model.logvar.bias.data += 0.5
    x = torch.tensor(list(product([0.0, 0.5, 1.0], repeat=4)), dtype=torch.float64).view(81, 1, 2, 2)
    return model.eval().requires_grad_(False), x


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_all_images(kind):
    "Bounds sum to at most one, and to one within the error of many samples."
    model, x = all_images(kind)
    log_w = log_weights(model, x, 20_000)
    elbo, iw = log_w.mean(0).exp().sum(), log_w.exp().mean(0).sum()
    error = (log_w.exp().var(0).sum() / 20_000).sqrt()
    assert elbo < iw and elbo < 1 and (iw - 1).abs() < 4 * error < 0.05, (elbo, iw, error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_sign_would_be_seen(kind):
    "The same sum with the log-determinant of the opposite sign is not one."
    model, x = all_images(kind)
    q = model.posterior(x)
    z0, logq = q.base.rsample_and_log_prob(generator(), k=20_000)
    z, ldj = q.flow(z0, q.cond)
    weights = (model.likelihood(z).log_prob(x) + model.prior.log_prob(z) - (logq + ldj)).exp()
    assert (weights.mean(0).sum() - 1).abs() > 4 * (weights.var(0).sum() / 20_000).sqrt()


@pytest.mark.parametrize("free_bits", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_loss(kind, free_bits):
    "rec + beta max(kl, allowance), the allowance for the whole code; a schedule is told the divergence."
    model = tiny(kind, free_bits=free_bits, kl="adaptive", kl_args=dict(target=0.0), beta=3.0)
    x = images(64)
    torch.manual_seed(0)
    q = model.posterior(x)
    z, logq = q.rsample_and_log_prob()
    kl, rec = logq - model.prior.log_prob(z), -model.likelihood(z).log_prob(x)
    torch.manual_seed(0)
    terms = model.loss(x)
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.rec, rec)
    torch.testing.assert_close(terms.total.mean(), rec.mean() + 3.0 * kl.mean().clamp(min=4 * free_bits), rtol=1e-4, atol=1e-3)
    model.train()
    before = model.kl_weight.integral.clone()
    terms = model.loss(x, it=torch.tensor(0))
    assert torch.equal(model.kl_weight.integral, before)  # a loss that is only evaluated moves nothing
    model.after_step("model", {name: t.mean() for name, t in terms._asdict().items()})
    assert not torch.equal(model.kl_weight.integral, before)


@pytest.mark.parametrize("kl", ["constant", "linear", "cyclical", "cosine_cyclical"])
def test_schedules(kl):
    model = tiny("planar", kl=kl)
    at = torch.tensor(3)
    terms = model.loss(images(), it=at)
    torch.testing.assert_close(terms.beta, model.kl_weight(at).expand(6))
    torch.testing.assert_close(terms.total, terms.rec + terms.beta * terms.kl)


@pytest.mark.parametrize("kind", KINDS)
def test_importance_weighted_objective(kind):
    model, x = tiny(kind, k=7), images()
    torch.manual_seed(0)
    total = model.loss(x).total
    torch.manual_seed(0)
    torch.testing.assert_close(total, -model.iw_bound(x, 7), rtol=1e-5, atol=1e-4)


def test_no_layers_are_the_vae():
    "The same weights from the same seed, and the same training, to the last bit."
    ds, ends = load("digits"), []
    for build in (VAE, lambda shape, **kw: FlowVAE(shape, layers=0, **kw)):
        torch.manual_seed(0)
        step = Step(build((1, 8, 8), **TINY), lr=1e-3, device="cpu")
        fit(step, Batches(ds.train, 32, seed=0), 5, progress=False)
        ends.append(step.model.state_dict())
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(a, b) for a, b in zip(*(e.values() for e in ends), strict=True))


def test_layers_that_do_nothing_are_the_vae_too():
    "Its bound and codes, with the divergence averaged instead of in closed form."
    vae, idle = VAE((1, 8, 8), **TINY), FlowVAE((1, 8, 8), layers=3, **TINY)
    idle.load_state_dict(vae.state_dict(), strict=False)
    with torch.no_grad():
        idle.flow.theta.zero_(), idle.amortise.weight.zero_()
    bounds = [model.iw_bound(images(), 8, generator=generator()) for model in (idle, vae)]
    torch.testing.assert_close(*bounds, atol=1e-4, rtol=0)
    torch.testing.assert_close(idle.encode(images()), vae.encode(images()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [dict(), dict(free_bits=0.3), dict(k=5)])
def test_losses_without_layers_are_the_vaes(options):
    vae, none = VAE((1, 8, 8), **TINY | options), FlowVAE((1, 8, 8), layers=0, **TINY | options)
    none.load_state_dict(vae.state_dict())
    said = []
    for model in (vae, none):
        torch.manual_seed(1)
        terms = [*model.loss(images(64), it=torch.tensor(3)), model.elbo(images(), generator=generator())]
        said.append([*terms, model.iw_bound(images(), 4, generator=generator())])
    assert all(torch.equal(a, b) for a, b in zip(*said, strict=True))


def test_few_draws_are_corrected():
    "100 draws in 30 dimensions of a standard normal: uncorrected the parts would be 2.8 nats away from zero."
    base = DiagonalNormal(torch.zeros(200, 30, dtype=torch.float64), torch.zeros(200, 30, dtype=torch.float64))
    for part in gaussian_gap(FlowPosterior(base, Planar(30, 0).double(), None), n=100):
        assert abs(part.mean()) < 0.2


def test_towers_do_not_depend_on_the_flow():
    "From one seed: the ladder over K differs in the flow alone."

    def towers(**options):
        torch.manual_seed(3)
        state = FlowVAE((1, 8, 8), **(TINY | options)).state_dict()
        return {k: v for k, v in state.items() if not k.startswith(("flow", "amortise"))}

    first = towers(layers=0)
    for options in (dict(layers=2), dict(layers=80), dict(flow="iaf", layers=1)):
        other = towers(**options)
        assert other.keys() == first.keys() and all(torch.equal(other[k], first[k]) for k in first)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_are_float32_under_bfloat16(kind):
    model, x = tiny(kind), images()
    with torch.autocast("cpu", torch.bfloat16):
        q = model.posterior(x)
        z, logq = q.rsample_and_log_prob(generator(), k=3)
    assert q.cond.dtype == z.dtype == logq.dtype == q.centre.dtype == torch.float32


# ---- measured


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate(kind):
    "The estimators of the likelihood take this posterior; those that need a Gaussian are left out instead of being wrong."
    found = evaluate(tiny(kind), images(20), k=8)
    assert {"elbo", "rec", "kl", "iw_nll", "ess", "bits_per_dim", "mse"} <= found.keys()
    assert not {"active_units", "mutual_information", "aggregate_kl"} & found.keys()
    assert found["elbo"].value <= -found["iw_nll"].value
    assert abs(found["elbo"].value + found["rec"].value + found["kl"].value) < 1e-3


def test_active_dims_of_a_known_posterior():
    "Against the count from the exact means of a Gaussian; the noise of the averages does not count."
    model = FlowVAE((1, 8, 8), layers=0, **TINY).requires_grad_(False)
    ds = load("digits")
    model.mu.weight *= torch.tensor([0.0, 0.0, 5.0, 5.0])[:, None]  # two dimensions say nothing
    mu = model.posterior(ds.test.float()[0]).mu
    assert active_units(mu).tolist() == active_dims(model, ds.test, k=32).tolist() == [False, False, True, True]


def test_centre_is_not_called_a_mean():
    "A flow posterior has no `mean`, `mu` or `logvar`, which code for Gaussians would take for the posterior's own."
    q = tiny("planar").posterior(images())
    assert not any(hasattr(q, name) for name in ("mean", "mu", "logvar", "kl_to_std"))
    base = DiagonalNormal(torch.zeros(1, 2), torch.zeros(1, 2))
    assert torch.equal(FlowPosterior(base, IAF(2, 1, context=1), torch.zeros(1, 1)).base.mean, base.mean)


# ---- numerics


def trained(layers, lr, steps, seed=0, **options):
    "A model after a few steps; fit stops where a value is not finite."
    torch.manual_seed(seed)
    model = FlowVAE((1, 8, 8), **(CONFIGS["mlp_digits"] | dict(levels=17, layers=layers) | options))
    batches = Batches(load("digits").train, 64, seed=seed)
    history = fit(Step(model, lr=lr, device="cpu"), batches, steps, progress=False, log_every=max(steps // 5, 1))
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(v == v for row in history.rows for v in row.values())
    return history.column("train/total")[1]


def test_eighty_layers_at_a_high_learning_rate():
    values = trained(80, 3e-3, 40)
    assert values[-1] < values[0] - 10


def test_absurd_conditions_are_finite():
    "Whatever the encoder says, values and gradients exist, and the log-determinant is above its bound."
    flow, _ = amortised_flow("planar", 8, 80, 4)
    z = torch.randn(30, 8)
    for size in (0.0, 1e-20, 1.0, 1e3, 1e6):
        cond = (size * torch.randn(30, flow.cond_dim)).requires_grad_()
        y, ldj = flow(z, cond)
        assert y.isfinite().all() and ldj.isfinite().all() and ldj.min() > 80 * torch.tensor(1e-3).log() - 1
        assert torch.autograd.grad(ldj.mean() + (y / (1 + size)).mean(), cond)[0].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("lr", [1e-4, 1e-3, 3e-3])
@pytest.mark.parametrize("options", [dict(layers=8), dict(layers=80), dict(flow="iaf", layers=4), dict(flow="realnvp", layers=4)],
    ids=["planar 8", "planar 80", "iaf", "realnvp"])  # fmt: skip
def test_no_nan_in_twenty_seeds(options, lr):
    for seed in range(20):
        trained(**({"lr": lr, "steps": 60, "seed": seed} | options))


@pytest.mark.parametrize(
    ("kind", "layers", "options"), [("planar", 3, {}), ("iaf", 2, dict(context=3, width=6)), ("realnvp", 2, dict(context=3, width=6))]
)
def test_draws_and_their_density_have_the_right_gradients(kind, layers, options):
    "With respect to the base and the condition, against finite differences."
    flow = randomise(amortised_flow(kind, 2, layers, 5, **options)[0].double(), 0.3)

    def draw(mu, logvar, cond):
        return FlowPosterior(DiagonalNormal(mu, logvar), flow, cond).rsample_and_log_prob(torch.Generator().manual_seed(0), k=2)

    at = [torch.randn(2, d, dtype=torch.float64, requires_grad=True) for d in (2, 2, flow.cond_dim)]
    assert torch.autograd.gradcheck(draw, at)


# ---- mistakes


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: FlowVAE((1, 8, 8), layers=-1), ["layers", "-1"]),
        (lambda: FlowVAE((1, 8, 8), layers=2.5), ["layers", "2.5"]),
        (lambda: FlowVAE((1, 8, 8), flow="plannar"), ["flow", "did you mean 'planar'?"]),
        (lambda: FlowVAE((1, 8, 8), flow="iaf", flow_width=0), ["flow_width"]),
        (lambda: FlowVAE((1, 8, 8), flow="iaf", flow_depth=-1), ["flow_depth"]),
        (lambda: FlowVAE((1, 8, 8), flow="iaf", context=0), ["context"]),
        (lambda: FlowVAE((1, 8, 8), flow="realnvp", flow_width=0), ["flow_width"]),
        (lambda: FlowVAE((1, 8, 8), flow="realnvp", context=0), ["context"]),
        (lambda: Couplings(1, 2), ["dim", "1"]),
        (lambda: Couplings(4, 1, context=3)(torch.zeros(1, 4), torch.zeros(1, 5)), ["cond", "5", "3"]),
        (lambda: FlowVAE((1, 8, 8), free_bits=-1.0), ["free_bits"]),
        (lambda: IAF(2, 0, context=1), ["layers", "0"]),
        (lambda: IAF(2, 1, context=3)(torch.zeros(1, 2), torch.zeros(1, 4)), ["cond", "4", "3"]),
        (lambda: IAF(2, 1, context=3)(torch.zeros(1, 2)), ["cond", "None"]),
    ],
)
def test_mistakes_get_one_line(mistake, words):
    with pytest.raises(GenbookError) as error:
        mistake()
    text = str(error.value)
    assert "\n" not in text and all(w in text for w in words), text


def test_shared_parts_are_the_vaes():
    "A configuration without its flow has the parameters of the VAE of the same name."
    from genbook.models.vae import CONFIGS as VAE_CONFIGS

    twins = {"mlp_digits": "mlp_digits", "mlp": "mlp", "conv_s0": "conv_s0"}
    twins |= {f"{flow}{of}": f"mlp{of}" for flow in ("iaf", "realnvp") for of in ("", "_digits")}
    for name, of in twins.items():
        plain = FlowVAE((1, 28, 28), **(CONFIGS[name] | dict(layers=0)))
        assert n_parameters(plain) == n_parameters(VAE((1, 28, 28), **VAE_CONFIGS[of]))
        assert isinstance(plain.mu, nn.Linear) and plain.flow is None
    z, q = torch.randn(3, 2), DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2))
    torch.testing.assert_close(q.log_prob(z), normal_log_prob(z, q.mu, q.logvar))


@pytest.mark.parametrize("kind", KINDS)
def test_mass_that_a_grid_misses_is_beyond_it(kind):
    "Random couplings reach far: what the integral of a density lacks to one is the share of its draws outside."
    model = randomise(tiny(kind, zdim=2, layers=3), 0.3)
    t, n = torch.linspace(-12, 12, 321), 20_000
    q = model.posterior(load("digits").test.float(slice(0, 4))[0])
    points = torch.cartesian_prod(t, t)[:, None].expand(-1, 4, -1)
    mass = torch.cat([q.log_prob(part) for part in points.split(20_000)]).double().exp().sum(0) * (24 / 320) ** 2
    inside = (q.rsample_and_log_prob(generator(), k=n)[0].abs().amax(-1) < 12).double().mean(0)
    assert ((mass - inside).abs() < 4 * (inside * (1 - inside) / n).sqrt() + 0.002).all(), (mass, inside)


@pytest.mark.parametrize("kind", KINDS)
def test_information_is_the_integral_of_the_densities(kind):
    n, images, std = 4, load("digits").test, 0.3
    if kind == "realnvp":
        std = 0.26  # of couplings that stay within the grid; many random ones do not
        torch.manual_seed(2)
    model = randomise(tiny(kind, zdim=2, layers=3), std)
    t = torch.linspace(-12, 12, 321)
    grid, area = torch.cartesian_prod(t, t), (24 / 320) ** 2
    q = model.posterior(images.float(slice(0, n))[0])
    each = torch.cat([q.log_prob(part[:, None].expand(-1, n, -1)) for part in grid.split(5000)]).double()  # (points, images)
    assert (each.exp().sum(0) * area - 1).abs().max() < 0.01
    mixture = each.logsumexp(1) - torch.tensor(n).log()
    of_code = (each.exp() * (each - mixture[:, None])).sum(0).mean() * area
    of_all = (mixture.exp() * (mixture - model.prior.log_prob(grid))).sum() * area
    parts = [information(q, model.prior, torch.Generator().manual_seed(s), chunk=3) for s in range(600)]
    draws = [torch.stack([getattr(p, name).mean() for p in parts]) for name in ("lower", "kl_upper")]
    assert of_code > 0.1
    for values, wanted in zip(draws, (of_code, of_all), strict=True):
        assert abs(values.mean() - wanted) < 4 * values.std() / len(values) ** 0.5 + 0.01
