"Every full-size experiment passes 20 steps as it stands, on whatever device there is, stops on Ctrl-C, and goes on from its checkpoint."

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from genbook import datasets
from genbook.core import GenbookError
from genbook.lab.experiments import TABLES, get_experiment
from genbook.lab.jobs import expand, look_up


def reached(runs, step):
    "Whether a run has its checkpoint and a row of losses of that step."
    rows = [json.loads(line) for f in runs.glob("*/*/metrics.jsonl") for line in f.read_text().splitlines()]
    return any(r["step"] >= step for r in rows) and any(runs.glob("*/*/checkpoint/main.pt"))


def named(path):
    "The name on the command line of a parameter at a path, e.g. model.layers."
    short = {name: table for table, name in TABLES.items()}
    return ".".join(short.get(part, part) for part in path)


def test_the_names_of_varied_parameters_are_those_of_the_command_line():
    jobs = expand(get_experiment("iwae-mnist"))
    assert [named(path) for path in jobs[-1].varied] == ["dataset", "model.k", "seed"]
    assert [look_up(jobs[-1].params, path) for path in jobs[-1].varied] == ["mnist-static", 50, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", get_experiment("full-size").suite)
def test_twenty_steps_and_on(name, tmp_path):
    jobs = expand(get_experiment(name))
    try:
        datasets.load(jobs[0].params["dataset"])
    except GenbookError as e:
        pytest.skip(str(e))
    options = ["-p", "train.every", "10"]
    for path in jobs[-1].varied:  # the last of a grid: most layers, most samples
        if path != ("seed",):
            options += ["-p", named(path), str(look_up(jobs[-1].params, path))]
    command = [sys.executable, "-c", "from genbook.lab.cli import main; main()", "run", name, "--seeds", "0", *options]
    for step in (20, 30):
        end = time.time() + 1200
        process = subprocess.Popen(
            command,
            env=os.environ | {"GENBOOK_RUNS": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever started the tests may ignore it
        )
        while process.poll() is None and not reached(tmp_path, step) and time.time() < end:
            time.sleep(1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0].decode()
        assert reached(tmp_path, step), said
        assert process.returncode == 130, said
