"Conditional GANs: labels reach both players, the projection critic's formula, feature matching's gradient, labels of a batch, mistakes."

import pytest
import torch
import torch.nn.functional as F
from test_matrix_gan import turns

from genbook.core import GenbookError
from genbook.data import Batches, Images
from genbook.models.cgan import CGAN, CONFIGS, ClassNorm, JoinedGenerator, NormedGenerator, feature_matching, precision_recall_by_class
from genbook.steps import Step
from genbook.train import fit

configs = pytest.mark.parametrize("config", CONFIGS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(config, shape=(1, 8, 8), **change):
    "Narrow, with weights away from the start: class norms begin without a difference between classes."
    torch.manual_seed(0)
    model = CGAN(shape, **(CONFIGS[config] | dict(width=8) | change))
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, ClassNorm):
                m.scale.normal_(1, 0.3), m.shift.normal_(0, 0.3)
    return model


def batch(n=20, shape=(1, 8, 8), classes=10):
    return torch.rand(n, *shape, generator=generator(5)), torch.arange(n) % classes


# ---- labels


@configs
def test_labels_reach_both_players(config):
    "Another label changes the score and the image; and each class has weights of its own, which only its images move."
    model, (x, y) = build(config).eval(), batch()
    assert ((model.score(x, y) - model.score(x, y.roll(1))).abs() > 1e-6).all()
    z = model.noise(20, generator())
    assert ((model.decode(z, y) - model.decode(z, y.roll(1))).flatten(1).abs().amax(1) > 1e-6).all()


@configs
def test_a_class_moves_its_own_weights_only(config):
    "In the projection's vectors and in class norms the rows of absent classes have no gradient."
    model, (x, _) = build(config), batch()
    y = torch.tensor([2, 7] * 10)
    model.critic_loss(x, y).total.mean().backward()
    model.generator_loss(x, y).total.mean().backward()
    rows = []
    for m in model.modules():
        if isinstance(m, ClassNorm):
            rows += [m.scale.grad, m.shift.grad]
    if hasattr(model.critic, "embed"):
        layer = model.critic.embed
        if "spectral" not in CONFIGS[config]:  # there the norm of the whole matrix is in every row
            rows.append(layer.weight.grad.T)
    for g in rows:
        assert g[[2, 7]].any() and not g[[0, 1, 3, 4, 5, 6, 8, 9]].any()
    assert rows or CONFIGS[config]["conditioning"] != "projection" or "spectral" in CONFIGS[config]


@configs
def test_a_sample_does_not_depend_on_its_neighbours(config):
    "In evaluation: one class alone, or among others, is the same image."
    model = build(config).eval()
    z, y = model.noise(6, generator()), torch.tensor([3, 1, 4, 1, 5, 9])
    together = model.decode(z, y)
    for i in range(6):
        torch.testing.assert_close(model.decode(z[i : i + 1], y[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-5)


@configs
def test_ways_to_give_a_label(config):
    "One for all, one each, or weights of the classes, of which one-hot rows are the labels."
    model = build(config).eval()
    z, y = model.noise(4, generator()), torch.tensor([3, 1, 3, 3])
    assert torch.equal(model.decode(z, y), model.decode(z, F.one_hot(y, 10).float()))
    assert torch.equal(model.decode(z, 3)[2], model.decode(z, y)[2])
    for kind in (torch.int32, torch.uint8):
        assert torch.equal(model.decode(z, y.to(kind)), model.decode(z, y))
    between = model.decode(z, torch.full((4, 10), 0.1))
    assert between.isfinite().all() and not torch.equal(between, model.decode(z, y))


@configs
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_shapes_of_other_images(config, shape):
    "Samples, and a loss for each image, at other sizes and in colour, with three classes."
    model, x, y = build(config, shape, classes=3), torch.rand(4, *shape, generator=generator()), torch.tensor([0, 1, 2, 2])
    assert model.critic_loss(x, y).total.shape == model.generator_loss(x, y).total.shape == (4,)
    assert model.eval().sample(4, y).shape == (4, *shape)


def test_labels_are_drawn_uniformly_and_from_the_generator():
    model = build("digits", classes=4)
    before = torch.get_rng_state()
    a, b, c = (model.labels(4000, None, generator(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(before, torch.get_rng_state())
    counts = torch.bincount(a, minlength=4)
    assert len(counts) == 4 and ((counts - 1000).abs() < 4 * (1000 * 0.75) ** 0.5).all()


# ---- the projection critic


@pytest.mark.parametrize("config", [c for c in CONFIGS if CONFIGS[c]["conditioning"] == "projection"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_projection_against_direct_computation(config, shape):
    "score = u . phi(x) + b + v_y . phi(x), with phi the sum over pixels where it is a map."
    model, (x, y) = build(config, shape).double().eval(), batch(shape=shape)
    x = x.double()
    phi = model.critic.features(2 * x - 1)
    phi = phi.sum((2, 3)) if phi.dim() == 4 else phi
    u, b, v = model.critic.head.weight[0], model.critic.head.bias[0], model.critic.embed.weight.T
    assert v.shape == (10, phi.shape[1])
    expected = torch.stack([u @ p + b + v[c] @ p for p, c in zip(phi, y, strict=True)])
    torch.testing.assert_close(model.score(x, y), expected)
    if config == "pd":  # spectral norm holds the vectors too, after enough power iterations
        for _ in range(100):
            model.train().score(x, y)
        assert abs(torch.linalg.matrix_norm(model.critic.embed.weight.detach(), 2) - 1) < 1e-3


def test_generators_of_the_configurations():
    "Labels go into batch norms where the critic projects and there are any, otherwise beside the noise."
    kinds = {c: type(build(c).generator) for c in CONFIGS}
    assert {c for c, kind in kinds.items() if kind is NormedGenerator} == {"projection", "pd"}
    assert all(kind is JoinedGenerator for c, kind in kinds.items() if c not in ("projection", "pd"))
    norms = [m for m in build("pd", (3, 32, 32)).generator.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 7 and all(isinstance(m, ClassNorm) for m in norms)  # two in each of three blocks, one at the end


def test_first_weights():
    "`init` is for all layers with weights; class norms begin as plain batch norm."
    model = CGAN((1, 32, 32), **CONFIGS["projection"], init=0.02)
    for m in model.modules():
        if isinstance(m, ClassNorm):
            assert (m.scale == 1).all() and not m.shift.any()
        elif isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            assert 0.015 < m.weight.std() < 0.025


# ---- feature matching


def gradients(loss, module):
    return [torch.zeros_like(p) if g is None else g for p, g in _pairs(loss, module)]


def _pairs(loss, module):
    params = list(module.parameters())
    return zip(params, torch.autograd.grad(loss, params, allow_unused=True), strict=True)


@pytest.mark.parametrize("squared", [False, True])
@configs
def test_feature_matching_is_added_to_the_generators_gradient(config, squared):
    "With weight 7: the plain gradient plus 7 times that of the distance of mean features, computed here from the critic's parts."
    (x, y), models = batch(), [build(config, matching=w, squared=squared).double().eval() for w in (0.0, 7.0)]
    x, found = x.double(), []
    for model in models:
        torch.manual_seed(3)
        terms = model.generator_loss(x, y)
        found.append(gradients(terms.total.mean(), model.generator))
    torch.manual_seed(3)
    model = models[1]
    z = model.noise(len(x))
    features = lambda images: model.critic.look(2 * images - 1, model.weights(20, y)).flatten(1)
    gap = features(model.decode(z, y)).mean(0) - features(x).mean(0)
    distance = gap.square().sum() if squared else gap.square().sum().sqrt()
    torch.testing.assert_close(terms.matching, distance.detach())
    for plain, with_it, g in zip(*found, gradients(distance, model.generator), strict=True):
        torch.testing.assert_close(with_it, plain + 7 * g, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_feature_matching_is_the_generators_alone(weight):
    "A generator's turn leaves no gradient in the critic, and the critic's loss has no such term."
    (x, y), step = batch(), Step(build("s1", matching=weight), betas=(0.5, 0.999), device="cpu")
    gradients, _, _ = turns(step, x, y)["generator"]
    assert all(g is None for g in gradients["critic"])
    assert all(g is not None for g in gradients["generator"])
    totals = []
    for w in (0.0, 10.0):
        model = build("s1", matching=w)
        torch.manual_seed(0)
        totals.append(model.critic_loss(x, y).total)
    assert torch.equal(*totals)


def test_feature_matching_of_equal_batches():
    "Zero, with a gradient that is finite."
    h = torch.rand(5, 3, 2, 2).requires_grad_()
    for squared in (False, True):
        value = feature_matching(h.detach(), h, squared)
        (g,) = torch.autograd.grad(value, h)
        assert value == 0 and not g.any()
    assert feature_matching(torch.zeros(4, 2), torch.tensor([[3.0, 4.0]])) == 5
    assert feature_matching(torch.zeros(4, 2), torch.tensor([[3.0, 4.0]]), True) == 25


# ---- steps


def marked(n=64):
    "Images that carry their label in all pixels."
    y = torch.arange(n) % 10
    return Images((y[:, None, None, None] * 25).expand(n, 1, 8, 8).byte().contiguous(), y)


@configs
def test_k_steps_with_the_labels_of_the_same_batches(config):
    "Each update sees images with their own labels, and generated ones with the same labels in the same order."
    step, seen = Step(build(config), betas=(0.5, 0.999), parts={"critic": {"times": 3}}, device="cpu"), []
    fake, look = step.model.fake, step.model.look

    def spy_fake(n, y):
        seen.append(("fake", y))
        return fake(n, y)

    def spy_look(x, y):
        if torch.equal((x * 255 / 25).round()[:, 0, 0, 0].long(), y) and x.flatten(1).std(1).max() == 0:
            seen.append(("real", y))
        return look(x, y)

    step.model.fake, step.model.look = spy_fake, spy_look
    fit(step, Batches(marked(), 8, k=3), 2, progress=False)
    turns = [y for kind, y in seen if kind == "fake"]
    assert len(turns) == 8  # three of the critic and one of the generator, twice
    reals = [y for kind, y in seen if kind == "real"]
    for i in range(2):
        critic, last = turns[4 * i : 4 * i + 3], turns[4 * i + 3]
        assert torch.equal(last, critic[2]) and not torch.equal(critic[0], critic[1])
        assert all(any(torch.equal(y, r) for r in reals) for y in critic)


# ---- mistakes


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (10, ["labels from 10 to 10", "0 to 9"]),
        (-1, ["-1", "0 to 9"]),
        (torch.tensor([0, 3, 12, 1]), ["labels from 0 to 12", "0 to 9"]),
        (torch.zeros(3).long(), ["(3,)", "4 labels"]),
        (torch.zeros(4, 1).long(), ["(4, 1)", "4 labels"]),
        (torch.zeros(4), ["weights", "(4, 10)"]),
        (torch.ones(4).bool(), ["bool", "4 labels"]),
        ("cat", ["str", "label"]),
    ],
)
@pytest.mark.parametrize("method", ["sample", "decode"])
def test_bad_labels(method, y, words):
    model = build("digits").eval()
    with pytest.raises(GenbookError) as error:
        model.sample(4, y) if method == "sample" else model.decode(model.noise(4), y)
    text = str(error.value)
    assert text.startswith("y: ") and "\n" not in text and all(w in text for w in words), text


def test_training_needs_labels_of_the_models_classes():
    (x, y), model = batch(), build("digits", classes=5)
    for bad in (None, y):
        for loss in (model.critic_loss, model.generator_loss):
            with pytest.raises(GenbookError, match="y: "):
                loss(x, bad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(classes=1), ["classes: 1", "at least 2"]),
        (dict(classes=2.5), ["classes: 2.5"]),
        (dict(conditioning="projektion"), ["conditioning", "did you mean 'projection'?"]),
        (dict(conditioning="concat", net="conv_s1"), ["'concat'", "planes, projection"]),
        (dict(matching=-1.0), ["matching: -1.0"]),
        (dict(matching=float("nan")), ["matching: nan"]),
        (dict(net="conv_s2"), ["net", "conv_s1"]),
        (dict(penalty="gp", net="conv_s1"), ["batch norm"]),
    ],
)
def test_mistakes_get_one_line(change, words):
    with pytest.raises(GenbookError) as error:
        CGAN((1, 8, 8), **change)
    text = str(error.value)
    assert "\n" not in text and all(w in text for w in words), text


def test_sizes_that_do_not_fit():
    with pytest.raises(GenbookError, match="not 30x30"):
        CGAN((1, 30, 30))


@pytest.mark.gpu
@configs
def test_steps_run_as_a_graph(config):
    "Labels are not read within a captured step; the captured losses are those of the eager step."
    rows = []
    for capture in (False, True):
        torch.manual_seed(0)
        step = Step(build(config), betas=(0.5, 0.999), device="cuda")
        history = fit(step, Batches(marked(), 16, device="cuda"), 8, log_every=1, capture=capture, progress=False)
        rows.append([r["train/critic"] for r in history.rows])
        assert step.model.sample(3, 4).shape == (3, 1, 8, 8)
    assert all(torch.tensor(r).isfinite().all() for r in rows)


@pytest.mark.parametrize("most", [0, -1.0])
def test_a_truncation_is_positive(most):
    with pytest.raises(GenbookError, match=f"truncation: {most} is not"):
        build("digits").sample(1, truncation=most)


def test_a_class_needs_five_images():
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    with pytest.raises(GenbookError, match="y: 2 samples or real images of class 0; at least 5 of each"):
        precision_recall_by_class(x[:4], y[:4], x, y)


@pytest.mark.parametrize("shape", [(64, 3), (64, 3, 2, 2)])
def test_a_class_norm_scales_and_shifts_by_class(shape):
    norm, h, y = ClassNorm(3, 4), 5 + 2 * torch.randn(shape, generator=generator()), torch.arange(64) % 4
    torch.nn.init.normal_(norm.scale), torch.nn.init.normal_(norm.shift)
    norm.labels = F.one_hot(y, 4).float()
    wide = (64, 3, *[1] * (len(shape) - 2))
    plain = F.batch_norm(h, None, None, training=True)
    torch.testing.assert_close(norm(h), norm.scale[y].view(wide) * plain + norm.shift[y].view(wide), atol=1e-5, rtol=0)


def test_truncation_narrows_samples_and_a_far_limit_changes_nothing():
    model = build("digits", width=64).eval()
    narrow, wide = (model.sample(200, 3, truncation=t, generator=generator()).std(0).mean() for t in (0.3, None))
    assert narrow < wide
    far, plain = (model.sample(4, 3, truncation=t, generator=generator()) for t in (9.0, None))
    torch.testing.assert_close(far, plain, atol=1e-3, rtol=0)


def test_precision_within_classes_sees_wrong_labels():
    "Three clouds: half of their points against the other half is nearly all inside; under each other's labels nothing is."
    y = torch.arange(300) % 3
    x = torch.randn(300, 4, generator=generator()) + 20 * F.one_hot(y, 4)
    half = torch.arange(300) < 150
    right, wrong = (precision_recall_by_class(x[half], labels, x[~half], y[~half]) for labels in (y[half], (y[half] + 1) % 3))
    assert right.shape == (3, 2) and right.min() > 0.7 and wrong.max() == 0
