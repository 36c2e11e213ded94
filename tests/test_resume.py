"""A run that is killed after trainings have ended goes on to the same result, in every chapter.

Slow: each experiment of the comparison runs twice.
"""

import json

import pytest

from genbook import runs

NAMES = [*runs.get_experiment("evaluate-digits").suite, "latent-size-lsgan-digits"]
CLOCK = ("minutes", "per_s", "memory")


def measured(folder):
    "All numbers of a run but those of the clock."
    result = json.loads((folder / "result.json").read_text())
    return {k: m["value"] for k, m in result["metrics"].items() if not any(word in k for word in CLOCK)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_start_after_all_trainings_gives_the_same_numbers(name, tmp_path):
    few = {"steps": 60} if name.startswith("evaluate") else {}
    jobs = runs.expand(runs.get_experiment(name), few, seeds=[0])[:1]
    (first,) = runs.run_jobs(jobs, tmp_path)
    assert first.state == "done", first.error
    numbers, trainings = measured(first.dir), len(list(first.dir.glob("checkpoint/*.pt")))
    (first.dir / "result.json").unlink()  # as a kill just before the end leaves it
    (again,) = runs.run_jobs(jobs, tmp_path)
    assert (again.state, again.error) == ("done", "") and trainings
    assert json.loads((again.dir / "result.json").read_text())["resumed_from"] > 0
    assert measured(again.dir) == numbers
