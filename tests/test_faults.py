"""Faults that people meet with runs: what is there is lost, conditions are checked after the cost, a result is not what it says.

What needs a kernel uses the notebook without torch of `test_runs.py`."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from contextlib import contextmanager

import nbformat
import numpy as np
import psutil
import pytest
from PIL import Image
from test_runs import PATIENCE, QUICK, ROOT, execute, genbook, kill_tree, project, read, said, start, wait_for, write_notebook

from genbook.core import GenbookError, write_atomic
from genbook.history import History
from genbook.lab import grid, jobs, launch, results, runs
from genbook.lab.experiments import get_experiment
from genbook.lab.jobs import expand

__all__ = ["project", "said"]  # fixtures


def pictures(folder, n, size=8):
    "n different pictures."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng([i, *folder.name.encode()]).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder


def of(name, **params):
    "The jobs of an experiment of this repository."
    return expand(get_experiment(name, ROOT), params, root=ROOT)


# ---- what exists is destroyed before its replacement does


def written(folder, text):
    "A finished run, its files all with the same text."
    for name in launch.WRITTEN:
        place = folder / name if "." in name else folder / name / "main.pt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"metrics": {}, "state": "done", "text": text}))
    return folder


def texts(folder):
    return {name: read(folder / name if "." in name else folder / name / "main.pt")["text"] for name in launch.WRITTEN}


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("moved", range(len(launch.WRITTEN) + 1))
def test_a_run_that_is_set_aside_is_whole_whenever_a_kill_comes(tmp_path, moved, linked, monkeypatch):
    "A kill after any number of files: on the way aside, and on the way back."
    folder, before = written(tmp_path / "run", "old"), dict.fromkeys(launch.WRITTEN, "old")
    if linked:
        os.rename(folder / "checkpoint", tmp_path / "big")
        (folder / "checkpoint").symlink_to(tmp_path / "big")
    monkeypatch.setattr(launch, "WRITTEN", launch.WRITTEN[:moved])
    launch._move(folder, "", launch.ASIDE)
    monkeypatch.undo()
    launch._recover(folder)  # the next start
    if moved < len(launch.WRITTEN):
        assert not launch.is_done(folder) and launch.is_done(folder / launch.ASIDE) if moved else launch.is_done(folder)
    if (folder / launch.ASIDE).is_dir():
        monkeypatch.setattr(launch, "WRITTEN", launch.WRITTEN[:moved])
        launch._move(folder, launch.ASIDE, "")
        monkeypatch.undo()
        launch._recover(folder)
    assert texts(folder) == before and launch.is_done(folder) and not (folder / launch.ASIDE).exists()


def test_a_run_whose_notebook_is_gone_stays(project):
    first = execute(project, "quick", steps=20)
    (job,) = expand(get_experiment("quick"), {"steps": 20})
    (project / "nbs/11_quick.ipynb").rename(project / "away.ipynb")
    again = launch.execute(job, project / "runs", 1, force=True)
    assert again.state == "failed" and "notebook: there is no '11_quick'" in again.error
    assert launch.is_done(first.dir) and (first.dir / "checkpoint/main.pt").exists()


def test_a_linked_checkpoint_comes_back_when_its_repetition_fails(project):
    (job,) = expand(get_experiment("quick"), {"steps": 20})
    folder, big = project / "runs/quick" / job.id, project / "big disk"
    folder.mkdir(parents=True)
    big.mkdir()
    (folder / "checkpoint").symlink_to(big)
    assert launch.execute(job, project / "runs", 1).state == "done"
    (project / "fail").touch()
    assert launch.execute(job, project / "runs", 1, force=True).state == "failed"
    assert launch.is_done(folder) and read(big / "main.pt") == 20 and (folder / "checkpoint").is_symlink()


def test_force_begins_anew_what_was_not_done(project):
    first = execute(project, "quick", steps=20, zdim=0)
    (first.dir / "checkpoint").mkdir()
    (first.dir / "checkpoint/main.pt").write_text("10")
    (project / "nbs/11_quick.ipynb").write_text((project / "nbs/11_quick.ipynb").read_text().replace("if zdim < 1", "if zdim < 0"))
    (project / "nbs/11_quick.ipynb").write_text((project / "nbs/11_quick.ipynb").read_text().replace("1 / (zdim + seed)", "1 / (1 + zdim)"))
    assert execute(project, "quick", force=True, steps=20, zdim=0).state == "done"
    assert read(first.dir / "result.json")["resumed_from"] == 0


# ---- conditions are looked at before the cost


@pytest.mark.parametrize("name", ["vae-mlp-digits", "gan-digits", "cgan-digits"])
@pytest.mark.parametrize(
    "classes, words",
    [
        ({"a": 1}, "0 to validate, at least 1 are needed"),
        ({"a": 5}, "0 to test for the share of copies, at least 3 are needed"),
        ({"a": 12}, "2 to test for the share of copies, at least 3 are needed"),
        ({"a": 15, "b": 15}, "23 to train on for the support, at least 46 are needed"),
        ({"a": 200, "b": 200, "lonely": 1}, "of 'lonely' to test for what is compared within classes, at least 5 are needed"),
    ],
)
def test_too_few_pictures_are_said_before_a_kernel_starts(tmp_path, name, classes, words):
    for c, n in classes.items():
        pictures(tmp_path / "pics" / c if len(classes) > 1 else tmp_path / "pics", n)
    found = jobs.mistakes(of(name, dataset=f"folder:{tmp_path}/pics", size=8))
    assert found and any("too few" in line or "to train on" in line for line in found), found
    if "validate" not in words:  # how many go where is the split's affair
        assert any(words.partition(" ")[2] in line for line in found), found


def test_enough_pictures_are_no_mistake_and_the_book_s_own_data_are_enough(tmp_path):
    for c in "ab":
        pictures(tmp_path / "pics" / c, 200)
    assert jobs.mistakes(of("vae-mlp-digits", dataset=f"folder:{tmp_path}/pics", size=8, batch_size=64)) == []
    assert jobs.mistakes(of("vae-mlp-digits")) == []
    (line,) = jobs.mistakes(of("vae-mlp-digits", dataset=f"folder:{tmp_path}/pics", size=8, batch_size=500))
    assert "batch_size: 500 is more than the" in line


def test_what_is_wrong_with_data_is_found_once_for_a_grid(tmp_path, monkeypatch):
    from genbook import datasets

    pictures(tmp_path / "pics", 20)
    (tmp_path / "pics/bad.png").write_text("<html>")
    calls, load = [], datasets.load
    monkeypatch.setattr(datasets, "load", lambda *args, **how: calls.append(args) or load(*args, **how))
    todo = of("vae-beta-digits", dataset=f"folder:{tmp_path}/pics", size=8)
    (line,) = jobs.mistakes(todo)
    assert len(todo) > 4 and "bad.png" in line and len(calls) == 1
    (line,) = jobs.mistakes(of("gan-digits", dataset="folder:nowhere"))
    assert "'folder:nowhere' is not there" in line


def test_schedules_longer_than_the_training_are_noted_and_warned_of(tmp_path):
    from genbook.lab.training import Training

    notes = {}
    assert jobs.mistakes(of("vae-mlp-digits", steps=6, warmup=500, kl_args={"steps": 2000}), notes=notes) == []
    weight, warmup = notes
    assert "scheduled over 2,000 steps, but the training has 6" in weight and "warmup: 500 steps of 6 are cut to 3" in warmup
    made = Training("vae", "digits", None, "mlp_digits", {"kl_args": {"steps": 2000}}, {"steps": 6}, {}, 0, "cpu")
    with pytest.warns(UserWarning, match="scheduled over 2,000 steps, but the training has 6"):
        made.fit(progress=False)


# ---- what a run is


def test_the_content_of_a_folder_belongs_to_the_run(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "pics", 3)
    monkeypatch.chdir(tmp_path)
    name = lambda dataset="folder:pics": of("vae-mlp-digits", dataset=dataset)[0]
    first = name()
    assert name().id == first.id == name(f"folder:{folder}").id == name("folder:../" + tmp_path.name + "/pics/").id
    assert first.params["dataset"] == f"folder:{folder}"
    seen = {first.id}

    def new():
        seen.add(name().id)
        return len(seen)

    pictures(tmp_path / "else/b", 1)
    (folder / "b").symlink_to(tmp_path / "else/b")
    assert new() == 2  # what a link leads to
    pictures(tmp_path / "else/b", 2)
    assert new() == 3
    os.utime(folder / "000.png", (1, 1))
    assert new() == 4
    (folder / "001.png").rename(folder / "9.png")
    assert new() == 5
    (folder / ".DS_Store").write_text("x")
    (folder / "loop").symlink_to(folder)
    assert new() == 5
    monkeypatch.setenv("GENBOOK_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path / "else")
    assert new() == 5 and name().params["dataset"] == f"folder:{folder}"  # found where the data are


def test_copies_of_a_run_count_once(project, said):
    for seed in (0, 1):
        (job,) = expand(get_experiment("quick"), {"steps": 20}, seeds=[seed])
        launch.execute(job, project / "runs", 1)
    folder = project / "runs/quick" / job.id
    shutil.copytree(folder, folder.with_name(f"{folder.name}.bak"))
    shutil.copytree(folder, folder.with_name("0"))
    shutil.copytree(folder, project / "runs/other" / folder.name)
    again = read(folder / "result.json") | {"run_id": "digits-s1-00000000", "finished": "2020"}
    shutil.copytree(folder, folder.with_name(again["run_id"]))
    (folder.with_name(again["run_id"]) / "result.json").write_text(json.dumps(again))
    found = results.load("quick")
    assert sorted(r["flat"]["seed"] for r in found) == [0, 1] and folder in [r["folder"] for r in found]
    (row,) = results.summary(found)
    assert row["seeds"] == 2 and row["metrics"]["mse"]["sd"] == pytest.approx(abs(1 / 4 - 1 / 5) / 2**0.5)
    code, out, _ = said("results", "quick", "--format", "csv")
    assert code == 0 and len(out.splitlines()) == 2


def test_other_pictures_are_another_setting():
    one = {"experiment": "a", "notebook": "a", "params": {"seed": 0}, "metrics": {}, "minutes": 1.0, "device": "CPU", "changed": ""}
    rows = results.summary([one | {"content": "x"}, one | {"content": "y"}])
    assert [(r["setting"], r["seeds"]) for r in rows] == [({"content": "x"}, 1), ({"content": "y"}, 1)]


def test_damaged_and_older_results_are_left_out_counted_and_named(project, said):
    folder = execute(project, "quick", steps=20).dir
    good = read(folder / "result.json")
    mse = good["metrics"]["mse"]
    bad = {
        "cut": '{"schema": 2, "exp',
        "list": "[]",
        "old": good | {"schema": 1},
        "lacks": {k: v for k, v in good.items() if k != "params"},
        "bare": good | {"metrics": {"mse": {"value": 1.0}}},
        "text": good | {"metrics": {"mse": mse | {"value": "0.5"}}},
        "table": good | {"params": good["params"] | {"model_args": [1]}},
    }
    for i, (name, result) in enumerate(bad.items()):
        other = project / "runs/quick" / name
        other.mkdir()
        (other / "status.json").write_text('{"state": "done"}')
        result = result if isinstance(result, str) else json.dumps(result | {"run_id": f"digits-s0-0000000{i}"})
        (other / "result.json").write_text(result)
    odd = good | {"metrics": {"of_tomorrow": mse, "mse": mse}}
    (folder / "result.json").write_text(json.dumps(odd))
    with pytest.warns(UserWarning, match=f"{len(bad)} results are left out: .*bare/result.json .metric mse is missing or damaged.") as seen:
        (row,) = results.summary(results.load("quick"))
    assert "its schema is 1, not 2" in str(seen[0].message) and set(row["metrics"]) == {"of_tomorrow", "mse"}
    for form in ("table", "all", "md", "csv", "json"):
        code, out, err = said("results", "--format", form, *["--all"] * (form == "table"))
        assert code == 0 and "of_tomorrow" in out, (form, err)
    (project / "results").mkdir()
    (project / "results/changed.json").write_text("{")
    assert len(results.load("quick", project / "runs")) == 1


def test_a_result_of_ones_own_notebook_can_be_kept(project):
    (project / "results").mkdir()
    shutil.copy(ROOT / "results/schema.json", project / "results")
    (project / "elsewhere").mkdir()
    write_notebook(project / "elsewhere/My own-Copy1.ipynb", QUICK.replace("+ seed", ""), "run.finish();")
    path = project / "elsewhere/My own-Copy1.ipynb"
    path.write_text(path.read_text().replace("seed: int = 0  # seed\\n", "sizes: tuple = (1, 2)  # some\\n"))
    (job,) = expand(get_experiment(str(path)), {"steps": 20})
    outcome = launch.execute(job, project / "runs", 1)
    assert outcome.state == "done", outcome.error
    kept = read(results.save(outcome.dir, project))
    assert kept["notebook"] == "elsewhere/My own-Copy1.ipynb" and kept["params"]["sizes"] == [1, 2] and "seed" not in kept["params"]
    with pytest.raises(GenbookError, match="seeds: .0, 1., but the notebook has no parameter seed"):
        expand(get_experiment(str(path)), seeds=[0, 1])


# ---- the environment


def test_assertions_are_never_left_out(project, said, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    code, _, err = said("run", "quick")
    assert code == 2 and "PYTHONOPTIMIZE" in err and len(err.splitlines()) == 1 and not list(project.glob("runs/quick/*"))
    with pytest.raises(GenbookError, match="PYTHONOPTIMIZE"):
        runs.Run(tmp_path / "run")
    monkeypatch.setenv("PYTHONOPTIMIZE", "0")
    runs.Run(tmp_path / "run")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    from genbook.datasets import data_root
    from genbook.lab.cli import FOLDER
    from genbook.measure.cache import cache_root

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RUNS", "DATA", "CACHE"):
        monkeypatch.setenv(f"GENBOOK_{name}", f"~/{name}")
    assert (launch.runs_root(), data_root(), cache_root()) == (tmp_path / "RUNS", tmp_path / "DATA", tmp_path / "CACHE")
    monkeypatch.delenv("GENBOOK_CACHE")
    assert cache_root() == tmp_path / "RUNS/.cache" and FOLDER.convert("~/x", None, None) == tmp_path / "x"


@pytest.mark.parametrize("no", [None, 37, 95])  # no fcntl, ENOLCK, ENOTSUP
def test_a_place_without_locks_is_named_before_a_worker_starts(project, said, monkeypatch, no):
    import fcntl

    def flock(*args):
        raise OSError(no, os.strerror(no))

    if no is None:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(grid, "_pool", lambda *args: pytest.fail("a worker was started"))
    code, _, err = said("run", "quick")
    words = "cannot be locked on this system; runs need Linux or macOS" if no is None else "has no locks"
    assert code == 2 and words in err and len(err.splitlines()) == 1, err


def test_runs_that_cannot_be_written_are_said_before_a_worker_starts(project, said, monkeypatch):
    (project / "file").touch()
    monkeypatch.setattr(grid, "_pool", lambda *args: pytest.fail("a worker was started"))
    code, _, err = said("run", "quick", "--dir", project / "file/below")
    assert code == 2 and "file/below cannot be written: Not a directory" in err and len(err.splitlines()) == 1


def test_a_long_folder_for_temporary_files_ends_no_run(project):
    place = project / ("long" * 40)
    place.mkdir()
    code, out, err = genbook(project, "run", "quick", "-p", "steps", 20, env={"TMPDIR": str(place)})
    assert code == 0 and out.startswith("done") and err == "", out + err


def test_why_a_worker_of_a_cluster_failed_is_said(project):
    class Elsewhere:
        "An executor whose workers cannot import what they are sent."

        def submit(self, f, *args):
            from concurrent.futures import Future

            future = Future()
            future.set_exception(ModuleNotFoundError("No module named 'mine'"))
            return future

    (outcome,) = grid.run_jobs(expand(get_experiment("quick")), project / "runs", executor=Elsewhere())
    assert outcome.state == "failed" and outcome.error == "the worker died: ModuleNotFoundError: No module named 'mine'"


def test_an_address_that_is_none_is_refused_at_once(project, said):
    began = time.time()
    code, _, err = said("run", "quick", "--cluster", "nonsense")
    assert code == 2 and err == "genbook: cluster: 'nonsense' is not an address; allowed: tcp://HOST:PORT\n" and time.time() - began < 15


def test_python_m_genbook_is_the_command(project):
    import subprocess

    for module in ("genbook", "genbook.lab.cli"):
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-m", module, "list", "quick*"], cwd=project, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "quick-grid" in done.stdout, done.stderr


# ---- one line


@pytest.mark.parametrize(
    "text, message",
    [
        ("{a: {suite: [b]}, b: {suite: [c]}}", "suite: 'c' is not one of"),
        ("{a: {suite: [b]}, b: {suite: [a]}}", "the suite a holds itself"),
        ("{a: {suite: []}}", "a: suite: [] is empty"),
        ("{? [a] : {about: x}}", "a key is a list or a table, line"),
        ("{a: {about: x}, a: {about: y}}", "'a' stands twice in one table"),
        ("{a: {params: {zdim: 2}, grid: {seed: [1]}}}", "nothing else sets a seed"),
        ("{a: {params: {seed: 4}}}", "nothing else sets a seed"),
        ("{a: {dataset: digits, params: {dataset: mnist}}}", "a: dataset stands twice, once in params"),
        ("{a: {params: {bound: .inf}}}", "bound: inf is not finite"),
        ("{a: {params: {bound: .nan}}}", "bound: nan is not finite"),
        ("{a: {variants: {x: {params: 3}}}}", "a-x: params: 3 is a int, allowed: dict"),
        ("{a: {grid: {zdim: []}}}", "zdim: [] is not a list of values"),
        ("{a: {about: \xe9}}", "is not in UTF-8"),
    ],
)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_of_experiments_that_is_wrong_gets_one_line(project, said, text, message, encoding):
    if encoding == "utf-16":
        message = "is not in UTF-8"
    (project / "experiments/12_x.yaml").write_text(f"notebook: 11_quick\nexperiments: {text}\n", encoding=encoding)
    code, _, err = said("run", "a")
    assert code == 2 and message in err and len(err.splitlines()) == 1 and err.startswith("genbook: "), err


def test_a_variant_wins_wherever_its_setting_stands(project):
    def variant(base, changes):
        text = f"{{a: {{{base}, variants: {{v: {{{changes}}}}}}}}}"
        (project / "experiments/12_x.yaml").write_text(f"notebook: 11_quick\nexperiments: {text}\n")
        return get_experiment("a-v").params

    assert variant("params: {zdim: 2, text: a}", "params: {text: b}") == {"zdim": 2, "text": "b"}
    assert variant("dataset: x", "params: {dataset: b}") == {"dataset": "b"}
    assert variant("params: {dataset: x}", "dataset: b") == {"dataset": "b"}


@pytest.mark.parametrize(
    "pairs, words",
    [
        ([("zdim", "3"), ("zdim", "4")], "zdim is given twice"),
        ([("zdim", "3"), ("model.zdim", "4")], "zdim and model.zdim set the same"),
        ([("steps", "3"), ("epochs", "4")], "steps and epochs set the same"),
        ([("model.kl_args.steps", "nan")], "nan is not finite"),
        ([("lr", "inf")], "lr: inf is not finite"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(pairs, words):
    e = get_experiment("vae-mlp-digits", ROOT)
    with pytest.raises(GenbookError, match=words.replace(".", "[.]")):
        expand(e, jobs.read_overrides(e, pairs, ROOT), root=ROOT)


def test_values_that_no_file_can_hold_are_refused(project):
    with pytest.raises(GenbookError, match="quick: zdim: there are no values"):
        expand(get_experiment("quick"), {"zdim": []})
    path = project / "nbs/11_quick.ipynb"
    for value in ("1e999", "b'x'", "{'a': 1e999}", "{1, 2}"):
        path.write_text(path.read_text().replace("zdim: int = 4", f"zdim: dict = {value}"))
        with pytest.raises(GenbookError, match="quick: a setting cannot be kept in a file"):
            expand(get_experiment("quick"))
        path.write_text(path.read_text().replace(f"zdim: dict = {value}", "zdim: int = 4"))


def test_defaults_of_ones_own_tables_are_kept(project):
    path = project / "nbs/11_quick.ipynb"
    path.write_text(path.read_text().replace("zdim: int = 4", "model_args: dict = {'width': 8, 'depth': 2}"))
    (job,) = expand(get_experiment("quick"), {"model.depth": 3})
    assert job.params["model_args"] == {"width": 8, "depth": 3}


@pytest.mark.parametrize(
    "line, words",
    [
        ("a: float = 1/3", "is not a parameter"),
        ("a: int =", "not Python"),
        ("%matplotlib inline", "not Python"),
        ("a: int = (", "not Python"),
        ("a = 3", "is not a parameter"),
        ("a: int", "is not a parameter"),
        ("import os", "is not a parameter"),
        ("a: int = 3\na: int = 4", "the parameter 'a' stands there twice"),
        ("a: int = 3\0", "not Python"),
    ],
)
def test_a_parameters_cell_that_is_wrong_gets_one_line(project, said, line, words):
    nb = read(project / "nbs/11_quick.ipynb")
    nb["cells"][0]["source"] = line
    (project / "mine.ipynb").write_text(json.dumps(nb))
    code, _, err = said("run", "mine.ipynb")
    assert code == 2 and words in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("change", ["metadata", "id", "tags", "outputs"])
def test_notebooks_of_other_programs_run(project, change):
    nb = read(project / "nbs/11_quick.ipynb")
    for c in nb["cells"][1:]:
        if change == "tags":
            c["metadata"]["tags"] = None
        else:
            c.pop(change, None)
    (project / "mine-Copy1.ipynb").write_text(json.dumps(nb))
    (job,) = expand(get_experiment("mine-Copy1.ipynb"), {"steps": 20})
    outcome = launch.execute(job, project / "runs", 1)
    assert (outcome.state, outcome.dir.parent.name) == ("done", "mine-copy1"), outcome.error


def test_the_section_of_a_run_is_known(project):
    nb = nbformat.read(project / "nbs/11_quick.ipynb", 4)
    nb.cells.insert(1, nbformat.v4.new_markdown_cell("## Train, look {.unnumbered}"))
    status, _ = project / "status.json", (project / "status.json").write_text('{"state": "running"}')
    note = launch._section_of(nb, status)
    note(cell=nb.cells[0], cell_index=0)
    assert grid.progress_of(project) == {"section": ""}
    note(cell=nb.cells[2], cell_index=2)
    (project / "metrics.jsonl").write_text('{"step": 3, "of": 4}\n')
    assert grid.progress_of(project) == {"section": "Train, look", "step": 3, "of": 4} and read(status)["state"] == "running"
    note(cell=nbformat.v4.new_code_cell("injected"), cell_index=1)
    assert grid.progress_of(project)["section"] == "Train, look"


@pytest.mark.parametrize("key", ["device", "batches", "rng"])
def test_a_checkpoint_of_another_version_gets_one_line(tmp_path, key):
    import torch

    from genbook.lab.training import Training

    def fit():
        run = runs.Run(tmp_path)
        try:
            Training("vae", "digits", None, "mlp_digits", {"kl": "constant"}, {"steps": 4, "warmup": 0}, {}, 0, "cpu").fit(
                run, progress=False
            )
        finally:
            run._lock.close()

    fit()
    path = tmp_path / "checkpoint/main.pt"
    state = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != key}, path)
    with pytest.raises(GenbookError, match=f"main.pt is of another version, without {key}; delete it"):
        fit()


# ---- kills


def states(project):
    return {p.name: launch.state_of(p) for p in project.glob("runs/quick-grid/*")}


def kill_at_random(project, times, longest):
    "A grid that is killed, told to stop or interrupted at random moments; what is done by then stays, and what is not says so."
    args, moments, ended = ("run", "quick-grid", "-p", "slow", 0.03, "-p", "every", 5), random.Random(times), {}
    interruptible = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    for i in range(times):
        force, began = ["--force"] * (len(ended) == 4), time.time()
        process = start(project, *args, *force, start_new_session=True, preexec_fn=interruptible)
        if i % 5 == 0:
            wait_for(project, "runs/quick-grid/*/status.json", process)
        time.sleep(moments.uniform(0, longest))
        at_work = any(p.stat().st_mtime > began for p in project.glob("runs/quick-grid/*/status.json"))
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        how = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, None)[i % 4]
        kill_tree(process) if how is None else process.send_signal(how)
        process.communicate(timeout=PATIENCE)
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert not alive, [p.cmdline() for p in alive]
        now = states(project)
        assert set(now.values()) <= {"done", "stopped", "failed", ""}, now
        if how in (signal.SIGINT, signal.SIGTERM) and at_work:  # somebody was there to write it down
            assert "running" not in {read(p)["state"] for p in project.glob("runs/quick-grid/*/status.json")}, (i, how)
        found = {r["run_id"]: r["metrics"]["mse"]["value"] for r in results.load("quick-grid")}
        assert ended.items() <= found.items(), (ended, found, now)
        ended = found
    todo = expand(get_experiment("quick-grid"), {"slow": 0.03, "every": 5})
    broken = [j for j in todo if launch.has_failed(project / "runs/quick-grid" / j.id)]
    code, out, err = genbook(project, *args, "--retry-failed")
    assert code == 0 and len(out.split("done    ")) - 1 == len(broken), out + err
    code, out, err = genbook(project, *args)
    assert code == 0 and set(states(project).values()) == {"done"}, out + err
    assert sorted(r["metrics"]["mse"]["value"] for r in results.load("quick-grid")) == sorted(1 / (z + s) for z in (2, 4) for s in (0, 1))
    assert not list(project.glob("runs/**/.*.tmp")) and not list(project.glob("runs/quick-grid/*/.previous"))


def test_three_kills_at_random_moments_of_a_grid(project):
    kill_at_random(project, 3, 4.0)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_of_a_grid(project):
    kill_at_random(project, 50, 8.0)


@contextmanager
def files_of_at_most(n):
    "As on a disk that is full: no file grows beyond n bytes."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_has_no_room_is_named(tmp_path):
    path = write_atomic(tmp_path / "result.json", "old")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large: '.*/result.json'"):
        write_atomic(path, 200 * "x")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    log = History(path=tmp_path / "metrics.jsonl")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large: '.*/metrics.jsonl'"):
        for step in range(10):
            log.add(step, {"train/total": 1.0})


def test_a_run_on_a_full_disk_is_no_longer_running(project, monkeypatch):
    write = launch.write_atomic

    def full(path, data):
        if path.name == "status.json" and '"running"' not in data:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(launch, "write_atomic", full)
    outcome = execute(project, "quick", steps=20)
    assert outcome.state == "failed" and "No space left on device" in outcome.error
    assert read(outcome.dir / "status.json")["state"] == "running"  # which nothing could replace
    assert launch.state_of(outcome.dir) == "stopped" and launch.has_failed(outcome.dir)
    monkeypatch.setattr(launch, "write_atomic", write)
    assert execute(project, "quick", steps=20).state == "done" and not launch.has_failed(outcome.dir)
