"Kept results, their schema, the tables that are drawn from them, and what makes a run stale."

import copy
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy import stats

from genbook import runs
from genbook.cli import cli
from genbook.core import METRICS, GenbookError

ROOT = Path(__file__).parents[1]
KEPT = sorted((ROOT / "results").glob("*/*.json"))
EXAMPLE = json.loads((ROOT / "results/vae-mlp-mnist/mnist-s0-890adc4f.json").read_text())


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.stem)
def test_kept_results_are_as_the_schema_says(path):
    result = json.loads(path.read_text())
    runs.check_result(result)
    assert (result["experiment"], result["run_id"]) == (path.parent.name, path.stem)
    for name, m in result["metrics"].items():
        assert m["unit"] == METRICS[name.partition("__")[0]][0]
    if result.get("model"):  # a study of real images has no samples
        assert path.with_suffix(".png").stat().st_size < 100_000
    assert path.stat().st_size < 40_000


def test_only_results_and_their_thumbnails_are_kept():
    known = {p for path in KEPT for p in (path, path.with_suffix(".png"))} | {ROOT / "results/schema.json"}
    assert {*KEPT} <= {p for p in (ROOT / "results").rglob("*") if p.is_file()} <= known


def changed(keys, value):
    "The example with one thing in it changed, or left out."
    result = copy.deepcopy(EXAMPLE)
    *path, last = keys
    inner = result
    for key in path:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return result


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["schema"], 2, "schema"),
        (["device"], None, "'device' is a required property"),
        (["metrics"], {}, "metrics"),
        (["metrics", "elbo", "n"], 0.5, "metrics.elbo.n"),
        (["metrics", "elbo", "estimator"], None, "metrics.elbo: 'estimator'"),
        (["metrics", "elbo", "se"], -1.0, "metrics.elbo.se"),
        (["metrics", "elbo", "value"], float("inf"), "infinite or not a number"),
        (["params", "seed"], None, "params"),
        (["params", "steps"], [1, 2], "params.steps"),
        (["notebook_digest"], "xyz", "notebook_digest"),
    ],
)
def test_other_results_are_refused_in_one_line(keys, value, words):
    with pytest.raises(GenbookError, match="^result: ") as e:
        runs.check_result(changed(keys, value))
    assert words in str(e.value) and "\n" not in str(e.value)


def finished(folder, result):
    "A finished run in a folder."
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "status.json").write_text('{"state": "done"}')
    return folder


@pytest.fixture
def project(tmp_path):
    "A project with results/ and its schema, and two runs that differ in their seed and in one number."
    (tmp_path / "results").mkdir()
    (tmp_path / "results/schema.json").write_text((ROOT / "results/schema.json").read_text())
    (tmp_path / "settings.ini").write_text("")
    for seed, value in ((0, 2.0), (1, 4.0)):
        result = changed(["metrics", "elbo", "value"], value) | {"run_id": f"mnist-s{seed}-890adc4f"}
        result["params"] = result["params"] | {"seed": seed}
        folder = finished(tmp_path / "runs/vae-mlp-mnist" / result["run_id"], result)
        runs._save_images(folder / "samples.png", torch.rand(23, 1, 4, 4))
    return tmp_path


def test_save_keeps_result_and_samples(project):
    folder = project / "runs/vae-mlp-mnist/mnist-s1-890adc4f"
    out = runs.save(folder, project)
    assert out == project / "results/vae-mlp-mnist/mnist-s1-890adc4f.json"
    assert json.loads(out.read_text()) == json.loads((folder / "result.json").read_text())
    assert Image.open(out.with_suffix(".png")).size == (40, 8)  # ten in a row, whole rows only
    bad = finished(project / "runs/x/mnist-s0-00000000", changed(["metrics", "elbo", "n"], "many"))
    with pytest.raises(GenbookError, match=r"result: metrics.elbo.n: 'many'"):
        runs.save(bad, project)
    assert not (project / "results/x").exists()


def test_samples_are_kept_pixel_by_pixel(tmp_path):
    images = torch.rand(20, 3, 5, 4)
    runs._save_images(tmp_path / "a.png", images)
    picture = Image.open(tmp_path / "a.png")
    assert picture.size == (40, 10)
    for i, x, y in ((0, 0, 0), (13, 3, 4), (19, 1, 2)):
        pixel = picture.getpixel((4 * (i % 10) + x, 5 * (i // 10) + y))
        assert list(pixel) == (images[i, :, y, x] * 255).round().int().tolist()


def shown(project, monkeypatch, *args):
    monkeypatch.chdir(project)
    out = CliRunner().invoke(cli, ["results", "--dir", str(project / "runs"), *args])
    assert out.exit_code == 0, out.exception
    return out.output


def test_tables_in_the_terminal_have_mean_deviation_and_card(project, monkeypatch):
    out = shown(project, monkeypatch)
    assert "mnist dynamic: likelihood" in out and "mnist dynamic: cost" in out
    assert "3 ± 1.4" in out and "stale" in out
    assert "elbo [nats]: test, n = 10,000; 500 samples" in out and "device: CPU (x86_64)" in out


def test_the_same_as_markdown_csv_json_and_all(project, monkeypatch):
    assert "| 3 ± 1.4 |" in shown(project, monkeypatch, "--format", "md")
    lines = list(csv.DictReader(io.StringIO(shown(project, monkeypatch, "--format", "csv"))))
    (elbo,) = [line for line in lines if line["metric"] == "elbo"]
    assert float(elbo["mean"]) == 3.0 and float(elbo["sd"]) == pytest.approx(2**0.5) and elbo["seeds"] == "2" and elbo["n"] == "10000"
    (row,) = json.loads(shown(project, monkeypatch, "--format", "json"))
    assert row["metrics"]["elbo"]["mean"] == 3.0 and row["seeds"] == 2 and row["stale"] and row["data"] == "mnist dynamic"
    assert "mutual_information" in shown(project, monkeypatch, "--format", "all")


def test_a_missing_number_is_an_empty_cell(project):
    results = runs.load(None, project / "runs", project)
    other = copy.deepcopy(results[0]) | {"experiment": "ae", "notebook": "10_models.ae", "metrics": {"mse": results[0]["metrics"]["mse"]}}
    table = runs.tables(runs.summary([*results, other]))[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["model"] == "ae" and row["elbo ↑"] == "" and row["mse ↓"] != ""


def test_comments_docstrings_and_prose_leave_a_run_fresh(tmp_path):
    code = 'def f(x):\n    "Says."\n    return 2 * x  # twice\n'
    (tmp_path / "nbs").mkdir()
    (tmp_path / "genbook").mkdir()
    notebook, module = tmp_path / "nbs/10_a.ipynb", tmp_path / "genbook/a.py"

    def write(source, text="prose"):
        cells = [{"cell_type": "markdown", "source": [text]}, {"cell_type": "code", "source": source.splitlines(True)}]
        notebook.write_text(json.dumps({"cells": cells}))
        module.write_text(source)

    write(code)
    result = {"notebook": "10_a", "notebook_digest": runs.notebook_digest(notebook), "modules": {"genbook.a": runs.code_digest(code)}}
    assert not runs.is_stale(result, tmp_path)
    write(code.replace("Says.", "Says more.").replace("# twice", "# two times"), "other prose")
    assert not runs.is_stale(result, tmp_path)
    write(code.replace("2 * x", "3 * x"))
    assert runs.is_stale(result, tmp_path)
    write(code)
    module.write_text(code.replace("2", "3"))
    assert runs.is_stale(result, tmp_path)
    module.unlink()
    assert runs.is_stale(result, tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_verdict_is_the_t_test_and_the_f_test(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(2, 8, 2)
    low, high = rng.lognormal(0, 0.3, n).tolist(), rng.lognormal(rng.normal(), 0.3 * rng.choice([1, 5]), m).tolist()
    t = stats.ttest_ind(high, low, equal_var=False)
    assert runs.verdict(low, high) == ("not decided" if t.pvalue > 0.05 else "upheld" if t.statistic > 0 else "not upheld")
    k = min(n, m)
    t = stats.ttest_rel(high[:k], low[:k])
    paired = runs.verdict(dict(enumerate(low[:k])), dict(enumerate(high[:k])))
    assert paired == ("not decided" if t.pvalue > 0.05 else "upheld" if t.statistic > 0 else "not upheld")
    ratio = np.var(np.log(high), ddof=1) / np.var(np.log(low), ddof=1)
    p = 2 * min(stats.f.cdf(ratio, m - 1, n - 1), stats.f.sf(ratio, m - 1, n - 1))
    assert runs.verdict(low, high, of="deviation") == ("not decided" if p > 0.05 else "upheld" if ratio > 1 else "not upheld")


def test_every_number_of_the_reports_says_what_answers_it():
    "Sources name registered metrics and known experiments, so that chapter 90 finds them."
    known = runs.load_experiments(ROOT)
    for name, e in known.items():
        for s in e.source:
            for key in ("ours", "right"):
                words = " ".join([s[key]] if isinstance(s.get(key), str) else s.get(key, [])).split()
                names = [w for w in words if "=" not in w]
                assert all(w in known or w.partition("__")[0] in METRICS for w in names), (name, words)
