"Kept results are verified: a comment changes nothing, ten planted mutations are seen, and the command line says which and why."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genbook.lab import cli, results
from genbook.lab.training import Training, replayed, training_of
from genbook.lab.verify import compare, verify_result, wandering

ROOT = Path(__file__).parents[1]


def training(notebook, config, model=None, **train):
    "What a result says of its training."
    tables = {"model_args": model or {}, "train_args": {"steps": 60, "batch_size": 32} | train, "measure_args": {}}
    params = {"dataset": "digits", "size": None, "config": config, **tables, "seed": 0, "device": "cpu"}
    return {"notebook": notebook, "params": params, "device": "CPU (any), 1 thread"}


TRAININGS = [
    training("models/11_vae", "mlp_digits", {"kl": "linear", "kl_args": {"steps": 50}}, warmup=10, ema=0.9, clip=1.0),
    training("models/30_gan", "digits", {"init": 0.05}, critic_lr=1e-3),
    training("models/21_realnvp", "digits_small", {"noise": "uniform", "couplings": [1, 1, 1], "depth": 1}, batch_size=16),
]
MUTATIONS = {  # what: module, code, other code
    "a factor in a term": ("models/vae.py", "rec + beta * free_bits_kl(", "rec + 1.01 * beta * free_bits_kl("),
    "a term left out": ("models/vae.py", "rec + beta * free_bits_kl(kl, free_bits), rec", "rec + 0 * beta, rec"),
    "a schedule shifted": ("optim.py", "rise = ((it + 1) / max(warmup, 1))", "rise = ((it + 0) / max(warmup, 1))"),
    "no average": ("steps.py", "EMA(self.averaged(model), ema) if ema else None", "None"),
    "another split": (
        "data.py",
        "torch.Generator().manual_seed(seed))\n    if official",
        "torch.Generator().manual_seed(seed + 1))\n    if official",
    ),
    "another initialisation": ("models/gan.py", "_BatchNorm)), std)", "_BatchNorm)), 1.01 * std)"),
    "another beta of Adam": ("optim.py", 'kwargs["betas"] = tuple(betas)', 'kwargs["betas"] = (betas[0] - 0.01, betas[1])'),
    "no clipping": ("steps.py", "if part.clip is not None:", "if False:"),
    "noise scaled": ("models/realnvp.py", "(self.levels - 1) + u) / self.levels", "(self.levels - 1) + 0.99 * u) / self.levels"),
    "another order": ("data.py", "_generator(batches.seed, epoch)", "_generator(batches.seed + 1, epoch)"),
}
FORKS = """import json, os, sys
import sklearn.datasets, torch  # all that is heavy and not ours, once

torch.set_num_threads(1)
torch.optim.Adam([torch.zeros(1)], fused=True).step()  # which loads more of it
known, copies = json.load(sys.stdin)
for name, folder in copies.items():
    out, into = os.pipe()
    if os.fork() == 0:
        sys.path.insert(0, folder)
        import genbook
        assert genbook.__file__.startswith(folder)
        from genbook.lab.training import Training, replayed, training_of
        from genbook.lab.verify import verify_result

        if name == "as it is":
            said = [result | {"replay": replayed(training_of(result))} for result in known]
        else:
            said = []
            for result in known:  # until one differs
                said.append(verify_result(result))
                if said[-1].state != "same":
                    break
        with open(into, "w") as f:
            json.dump(said, f)
        os._exit(0)
    os.close(into)
    with open(out) as f:
        said = json.load(f)
    if name == "as it is":
        known = said
    print(json.dumps([name, said]), flush=True)
    os.wait()
"""


def copied(place, *changes):
    "A copy of the package with other code."
    shutil.copytree(ROOT / "genbook", place / "genbook", ignore=shutil.ignore_patterns("assets"))
    for module, old, new in changes:
        path = place / "genbook" / module
        text = path.read_text()
        assert text.count(old) == 1, f"the plant needs its place: {module}: {old!r}"
        path.write_text(text.replace(old, new))
    return str(place)


def test_a_comment_changes_nothing_and_planted_mutations_are_seen(tmp_path):
    copies = {"as it is": copied(tmp_path / "as-it-is"), "comments": copied(tmp_path / "comments")}
    for path in (tmp_path / "comments/genbook").rglob("*.py"):
        lines = [
            f"{line}  # a comment" if line.endswith(":") and '"' not in line and "\\" not in line else line
            for line in path.read_text().splitlines()
        ]
        path.write_text("\n".join([*lines, "", "# and one more", ""]))
    copies |= {name: copied(tmp_path / str(i), change) for i, (name, change) in enumerate(MUTATIONS.items())}
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", FORKS], input=json.dumps([TRAININGS, copies]), capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    said = dict(map(json.loads, done.stdout.splitlines()))
    assert said.keys() == copies.keys(), done.stderr
    assert said["comments"] == [["same", ""]] * len(TRAININGS), said["comments"]
    missed = [name for name in MUTATIONS if said[name][-1][0] != "changed"]
    assert len(missed) <= 1, missed
    assert "lr at 0 % of the training is 0, was" in said["a schedule shifted"][-1][1]
    assert "total at step " in said["a factor in a term"][-1][1]


def nudged(result, seed):
    "The replay of a training whose weights begin one rounding off."
    made = training_of(result)
    with torch.no_grad():
        for p in made.step.model.parameters():
            p.copy_(torch.nextafter(p, p + torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))))
    return replayed(made)


def test_what_one_rounding_grows_to_is_no_change_and_what_is_more_is_one():
    "Two players with Adam are chaotic; a VAE is not."
    player = json.loads((ROOT / "results/wgan-clip-digits/digits-s2-b6bfe39b.json").read_text())
    here, there = replayed(training_of(player)), nudged(player, 100)
    moved = wandering(player, here)
    assert all(values == sorted(values) for values in moved.values()) and moved["critic"][-1] > 1e-4
    assert moved["critic"][0] < 1e-4 and max(moved["critic_lr"]) == 0
    assert compare(there, here, chaos=moved).state == verify_result(player | {"replay": there}).state == "same"
    for changes in ({"lr": 1.01e-3}, {"batch_size": 63}):
        other = replayed(training_of({**player, "params": player["params"] | {"train_args": player["params"]["train_args"] | changes}}))
        assert verify_result(player | {"replay": other}).state == "changed", changes
    calm = wandering(TRAININGS[0], replayed(training_of(TRAININGS[0])), 1)
    assert calm["total"][-1] < 1e-2  # of hundreds of nats


# ---- the command


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project that keeps four results: as they were, of other numbers, without a replay, of data that are not there."
    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "results/schema.json", tmp_path / "results")
    metrics = {"bits_per_dim": {"value": 2.0, "se": 0.1, "n": 360, "unit": "bits/dim", "split": "test", "estimator": ""}}
    about = {"schema": 2, "metrics": metrics, "minutes": 1.0, "model": None} | TRAININGS[0]
    replay = replayed(training_of(about))
    other = json.loads(json.dumps(replay))
    other["terms"]["total"][3] *= 1.001
    missing = about["params"] | {"dataset": "mnist"}
    monkeypatch.setenv("GENBOOK_DATA", str(tmp_path / "data"))
    for name, changes in {
        "good": {"replay": replay},
        "other": {"replay": other},
        "old": {"replay": None},
        "away": {"replay": replay, "params": missing},
    }.items():
        result = about | {"experiment": name, "run_id": "digits-s0-00000000"} | changes
        (tmp_path / f"results/{name}").mkdir()
        (tmp_path / f"results/{name}/digits-s0-00000000.json").write_text(json.dumps(result))
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, monkeypatch, *args):
    "The command in this process: status, lines of output, errors."
    monkeypatch.setattr(sys, "argv", ["genbook", *args])
    code = 0
    try:
        cli.main()
    except SystemExit as e:
        code = e.code
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_what_differs_is_said_and_remembered(project, capsys, monkeypatch):
    code, lines, err = said(capsys, monkeypatch, "verify")
    assert code == 1 and err == "" and lines[-1] == "1 same, 1 changed, 2 cannot"
    found = {name.partition("/")[0]: (state, why) for state, name, why in (line.split(None, 2) for line in lines[:-1])}
    assert found["away"][0] == found["old"][0] == "cannot" and found["other"][0] == "changed"
    assert "fetch it with: genbook data mnist" in found["away"][1] and found["old"][1] == "no training was recorded"
    assert found["other"][1].startswith("total at step 4 is ")
    assert list(results.changed_results(project)) == ["other/digits-s0-00000000"]
    (row,) = results.load("other")
    assert row["changed"].startswith("total at step 4") and not results.load("good")[0]["changed"]
    _, lines, _ = said(capsys, monkeypatch, "results", "other", "--format", "all")
    assert any("changed" in line for line in lines)


def test_a_result_that_is_good_again_is_no_longer_marked(project, capsys, monkeypatch):
    said(capsys, monkeypatch, "verify", "other")
    path = project / "results/other/digits-s0-00000000.json"
    good = json.loads((project / "results/good/digits-s0-00000000.json").read_text())
    path.write_text(json.dumps(good | {"experiment": "other"}))
    code, lines, _ = said(capsys, monkeypatch, "verify", "other")
    assert code == 0 and lines == ["1 same, 0 changed, 0 cannot"] and results.changed_results(project) == {}


def test_embedded_data_alone_can_be_asked_for(project, capsys, monkeypatch):
    code, lines, _ = said(capsys, monkeypatch, "verify", "--embedded")
    assert code == 1 and lines[-1] == "1 same, 1 changed, 1 cannot" and not any("away" in line for line in lines)
    code, _, err = said(capsys, monkeypatch, "verify", "away", "--embedded")
    assert code == 2 and err == "genbook: verify: there are no kept results of away\n"


def test_what_a_chapter_draws_before_it_trains_changes_nothing():
    "The first steps of a run are those that a replay repeats, whatever figures stand between building and training."
    made = {
        "family": "vae",
        "dataset": "digits",
        "config": "mlp_digits",
        "model_args": {"width": 16},
        "train_args": {"steps": 3, "warmup": 1},
    }
    wanted, drawn = replayed(Training(**made))["terms"], Training(**made)
    torch.randn(5)
    drawn.fit(progress=False)
    assert drawn.histories["main"].first["total"][:3] == wanted["total"]
