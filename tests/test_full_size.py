"Every full-size experiment takes 20 steps at its real shapes, whole notebook, on whatever device there is. It needs the data."

import json
import os
import subprocess
import sys

import pytest

from genbook import data
from genbook.core import GenbookError
from genbook.runs import expand, get_experiment

STEPS = {"steps": 20, "epochs": None, "every": 10, "warmup": 0}
FEW = {
    "iw_k": 2,
    "iw_n": 100,
    "study_steps": 5,
    "posterior_steps": 5,
    "s0_steps": 5,
    "ring_steps": 20,
    "fidelity_n": 100,
    "draws": 2,
    "fid_n": 0,
    "per_class": 10,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", get_experiment("full-size").suite)
def test_twenty_steps_at_real_shapes(name, tmp_path):
    jobs = expand(get_experiment(name))
    try:
        data.load(jobs[0].params["dataset"])
    except GenbookError as e:
        pytest.skip(str(e))
    short = {k: v for k, v in (STEPS | FEW).items() if k in jobs[0].params}
    one = {k: jobs[-1].params[k] for k in jobs[-1].varied if k != "seed"}  # the last of a grid: the most layers, or samples
    options = [a for k, v in (one | short).items() for a in ("-p", k, str(v))]
    command = [sys.executable, "-c", "from genbook.cli import main; main()", "run", name, "--seeds", "0", *options]
    done = subprocess.run(command, env=os.environ | {"GENBOOK_RUNS": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = tmp_path.glob("*/*/result.json")
    assert json.loads(result.read_text())["metrics"]
