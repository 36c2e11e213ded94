"""Every notebook, executed once from top to bottom by what `nbdev_test` calls.

Each has a process of its own, forked from the one that runs the tests: what that has imported need not be imported again, and what a
notebook registers goes with it. The largest come first, so that none is left for the end.
"""

import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

import pytest
import torch
from nbdev import test as nbdev

ROOT = Path(__file__).parents[1]
HIDDEN = (".", "_")
NOTEBOOKS = [p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part.startswith(HIDDEN) for part in p.relative_to(ROOT).parts)]
NOTEBOOKS.sort(key=lambda p: -p.stat().st_size)


IMPORTED = """IPython.display matplotlib.pyplot scipy.stats sklearn.datasets sklearn.decomposition sklearn.mixture sklearn.neighbors
nbformat fastcore.test genbook.lab.training genbook.lab.plots genbook.lab.explorers genbook.lab.diagrams genbook.measure.protocol"""


@pytest.fixture(scope="module", autouse=True)
def imported():
    "What most notebooks import, and what torch imports with the first step of an optimiser: once, not in every process."
    for name in IMPORTED.split():
        import_module(name)
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight], fused=True).step()


def executed(path, log):
    "Whether every cell of a notebook runs; what it prints and where it fails goes to a file."
    child = os.fork()
    if child == 0:
        done = False
        try:
            sys.stdout = sys.stderr = open(log, "w")
            done, _ = nbdev.test_nb(path, basepath=ROOT)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(not done)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").with_suffix("").as_posix())
def test_notebook(path, tmp_path):
    assert executed(path, tmp_path / "log"), (tmp_path / "log").read_text()


def test_a_cell_that_fails_is_seen(tmp_path):
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in ("x = 1", "assert x == 2, 'not two'")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "wrong.ipynb")
    assert not executed(tmp_path / "wrong.ipynb", tmp_path / "log") and "not two" in (tmp_path / "log").read_text()
