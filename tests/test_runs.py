"Runs end to end: papermill, results, kill and resume, faults. A small project of its own, so that a run takes seconds."

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
from pathlib import Path

import nbformat
import psutil
import pytest
import torch

ROOT = Path(__file__).parents[1]
PARAMETERS = """dataset: str = "digits"  # data set
zdim: int = 4  # latent size
steps: int = 300  # iterations
every: int = 20  # iterations between checkpoints
poison: int = -1  # iteration at which the loss becomes NaN
text: str = ""  # any text
slow: float = 0.0  # seconds that an iteration waits
bound: float = 1e9  # what the loss is said to stay below
seed: int = 0  # seed
run_dir: str | None = None  # folder of the run"""
CODE = """import time
import torch
from genbook.core import metric, seed_everything
from genbook.data import Batches, load
from genbook.models.ae import AE
from genbook.runs import Run
from genbook.train import LossStep, fit

seed_everything(seed)
run = Run(run_dir)
data = load(dataset)


class Model(AE):
    def loss(self, x, y=None, *, it=None):
        time.sleep(slow)
        loss = super().loss(x, y, it=it)
        return loss._replace(total=torch.where(it == poison, torch.nan, loss.total))


step = LossStep(Model(data.image_shape, zdim=zdim, tower="mlp", width=16, depth=1), ema=0.99, device="cpu")
history = fit(step, Batches(data.train, 64, seed=seed), steps, run=run, every=every, log_every=10)
run.record(mse=metric("mse", history.column("train/total")[1][-1]))"""
CLAIM = "assert 0 < run.metrics['mse'].value < bound, 'a bad training'  # not for every setting"


@pytest.fixture
def project(tmp_path):
    "A project with one notebook and three experiments."
    (tmp_path / "nbs").mkdir()
    shutil.copy(ROOT / "settings.ini", tmp_path)
    parameters = nbformat.v4.new_code_cell(PARAMETERS)
    parameters.metadata["tags"] = ["parameters"]
    cells = [parameters, *map(nbformat.v4.new_code_cell, (CODE, CLAIM, "run.finish();"))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "nbs/10_tiny.ipynb")
    (tmp_path / "experiments.yaml").write_text(
        "tiny: {notebook: 10_tiny, about: one run}\n"
        "tiny-grid: {notebook: 10_tiny, grid: {zdim: [2, 4]}, seeds: [0, 1], params: {steps: 20}}\n"
        "both: {suite: [tiny, tiny-grid]}\n"
    )
    return tmp_path


def start(project, *args, **kwargs):
    command = [sys.executable, "-c", "from genbook.cli import main; main()", *map(str, args)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | kwargs.pop("env", {})
    return subprocess.Popen(command, cwd=project, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def genbook(project, *args, **kwargs):
    process = start(project, *args, **kwargs)
    out, err = process.communicate(timeout=240)
    assert "Traceback" not in out + err, err
    return process.returncode, out, err


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
    psutil.wait_procs(family, timeout=10)
    process.communicate()


def test_a_run_leaves_everything_it_promises(project):
    code, out, err = genbook(project, "run", "tiny", "-p", "steps", 40)
    assert code == 0, err
    folder = only_run(project)
    assert re.fullmatch(r"digits-s0-[0-9a-f]{8}", folder.name) and str(folder) in out
    result = read(folder / "result.json")
    assert result["schema"] == 1 and result["params"]["steps"] == 40 and result["params"]["zdim"] == 4
    assert result["metrics"]["mse"]["value"] > 0 and result["resumed_from"] == 0
    assert {"commit", "versions", "device", "minutes", "peak_memory_mb", "modules", "notebook_digest"} <= set(result)
    assert "genbook.train" in result["modules"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [10, 20, 30, 40]
    assert read(folder / "status.json")["state"] == "done"
    executed = nbformat.read(folder / "notebook.ipynb", 4)
    assert any("injected-parameters" in c.metadata.get("tags", []) for c in executed.cells)
    assert list((project / "logs/tiny" / folder.name).rglob("events.out.tfevents*"))
    before = (folder / "result.json").stat().st_mtime_ns
    code, out, _ = genbook(project, "run", "tiny", "-p", "steps", 40)
    assert code == 0 and out.startswith("skipped") and (folder / "result.json").stat().st_mtime_ns == before
    code, out, _ = genbook(project, "results", "tiny", "--format", "csv")
    assert code == 0 and out.splitlines()[0].startswith("experiment,setting,model,data,metric,mean,sd")
    code, out, _ = genbook(project, "results", "--save", folder)
    assert code == 0 and read(project / "results/tiny" / f"{folder.name}.json")["metrics"] == result["metrics"]


def test_killed_run_resumes_bit_for_bit(project):
    args = ("run", "tiny", "-p", "slow", 0.01)
    process = start(project, *args)
    end = time.time() + 120
    while not list(project.glob("runs/tiny/*/checkpoint/main.pt")):
        assert process.poll() is None and time.time() < end, "no checkpoint appeared"
        time.sleep(0.02)
    kill_tree(process)
    folder = only_run(project)
    assert not (folder / "result.json").exists()
    code, _, err = genbook(project, *args)
    assert code == 0, err
    assert 0 < read(folder / "result.json")["resumed_from"] < 300
    code, _, err = genbook(project, *args, "--dir", project / "whole")
    assert code == 0, err
    (whole,) = (project / "whole/tiny").iterdir()
    assert whole.name == folder.name and read(whole / "result.json")["resumed_from"] == 0
    resumed, uninterrupted = weights(folder), weights(whole)
    assert all(torch.equal(resumed[k], uninterrupted[k]) for k in uninterrupted)
    rows = [[{k: v for k, v in json.loads(line).items() if k != "time"} for line in (f / "metrics.jsonl").open()] for f in (folder, whole)]
    assert rows[0] == rows[1]
    assert read(folder / "result.json")["metrics"] == read(whole / "result.json")["metrics"]


def test_grid_goes_on_after_a_failure_and_repeats_only_it(project):
    code, out, err = genbook(project, "run", "tiny-grid", "-p", "text", "__import__('os').system('x')", "--workers", 2)
    assert code == 0, err
    assert len(out.splitlines()) > 4 and len(list(project.glob("runs/tiny-grid/*/result.json"))) == 4
    texts = {read(p)["params"]["text"] for p in project.glob("runs/tiny-grid/*/result.json")}
    assert texts == {"__import__('os').system('x')"}  # it stays a string
    code, out, _ = genbook(project, "run", "tiny-grid", "-p", "zdim", 0, "--seeds", "0")
    assert code == 1 and "failed" in out and "zdim: 0" in out
    failed = [p.parent for p in project.glob("runs/tiny-grid/*/status.json") if read(p)["state"] == "failed"]
    assert len(failed) == 1 and (failed[0] / "notebook.ipynb").exists()


def test_failed_assertion_is_reported_and_loses_nothing(project):
    code, out, err = genbook(project, "run", "tiny", "-p", "steps", 20, "-p", "bound", 0.0)
    assert code == 0 and out.startswith("done") and f"with 1 assertion that failed: {CLAIM}" in out, out + err
    result = read(only_run(project) / "result.json")
    assert result["unmet"] == [CLAIM] and result["metrics"]["mse"]["value"] > 0
    assert "a bad training" in (only_run(project) / "notebook.ipynb").read_text()
    code, out, _ = genbook(project, "run", "tiny", "-p", "steps", 20, "-p", "bound", 0.0)
    assert code == 0 and out.startswith("skipped") and "failed: assert 0 <" in " ".join(out.split())
    path = project / "nbs/10_tiny.ipynb"
    path.write_text(path.read_text().replace("'a bad training'", "'a very bad training'"))
    code, out, _ = genbook(project, "run", "tiny", "-p", "steps", 20, "-p", "bound", 0.0)
    assert code == 0 and out.startswith("skipped") and "its code has changed since; --force repeats it" in out
    genbook(project, "run", "tiny", "-p", "steps", 20)
    assert sum("unmet" in read(p) for p in project.glob("runs/tiny/*/result.json")) == 1


def test_nan_names_step_term_and_checkpoint(project):
    at = random.randrange(20, 300)  # checkpoints are at 20, 40, ...
    code, out, _ = genbook(project, "run", "tiny", "-p", "poison", at)
    folder, kept = only_run(project), at // 20 * 20
    assert code == 1 and f"total = nan at step {at + 1}" in out and f"{folder}/checkpoint/main.pt, step {kept}" in out
    assert torch.load(folder / "checkpoint/main.pt", weights_only=True)["it"] == kept


def test_damaged_checkpoint_is_named(project):
    genbook(project, "run", "tiny", "-p", "poison", 57)
    path = only_run(project) / "checkpoint/main.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    code, out, _ = genbook(project, "run", "tiny", "-p", "poison", 57)
    assert code == 1 and f"checkpoint: {path} is damaged" in out and "delete it" in out


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("what", ["checkpoint/main.pt", "result.json"])
def test_killed_while_writing_a_file(tmp_path, what, again):
    "kill -9 with half of the bytes on the disk: what was there before, or nothing, is there after."
    from genbook.runs import Run
    from genbook.train import load_checkpoint, save_checkpoint

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
    from genbook.core import GenbookError
    from genbook.train import load_checkpoint

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"step": {"model": {"w": torch.ones(9)}}, "it": 1, "more": Evil()}, tmp_path / "main.pt")
    with pytest.raises(GenbookError, match="main.pt is damaged .UnpicklingError."):
        load_checkpoint(tmp_path / "main.pt")
    assert not (tmp_path / "made").exists()


def test_full_disk_keeps_the_checkpoint(project):
    "The largest file may have 20 kB: less than the second checkpoint, whose optimiser has a state."
    from genbook.core import GenbookError
    from genbook.train import load_checkpoint, save_checkpoint

    path = project / "main.pt"
    save_checkpoint(path, {"step": {"model": {"w": torch.ones(10)}}, "it": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(GenbookError, match="was not written: File too large; the previous one is whole"):
            save_checkpoint(path, {"step": {"model": {"w": torch.ones(100_000)}}, "it": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path)["it"] == 1 and [p.name for p in project.glob("*main.pt*")] == ["main.pt"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["run", "tiny-gird"], "experiment: there is no 'tiny-gird'; did you mean 'tiny-grid'?"),
        (["run", "tiny", "-p", "zdin", "3"], "parameter 'zdin' is not one of 10_tiny's; did you mean 'zdim'?"),
        (["run", "tiny", "-p", "zdim", "many"], "zdim: 'many' is a str, allowed: int"),
        (["run", "../tiny"], "there is no '../tiny'"),
        (["run", "tiny", "--seeds", "a"], "--seeds: 'a' is not a list of whole numbers"),
        (["list", "nothing"], "experiment: there is no 'nothing'"),
        (["results", "tiny"], "results: there are no finished runs of tiny"),
        (["data", "mnits"], "did you mean 'mnist'?"),
    ],
)
def test_mistakes_get_one_line(project, args, message):
    code, _, err = genbook(project, *args)
    assert code == 2 and message in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    "params, message",
    [(("dataset", "digitz"), "did you mean 'digits'?"), (("zdim", 0), "zdim"), (("dataset", "mnist"), "genbook data mnist")],
)
def test_mistakes_that_the_kernel_finds_get_one_line(project, params, message):
    code, out, err = genbook(project, "run", "tiny", "-p", *params, env={"GENBOOK_DATA": str(project / "nothing")})
    assert code == 1 and message in out and err == "" and len(out.splitlines()) == 1, out + err


@pytest.mark.parametrize(
    "text, message",
    [
        ("tiny: {notebook: 10_tiny, parms: {zdim: 2}}", "experiments: tiny: 'parms' is not one of"),
        ("tiny: {notebook: 10_tine}", "notebook: there is no '10_tine'"),
        ("tiny: {notebook: 10_tiny, params: {zdm: 2}}", "tiny: parameter 'zdm' is not one of 10_tiny's; did you mean 'zdim'?"),
        ("tiny: {notebook: ../secret}", "notebook: there is no '../secret'"),
        ("tiny: {notebook: of/10_tiny}", "notebook: there is no 'of/10_tiny'"),
        ("tiny: {suite: [tinny]}", "did you mean 'tiny'?"),
        ("tiny: [", "is not YAML"),
        ("tiny:", "experiments: tiny: None is not a table of settings"),
        ("tin", "is not a table of names"),
        ("tiny: {notebook: 10_tiny, seeds: 3}", "tiny: seeds: 3 is a int, allowed: list"),
        ("tiny: {notebook: 10_tiny, grid: {zdim: 2}}", "tiny: grid: zdim: 2 is a int, allowed: list"),
        ("../tiny: {notebook: 10_tiny}", "'../tiny' is not a name"),
        ("tiny: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_mistakes_in_experiments_get_one_line(project, text, message):
    (project / "experiments.yaml").write_text(text)
    code, _, err = genbook(project, "run", "tiny")
    assert code == 2 and message in err and len(err.splitlines()) == 1, err


def test_truncated_notebook_is_named(project):
    path = project / "nbs/10_tiny.ipynb"
    path.write_bytes(path.read_bytes()[:-40])
    code, _, err = genbook(project, "run", "tiny")
    assert code == 2 and f"notebook: {path} is not a notebook, or damaged" in err and len(err.splitlines()) == 1, err


LOOPBACK = {"127.0.0.1", "::1"}


def listening(processes):
    "The addresses at which they listen."
    return {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}


def test_two_devices_make_one_record_and_go_on_after_a_kill(project):
    args = ("run", "tiny", "-p", "slow", 0.02, "--devices", 2)
    process = start(project, *args)
    wait_for(project, "runs/tiny/*/checkpoint/main.pt", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert listening(family) <= LOOPBACK and sum("ipykernel" in " ".join(p.cmdline()) for p in family) == 2
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    code, out, err = genbook(project, *args)
    assert code == 0, out + err
    folder = only_run(project)
    result = read(folder / "result.json")
    assert 0 < result["resumed_from"] < 300 and result["device"].startswith("2 x ")
    rows = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert rows == list(range(10, 301, 10))
    assert sorted(p.name for p in folder.rglob("*.ipynb")) == ["notebook.ipynb"] and len(list(project.glob("logs/tiny/*/main"))) == 1


def test_a_mistake_on_two_devices_is_said_once(project):
    code, out, _ = genbook(project, "run", "tiny", "-p", "poison", 57, "--devices", 2)
    assert code == 1 and "total = nan at step 58" in out and f"{only_run(project)}/checkpoint/main.pt, step 40" in out


@pytest.mark.parametrize(
    "args, message",
    [
        (["--devices", 0], "devices: 0, but 1 or more are allowed"),
        (["--devices", 2, "--cluster", "tcp://127.0.0.1:9"], "--devices: 2 with --cluster; allowed: 1"),
    ],
)
def test_impossible_devices_get_one_line(project, args, message):
    code, _, err = genbook(project, "run", "tiny", *args)
    assert code == 2 and message in err and len(err.splitlines()) == 1, err


def test_more_devices_than_gpus_are_refused(monkeypatch):
    from genbook.core import GenbookError
    from genbook.runs import _gpus, _groups

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5,7")
    assert _gpus() == ["0", "2", "5", "7"]
    assert _groups(1, _gpus()) == ["0", "2", "5", "7"] and _groups(2, _gpus()) == ["0,2", "5,7"] and _groups(3, _gpus()) == ["0,2,5"]
    with pytest.raises(GenbookError, match="devices: 5, but there are 4 GPUs"):
        _groups(5, _gpus())


def test_two_starts_never_do_a_run_twice(project):
    first = start(project, "run", "tiny", "-p", "slow", 0.01)
    while not list(project.glob("runs/tiny/*/status.json")):
        time.sleep(0.05)
    code, out, _ = genbook(project, "run", "tiny", "-p", "slow", 0.01)
    assert code == 1 and out.startswith("busy")
    assert first.wait(timeout=120) == 0
    first.communicate()
    assert only_run(project)


def test_real_experiments_are_sound():
    "Every entry of experiments.yaml expands, and says where its numbers come from."
    from genbook.runs import expand, load_experiments

    for name, e in load_experiments(ROOT).items():
        jobs = expand(e, root=ROOT)
        assert len({(j.experiment, j.id) for j in jobs}) == len(jobs), name
        assert e.about, name
        for s in e.source:
            assert "report" in s, name


def newest_kernel(process):
    "The kernel that a start has launched."
    end = time.time() + 120
    while time.time() < end:
        for p in psutil.Process(process.pid).children(recursive=True):
            if any("ipykernel" in word for word in p.cmdline()):
                return p
        time.sleep(0.1)
    raise AssertionError("no kernel appeared")


def wait_for(project, pattern, process):
    end = time.time() + 120
    while not list(project.glob(pattern)):
        assert process.poll() is None and time.time() < end, f"no {pattern} appeared"
        time.sleep(0.02)


def test_dead_worker_costs_its_run_only_what_followed_the_checkpoint(project):
    process = start(project, "run", "tiny", "-p", "slow", 0.02)
    wait_for(project, "runs/tiny/*/checkpoint/main.pt", process)
    newest_kernel(process).parent().kill()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and out.startswith("done"), out + err
    assert 0 < read(only_run(project) / "result.json")["resumed_from"] < 300


def test_dead_kernel_is_reported_and_only_failed_runs_are_repeated(project):
    process = start(project, "run", "tiny", "-p", "slow", 0.02)
    wait_for(project, "runs/tiny/*/checkpoint/main.pt", process)
    newest_kernel(process).kill()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and "failed" in out and "DeadKernelError" in out, out
    genbook(project, "run", "tiny", "-p", "steps", 20)
    code, out, _ = genbook(project, "run", "tiny", "-p", "steps", 20, "--retry-failed")
    assert code == 0 and out == "nothing to do: no run has failed\n"
    code, out, _ = genbook(project, "run", "tiny", "-p", "slow", 0.02, "--retry-failed")
    assert code == 0 and out.startswith("done")


def test_killed_grid_ends_its_workers_and_goes_on(project):
    args = ("run", "tiny-grid", "-p", "slow", 0.2, "-p", "every", 5, "--workers", 2)
    process = start(project, *args, start_new_session=True)
    wait_for(project, "runs/tiny-grid/*/checkpoint/main.pt", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert listening(family) <= LOOPBACK
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive and not list(project.glob("runs/tiny-grid/*/result.json"))
    begun = next(project.glob("runs/tiny-grid/*/checkpoint/main.pt")).parents[1]
    (begun / ".metrics.jsonl.1.tmp").write_text("half of it")
    params = read(begun / "params.json")["params"]
    code, out, err = genbook(project, *args, "-p", "zdim", params["zdim"], "--seeds", params["seed"])
    assert code == 0 and read(begun / "result.json")["resumed_from"] >= 5, out + err
    assert not list(begun.rglob("*.tmp"))


def test_hanging_kernel_meets_the_time_limit(project):
    began = time.time()
    code, out, _ = genbook(project, "run", "tiny", "-p", "slow", 30, "--time-limit", 0.2)
    assert code == 1 and "stopped after 12 seconds, the time limit" in out and time.time() - began < 60, out


def test_stopping_is_clean_and_a_second_start_goes_on(project):
    args = ("run", "tiny", "-p", "slow", 0.02)
    interruptible = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever started the tests may ignore it
    process = start(project, *args, start_new_session=True, preexec_fn=interruptible)
    wait_for(project, "runs/tiny/*/checkpoint/main.pt", process)
    kernel = newest_kernel(process)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C sends
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130 and err.strip() == "genbook: stopped; the same command goes on from here", err
    psutil.wait_procs([kernel], timeout=20)
    assert not kernel.is_running()
    code, out, _ = genbook(project, *args)
    assert code == 0 and read(only_run(project) / "result.json")["resumed_from"] > 0


def test_cluster_gives_the_same_results_when_a_worker_dies(project):
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'genbook[cluster]'")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*dask, "--scheduler-file", "scheduler.json"], cwd=project, env=env, stderr=subprocess.DEVNULL)
    wait_for(project, "scheduler.json", scheduler)
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", "scheduler.json", "--nthreads", "1", "--no-nanny"]
    workers = [subprocess.Popen([*worker, "--no-dashboard"], cwd=project, env=env, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        args = ("run", "tiny-grid", "-p", "slow", 0.05, "-p", "every", 5)
        process = start(project, *args, "--cluster", read(project / "scheduler.json")["address"])
        wait_for(project, "runs/tiny-grid/*/checkpoint/main.pt", process)
        time.sleep(0.5)
        workers[0].kill()
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0 and "Traceback" not in out + err, out + err
    finally:
        for p in [*workers, scheduler]:
            p.kill()
            p.wait()
    genbook(project, *args, "--dir", project / "local")
    here, there = (
        {p.parent.name: read(p)["metrics"] for p in (project / d / "tiny-grid").glob("*/result.json")} for d in ("local", "runs")
    )
    assert len(here) == 4 and here == there


def test_cluster_that_is_not_there_is_named(project):
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'genbook[cluster]'")
    code, _, err = genbook(project, "run", "tiny", "--cluster", "tcp://127.0.0.1:9")
    assert code == 2 and "cluster: there is no scheduler at tcp://127.0.0.1:9" in err


@pytest.mark.slow
def test_fifty_kills_at_random_moments(project, capsys):
    "Nothing finished is lost, and no partial file is ever read as a whole one."
    from genbook.train import load_checkpoint

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
