"""Properties of every model in `list_models()`.

What a model can do it says by having the method, so a test asks for the method and not for the family.
A model that joins the zoo is covered.
"""

import math
from functools import cache
from inspect import signature

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from genbook import create_model, list_models
from genbook.core import GenbookError
from genbook.lab.zoo import entries, takes

MODELS = list_models()
FAMILIES = {entries()[name].build: name for name in reversed(MODELS)}  # one model of each, for what all of a family share
SIZES = [8, 16, 28, 32, 64]
SMALL = {"width": 8}  # where a model takes it; networks of the reports have their own widths


def build(name, shape=(1, 8, 8), **config):
    "The model, narrow where that is possible."
    try:
        return create_model(name, shape, **(SMALL | config))
    except GenbookError as e:
        if "width" not in str(e):
            raise
        return create_model(name, shape, **config)


def images(shape=(1, 8, 8), n=5, levels=256):
    "Images of that many levels in [0, 1], (n, c, h, w)."
    return torch.randint(levels, (n, *shape)) / (levels - 1)


def randomise(model):
    "Every parameter drawn anew, so that a zero at the start hides nothing; the scale keeps activations finite."
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.7 / math.sqrt(max(p[0].numel(), 1)) if p.ndim > 1 else 0.1)
    return model


def generator(seed):
    return torch.Generator().manual_seed(seed)


@cache
def example(name):
    "One model of that name at 8x8, to be asked what it has."
    return build(name)


def having(*methods, argument=None):
    "Parametrise over the models that have these methods at 8x8, and take this argument."
    names = [n for n in MODELS if all(hasattr(example(n), m) for m in methods)]
    return pytest.mark.parametrize("name", [n for n in names if argument is None or argument in takes(entries()[n].build)])


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and len(text) < 300 and all(w in text for w in words), text


def unless_refused(name, shape):
    "The model, or None if it refuses images of that size in one line that names it."
    try:
        return create_model(name, shape)
    except GenbookError as error:
        text = str(error)
        assert "\n" not in text and str(shape[1]) in text and str(shape[2]) in text, text


def test_the_matrix_is_not_empty():
    assert {n.split("_")[0] for n in MODELS} >= {"ae", "vae"} and len(MODELS) == len(set(MODELS)) >= 6


# ---- shapes


@pytest.mark.parametrize("size", SIZES)
@having("loss")
def test_every_size_and_channel(name, size):
    "Builds at 8 to 64 pixels, grey and colour: finite terms of the loss, one for each example, and images in [0, 1]."
    for c in (1, 3):
        shape = (c, size, size)
        model = build(name, shape)
        x = images(shape, n=2)
        by_pixel = (hasattr(model, "fill") or hasattr(model, "noisy")) and x[0].numel() > 64  # in many passes: small images show it
        asked = {"reconstruct": x} | ({} if by_pixel else {"sample": 2})
        with torch.no_grad():
            terms = model.loss(x, it=torch.tensor(7))
            made = {m: getattr(model, m)(a) for m, a in asked.items() if hasattr(model, m)}
        assert "total" in terms._fields
        for term, value in terms._asdict().items():
            assert value.shape == (2,) and value.dtype == torch.float32 and value.isfinite().all(), term
        for method, out in made.items():
            assert out.shape == x.shape and 0 <= out.min() and out.max() <= 1, method


@having("encode", "decode", "reconstruct")
def test_codes(name):
    "`encode` gives (b, d), `decode` images, for one image too, and `reconstruct` is one after the other."
    model, x = build(name).eval(), images()
    z = model.encode(x)
    assert z.shape == (5, model.zdim) and model.decode(z).shape == x.shape
    assert torch.equal(model.reconstruct(x), model.decode(z))
    assert model.decode(model.encode(x[:1])).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("zdim", [1, 5])
@having("encode", "reconstruct", argument="zdim")  # a flow's code is as large as its image, a ladder has a size for each level
def test_latent_size_is_the_one_asked_for(name, zdim):
    assert build(name, zdim=zdim).encode(images()).shape == (5, zdim)


@pytest.mark.parametrize("levels", [2, 17, 256])
@having("loss")
def test_levels(name, levels):
    "Takes data sets of 2, 17 (the digits) and 256 levels."
    model = build(name, levels=levels)
    assert model.loss(images(levels=levels)).total.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_repr_shows_the_structure(name):
    model = build(name)
    assert all(f"({child}): " in repr(model) for child, _ in model.named_children())
    assert any(kind in repr(model) for kind in ("Linear(", "Conv2d("))


# ---- the loss


@having("loss")
def test_gradient_reaches_every_parameter(name):
    model = randomise(build(name))
    named, x = dict(model.named_parameters()), images(n=16)
    trained = [model, model.stage("jumps", x)[0]] if hasattr(model, "few") else [model]  # a student, in a stage of its own
    loss = sum(module.loss(x, it=torch.tensor(10**6)).total.mean() for module in trained)
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    dead = [n for n, g in zip(named, gradients, strict=True) if g is None or not g.isfinite().all() or not g.any()]
    assert not dead, dead


@having("loss")
def test_loss_of_an_example_is_its_own(name):
    "In evaluation no example's loss depends on another's."
    model, x, others = randomise(build(name)).eval(), images(), [0, 1, 3, 4]
    changed = x.index_copy(0, torch.tensor([2]), images(n=1))
    before, after = ((torch.manual_seed(1), model.loss(image).total)[1] for image in (x, changed))
    assert before[2] != after[2]
    torch.testing.assert_close(before[others], after[others])


@having("loss")
def test_loss_is_determined_by_the_seed(name):
    model, x = build(name).eval(), images()

    def total(seed):
        torch.manual_seed(seed)
        return model.loss(x).total

    assert torch.equal(total(1), total(1))
    if hasattr(model, "posterior"):
        assert not torch.equal(total(1), total(2))


@having("loss")
def test_loss_is_float32_under_bfloat16(name):
    "And close to the loss in full precision."
    model, x = build(name).eval(), images()
    torch.manual_seed(1)
    exact = model.loss(x).total
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(x).total
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.1, atol=1.0)


@pytest.mark.gpu
@having("loss")
def test_same_on_the_gpu(name):
    "The loss is finite there, codes and reconstructions are those of the CPU, and samples follow a generator of the device."
    model, x = randomise(build(name)).eval(), images()
    here = [getattr(model, m)(x) for m in ("encode", "reconstruct") if hasattr(model, m)]
    model, x = model.cuda(), x.cuda()
    there = [getattr(model, m)(x) for m in ("encode", "reconstruct") if hasattr(model, m)]
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=1e-3)
    assert model.loss(x, it=torch.tensor(7, device="cuda")).total.isfinite().all()
    if hasattr(model, "sample"):
        a, b = (model.sample(4, generator=torch.Generator("cuda").manual_seed(0)) for _ in range(2))
        assert a.is_cuda and torch.equal(a, b)


# ---- samples


@having("sample")
def test_samples_are_determined_by_the_generator(name):
    model = randomise(build(name)).eval()
    before = torch.get_rng_state()
    a, b, c = (model.sample(4, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used as well"


@having("sample")
def test_samples_vary(name):
    "A different image each time; with less temperature, less different."
    model = randomise(build(name)).eval()
    spread = [model.sample(64, temperature=t, generator=generator(0)).std(0).mean() for t in (1.0, 1e-3)]
    assert spread[0] > spread[1]


@having("sample")
def test_one_sample_and_labels_are_optional(name):
    assert build(name).eval().sample(1, None).shape == (1, 1, 8, 8)


@having("sample", "classes")
def test_labels_change_the_sample(name):
    "From the same noise; one label stands for all, none are drawn, and a label that is not there gets one line."
    model = randomise(build(name)).eval()
    cold = lambda y: model.sample(4, y, temperature=1e-3, generator=generator(0))  # so that noise does not hide what a label does
    a, b, c = (cold(y) for y in (torch.full((4,), 1), 1, torch.full((4,), 2)))
    assert torch.equal(a, b) and ((a - c).flatten(1).abs().amax(1) > 0).all()
    assert model.sample(4, None, generator=generator(0)).shape == a.shape
    with pytest.raises(GenbookError) as error:
        model.sample(4, model.classes)
    one_line(error, "y:", str(model.classes), f"0 to {model.classes - 1}")


# ---- weights


@having("loss")
def test_weights_make_the_same_model(name, tmp_path):
    "A model of other random weights is the same after loading, running statistics included."
    model, other, x = build(name), build(name), images()
    model.loss(x)  # batch-norm statistics move
    model, other = model.eval(), other.eval()

    def view(m):
        torch.manual_seed(0)
        return m.loss(x).total

    assert not torch.equal(view(model), view(other))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(view(model), view(other))


@pytest.mark.parametrize("name", MODELS)
def test_same_seed_same_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build(name).parameters())

    assert torch.equal(weights(3), weights(3)) and not torch.equal(weights(3), weights(4))


# ---- bounds of the likelihood


def mean_and_error(values):  # repetitions in the first dimension
    return values.mean(), values.mean(1).std() / math.sqrt(len(values))


def gain(high, low):
    "Difference of two means, and its error."
    (a, sa), (b, sb) = mean_and_error(high), mean_and_error(low)
    return a - b, (sa**2 + sb**2).sqrt()


@having("elbo", "iw_bound")
def test_more_samples_tighten_the_bound(name):
    """elbo = iw_bound(1) <= iw_bound(8) <= iw_bound(64) in mean, and the whole gain is larger than its error, so a sign would show.

    Few repetitions of the larger ones show it for most models; these are what takes the time."""
    model, x = randomise(build(name)).eval(), images(n=4)
    repeat = lambda f, n: torch.stack([f() for _ in range(n)]).double()
    with torch.no_grad():
        elbo, one = repeat(lambda: model.elbo(x), 48), repeat(lambda: model.iw_bound(x, 1), 48)
        for n in (6, 48):
            eight, many = repeat(lambda: model.iw_bound(x, 8), n), repeat(lambda: model.iw_bound(x, 64), n)
            difference, error = gain(many, one)
            if difference > 3 * error:
                break
    assert elbo.shape == (48, 4) and difference > 3 * error, (difference, error)
    difference, error = gain(one, elbo)
    assert difference.abs() < 4 * error + 1e-6 * elbo.abs().mean()
    for high, low in ((eight, one), (many, eight)):
        difference, error = gain(high, low)
        assert difference > -3 * error, (difference, error)


@pytest.mark.parametrize("config", [{}, {"k": 6}], ids=["", "k=6"])
@having("elbo", "iw_bound", "likelihood")
def test_bounds_are_exact_where_the_evidence_is_known(name, config):
    "With all parameters zero the posterior is the prior and the decoder ignores z: every bound is log p(x|z), the loss minus that."
    try:
        model, x = build(name, **config).eval(), images()
    except GenbookError as e:
        assert config and "'k'" in str(e)
        pytest.skip("has no importance-weighted objective")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        logp, again = (model.likelihood(torch.randn(5, model.zdim)).log_prob(x) for _ in range(2))
        if not torch.equal(logp, again):
            pytest.skip("log p(x|z) has noise of its own: test_fvae.py has the exact case in mean")
        objective = [-model.loss(x).total] if hasattr(model, "loss") else []  # a model with critics has several
        for bound in (model.elbo(x), model.iw_bound(x, 1), model.iw_bound(x, 50), *objective):
            torch.testing.assert_close(bound, logp, rtol=1e-5, atol=1e-4)


@having("log_prob")
def test_log_prob_is_determined_by_the_generator(name):
    model, x = randomise(build(name)).eval(), images()
    takes = signature(model.log_prob).parameters
    few = {"steps": 2} if "steps" in takes else {}  # of a solver
    draws = lambda: {"k": 3, "generator": generator(0)} if "k" in takes else {}  # an exact one has none
    a, b = (model.log_prob(x, **few, **draws()) for _ in range(2))
    assert a.shape == (5,) and a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("levels", [2, 256])
@having("encode", "likelihood", "log_prob")
def test_bits_per_dim_only_of_discrete_images(name, levels):
    "A model whose likelihood is a density, or a cross-entropy of grey images, does not offer bits per dimension."
    model, x = build(name, levels=levels).eval(), images(levels=levels)
    assert hasattr(model, "bits_per_dim") == model.likelihood(model.encode(x)).discrete
    if hasattr(model, "bits_per_dim"):
        bits = model.bits_per_dim(x, k=3, generator=generator(0))
        torch.testing.assert_close(bits, -model.log_prob(x, k=3, generator=generator(0)) / (64 * math.log(2)))
        assert bits.mean() > 0  # a probability is less than 1


@having("posterior", "likelihood", "prior", "elbo")
def test_elbo_reads_as_its_formula(name):
    """log p(x|z) + log p(z) - log q(z|x) is what `elbo` says, whatever weights or free bits the training objective has.

    From the same noise it is the same number; of a model that draws in another order, the same in mean."""
    model, x = randomise(build(name)).eval(), images(n=8)

    def formula(k):
        z, logq = model.posterior(x).rsample_and_log_prob(k=k)
        assert z.shape == (k, 8, model.zdim)
        return model.likelihood(z).log_prob(x) + model.prior.log_prob(z) - logq

    with torch.no_grad():
        torch.manual_seed(1)
        one = formula(1)[0]
        torch.manual_seed(1)
        if torch.allclose(one, model.elbo(x), rtol=1e-5, atol=1e-3):
            return
        (a, sa), (b, sb) = (mean_and_error(t.double()) for t in (formula(200), torch.stack([model.elbo(x) for _ in range(100)])))
    assert (a - b).abs() < 4 * (sa**2 + sb**2).sqrt() + 1e-6 * a.abs()


@having("prior", "decode", "sample")
def test_samples_come_from_the_prior(name):
    """Codes from the prior, decoded, are the samples.

    From the same noise they are the same images; of a model that draws in another order, the same in mean."""
    model = randomise(build(name)).eval()
    middle = {"noise": False} if "noise" in signature(model.sample).parameters else {}  # as `decode`, where p(x|z) has noise too
    told = lambda f: (1,) if hasattr(model, "classes") and {"y", "cond"} & {*signature(f).parameters} else ()  # prior or decoder
    pair = lambda n, *seeds: [
        model.decode(model.prior.sample(n, *told(model.prior.sample), generator=generator(seeds[0])), *told(model.decode)),
        model.sample(n, *told(model.sample), generator=generator(seeds[-1]), **middle),
    ]
    with torch.no_grad():
        if torch.equal(*pair(20, 0)):
            return
        a, b = pair(2000, 0, 1)
    error = ((a.var(0) + b.var(0)) / 2000).sqrt().clamp_min(1e-4)
    assert ((a.mean(0) - b.mean(0)).abs() / error).max() < 5


# ---- mistakes


@pytest.mark.parametrize("zdim", [0, -3, 1.5])
@having("encode", "reconstruct", argument="zdim")
def test_latent_size_must_be_positive(name, zdim):
    with pytest.raises(GenbookError) as error:
        create_model(name, (1, 8, 8), zdim=zdim)
    one_line(error, "zdim", str(zdim))


@pytest.mark.parametrize("shape", [(1, 0, 8), (8, 8), (1, 8, 8, 8), (0, 8, 8)])
@pytest.mark.parametrize("name", FAMILIES.values())
def test_image_shape_must_be_one(name, shape):
    with pytest.raises(GenbookError) as error:
        create_model(name, shape)
    one_line(error, "image_shape")


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 9, 9), (1, 30, 30), (1, 12, 20)])
@having("loss")
def test_other_image_sizes_work_or_are_refused(name, shape):
    "Never a traceback from within a network."
    if model := unless_refused(name, shape):
        assert model.loss(images(shape)).total.isfinite().all()


def test_some_image_sizes_are_refused():
    with pytest.raises(GenbookError, match="30"):
        create_model("ae_conv_s0", (1, 30, 30))


@pytest.mark.parametrize("name", FAMILIES.values())
def test_unknown_argument(name):
    with pytest.raises(GenbookError) as error:
        create_model(name, (1, 8, 8), zdimm=3)
    one_line(error, "zdimm")


def test_unknown_model():
    with pytest.raises(GenbookError) as error:
        create_model("vae_mpl")
    one_line(error, "vae_mpl", "did you mean 'vae_mlp'?")
