"""A run that is killed after its training has ended goes on to the same result, in every chapter.

Slow: each experiment of the comparison runs twice.
"""

import json

import pytest

from genbook.lab import experiments, grid, jobs

KNOWN = experiments.load_experiments()
NAMES = [*(e.name for e in experiments.members(KNOWN["evaluate-digits"], KNOWN)), "latent-size-lsgan-digits"]
CLOCK = ("minutes", "per_s", "memory")


def measured(folder):
    "All numbers of a run but those of the clock."
    result = json.loads((folder / "result.json").read_text())
    return {k: m["value"] for k, m in result["metrics"].items() if not any(word in k for word in CLOCK)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_start_after_the_training_gives_the_same_numbers(name, tmp_path):
    few = {"train.steps": 60} if name.startswith("evaluate") else {}
    todo = jobs.expand(KNOWN[name], few, seeds=[0])[:1]
    (first,) = grid.run_jobs(todo, tmp_path)
    assert first.state == "done", first.error
    numbers, trainings = measured(first.dir), len(list(first.dir.glob("checkpoint/*.pt")))
    replay = json.loads((first.dir / "result.json").read_text())["replay"]
    (first.dir / "result.json").unlink()  # as a kill just before the end leaves it
    (again,) = grid.run_jobs(todo, tmp_path)
    assert (again.state, again.error) == ("done", "") and trainings
    result = json.loads((again.dir / "result.json").read_text())
    assert result["resumed_from"] > 0 and result["replay"] == replay
    assert measured(again.dir) == numbers
