"What all tests share: one thread, one seed, the root of the repository."

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: results do not depend on the machine's cores

import fcntl
import random
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    "Tests marked gpu are skipped, not failed, where there is none."
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seeded():
    "Each test begins at seed 0 and leaves torch's generators as they were."
    random.seed(0)
    np.random.seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    "The folder of the repository."
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    "`once(name, make)` is a folder that all workers share: one of them calls `make(folder)`, the others wait."
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared

    def folder(name, make):
        place, done = shared / name, shared / f"{name}.done"
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                place.mkdir()
                make(place)
                done.touch()
        return place

    return folder


@pytest.fixture(scope="session")
def book(once, root) -> Path:
    "The folder of the plain book: every chapter of the repository with the outputs that its source keeps, as if just executed."
    return once("book", lambda project: bound(project, root)) / "_report"


def bound(project: Path, root: Path) -> None:
    "The plain book as a project, with its pages in `_report`."
    import nbformat

    from genbook.lab import editions, report, staging

    executed = []
    for path in report.chapters(root):
        nb, copy = nbformat.read(path, 4), project / "runs" / path.relative_to(root / "nbs")
        for i, c in enumerate((c for c in nb.cells if c.cell_type == "code"), 1):
            c.execution_count = i
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, copy)
        executed.append(copy)
    for name in ("index.qmd", "nbs/refs.bib", "nbs/00_core.ipynb"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, project / name)
    staging.stage(executed, project / "report")
    for name, text in {"run": editions.preface(executed), "checks": editions.checks(project / "report")}.items():
        (project / f"report/_{name}.md").write_text(text, encoding="utf-8")
    report.plain(project)
    report.notebooks(project)
