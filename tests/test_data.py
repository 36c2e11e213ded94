"What the notebook of the data cannot check: files that lie, folders that leak, downloads, and the real data where they are."

import http.server
import io
import os
import pickle
import tarfile
import threading
import zipfile
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from genbook import data, datasets, pictures
from genbook.core import GenbookError, project_root
from genbook.data import Batches, Codes, Images, as_images
from genbook.datasets import duplicates, load
from genbook.download import download

REAL = Path(os.environ.get("GENBOOK_DATA", "/nonexistent"))
real = pytest.mark.skipif(not (REAL / "MNIST").is_dir(), reason="GENBOOK_DATA holds no MNIST")


def one_line(f, *parts):
    "`f` raises `GenbookError` with one line that contains all `parts`."
    with pytest.raises(GenbookError) as error:
        f()
    message = str(error.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message
    return message


def md5(content):
    return datasets.hashlib.md5(content).hexdigest()


# ---- files in the published formats, with other pixels and their own checksums


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    "A root with 60 + 20 images in MNIST's format. Image i is filled with i, so that it can be recognised."
    folder, contents = tmp_path / "MNIST/raw", {}
    folder.mkdir(parents=True)
    for names, first, n in ((datasets._IDX[:2], 0, 60), (datasets._IDX[2:], 60, 20)):
        number = np.arange(first, first + n, dtype=np.uint8)
        contents[names[0]] = np.array([2051, n, 28, 28], ">i4").tobytes() + number.repeat(784).tobytes()
        contents[names[1]] = np.array([2049, n], ">i4").tobytes() + (number % 10).tobytes()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    monkeypatch.setitem(datasets.MD5, "MNIST/raw", {name: md5(content) for name, content in contents.items()})
    return tmp_path


def cifar_rows():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 10, 8, np.uint8), rng.integers(0, 256, (8, 3072), np.uint8)) for _ in range(6)]


@pytest.fixture
def cifar_binary(tmp_path, monkeypatch):
    folder = tmp_path / "binary" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    contents = {name: np.hstack([y[:, None], x]).tobytes() for name, (y, x) in zip(datasets._BIN, cifar_rows(), strict=True)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    monkeypatch.setitem(datasets.MD5, folder.name, {name: md5(content) for name, content in contents.items()})
    return folder.parent


@pytest.fixture
def cifar_pickles(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "pickles" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    contents = {name: pickle.dumps({"data": x, "labels": y.tolist()}) for name, (y, x) in zip(names, cifar_rows(), strict=True)}
    meta = pickle.dumps({"label_names": list(datasets.CLASSES["cifar10"])})
    for name, content in [*contents.items(), ("batches.meta", meta)]:
        (folder / name).write_bytes(content)
    sums = [[name, md5(content)] for name, content in contents.items()]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(meta)})
    return folder.parent


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    ours, theirs = datasets._digits(None), load_digits()
    assert torch.equal(ours.x, torch.from_numpy(theirs.images).byte()[:, None]) and torch.equal(ours.y, torch.from_numpy(theirs.target))


def test_idx_files_are_read_in_their_order_and_the_official_test_stays(mnist):
    ds = load("mnist", root=mnist, n_valid=10)
    assert [len(s) for s in ds.splits.values()] == [50, 10, 20]
    assert ds.test.x[:, 0, 0, 0].tolist() == list(range(60, 80))
    both = torch.cat([ds.train.x, ds.valid.x])
    assert both[:, 0, 0, 0].sort().values.tolist() == list(range(60))
    for images in ds.splits.values():
        assert (images.x == images.x[..., :1, :1]).all() and (images.y == images.x[:, 0, 0, 0] % 10).all()
    everything = load("mnist", root=mnist, n_valid=0)
    assert everything.train.x[:, 0, 0, 0].tolist() == list(range(60)) and len(everything.valid) == 0
    one_line(lambda: load("mnist", root=mnist), "n_valid: 5000", "0 to 59")


def test_gzipped_files_do_as_well(mnist):
    plain = load("mnist", root=mnist, n_valid=10)
    for path in (mnist / "MNIST/raw").iterdir():
        path.with_name(path.name + ".gz").write_bytes(datasets.gzip.compress(path.read_bytes()))
        path.unlink()
    assert torch.equal(load("mnist", root=mnist, n_valid=10).train.x, plain.train.x)
    path = mnist / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    one_line(lambda: load("mnist", root=mnist), path, "truncated or damaged", "genbook data mnist")


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:], lambda b: b""])
def test_a_damaged_file_is_named(mnist, cifar_binary, damage):
    path = mnist / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    one_line(lambda: load("mnist", root=mnist), path, "truncated or damaged", f"{path.stat().st_size:,} bytes", "genbook data mnist")
    path = cifar_binary / "cifar-10-batches-bin/data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    one_line(lambda: load("cifar10", root=cifar_binary), path, "truncated or damaged", "genbook data cifar10")


def test_both_versions_of_cifar_are_the_same_data(cifar_binary, cifar_pickles):
    a, b = load("cifar10", root=cifar_binary, n_valid=8), load("cifar10", root=cifar_pickles, n_valid=8)
    for split in a.splits:
        assert torch.equal(a.splits[split].x, b.splits[split].x) and torch.equal(a.splits[split].y, b.splits[split].y)
    y, x = cifar_rows()[-1]
    assert torch.equal(b.test.x, torch.from_numpy(x).view(8, 3, 32, 32)) and b.test.y.tolist() == y.tolist()
    assert (a.image_shape, a.classes[3]) == ((3, 32, 32), "cat")


def test_a_pickle_is_not_opened_before_its_checksum_was_right(cifar_pickles, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    (cifar_pickles / "cifar-10-batches-py/data_batch_2").write_bytes(pickle.dumps(Evil()))
    one_line(lambda: load("cifar10", root=cifar_pickles), "data_batch_2 is truncated or damaged")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10", "cats64"])
def test_missing_data_says_what_where_and_how(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GENBOOK_DATA", str(tmp_path / "elsewhere"))
    one_line(lambda: load(name), "looked for", tmp_path / "elsewhere", f"genbook data {name}")
    monkeypatch.delenv("GENBOOK_DATA")
    assert datasets.data_root() == project_root() / "data"


def test_what_cannot_be_asked_for(tmp_path):
    one_line(lambda: load("cifar-10"), "did you mean 'cifar10'?", "folder:PATH")
    for size in (7, 65, 16.0, "16", True):
        one_line(lambda size=size: load("digits", size=size), f"size: {size!r}", "8 to 64")
    one_line(lambda: load("digits", size=8, binarize="yes"), "binarize", "static", "dynamic")
    one_line(lambda: load("mnist", root=tmp_path, size=20, pad=True), "genbook data mnist")
    for n_valid in (-1, 1437, 2.0, True):
        one_line(lambda n_valid=n_valid: load("digits", n_valid=n_valid), f"n_valid: {n_valid!r}", "0 to 1,436")
    one_line(lambda: load("folder:nowhere", root=tmp_path), "'folder:nowhere'", tmp_path / "nowhere")
    digits = load("digits")
    for batch_size in (0, -3, 2.0, True):
        one_line(lambda b=batch_size: Batches(digits.train, b), "batch_size")
        one_line(lambda b=batch_size: list(digits.train.batches(b)), "batch_size")
    one_line(lambda: Batches(digits.train, 700, k=2), "2 times 700", "1,257")
    one_line(lambda: Images(torch.zeros(3, 8, 8), torch.zeros(3)), "x: uint8")


def test_padding_and_sizes(mnist):
    padded = load("mnist", root=mnist, n_valid=10, pad=True)
    assert padded.image_shape == (1, 32, 32)
    assert torch.equal(padded.test.x[..., 2:30, 2:30], load("mnist", root=mnist, n_valid=10).test.x)
    assert padded.test.x.sum() == padded.test.x[..., 2:30, 2:30].sum(dtype=torch.int64)
    one_line(lambda: load("mnist", root=mnist, n_valid=10, size=16, pad=True), "pad", "28")
    for size in (8, 13, 16, 28, 32, 64):
        ds = load("digits", size=size)
        assert ds.image_shape == (1, size, size) and ds.levels == (17 if size == 8 else 256)
        assert abs(ds.test.float()[0].mean() - load("digits").test.float()[0].mean()) < 0.03


def tree(root):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size, p.stat().st_mode) for p in [root, *root.rglob("*")]}


def test_reading_writes_nothing(mnist, cifar_pickles, folder):
    roots = [mnist, cifar_pickles, folder]
    folders = [p for r in roots for p in [r, *r.rglob("*")] if p.is_dir()]
    for p in folders:
        p.chmod(0o555)
    before = [tree(r) for r in roots]
    try:
        load("mnist", root=mnist, n_valid=10, binarize="static")
        load("cifar10", root=cifar_pickles, n_valid=8, size=16)
        ds = load(f"folder:{folder}", stream=True)
        next(iter(Batches(ds.train, 4, workers=0)))
        assert [tree(r) for r in roots] == before
    finally:
        for p in folders:
            p.chmod(0o755)


# ---- folders


@pytest.fixture
def folder(tmp_path):
    "60 images in two subfolders, 20 of them once more: ten with the same bytes, ten the same pixels in another format."
    rng, root = np.random.default_rng(1), tmp_path / "pictures"
    for name in ("a", "b", ".cache"):
        (root / name).mkdir(parents=True)
    for i in range(60):
        path = root / "ab"[i % 2] / f"{i:02}.png"
        image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
        image.save(path)
        if i < 10:
            (root / "b" / f"copy{i}.png").write_bytes(path.read_bytes())
        elif i < 20:
            image.save(root / "a" / f"copy{i}.bmp")
    (root / "a" / "notes.txt").write_text("no image")
    (root / ".cache" / "0.png").write_bytes(b"no image either")
    return root


def test_copies_in_a_folder_are_dropped_before_the_split(folder):
    ds = load(f"folder:{folder}", size=8)
    assert (ds.dropped, sum(map(len, ds.splits.values())), ds.classes) == (20, 60, ("a", "b"))
    assert not duplicates(ds) and "20 exact copies dropped" in repr(ds)
    assert [len(s) for s in ds.splits.values()] == [45, 5, 10]  # a sixth and a twelfth
    # had they not been dropped, they would leak
    files = sorted(p for p in folder.glob("[ab]/*") if p.suffix != ".txt")
    x = pictures._read_images(files, 8)
    parts = [Images(x[i], torch.zeros(len(i), dtype=torch.int64)) for i in data.split_indices(80, 6, 13)]
    assert duplicates(data.DataSet("naive", 256, ("a",), (3, 8, 8), *parts)).across["train", "test"] > 0
    assert load(f"folder:{folder}", size=8, seed=1).dropped == 20


def test_labels_are_subfolders_and_the_first_copy_is_kept(folder):
    ds = load(f"folder:{folder}", size=8, n_valid=0)
    kept = torch.cat([ds.train.x, ds.test.x]).flatten(1)
    labels = torch.cat([ds.train.y, ds.test.y])
    for i in range(60):  # 00.png lies in a/ and its copy in b/: a/ comes first. 11.png lies in b/ and its copy in a/.
        u = pictures.read_image(folder / "ab"[i % 2] / f"{i:02}.png", 8).flatten()
        label = labels[(kept == u).all(1)]
        assert label.tolist() == [0 if 10 <= i < 20 else i % 2]


def test_any_image_becomes_a_centred_square(tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (200, 100, 50)  # the centre square
    image = Image.fromarray(wide)
    for name, like in {"rgb.png": image, "alpha.png": image.convert("RGBA"), "palette.gif": image.quantize(2), "photo.webp": image}.items():
        like.save(tmp_path / name, lossless=True)
        u = pictures.read_image(tmp_path / name, 16).float()[..., 1:-1]  # antialiasing takes a little from beyond the edge
        assert (u - torch.tensor([200.0, 100, 50])[:, None, None]).abs().max() == 0
    Image.fromarray(wide[..., 0]).save(tmp_path / "grey.png")
    assert pictures.read_image(tmp_path / "grey.png", 8)[..., 1:-1].unique().tolist() == [200]
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 255  # white above; the camera was held sideways
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(pictures.read_image(tmp_path / "turned.png", 16), torch.from_numpy(upright).permute(2, 0, 1))
    flat = load(f"folder:{tmp_path}", size=8, n_valid=0)
    assert flat.classes == (tmp_path.name,)


def test_broken_and_empty_folders(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    one_line(lambda: load(f"folder:{tmp_path / 'empty'}"), "holds no images", ".png")
    bad = folder / "a" / "00.png"
    bad.write_bytes(bad.read_bytes()[:60])
    one_line(lambda: load(f"folder:{folder}"), bad, "cannot be read as an image")
    one_line(lambda: load(f"folder:{folder}", pad=True, stream=True), "pad")
    one_line(lambda: load(f"folder:{folder}", stream=True, binarize="static"), "dynamic")


@pytest.mark.parametrize("k", [None, 2])
def test_streaming_gives_the_resident_batches(folder, k):
    for p in folder.glob("a/*.bmp"):  # copies in another format are known by their pixels only
        p.unlink()
    ds, st = load(f"folder:{folder}", size=16), load(f"folder:{folder}", size=16, stream=True)
    assert ds.dropped == st.dropped == 10 and torch.equal(ds.test.x, st.test.x) and torch.equal(ds.valid.y, st.valid.y)
    a, b = Batches(ds.train, 10, seed=3, k=k), Batches(st.train, 10, seed=3, k=k, workers=2)
    rng = torch.get_rng_state()
    for ka, kb in islice(zip(a, b, strict=False), 2 * a.steps_per_epoch + 1):  # into the third epoch
        (xa, ya), (xb, yb) = a.fetch(ka), b.fetch(kb)
        assert torch.equal(xa, xb) and torch.equal(ya, yb)
    assert a.state_dict() == b.state_dict() and a.steps_per_epoch == b.steps_per_epoch
    c = Batches(st.train, 10, k=k, workers=0)
    c.load_state_dict(b.state_dict())  # what the workers have read ahead does not count
    for ka, kc in islice(zip(a, c, strict=False), 3):
        assert torch.equal(a.fetch(ka)[0], c.fetch(kc)[0])
    assert torch.equal(rng, torch.get_rng_state())  # an exact resume needs the run's generator unmoved
    assert all(torch.equal(p[0], q[0]) for p, q in zip(ds.train.batches(16), st.train.batches(16), strict=True))
    one_line(lambda: st.train.x, "streamed")


def test_large_folders_are_streamed_by_themselves(folder, monkeypatch):
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 80 * 3 * 16 * 16)
    assert isinstance(load(f"folder:{folder}", size=16).train, Images)
    ds = load(f"folder:{folder}", size=17, binarize="dynamic")
    assert isinstance(ds.train, data.Streamed) and isinstance(ds.test, Images)
    batches = Batches(ds.train, 5, workers=0)
    key = next(iter(batches))
    x, again = batches.fetch(key)[0], batches.fetch(key)[0]
    assert set(x.unique().tolist()) == {0, 1} and not torch.equal(x, again) and ds.levels == 2


def test_a_file_that_breaks_while_training_is_named_in_one_line(folder):
    ds = load(f"folder:{folder}", size=16, stream=True)
    ds.train.files[7].write_bytes(b"gone")
    one_line(lambda: list(islice(Batches(ds.train, 5, workers=1), 20)), ds.train.files[7], "cannot be read")


# ---- batches


@pytest.fixture
def numbered():
    "100 images; image i is filled with i."
    return Images(torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(), torch.arange(100))


def test_the_order_is_of_seed_and_epoch_alone(numbered):
    def order(batch_size, n, **kw):
        batches = Batches(numbered, batch_size, **kw)
        return torch.cat([batches.fetch(key)[1].flatten() for key in islice(batches, n)])

    whole = order(100, 2)
    assert torch.equal(order(20, 10), whole) and torch.equal(order(10, 10, k=2), whole)
    assert torch.equal(whole[:100].sort().values, torch.arange(100)) and not torch.equal(whole[:100], whole[100:])
    assert not torch.equal(order(100, 1, seed=1), whole[:100])
    assert not torch.equal(order(100, 1, seed=1), whole[100:])  # seed 1, epoch 0 is not seed 0, epoch 1
    partial_batches = order(30, 6)
    assert torch.equal(partial_batches[:90], whole[:90]) and torch.equal(partial_batches[90:], whole[100:190])


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 7])
def test_resume_goes_on_where_it_was(numbered, steps, k):
    whole = Batches(numbered, 8, seed=4, k=k)
    keys = list(islice(whole, 40))
    stopped = Batches(numbered, 8, seed=4, k=k)
    for _ in islice(stopped, steps):
        pass
    resumed = Batches(numbered, 8, seed=99, k=k)
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(keys[steps:], resumed, strict=False))
    assert all(torch.equal(a, b) for a, b in zip(keys[steps:], stopped, strict=False))  # a second loop goes on too


def test_codes_go_through_batches_unchanged():
    codes = Codes(torch.randint(0, 9, (30, 4, 3)), torch.arange(30), levels=9)
    batches = Batches(codes, 10, seed=2, device="cpu")
    seen = [batches.fetch(key) for key in islice(batches, 3)]
    assert all(x.dtype == torch.int64 and torch.equal(x, codes.x[y]) for x, y in seen)
    assert sorted(torch.cat([y for _, y in seen]).tolist()) == list(range(30)) and batches.image_shape == (4, 3)
    x, y = Batches(codes, 5, k=2).fetch(torch.arange(10).view(2, 5))
    assert x.shape == (2, 5, 4, 3) and torch.equal(y, torch.arange(10).view(2, 5))
    assert torch.equal(torch.cat([x for x, _ in codes.batches(7)]), codes.x) and codes.levels == 9
    one_line(lambda: Codes(codes.x, levels=8), "x: codes from 0 to 8", "0 to 7")
    one_line(lambda: Codes(codes.x - 1, levels=9), "x: codes from -1 to 7")
    one_line(lambda: Codes(codes.x.float(), levels=9), "x: int64 (n, h, w)")
    one_line(lambda: Codes(codes.x, torch.arange(3), levels=9), "3 labels")


def test_anything_that_holds_images_becomes_images():
    u = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    channels_last = u.permute(0, 2, 3, 1).numpy()
    pairs = [(Image.fromarray(x), i) for i, x in enumerate(channels_last)]
    torchvision_like = SimpleNamespace(data=channels_last, targets=list(range(6)))
    for made in (as_images(u), as_images(u / 255), as_images(channels_last), as_images(torchvision_like), as_images(pairs)):
        assert torch.equal(made.x, u) and made.levels == 256
    assert as_images(torchvision_like).y.tolist() == as_images(pairs).y.tolist() == list(range(6)) and not as_images(u).y.any()
    assert as_images(u[:, 0] % 17, levels=17).x.shape == (6, 1, 8, 8) and as_images([x for x, _ in pairs]).y.tolist() == [0] * 6
    one_line(lambda: as_images(2 * (u / 255) - 1), "x: values from -1 to 1; allowed: 0 to 1")
    one_line(lambda: as_images(u.float()), "x: values from 0 to", "allowed: 0 to 1")
    one_line(lambda: as_images((u / 255) * float("nan")), "x: values from nan to nan")
    one_line(lambda: as_images(u, levels=17), "allowed: 0 to 16")
    one_line(lambda: as_images(u.flatten()), "x: shape (1152,)")


def test_fetch_and_batches(numbered):
    batches = Batches(numbered, 4, k=3, device="cpu")
    x, y = batches.fetch(next(iter(batches)))
    assert x.shape == (3, 4, 1, 8, 8) and y.shape == (3, 4) and (batches.steps_per_epoch, batches.image_shape) == (8, (1, 8, 8))
    assert torch.equal((x * 255).round()[..., 0, 0, 0].long(), y)
    assert [len(y) for _, y in numbered.batches(30)] == [30, 30, 30, 10]
    assert torch.equal(torch.cat([y for _, y in numbered.batches(30)]), numbered.y)


def test_binarisation():
    static, dynamic, other = (load("digits", binarize=b, seed=s) for b, s in (("static", 0), ("dynamic", 0), ("static", 1)))
    grey = load("digits")
    for kind, same in (("static", static), ("dynamic", dynamic)):  # by its name, as experiments ask for it
        named = load(f"digits-{kind}")
        assert all(torch.equal(a.x, b.x) for a, b in zip(named.splits.values(), same.splits.values(), strict=True))
        assert (named.name, named.levels, named.train.dynamic) == (f"digits-{kind}", 2, kind == "dynamic")
    for split in ("valid", "test"):
        assert torch.equal(static.splits[split].x, dynamic.splits[split].x)
        assert static.splits[split].x.max() == 1 and (static.splits[split].x <= grey.splits[split].x).all()
    assert torch.equal(static.train.x, load("digits", binarize="static").train.x)
    assert not torch.equal(static.train.x[:300], other.train.x[:300])
    first = [Batches(dynamic.train, 50).fetch(torch.arange(50))[0] for _ in range(2)]
    torch.manual_seed(5)
    again = [Batches(dynamic.train, 50).fetch(torch.arange(50))[0] for _ in range(2)]
    torch.manual_seed(5)
    same = [Batches(dynamic.train, 50).fetch(torch.arange(50))[0] for _ in range(2)]
    assert not torch.equal(first[0], first[1]) and all(torch.equal(a, b) for a, b in zip(again, same, strict=True))
    draws = torch.stack([dynamic.train.float(slice(0, 200))[0] for _ in range(200)])
    assert set(draws.unique().tolist()) == {0, 1}
    p = grey.train.float(slice(0, 200))[0]
    assert torch.equal(draws.mean(0)[p == 0], p[p == 0]) and torch.equal(draws.mean(0)[p == 1], p[p == 1])
    z = (draws.mean(0) - p).sum() / (p * (1 - p) / 200).sum().sqrt()
    assert abs(z) < 4
    one_line(lambda: duplicates(dynamic), "binarize=None")


def test_duplicates_across_official_splits_are_reported_not_dropped(mnist, monkeypatch):
    path = mnist / "MNIST/raw/t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[16 : 16 + 784] = bytes([7]) * 784  # the first test image is training image 7, and of another label
    path.write_bytes(content)
    monkeypatch.setitem(datasets.MD5, "MNIST/raw", {**datasets.MD5["MNIST/raw"], path.name: md5(bytes(content))})
    ds = load("mnist", root=mnist, n_valid=0)
    report = duplicates(ds)
    assert report.across["train", "test"] == 1 and report.groups == [[("train", 7), ("test", 0)]] and report.mixed == 1
    assert sum(report.within.values()) == 0 and len(ds.test) == 20 and "1 of test also in train" in repr(report)


# ---- downloads, from a server of this test


@pytest.fixture
def served(tmp_path, monkeypatch):
    "A folder and its address."
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


def test_download_mnist_repairs_what_is_damaged(mnist, served, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    folder, url = served
    resources = []
    for path in (mnist / "MNIST/raw").iterdir():
        content = datasets.gzip.compress(path.read_bytes())
        (folder / f"{path.name}.gz").write_bytes(content)
        resources.append((f"{path.name}.gz", md5(content)))
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", [url])
    root = tmp_path / "fresh"
    assert download("mnist", root) == f"mnist: 80 images in {root}, fetched"
    assert torch.equal(load("mnist", root=root, n_valid=10).train.x, load("mnist", root=mnist, n_valid=10).train.x)
    before = tree(root)
    assert download("mnist", root).endswith("already there") and tree(root) == before
    path = root / "MNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:20])
    one_line(lambda: load("mnist", root=root), "genbook data mnist")
    assert download("mnist", root).endswith("fetched")
    load("mnist", root=root, n_valid=10)
    monkeypatch.setattr(MNIST, "mirrors", [url + "nothing/"])
    one_line(lambda: download("mnist", tmp_path / "other"), "could not be fetched", tmp_path / "other")


def test_own_files_under_the_names_of_mnist_stay(mnist, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    own = tmp_path / "own"
    for name in datasets.MD5["MNIST/raw"]:
        (own / "MNIST/raw").mkdir(parents=True, exist_ok=True)
        (own / "MNIST/raw" / name).write_text(f"my {name}")
    before = tree(own)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody answers
    one_line(lambda: download("mnist", own), "'mnist' could not be fetched", own)
    assert {p: v[1:] for p, v in tree(own).items() if p.is_file()} == {p: v[1:] for p, v in before.items() if p.is_file()}
    assert [p.name for p in own.iterdir()] == ["MNIST"]  # nothing half done is left


def test_what_a_download_replaces_is_kept_beside_it(mnist, served, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    folder, url = served
    contents = {path.name: path.read_bytes() for path in (mnist / "MNIST/raw").iterdir()}
    resources = []
    for name, content in contents.items():
        packed = datasets.gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", md5(packed)))
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", [url])
    raw = tmp_path / "own/MNIST/raw"
    raw.mkdir(parents=True)
    first, second, *rest = contents
    (raw / first).write_text("mine")
    (raw / second).write_bytes(contents[second])
    assert download("mnist", tmp_path / "own").endswith("fetched")
    assert {p.name: p.read_bytes() for p in raw.iterdir()} == contents | {f"{first}.old": b"mine"}
    monkeypatch.setitem(datasets.MD5, "MNIST/raw", {name: "0" * 32 for name in contents})  # what comes is not what was asked for
    one_line(lambda: download("mnist", tmp_path / "own"), "could not be fetched", "truncated or damaged")
    assert {p.name: p.read_bytes() for p in raw.iterdir()} == contents | {f"{first}.old": b"mine"}


def test_download_cifar10(cifar_pickles, served, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder, url = served
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as tar:
        tar.add(cifar_pickles / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "url", url + "cifar.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5((folder / "cifar.tar.gz").read_bytes()))
    assert download("cifar10", tmp_path / "fresh").endswith("fetched")
    assert torch.equal(load("cifar10", root=tmp_path / "fresh", n_valid=8).test.x, load("cifar10", root=cifar_pickles, n_valid=8).test.x)
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    one_line(lambda: download("cifar10", tmp_path / "wrong"), "'cifar10' could not be fetched", "corrupted")


def test_download_cats_is_whole_or_not_there(tmp_path, monkeypatch):
    images = {}
    for i in range(12):
        buffer = io.BytesIO()
        Image.fromarray(np.full((64, 64, 3), i % 9, np.uint8)).save(buffer, "png")
        images[f"cat_{i}.png"] = buffer.getvalue()
    with zipfile.ZipFile(tmp_path / "cats.zip", "w") as archive:
        archive.writestr("cat-dataset-c0ffee/README.txt", "cats")
        for name, content in images.items():
            archive.writestr(f"cat-dataset-c0ffee/cats/{name}", content)
    sha256 = datasets.hashlib.sha256(b"".join(images[name] for name in sorted(images))).hexdigest()
    cats = {"url": (tmp_path / "cats.zip").as_uri(), "files": 12, "sha256": sha256}
    for wrong in ({"files": 13}, {"sha256": "0" * 64}, {"url": (tmp_path / "dogs.zip").as_uri()}):
        monkeypatch.setattr("genbook.download.CATS", cats | wrong)
        one_line(lambda: download("cats64", tmp_path / "root"), "could not be fetched", tmp_path / "root")
        assert list((tmp_path / "root").iterdir()) == []  # nothing half done is left
    monkeypatch.setattr("genbook.download.CATS", cats)
    assert download("cats64", tmp_path / "root") == f"cats64: 12 files in {tmp_path / 'root/cats64'}, fetched"
    assert download("cats64", tmp_path / "root").endswith("already there")
    ds = load("cats64", root=tmp_path / "root")
    assert (ds.dropped, sum(map(len, ds.splits.values())), ds.image_shape, ds.classes) == (3, 9, (3, 64, 64), ("cats",))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fetch_runs_inside_a_cuda_graph(numbered):
    grey = Images(torch.full((100, 1, 8, 8), 128, dtype=torch.uint8), torch.arange(100), 2, white=255)
    for images in (numbered, grey):
        batches = Batches(images, 10, device="cuda")
        keys = iter(batches)
        static = next(keys).clone()
        batches.fetch(static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x, y = batches.fetch(static)
        seen = []
        for _ in range(3):
            static.copy_(next(keys))
            graph.replay()
            assert torch.equal(y, static)
            seen.append(x.clone())
        if images.dynamic:
            assert not torch.equal(seen[0], seen[1])  # new draws at each replay
            assert 0.4 < torch.stack(seen).mean() < 0.6
        else:
            assert torch.equal((x * 255).round()[:, 0, 0, 0].long(), static)
    cpu, gpu = Batches(numbered, 10), Batches(numbered, 10, device="cuda")
    for a, b in islice(zip(cpu, gpu, strict=False), 25):
        assert torch.equal(a, b.cpu()) and torch.equal(cpu.fetch(a)[0], gpu.fetch(b)[0].cpu())


# ---- the real data, where they are


@real
@pytest.mark.parametrize(
    "name, first, mean, std",
    [
        ("mnist", [5, 0, 4, 1, 9], 0.1307, 0.3081),
        ("fashion", [9, 0, 0, 3, 0], 0.2860, 0.3530),
        ("cifar10", [6, 9, 9, 4, 1], 0.4734, 0.2516),
    ],
)
def test_the_real_data_are_the_published_ones(name, first, mean, std):
    ds = load(name, root=REAL, n_valid=0)
    n = 50_000 if name == "cifar10" else 60_000
    assert (len(ds.train), len(ds.test), ds.levels) == (n, 10_000, 256)
    assert ds.train.y[:5].tolist() == first
    x = ds.train.x.flatten().float() / 255
    assert abs(x.mean() - mean) < 1e-4 and abs(x.std() - std) < 1e-4
    if name != "mnist":
        assert ds.train.y.bincount().tolist() == [n // 10] * 10 and ds.test.y.bincount().tolist() == [1000] * 10
    assert not duplicates(ds)


@pytest.mark.slow
@pytest.mark.skipif(len(list((REAL / "cats64").rglob("*.png"))) != 29_843, reason="GENBOOK_DATA holds no full cats64")
def test_the_cats_and_their_copies():
    ds = load("cats64", root=REAL)
    assert (ds.dropped, sum(map(len, ds.splits.values()))) == (6_470, 23_373)
