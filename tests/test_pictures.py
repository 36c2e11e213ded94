"Pictures and folders as people have them: whatever comes is read rightly, or named in one line."

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genbook import data, datasets, pictures
from genbook.core import GenbookError
from genbook.data import Batches, Images, as_images
from genbook.datasets import load, outline
from genbook.pictures import find_pictures, read_image, stratified

ROOT = Path(__file__).parents[1]
RAMP = np.linspace(0, 1, 64)[None].repeat(64, 0)


def one_line(f, *parts):
    "`f` raises `GenbookError` with one line that contains all `parts`."
    with pytest.raises(GenbookError) as error:
        f()
    message = str(error.value)
    assert "\n" not in message and message.isprintable() and all(str(part) in message for part in parts), message


def fill(folder, n, size=16, seed=0, end=".png"):
    "n different pictures."
    rng = np.random.default_rng([seed, *map(ord, str(folder))])
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i:03}{end}")
    return folder


@pytest.fixture
def some(tmp_path):
    "A folder with 13 pictures."
    return fill(tmp_path / "some", 13)


def sizes(ds):
    return [len(split) for split in ds.splits.values()]


# ---- one picture


def test_sixteen_bits_and_real_numbers_are_the_same_picture(tmp_path):
    Image.fromarray((RAMP * 255).round().astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(tmp_path / "16.tif")
    Image.fromarray((RAMP * 65535).round().astype(np.int32)).save(tmp_path / "32.tif")
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "real.tif")
    (tmp_path / "deep.pgm").write_bytes(b"P5 64 64 65535\n" + (RAMP * 65535).round().astype(">u2").tobytes())
    wanted = read_image(tmp_path / "8.png", 32).int()
    assert wanted.min() < 4 and wanted.max() > 251
    for name in ("16.png", "16.tif", "32.tif", "real.tif", "deep.pgm"):
        assert (read_image(tmp_path / name, 32).int() - wanted).abs().max() <= 1, name


@pytest.mark.parametrize(
    "pixels, words",
    [
        ((RAMP * 2 - 1).astype(np.float32), "values from -1 to 1; allowed: 0 to 1"),
        ((RAMP * 255).astype(np.float32), "values from 0 to 255; allowed: 0 to 1"),
        ((RAMP * np.nan).astype(np.float32), "values from nan to nan"),
        ((RAMP * 255).astype(np.uint16), "no value is above 255 of 65,535"),
        ((RAMP * 4095).astype(np.uint16), "no value is above 4,095"),
        ((RAMP * 1e6).astype(np.int32), "allowed: 0 to 65,535"),
        ((RAMP * -9).astype(np.int32), "values from -9 to 0"),
    ],
)
def test_what_would_be_black_or_white_is_refused(pixels, words, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "deep.tif")
    one_line(lambda: read_image(tmp_path / "deep.tif", 16), "deep.tif", words)


def test_transparent_pictures_are_on_white(tmp_path):
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., 0] = 255  # red everywhere, but only the middle is to be seen
    rgba[16:48, 16:48, 3] = 255
    image = Image.fromarray(rgba, "RGBA")
    image.save(tmp_path / "rgba.png")
    image.convert("LA").save(tmp_path / "la.png")
    palette = image.convert("RGB").quantize(4)
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((32, 32)))
    seen = read_image(tmp_path / "rgba.png", 64)
    assert seen[:, 0, 0].tolist() == [255, 255, 255] and seen[:, 32, 32].tolist() == [255, 0, 0]
    assert seen.float().mean((1, 2)).tolist() == [255, 191.25, 191.25]
    assert read_image(tmp_path / "la.png", 64)[:, 0, 0].tolist() == [255] * 3
    assert read_image(tmp_path / "palette.png", 64)[:, 32, 32].tolist() == [255] * 3
    half = np.full((8, 8, 4), (0, 0, 0, 128), np.uint8)
    Image.fromarray(half, "RGBA").save(tmp_path / "half.png")
    assert read_image(tmp_path / "half.png", 8).unique().tolist() == [127]


def test_other_kinds_of_pictures(tmp_path):
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    red.save(tmp_path / "film.gif", save_all=True, append_images=[blue, blue])
    red.convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    Image.new("1", (9, 9), 1).save(tmp_path / "fax.tif")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    Image.new("RGB", (1, 3000), "red").save(tmp_path / "line.png")
    for name in ("film.gif", "print.jpg", "dot.png", "line.png"):
        got = read_image(tmp_path / name, 8).float().mean((1, 2))
        assert (got - torch.tensor([255.0, 0, 0])).abs().max() < 8, (name, got)
    assert read_image(tmp_path / "fax.tif", 8).unique().tolist() == [255]
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    one_line(lambda: read_image(tmp_path / "program.png", 8), "program.png", "no image")  # and no interpreter is started


def test_a_bomb_is_named(tmp_path, monkeypatch):
    Image.new("1", (2000, 2000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    one_line(lambda: read_image(tmp_path / "bomb.png", 8), "bomb.png", "DecompressionBombError")


# ---- a folder


def test_damaged_pictures_are_all_named_at_once_and_can_be_left_out(some):
    (some / "empty.png").write_bytes(b"")
    (some / "page.png").write_text("<html>not found</html>")
    (some / "half.png").write_bytes((some / "000.png").read_bytes()[:200])
    (some / "gone.png").symlink_to(some / "nowhere.png")
    names = ["empty.png", "gone.png", "half.png", "page.png"]
    for look in (load, outline):
        one_line(lambda look=look: look(f"folder:{some}"), "4 of 17 pictures are damaged", *names, "skip_damaged=True")
    one_line(lambda: load(f"folder:{some}", stream=True), "3 of 17 pictures are damaged", "gone.png")  # by their beginnings
    for ds in (
        load(f"folder:{some}", skip_damaged=True),
        load(f"folder-skip-damaged:{some}"),
        load(f"folder:{some}", skip_damaged=True, stream=True),
    ):
        assert sizes(ds) == [10, 1, 2] and "left out: 4 damaged" in repr(ds) and ds.dropped == 0
    assert outline(f"folder-skip-damaged:{some}").sizes == (10, 1, 2)
    one_line(lambda: load("digits", skip_damaged=True), "skip_damaged", "folder:PATH")


def test_links_are_followed_once_and_loops_end(some, tmp_path):
    fill(tmp_path / "elsewhere" / "a", 12)
    (some / "real").mkdir()
    for path in some.glob("*.png"):
        path.rename(some / "real" / path.name)
    (some / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (some / "real" / "loop").symlink_to(some)
    (some / "again").symlink_to(some / "real")
    ds = load(f"folder:{some}", size=8)
    assert ds.classes == ("a", "real") and sum(sizes(ds)) == 25 and ds.dropped == 0
    assert "left out: 2 linked folder met before" in repr(ds)


def test_any_ending_that_pillow_reads_and_what_is_left_out_is_counted(some):
    image = Image.open(some / "000.png")
    for i, (end, kind) in enumerate(
        {".JPE": "JPEG", ".jfif": "JPEG", ".PNG": "PNG", "": "PNG", ".png_orig": "PNG", ".tga": "TGA", ".jp2": "JPEG2000"}.items()
    ):
        image.rotate(10 * i + 5).save(some / f"odd{i}{end}", format=kind)
    (some / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (some / "notes.txt").write_text("x")
    (some / "list.txt").write_text("x")
    (some / ".hidden.png").write_bytes(b"")
    (some / "album.jpg").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(some / "pipe.png")  # opening it would wait for ever
    ds = load(f"folder:{some}", size=8)
    assert sum(sizes(ds)) == 20 and "left out: 2 .txt, " in repr(ds) and "1 .heic" in repr(ds)


def test_names_that_are_no_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    path = os.fsdecode(folder)
    for i in range(6):
        Image.new("L", (9, 9), 40 * i).save(f"{path}/p\n{i}.png")
    ds = load(f"folder:{tmp_path}", size=8)
    assert len(ds.classes) == 1 and ds.classes[0].isprintable() and sum(sizes(ds)) == 6
    with open(f"{path}/p\n0.png", "wb"):
        pass
    one_line(lambda: load(f"folder:{tmp_path}"), "an empty file")
    one_line(lambda: load(f"folder:{path}/nowhere"), "not there")


def test_a_folder_that_may_not_be_read_is_named(some, monkeypatch):
    fill(some / "secret", 2)
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    one_line(lambda: load(f"folder:{some}"), "secret cannot be read (Permission denied)")


@pytest.mark.parametrize("places", ["{part}/{label}", "{label}/{part}", "images/{part}/{label}"])
@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "testing"), ("train2017", "val2017", "test_set")])
def test_splits_of_a_folder_stay_what_they_are(places, names, tmp_path):
    for k, (part, n) in enumerate(zip(names, (20, 4, 6), strict=True)):
        for label in ("cat", "dog"):
            fill(tmp_path / places.format(part=part, label=label), n, seed=k)
    ds = load(f"folder:{tmp_path}", size=8)
    assert ds.classes == ("cat", "dog") and sizes(ds) == [40, 8, 12]
    one_line(lambda: load(f"folder:{tmp_path}", n_valid=3), "n_valid: 3", "8 validation images")


def test_what_a_split_folder_lacks_is_drawn_from_its_training_images(tmp_path):
    for label in ("cat", "dog"):
        fill(tmp_path / "train" / label, 24)
        fill(tmp_path / "val" / label, 3, seed=1)
    copy = tmp_path / "val/cat/000.png"
    (tmp_path / "train/dog/copy.png").write_bytes(copy.read_bytes())
    ds = load(f"folder:{tmp_path}", size=8)
    assert sizes(ds) == [39, 6, 9] and ds.dropped == 1
    kept = read_image(copy, 8)
    assert (ds.valid.x == kept).flatten(1).all(1).any() and not (ds.train.x == kept).flatten(1).all(1).any()
    fill(tmp_path / "plane", 3, seed=2)
    one_line(lambda: load(f"folder:{tmp_path}"), "folders train, val beside plane", "splits or classes?")


def test_a_class_named_train_is_a_class(tmp_path):
    for name in ("train", "plane"):
        fill(tmp_path / name, 8)
    assert load(f"folder:{tmp_path}", size=8).classes == ("plane", "train")


@pytest.mark.parametrize(("n", "wanted"), [(3, [1, 1, 1]), (5, [3, 1, 1]), (12, [9, 1, 2]), (30, [23, 2, 5])])
def test_no_split_is_empty(n, wanted, tmp_path):
    assert sizes(load(f"folder:{fill(tmp_path / 'few', n)}", size=8)) == wanted


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_pictures_are_refused_before_anything_is_done(n, tmp_path):
    for look in (load, outline):
        one_line(lambda look=look: look(f"folder:{fill(tmp_path / 'few', n)}"), f"has {n} different picture", "at least 3")
    fill(tmp_path / "split" / "train" / "a", 1)
    fill(tmp_path / "split" / "val" / "a", 3, seed=1)
    one_line(lambda: load(f"folder:{tmp_path / 'split'}"), "1 different picture to train on", "at least 2")


def test_splits_are_stratified():
    y = torch.cat([torch.full((n,), i) for i, n in enumerate((600, 120, 60, 12, 2, 1))])
    y = y[torch.randperm(len(y))]
    parts = stratified(y, torch.zeros(len(y), dtype=torch.int64), 60, 120, seed=3)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(y)))
    counts = [y[part].bincount(minlength=6) for part in parts]
    assert (counts[0] >= 1).all()
    for count, n in zip(counts[1:], (60, 120), strict=True):
        assert (count - n * y.bincount() / len(y)).abs().max() < 2, count
    other = stratified(y, torch.zeros(len(y), dtype=torch.int64), 60, 120, seed=4)
    assert not torch.equal(parts[2], other[2])
    lonely = stratified(torch.arange(12), torch.zeros(12, dtype=torch.int64), 1, 2)  # a class each: some have to go
    assert [len(p) for p in lonely] == [9, 1, 2]


def test_many_classes_take_no_time(tmp_path, monkeypatch):
    "60,000 pictures of 9,131 classes: a table of the classes, not a search for each."
    n = 60_000
    labels = [f"person{i % 9131:05}" for i in range(n)]
    found = pictures.Pictures([tmp_path] * n, labels, torch.zeros(n, dtype=torch.int64), Counter())
    monkeypatch.setattr(datasets, "read_folder", lambda *how: (found, torch.zeros(n, 1, 1, 1, dtype=torch.uint8), 0))
    began = time.process_time()
    source = datasets._folder(tmp_path, "folder:many", 8, None, False, True)
    train, valid, test = source.split(None, 0)
    assert time.process_time() - began < 3  # 13 s with a search
    assert len(source.classes) == 9131 and len(source.y[train].unique()) == 9131 and len(test) == 10_000


# ---- arrays


def test_arrays_of_every_kind():
    u = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    wanted = as_images(u).x
    for x in (u.astype(np.uint16), u.astype(">i4"), torch.from_numpy(u.astype(np.int32)), (u / 255).astype(">f4"), u[::-1][::-1]):
        assert torch.equal(as_images(x).x, wanted)
    assert as_images(u[..., 0] > 99).x.unique().tolist() == [0, 255]
    one_line(lambda: as_images(u.astype(np.int64) + 1), "values from 1 to 256; allowed: 0 to 255")
    one_line(lambda: as_images(u.astype(str)), "x: <U", "no kind of number")
    one_line(lambda: as_images(u.astype(complex)), "x: complex128")
    one_line(lambda: as_images(np.zeros((6, 8, 8, 4), np.uint8)), "(6, 8, 8, 4)", "1 or 3 channels")
    one_line(lambda: as_images([]), "x: 0 images")
    one_line(lambda: as_images([np.zeros((8, 8)), np.zeros((9, 9))]), "2 images of 2 shapes")
    one_line(lambda: as_images(np.zeros((0, 8, 8))), "x: shape (0, 1, 8, 8)")
    with pytest.warns(UserWarning, match="no value is above 16 of 255"):
        as_images(u % 17)


@pytest.mark.parametrize("y", [[0, 1, -1], [0.5, 1, 2], [float("nan"), 1, 2], np.eye(3), ["cat", "dog", "cat"]])
def test_labels_that_are_none(y):
    one_line(lambda: as_images(np.zeros((3, 8, 8)), y), "y: ", "whole number")


def test_images_and_batches_of_something_else():
    for y, kind in ((torch.eye(3), "(3, 3) Tensor"), ([0, 1, 2], "() list"), (np.arange(3), "(3,) ndarray")):
        one_line(lambda y=y: Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), y), f"y: {kind}")
    one_line(lambda: Batches(torch.rand(9, 1, 8, 8), 3), "images: Tensor is no split", "as_images(x, y)")


# ---- streaming


def test_streams_need_no_shared_memory(some, monkeypatch):
    "What crosses from a worker is no tensor, for which torch would take shared memory."
    ds = load(f"folder:{some}", size=16, stream=True)
    assert isinstance(data._collate([ds.train[0], ds.train[1]]), np.ndarray)
    monkeypatch.setattr(torch.multiprocessing.reductions, "reduce_storage", None)  # a tensor that crosses would need it
    monkeypatch.setattr(torch.multiprocessing.reductions, "reduce_tensor", None)
    batches = Batches(ds.train, 5, workers=1)
    x, y = batches.fetch(next(iter(batches)))
    assert x.shape == (5, 3, 16, 16) and y.shape == (5,)


def test_streams_do_without_workers_where_the_system_has_none(some, monkeypatch):
    from torch.utils.data import dataloader

    def none(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(dataloader, "_MultiProcessingDataLoaderIter", none)
    batches = Batches(load(f"folder:{some}", size=8, stream=True).train, 5, workers=2)
    with pytest.warns(UserWarning, match="without worker processes"):
        assert batches.fetch(next(iter(batches)))[0].shape == (5, 3, 8, 8)


STREAM = """
import sys
from itertools import islice
from genbook.data import Batches
from genbook.datasets import load
batches = Batches(load("folder:" + sys.argv[1], size=64, stream=True).train, 10, workers=2)
print(sum(batches.fetch(key)[0].shape[0] for key in islice(batches, 8)))
"""


def test_streams_from_a_tiny_shared_memory(some):
    "64 kB, less than a batch: with tensors this waits for ever, or dies."
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if (
        sys.platform != "linux"
        or not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("mounts are not allowed here")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", STREAM, str(some)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout == "80\n", done.stderr[-2000:]


def test_reading_is_the_same_in_any_number_of_threads(some):
    files = sorted(some.glob("*.png"))
    wanted = torch.stack([read_image(p, 8) for p in files])
    assert torch.equal(pictures._read_images(files, 8), wanted) and threading.active_count() < 20
    assert find_pictures(some).files == files
