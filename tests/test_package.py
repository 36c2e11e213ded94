"The library without the project: what a wheel has, in a folder without a checkout and without what extras install."

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from PIL import Image
from test_rules import importable, requirements

from genbook import from_pretrained

ROOT = Path(__file__).parents[1]
GUARD = """import sys
class Guard:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Guard)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    "A copy of the package alone, in an interpreter that finds nothing but what its core requires."
    where = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "genbook", where / "genbook", ignore=shutil.ignore_patterns("__pycache__"))
    allowed = importable(requirements(ROOT).values()) | {*sys.stdlib_module_names, "genbook", "sitecustomize", "__main__"}
    forbidden = set(packages_distributions()) - allowed  # what is not installed may be looked for, and not be found
    (where / "sitecustomize.py").write_text(GUARD.format(forbidden=sorted(forbidden)))
    return where


def start(package, folder, *args, **how):
    command = [sys.executable, "-c", "from genbook.lab.cli import main; main()", *map(str, args)]
    env = {k: v for k, v in os.environ.items() if k not in ("GENBOOK_RUNS",)} | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def genbook(package, folder, *args):
    "The command: status, output, errors; never a traceback."
    process = start(package, folder, *args)
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in out + err, err
    return process.returncode, out, err


@pytest.fixture
def pictures(tmp_path):
    "200 pictures of several formats and modes in three folders, and three files that are none."
    rng, ends = random.Random(0), ["png", "jpg", "webp", "bmp", "gif", "tif"]
    for i in range(200):
        color = tuple(rng.randrange(256) for _ in range(3))
        mode = ("RGB", "L", "RGB", "1")[i % 4]
        place = tmp_path / "pics" / "abc"[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (rng.randrange(8, 30), rng.randrange(8, 30)), color).convert(mode).save(place / f"{i}.{ends[i % 6]}")
    for name, content in (("a/empty.png", b""), ("b/page.jpg", b"<html>"), ("c/cut.png", (tmp_path / "pics/a/0.png").read_bytes()[:50])):
        (tmp_path / "pics" / name).write_bytes(content)
    return tmp_path


TINY = ("--config", "vae_mlp_digits", "--size", "8", "--device", "cpu", "--skip-damaged")


def test_pictures_become_a_model_without_the_project(package, pictures):
    status, out, err = genbook(package, pictures, "train", "pics", *TINY, "--steps", "40", "--out", "mine")
    assert status == 0 and "damaged" in err and out.strip() == str(pictures / "mine"), err
    result, mine = json.loads((pictures / "mine/result.json").read_text()), pictures / "mine"
    assert json.loads((mine / "status.json").read_text())["state"] == "done" and (mine / "samples.png").is_file()
    assert result["params"]["train_args"]["steps"] == 40 and "bound, k=16" in result["metrics"]["bits_per_dim"]["estimator"]
    assert "license" not in (mine / "README.md").read_text().lower()
    status, out, err = genbook(package, pictures, "sample", "mine", "-n", "4", "--out", "four.png")
    assert status == 0 and Image.open(pictures / "four.png").size == (64, 64), err
    assert genbook(package, pictures, "export", "mine", "packed", "--half", "--license", "mit", "--story", "Mine.")[0] == 0
    assert "license: mit" in (pictures / "packed/README.md").read_text() and "Mine." in (pictures / "packed/README.md").read_text()
    status, _, err = genbook(package, pictures, "train", "pics", *TINY, "--steps", "40", "--out", "mine")
    assert status == 0 and "done already" in err


def test_what_needs_the_project_says_so_in_a_line(package, tmp_path):
    for args in (("run", "vae-mlp-digits"), ("list",), ("report",), ("verify",), ("list", "vae-mlp-digits")):
        status, out, err = genbook(package, tmp_path, *args)
        assert status == 2 and not out and err.count("\n") == 1 and "git clone" in err, (args, err)
    (tmp_path / "mine.ipynb").write_text("{}")
    status, _, err = genbook(package, tmp_path, "run", "mine.ipynb")
    assert status == 2 and "pip install 'genbook[lab]'" in err and err.count("\n") == 1
    status, out, _ = genbook(package, tmp_path, "list", "--models")
    assert status == 0 and "vae_resnet" in out.split()
    status, _, err = genbook(package, tmp_path, "train", "nowhere", "--device", "cpu")
    assert status == 2 and err.count("\n") == 1 and "nowhere" in err
    assert not list(tmp_path.glob("vae_*"))  # nothing is begun


def killed(package, folder, args, after, how):
    "Whether the command ended before a signal, sent `after` seconds from its start."
    process = start(package, folder, *args)
    time.sleep(after)
    if process.poll() is None:
        process.send_signal(how)
    process.communicate(timeout=300)
    return process.returncode == 0


def whole(folder):
    "What stands in the folder of a training can be read, and says what it is."
    if (folder / "status.json").is_file():
        state = json.loads((folder / "status.json").read_text())["state"]
        assert state in ("running", "stopped", "done")
        if state == "done":
            assert (folder / "config.json").is_file() and json.loads((folder / "result.json").read_text())["metrics"]
    if (folder / "checkpoint/main.pt").is_file():
        from genbook.history import load_checkpoint

        return load_checkpoint(folder / "checkpoint/main.pt")["it"]
    return 0


def kills(package, pictures, moments):
    "Kill trainings at these parts of their time, start each again until it ends; none loses a look, each ends as if nothing had been."
    args, signals = ("train", "pics", *TINY, "--steps", "400", "--seed", "1"), [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    begin = time.time()
    assert genbook(package, pictures, *args, "--out", "straight")[0] == 0
    whole_time, reached, far, made = time.time() - begin, 0, 0, 0  # on this machine, at this load
    expected = (pictures / "straight/model.safetensors").read_bytes()
    for i, moment in enumerate(moments):
        out = pictures / f"broken-{made}"
        ended = killed(package, pictures, [*args, "--out", out], moment * whole_time, signals[i % 3])
        now = whole(out)
        assert now >= reached
        far, reached = far + (now > reached), now
        if ended:
            assert (out / "model.safetensors").read_bytes() == expected
            made, reached = made + 1, 0
    assert genbook(package, pictures, *args, "--out", out)[0] == 0
    assert (out / "model.safetensors").read_bytes() == expected and far > 0


def test_a_training_that_is_killed_goes_on(package, pictures):
    args = ("train", "pics", *TINY, "--steps", "400", "--seed", "1", "--out", "broken")
    for how, state in ((signal.SIGKILL, "running"), (signal.SIGTERM, "stopped")):
        process = start(package, pictures, *args)
        end, before = time.time() + 600, whole(pictures / "broken")
        while whole(pictures / "broken") <= before:
            assert process.poll() is None and time.time() < end
            time.sleep(0.05)
        process.send_signal(how)
        _, err = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130) and "Traceback" not in err
        assert json.loads((pictures / "broken/status.json").read_text())["state"] == state
    status, _, said = genbook(package, pictures, "sample", "broken")
    assert status == 2 and re.search(r"not finished: step \d+ of 400", said) and said.count("\n") == 1, said
    assert genbook(package, pictures, *args)[0] == 0
    assert from_pretrained(pictures / "broken").sample(2).shape == (2, 3, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("room", [300, 2_000, 20_000, 100_000])
def test_a_training_without_room_says_which_file(package, pictures, room):
    "No file may grow beyond `room` bytes: parameters, rows, TensorBoard's events, pictures and the checkpoint each meet it."
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    args = ("train", "pics", *TINY, "--steps", "40", "--out", "full")
    process = start(package, pictures, *args, preexec_fn=full)
    _, err = process.communicate(timeout=600)
    last = err.replace("\r", "\n").strip().splitlines()[-1]
    assert process.returncode in (1, 2) and re.search(r"genbook: .*full/\S+.*: File too large", last), err
    assert "Traceback" not in err
    assert genbook(package, pictures, *args)[0] == 0  # with room again


@pytest.mark.slow
def test_a_training_goes_on_after_fifty_kills(package, pictures):
    rng = random.Random(0)
    kills(package, pictures, [rng.uniform(0.05, 1) for _ in range(50)])
