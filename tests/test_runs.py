"""Runs end to end: papermill, results, kill and resume, faults. A small project of its own, so that a run takes seconds.

Two notebooks: `torch` trains a little autoencoder; `quick` has no torch, since locks, grids, limits and stopping need none."""

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
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
import torch

from genbook.core import GenbookError
from genbook.history import load_checkpoint, save_checkpoint
from genbook.lab import cli, grid, launch
from genbook.lab.experiments import get_experiment, load_experiments
from genbook.lab.jobs import expand

ROOT = Path(__file__).parents[1]
PARAMETERS = """dataset: str = "digits"  # data set
zdim: int = 4  # latent size
steps: int = 300  # iterations
every: int = 20  # iterations between checkpoints
poison: int = -1  # iteration at which it fails
text: str = ""  # any text
slow: float = 0.0  # seconds that an iteration waits
bound: float = 1e9  # what the metric is said to stay below
seed: int = 0  # seed
run_dir: str | None = None  # folder of the run"""
TORCH = """import time
import torch
from genbook.core import metric, seed_everything
from genbook.data import Batches
from genbook.datasets import load
from genbook.lab.runs import Run
from genbook.models.ae import AE
from genbook.steps import Step
from genbook.train import fit

seed_everything(seed)
run = Run(run_dir)
data = load(dataset)


class Model(AE):
    def loss(self, x, y=None, *, it=None):
        time.sleep(slow)
        loss = super().loss(x, y, it=it)
        return loss._replace(total=torch.where(it == poison, torch.nan, loss.total))


step = Step(Model(data.image_shape, zdim=zdim, tower="mlp", width=16, depth=1), ema=0.99, device="cpu")
history = fit(step, Batches(data.train, 64, seed=seed), steps, run=run, every=every, log_every=10)
run.record(mse=metric("mse", history.column("train/total")[1][-1]))"""
QUICK = """import json
import os
import time
from pathlib import Path
from genbook.core import GenbookError, metric, write_atomic
from genbook.lab.runs import Run

os.write(2, b"noise of a library")
if zdim < 1:
    raise GenbookError(f"zdim: {zdim} is not a whole number of at least 1")
if Path("../fail").exists():
    raise RuntimeError("as it was told to")
run = Run(run_dir)
place = run.dir / "checkpoint" / "main.pt"  # a number is all that it has to remember
start = json.loads(place.read_text()) if place.exists() else 0
run.resumed["main"] = start
for it in range(start + 1, steps + 1):
    time.sleep(slow)
    if it % every == 0:
        with open(run.dir / "metrics.jsonl", "a") as f:
            f.write(json.dumps({"fit": "main", "step": it, "of": steps, "time": it * 0.01, "train/total": 1 / it}) + "\\n")
        write_atomic(place, json.dumps(it))
run.record(mse=metric("mse", 1 / (zdim + seed)))"""
PATIENCE = 600  # seconds that a machine under load may take
CLAIM = "assert 0 < run.metrics['mse'].value < bound, 'a bad training'  # not for every setting"


def write_notebook(path, *cells):
    "A notebook; the first cell has the parameters, what begins with # is prose."
    new = [nbformat.v4.new_markdown_cell(c) if c.startswith("#") else nbformat.v4.new_code_cell(c) for c in (PARAMETERS, *cells)]
    new[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=new), path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project with two notebooks and four experiments; the tests stand in it."
    (tmp_path / "nbs").mkdir()
    (tmp_path / "experiments").mkdir()
    shutil.copy(ROOT / "settings.ini", tmp_path)
    for name, code in (("10_torch", TORCH), ("11_quick", QUICK)):
        write_notebook(tmp_path / f"nbs/{name}.ipynb", code, CLAIM, "run.finish();")
    (tmp_path / "experiments/10_torch.yaml").write_text("notebook: 10_torch\nexperiments: {tiny: {about: one run}}\n")
    (tmp_path / "experiments/11_quick.yaml").write_text(
        "notebook: 11_quick\n"
        "experiments:\n"
        "  quick: {about: one run without torch}\n"
        "  quick-grid: {grid: {zdim: [2, 4]}, seeds: [0, 1], params: {steps: 20}}\n"
        "  both: {suite: [quick, quick-grid]}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "runs"))  # which a run in this process sets
    return tmp_path


def start(project, *args, **kwargs):
    command = [sys.executable, "-c", "from genbook.lab.cli import main; main()", *map(str, args)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | kwargs.pop("env", {})
    return subprocess.Popen(command, cwd=project, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def genbook(project, *args, **kwargs):
    "The command, in a process of its own: status, output, errors."
    process = start(project, *args, **kwargs)
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in out + err, err
    return process.returncode, out, err


@pytest.fixture
def said(capsys, monkeypatch):
    "The command in this process, for what starts no run: status, output, errors."

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["genbook", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = e.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def execute(project, name, force=False, limit=None, whole=False, **params):
    "One run of an experiment in this process, without a pool."
    (job,) = expand(get_experiment(name), params)
    return launch.execute(job, project / "runs", 1, force, limit=limit, whole=whole)


def only_run(project, experiment="tiny"):
    (folder,) = (project / "runs" / experiment).iterdir()
    return folder


def read(path):
    return json.loads(path.read_text())


def weights(folder):
    return torch.load(folder / "checkpoint/main.pt", weights_only=True)["step"]["model"]


def kill_tree(process):
    "kill -9 of a process and of everything it started."
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for p in family:
        try:
            p.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(family, timeout=PATIENCE)
    process.communicate()


def wait_for(project, pattern, process):
    end = time.time() + PATIENCE
    while not list(project.glob(pattern)):
        assert process.poll() is None and time.time() < end, f"no {pattern} appeared"
        time.sleep(0.02)


def newest_kernel(process):
    "The kernel that a start has launched."
    end = time.time() + PATIENCE
    while time.time() < end:
        for p in psutil.Process(process.pid).children(recursive=True):
            if any("ipykernel" in word for word in p.cmdline()):
                return p
        time.sleep(0.1)
    raise AssertionError("no kernel appeared")


# ---- one run


def test_a_run_leaves_everything_it_promises(project, said):
    code, out, err = genbook(project, "run", "tiny", "-p", "steps", 40)
    assert code == 0 and err == "", err
    folder = only_run(project)
    assert re.fullmatch(r"digits-s0-[0-9a-f]{8}", folder.name) and str(folder) in out
    result = read(folder / "result.json")
    assert result["schema"] == 2 and result["params"]["steps"] == 40 and result["params"]["zdim"] == 4
    assert result["metrics"]["mse"]["value"] > 0 and result["resumed_from"] == 0
    assert {"commit", "versions", "device", "minutes", "peak_memory_mb", "replay"} <= set(result)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["of"]) for r in rows] == [(10, 40), (20, 40), (30, 40), (40, 40)]
    assert read(folder / "status.json")["state"] == "done"
    executed = nbformat.read(folder / "notebook.ipynb", 4)
    assert any("injected-parameters" in c.metadata.get("tags", []) for c in executed.cells)
    assert list((folder / "logs").rglob("events.out.tfevents*"))
    before = (folder / "result.json").stat().st_mtime_ns
    code, out, _ = said("run", "tiny", "-p", "steps", 40)
    assert code == 0 and out.startswith("skipped") and (folder / "result.json").stat().st_mtime_ns == before
    code, out, _ = said("results", "tiny", "--format", "csv")
    assert code == 0 and out.splitlines()[0].startswith("experiment,setting,model,data,metric,mean,sd")


def test_killed_run_resumes_bit_for_bit(project):
    process = start(project, "run", "tiny", "-p", "slow", 0.02, "-p", "steps", 120)
    wait_for(project, "runs/tiny/*/checkpoint/main.pt", process)
    kill_tree(process)
    folder = only_run(project)
    assert not (folder / "result.json").exists()
    assert execute(project, "tiny", slow=0.02, steps=120).error == ""
    assert 0 < read(folder / "result.json")["resumed_from"] < 120
    (job,) = expand(get_experiment("tiny"), {"slow": 0.02, "steps": 120})
    whole = launch.execute(job, project / "whole", 1).dir
    assert whole.name == folder.name and read(whole / "result.json")["resumed_from"] == 0
    resumed, uninterrupted = weights(folder), weights(whole)
    assert all(torch.equal(resumed[k], uninterrupted[k]) for k in uninterrupted)
    rows = [[{k: v for k, v in json.loads(line).items() if k != "time"} for line in (f / "metrics.jsonl").open()] for f in (folder, whole)]
    assert rows[0] == rows[1]
    assert read(folder / "result.json")["metrics"] == read(whole / "result.json")["metrics"]


def test_nan_names_step_term_and_checkpoint_and_a_damaged_one_is_named(project):
    at = random.randrange(20, 300)  # checkpoints are at 20, 40, ...
    outcome = execute(project, "tiny", poison=at)
    path, kept = outcome.dir / "checkpoint/main.pt", at // 20 * 20
    assert outcome.state == "failed" and f"total = nan at step {at + 1}" in outcome.error and f"{path}, step {kept}" in outcome.error
    assert torch.load(path, weights_only=True)["it"] == kept
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(GenbookError, match=f"checkpoint: {path} is damaged .*; delete it"):
        load_checkpoint(path)


def test_failed_assertion_is_reported_and_loses_nothing(project, said):
    outcome = execute(project, "quick", bound=0.0)
    assert (outcome.state, outcome.error) == ("done", f"with 1 assertion that failed: {CLAIM}")
    result = read(outcome.dir / "result.json")
    assert result["unmet"] == [CLAIM] and result["metrics"]["mse"]["value"] > 0
    assert "a bad training" in (outcome.dir / "notebook.ipynb").read_text()
    code, out, _ = said("run", "quick", "-p", "bound", 0.0)
    assert code == 0 and out.startswith("skipped") and "failed: assert 0 <" in " ".join(out.split())


def test_what_a_kernel_complains_of_goes_into_a_file(project):
    code, out, err = genbook(project, "run", "quick", "-p", "steps", 20)
    assert code == 0 and err == "" and "noise" not in out
    assert "noise of a library" in (only_run(project, "quick") / "kernel.log").read_text()


def test_force_keeps_the_old_run_when_the_new_one_fails(project):
    first = execute(project, "quick", steps=20)
    before = {p.name: p.read_bytes() for p in first.dir.iterdir() if p.is_file() and not p.name.startswith(".")}
    (first.dir / "mine.txt").write_text("a note")
    assert execute(project, "quick", steps=20).state == "skipped"
    (project / "fail").touch()
    again = execute(project, "quick", steps=20, force=True)
    assert again.state == "failed" and "as it was told to" in again.error
    after = {p.name: p.read_bytes() for p in first.dir.iterdir() if p.is_file() and not p.name.startswith(".")}
    assert after == before | {"mine.txt": b"a note"} and launch.is_done(first.dir)
    assert (
        read(first.dir / "failed/status.json")["state"] == "failed"
        and "as it was told to" in (first.dir / "failed/notebook.ipynb").read_text()
    )
    (project / "fail").unlink()
    assert execute(project, "quick", steps=20, force=True).state == "done"
    assert (
        read(first.dir / "result.json")["resumed_from"] == 0
        and (first.dir / "mine.txt").exists()
        and not (first.dir / ".previous").exists()
    )


def test_what_is_measured_otherwise_is_not_trained_again(project):
    "Another measurement takes over the training of a run that is done; so does the same once more, if asked for."
    (job,), runs = expand(get_experiment("quick"), {"steps": 20}), project / "runs"
    one, two = (replace(job, params=job.params | {"measure_args": {"k": k}}, identity=None) for k in (1, 2))
    first, second = (launch.execute(j, runs, 1) for j in (one, two))
    assert (first.state, second.state) == ("done", "done") and first.dir != second.dir
    assert [read(o.dir / "result.json")["resumed_from"] for o in (first, second)] == [0, 20]
    assert (second.dir / "metrics.jsonl").read_text() == (first.dir / "metrics.jsonl").read_text() != ""
    for changes in ({"zdim": 5}, {"seed": 1}, {"steps": 40}):  # which make another training
        assert launch._same_training(replace(two, params=two.params | changes), runs / "new", runs) is None
    assert launch._same_training(replace(two, content="0123"), runs / "new", runs) is None
    before = (first.dir / "result.json").stat().st_mtime_ns
    assert launch.execute(one, runs, 1, measure=True).state == "done"
    assert read(first.dir / "result.json")["resumed_from"] == 20 and (first.dir / "result.json").stat().st_mtime_ns > before
    shutil.rmtree(first.dir / "checkpoint")
    refused = launch.execute(one, runs, 1, measure=True)
    assert refused.state == "failed" and "has no checkpoint of its training; with --force" in refused.error and launch.is_done(first.dir)


def test_a_symlinked_checkpoint_is_used_and_kept(project):
    (job,) = expand(get_experiment("quick"), {"steps": 20})
    folder, elsewhere = project / "runs/quick" / job.id, project / "big disk"
    folder.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "other.txt").write_text("of somebody else")
    (folder / "checkpoint").symlink_to(elsewhere)
    assert launch.execute(job, project / "runs", 1).state == "done" and read(elsewhere / "main.pt") == 20
    assert launch.execute(job, project / "runs", 1, measure=True).state == "done"
    assert read(folder / "result.json")["resumed_from"] == 20
    assert launch.execute(job, project / "runs", 1, force=True).state == "done"
    assert read(folder / "result.json")["resumed_from"] == 0  # from the start, not from the old checkpoint
    assert (folder / "checkpoint").is_symlink() and {p.name for p in elsewhere.iterdir()} == {"main.pt", "other.txt"}


def test_a_run_is_lean_and_the_whole_chapter_is_there_when_wanted(project):
    lesson = "taught = 1 / (bound != 3.0)"  # which fails at a bound of 3
    cells = ("# Chapter", QUICK, "## The idea", lesson, "## Train, look, measure", CLAIM, "## Studies", lesson, "run.finish();")
    write_notebook(project / "nbs/11_quick.ipynb", *cells)
    lean = execute(project, "quick", steps=20, bound=3.0)
    assert (lean.state, lean.error) == ("done", "")
    sources = [c.source for c in nbformat.read(lean.dir / "notebook.ipynb", 4).cells]
    assert lesson not in sources and CLAIM in sources and "## Studies" not in sources
    whole = execute(project, "quick", force=True, whole=True, steps=20, bound=3.0)
    assert whole.state == "failed" and whole.error == "ZeroDivisionError: division by zero"


def test_a_notebook_of_ones_own_is_run_by_its_path(project):
    (project / "elsewhere").mkdir()
    write_notebook(project / "elsewhere/mine.ipynb", QUICK, "run.finish();")
    code, out, err = genbook(project / "elsewhere", "run", "mine.ipynb", "-p", "steps", 20, "-p", "zdim", "2,3")
    assert code == 0 and out.count("done") == 2, err
    found = {read(p)["params"]["zdim"]: read(p)["notebook"] for p in project.glob("runs/mine/*/result.json")}
    assert found == {2: "elsewhere/mine.ipynb", 3: "elsewhere/mine.ipynb"}
    (project / "experiments/mine.yaml").write_text("notebook: elsewhere/mine.ipynb\nexperiments: {own: {params: {zdim: 3}}}\n")
    (job,) = expand(get_experiment("own"), {"steps": 20})
    assert (project / "runs/mine" / job.id / "result.json").exists()  # the same run


# ---- grids


def test_grid_goes_on_after_a_failure_and_repeats_only_it(project):
    code, out, err = genbook(project, "run", "quick-grid", "-p", "text", "__import__('os').system('x')", "--workers", 2)
    assert code == 0 and err.count("done quick-grid") == 4, err
    assert len(list(project.glob("runs/quick-grid/*/result.json"))) == 4
    texts = {read(p)["params"]["text"] for p in project.glob("runs/quick-grid/*/result.json")}
    assert texts == {"__import__('os').system('x')"}  # it stays a string
    code, out, _ = genbook(project, "run", "quick", "-p", "zdim", "0,5", "--workers", 2)
    assert code == 1 and re.search(r"failed  \S+  zdim: 0 is not", out) and re.search(r"done    \S+\n", out), out
    failed = [p.parent for p in project.glob("runs/quick/*/status.json") if read(p)["state"] == "failed"]
    assert len(failed) == 1 and (failed[0] / "notebook.ipynb").exists()


def test_sweeps_are_read_by_the_declared_type(project, said):
    jobs = cli._jobs(["quick"], [("zdim", "2,4,8"), ("text", "007"), ("bound", "1e3")], [0, 1])
    assert [(j.params["zdim"], j.params["seed"]) for j in jobs] == [(2, 0), (2, 1), (4, 0), (4, 1), (8, 0), (8, 1)]
    assert {j.params["text"] for j in jobs} == {"007"} and {j.params["bound"] for j in jobs} == {1000.0}
    assert [j.params["text"] for j in cli._jobs(["quick"], [("text", "a,b")], None)] == ["a,b"]
    assert jobs[0].label == "zdim=2 seed=0"
    code, _, err = said("run", "quick", "-p", "zdim", "2,many", "-p", "bound", "inf", "-p", "txt", "x")
    assert code == 2 and len(err.splitlines()) == 3, err
    for words in ("zdim: 'many' is not one, allowed: int", "bound: inf is not finite", "did you mean 'text'?"):
        assert words in err


def test_two_starts_never_do_a_run_twice(project):
    first = start(project, "run", "quick", "-p", "slow", 0.02)
    wait_for(project, "runs/quick/*/status.json", first)
    second = execute(project, "quick", slow=0.02)
    assert (second.state, second.error) == ("busy", "another start is at it")
    assert first.wait(timeout=PATIENCE) == 0
    first.communicate()
    assert only_run(project, "quick")


def test_dead_worker_costs_its_run_only_what_followed_the_checkpoint(project):
    process = start(project, "run", "quick", "-p", "slow", 0.02)
    wait_for(project, "runs/quick/*/checkpoint/main.pt", process)
    newest_kernel(process).parent().kill()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and out.startswith("done"), out + err
    assert 0 < read(only_run(project, "quick") / "result.json")["resumed_from"] < 300


def test_dead_kernel_is_reported_and_only_failed_runs_are_repeated(project, said):
    process = start(project, "run", "quick", "-p", "slow", 0.02)
    wait_for(project, "runs/quick/*/checkpoint/main.pt", process)
    newest_kernel(process).kill()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "failed" in out and "DeadKernelError" in out, out
    assert execute(project, "quick", steps=20).state == "done"
    code, out, _ = said("run", "quick", "-p", "steps", 20, "--retry-failed")
    assert code == 0 and out == "nothing to do: no run has failed\n"
    code, out, _ = genbook(project, "run", "quick", "-p", "slow", 0.02, "--retry-failed")
    assert code == 0 and out.startswith("done")


LOOPBACK = {"127.0.0.1", "::1"}


def listening(processes):
    "The addresses at which they listen."
    return {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}


def test_killed_grid_ends_its_workers_and_goes_on(project):
    args = ("run", "quick-grid", "-p", "slow", 0.2, "-p", "every", 5, "--workers", 2)
    process = start(project, *args, start_new_session=True)
    wait_for(project, "runs/quick-grid/*/checkpoint/main.pt", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert listening(family) <= LOOPBACK
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive and not list(project.glob("runs/quick-grid/*/result.json"))
    begun = next(project.glob("runs/quick-grid/*/checkpoint/main.pt")).parents[1]
    (begun / ".metrics.jsonl.1.tmp").write_text("half of it")
    params = read(begun / "params.json")["params"]
    code, out, err = genbook(project, *args, "-p", "zdim", params["zdim"], "--seeds", params["seed"])
    assert code == 0 and read(begun / "result.json")["resumed_from"] >= 5, out + err
    assert not list(begun.rglob("*.tmp"))


def test_hanging_kernel_meets_the_time_limit(project):
    began = time.time()
    outcome = execute(project, "quick", limit=4, slow=30.0)
    assert outcome.state == "failed" and "stopped after 4 seconds, the time limit" in outcome.error
    assert time.time() - began < 30 * 300 / 2  # of all iterations


def test_stopping_is_clean_and_a_second_start_goes_on(project):
    args = ("run", "quick", "-p", "slow", 0.02)
    interruptible = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever started the tests may ignore it
    process = start(project, *args, start_new_session=True, preexec_fn=interruptible)
    wait_for(project, "runs/quick/*/checkpoint/main.pt", process)
    kernel = newest_kernel(process)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C sends
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and err.strip() == "genbook: stopped; the same command goes on from here", err
    psutil.wait_procs([kernel], timeout=PATIENCE)
    assert not kernel.is_running()
    code, out, _ = genbook(project, *args)
    assert code == 0 and read(only_run(project, "quick") / "result.json")["resumed_from"] > 0


# ---- several devices, clusters


def test_two_devices_make_one_record_and_go_on_after_a_kill(project):
    args = ("run", "tiny", "-p", "slow", 0.02, "-p", "steps", 120, "--devices", 2)
    process = start(project, *args)
    wait_for(project, "runs/tiny/*/checkpoint/main.pt", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert listening(family) <= LOOPBACK and sum("ipykernel" in " ".join(p.cmdline()) for p in family) == 2
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive
    code, out, err = genbook(project, *args)
    assert code == 0, out + err
    folder = only_run(project)
    result = read(folder / "result.json")
    assert 0 < result["resumed_from"] < 120 and result["device"].startswith("2 x ")
    rows = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert rows == list(range(10, 121, 10))
    assert sorted(p.name for p in folder.rglob("*.ipynb")) == ["notebook.ipynb"] and len(list(folder.glob("logs/main"))) == 1


def test_a_mistake_on_two_devices_is_said_once(project):
    code, out, _ = genbook(project, "run", "quick", "-p", "zdim", 0, "--devices", 2)  # what torch says, test_devices.py knows
    assert code == 1 and out.count("zdim: 0 is not a whole number of at least 1") == 1 and only_run(project, "quick"), out


@pytest.mark.parametrize(
    "args, message",
    [
        (["--devices", 0], "devices: 0, but 1 to "),
        (["--devices", 2, "--cluster", "tcp://127.0.0.1:9"], "--devices: 2 with --cluster; allowed: 1"),
    ],
)
def test_impossible_devices_get_one_line(project, said, args, message):
    code, _, err = said("run", "quick", *args)
    assert code == 2 and message in err and len(err.splitlines()) == 1, err


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5,7")
    assert grid._gpus() == ["0", "2", "5", "7"]
    groups = [grid._groups(n, 8, grid._gpus()) for n in (1, 2, 3)]
    assert groups == [["0", "2", "5", "7"], ["0,2", "5,7"], ["0,2,5"]]
    with pytest.raises(GenbookError, match="devices: 5, but there are 4 GPUs"):
        grid._groups(5, 8, grid._gpus())


def test_cluster_gives_the_same_results_when_a_worker_dies(project):
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'genbook[cluster]'")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*dask, "--scheduler-file", "scheduler.json"], cwd=project, env=env, stderr=subprocess.DEVNULL)
    wait_for(project, "scheduler.json", scheduler)
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", "scheduler.json", "--nthreads", "1", "--no-nanny"]
    workers = [subprocess.Popen([*worker, "--no-dashboard"], cwd=project, env=env, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        args = ("run", "quick-grid", "-p", "slow", 0.05, "-p", "every", 5)
        process = start(project, *args, "--cluster", read(project / "scheduler.json")["address"])
        wait_for(project, "runs/quick-grid/*/checkpoint/main.pt", process)
        time.sleep(0.5)
        workers[0].kill()
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and "Traceback" not in out + err, out + err
    finally:
        for p in [*workers, scheduler]:
            p.kill()
            p.wait()
    found = {read(p)["run_id"]: read(p)["metrics"]["mse"]["value"] for p in project.glob("runs/quick-grid/*/result.json")}
    assert sorted(found.values()) == sorted(1 / (zdim + seed) for zdim in (2, 4) for seed in (0, 1))


def test_cluster_that_is_not_there_is_named(project, said, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'genbook[cluster]'")
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout, **how: client(address, timeout=1, **how))
    code, _, err = said("run", "quick", "--cluster", "tcp://127.0.0.1:9")
    assert code == 2 and "cluster: there is no scheduler at tcp://127.0.0.1:9" in err


# ---- files


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("what", ["checkpoint/main.pt", "result.json"])
def test_killed_while_writing_a_file(tmp_path, what, again):
    "kill -9 with half of the bytes on the disk: what was there before, or nothing, is there after."
    from genbook.lab.runs import Run

    def die(file):
        os.ftruncate(file, os.fstat(file).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    run = Run(tmp_path / "runs/demo/a")
    path = run.dir / what
    write = run.finish if what == "result.json" else lambda: save_checkpoint(path, {"step": {"model": {"w": torch.ones(99)}}, "it": 1})
    before = None
    if again:
        write()
        before = path.read_bytes()
    child = os.fork()
    if child == 0:
        try:
            os.fsync = die
            write()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == before and len(list(path.parent.glob(".*.tmp"))) == 1
    write()
    assert read(path) if what == "result.json" else load_checkpoint(path)["it"] == 1


def test_checkpoints_from_elsewhere_load_weights_only(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"step": {"model": {"w": torch.ones(9)}}, "it": 1, "more": Evil()}, tmp_path / "main.pt")
    with pytest.raises(GenbookError, match="main.pt is damaged .UnpicklingError."):
        load_checkpoint(tmp_path / "main.pt")
    assert not (tmp_path / "made").exists()


def test_full_disk_keeps_the_checkpoint(tmp_path):
    "The largest file may have 20 kB: less than the second checkpoint, whose optimiser has a state."
    path = tmp_path / "main.pt"
    save_checkpoint(path, {"step": {"model": {"w": torch.ones(10)}}, "it": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(GenbookError, match="was not written: File too large; the previous one is whole"):
            save_checkpoint(path, {"step": {"model": {"w": torch.ones(100_000)}}, "it": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path)["it"] == 1 and [p.name for p in tmp_path.glob("*main.pt*")] == ["main.pt"]


# ---- mistakes


@pytest.mark.parametrize(
    "args, message",
    [
        (["run", "quick-gird"], "experiment: there is no 'quick-gird'; did you mean 'quick-grid'?"),
        (["run", "quick", "-p", "zdin", "3"], "parameter 'zdin' is none of this notebook's; did you mean 'zdim'?"),
        (["run", "quick", "-p", "zdim", "many"], "zdim: 'many' is not one, allowed: int"),
        (["run", "quick", "-p", "zdim", "2.5"], "zdim: '2.5' is not one, allowed: int"),
        (["run", "quick", "-p", "seed", "3"], "seed: the seeds of a run are set with --seeds"),
        (["run", "../quick"], "there is no '../quick'"),
        (["run", "../quick.ipynb"], "notebook: there is no file"),
        (["run", "quick", "--seeds", "a"], "--seeds: 'a' is not a list of whole numbers"),
        (["run", "quick", "--seeds", "-1"], "seeds: [-1] are not whole numbers of at least 0"),
        (["run", "quick", "--workers", "0"], "Invalid value for '--workers'"),
        (["run", "quick", "--measure", "--force"], "measure: with force; allowed: one of them"),
        (["list", "nothing"], "experiment: there is no 'nothing'"),
        (["list", "nothing*"], "list: no experiment matches 'nothing*'"),
        (["results", "quick"], "results: there are no finished runs of quick"),
        (["verify"], "verify: there are no kept results"),
        (["data", "mnits"], "did you mean 'mnist'?"),
        (["sample", "nothing"], "from_pretrained: there is no folder"),
        (["export", "nothing", "model"], "export: nothing is not a finished run"),
        (["brew"], "No such command 'brew'"),
        (["run"], "Missing argument 'NAME...'"),
    ],
)
def test_mistakes_get_one_line(project, said, args, message):
    code, _, err = said(*args)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and err.startswith("genbook: "), err


@pytest.mark.parametrize(
    "text, message",
    [
        ("experiments: {a: {parms: {zdim: 2}}}", "experiments/11_quick.yaml: a: 'parms' is not one of"),
        ("notebook: 10_tine\nexperiments: {a: {}}", "notebook: there is no '10_tine'"),
        ("notebook: 11_quick\nexperiments: {a: {params: {zdm: 2}}}", "a: parameter 'zdm' is none of this notebook's; did you mean 'zdim'?"),
        ("notebook: 11_quick\nexperiments: {a: {params: {zdim: two}}}", "zdim: 'two' is a str, allowed: int"),
        ("notebook: ../secret\nexperiments: {a: {}}", "notebook: there is no '../secret'"),
        ("experiments: {a: {suite: [tinny]}}", "did you mean 'tiny'?"),
        ("experiments: {a: [", "is not YAML"),
        ("experiments: {a: }", "a: None is not a table of settings"),
        ("a", "allowed at the top"),
        ("experiments: {a: {seeds: 3}}", "a: seeds: 3 is a int, allowed: list"),
        ("experiments: {a: {grid: {zdim: 2}}}", "a: grid: zdim: 2 is not a list of values"),
        ("experiments: {../a: {}}", "'../a' is not a name"),
        ("experiments: {a: !!python/object/apply:os.system [ls]}", "is not YAML"),
    ],
)
def test_mistakes_in_experiments_get_one_line(project, said, text, message):
    (project / "experiments/11_quick.yaml").write_text(text)
    code, _, err = said("run", "a")
    assert code == 2 and message in err and len(err.splitlines()) == 1, err


def test_truncated_notebook_is_named(project, said):
    path = project / "nbs/11_quick.ipynb"
    path.write_bytes(path.read_bytes()[:-40])
    code, _, err = said("run", "quick")
    assert code == 2 and f"notebook: {path} is not a notebook, or damaged" in err and len(err.splitlines()) == 1, err


def test_all_that_is_wrong_with_a_grid_is_said_before_a_kernel_starts(tmp_path, said, monkeypatch):
    "In this repository: values, data, model, training and measurement of a chapter, each mistake once."
    monkeypatch.setenv("GENBOOK_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(grid, "run_jobs", lambda *args, **how: pytest.fail("a run was started"))
    monkeypatch.chdir(ROOT)
    where = ("--dir", tmp_path / "runs", "--seeds", "0,1,2")
    code, _, err = said("run", "vae-beta-digits", "-p", "zdim", "0,4", "-p", "lr", "0", "-p", "measure.k", "0,-1", *where)
    lines = err.splitlines()
    assert code == 2 and len(lines) == 4 and all(line.startswith("genbook: vae-beta-digits: ") for line in lines), err
    for words in ("zdim: 0 is not", "lr: 0.0 is not positive", "k: 0 is not", "k: -1 is not"):
        assert sum(words in line for line in lines) == 1, words
    code, _, err = said("run", "vae-mlp-mnist", *where)
    assert code == 2 and "fetch it with: genbook data mnist" in err and len(err.splitlines()) == 1
    code, _, err = said("run", "vae-mlp-digits", "-p", "size", "65", *where)
    assert code == 2 and "size: 65 is not supported" in err
    assert not (tmp_path / "runs").exists()


def test_output_that_nobody_reads_ends_without_a_word(project):
    def closed(redirection):
        command = f"{sys.executable} -c 'from genbook.lab.cli import main; main()' list {redirection}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    assert closed(">&-") == (0, "")
    assert closed("| true") == (0, "")
    if Path("/dev/full").exists():
        assert closed("> /dev/full") == (1, "genbook: the output: No space left on device\n")


def test_real_experiments_are_sound():
    "Every entry of experiments/ expands to runs that differ, and says what it is about."
    for name, e in load_experiments(ROOT).items():
        jobs = expand(e, root=ROOT)
        assert len({(j.experiment, j.id) for j in jobs}) == len(jobs), name
        assert e.about, name


@pytest.mark.slow
def test_fifty_kills_at_random_moments(project, capsys):
    "Nothing finished is lost, and no partial file is ever read as a whole one."
    args, moments, step, survived = ("run", "tiny", "-p", "slow", 0.05, "-p", "every", 5, "-p", "steps", 2000), random.Random(0), 0, 0
    for _ in range(50):
        process = start(project, *args)
        time.sleep(moments.uniform(1, 12))
        kill_tree(process)
        for path in project.glob("runs/tiny/*/*.json"):
            read(path)
        for path in project.glob("runs/tiny/*/checkpoint/main.pt"):
            reached = load_checkpoint(path)["it"]
            assert reached >= step
            step, survived = reached, survived + 1
    with capsys.disabled():
        print(f"survived {survived} of 50 kills with a checkpoint, at step {step}")
    quick = tuple(0 if a == 0.05 else a for a in args)
    code, _, err = genbook(project, *quick, "--dir", project / "whole")
    assert code == 0, err
    (whole,) = (project / "whole/tiny").iterdir()
    there = whole.parents[1] / "resumed/tiny" / whole.name
    shutil.copytree(only_run(project), there, ignore=shutil.ignore_patterns("*.lock"))
    code, _, err = genbook(project, *quick, "--dir", project / "whole/resumed")
    assert code == 0 and read(there / "result.json")["resumed_from"] == step, err
    assert all(torch.equal(a, b) for a, b in zip(weights(there).values(), weights(whole).values(), strict=True))
