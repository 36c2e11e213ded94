"What all tests share: one thread, one seed, the root of the repository."

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: results do not depend on the machine's cores

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
