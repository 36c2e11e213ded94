"Kept results, their schema, the tables that are drawn from them; the files of experiments and claims."

import copy
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from rich.console import Console
from scipy import stats

from genbook.core import METRICS, GenbookError
from genbook.lab import claims, experiments, jobs, results, runs, show, tables
from genbook.lab.cli import cli

ROOT = Path(__file__).parents[1]
KEPT = sorted((ROOT / "results").glob("*/*.json"))
EXAMPLE = json.loads((ROOT / "results/vae-mlp-mnist/mnist-dynamic-s0-19bb3958.json").read_text())
JOBS = {name: jobs.expand(e) for name, e in experiments.load_experiments(ROOT).items() if not e.suite}


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.stem)
def test_kept_results_are_as_the_schema_says(path):
    result = json.loads(path.read_text())
    results.check_result(result)
    assert (result["experiment"], result["run_id"]) == (path.parent.name, path.stem)
    for name, m in result["metrics"].items():
        assert m["unit"] == METRICS[name.partition("__")[0]][0]
    if result.get("model"):  # a study of real images has no samples
        assert path.with_suffix(".png").stat().st_size < 100_000
    assert path.stat().st_size < 40_000


def test_only_results_and_their_thumbnails_are_kept():
    known = {p for path in KEPT for p in (path, path.with_suffix(".png"))} | {
        ROOT / "results" / name for name in ("schema.json", "changed.json")
    }
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
        (["schema"], 1, "schema"),
        (["device"], None, "'device' is a required property"),
        (["metrics"], {}, "metrics"),
        (["metrics", "elbo", "n"], 0.5, "metrics.elbo.n"),
        (["metrics", "elbo", "estimator"], None, "metrics.elbo: 'estimator'"),
        (["metrics", "elbo", "se"], -1.0, "metrics.elbo.se"),
        (["metrics", "elbo", "value"], float("inf"), "infinite or not a number"),
        (["params", "seed"], None, "params"),
        (["params", "train_args"], [1, 2], "params.train_args"),
        (["replay", "terms"], None, "replay"),
        (["replay"], None, "'replay' is a required property"),
    ],
)
def test_other_results_are_refused_in_one_line(keys, value, words):
    with pytest.raises(GenbookError, match="^result: ") as e:
        results.check_result(changed(keys, value))
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
        result = changed(["metrics", "elbo", "value"], value) | {"run_id": f"mnist-dynamic-s{seed}-19bb3958"}
        result["params"] = result["params"] | {"seed": seed}
        folder = finished(tmp_path / "runs/vae-mlp-mnist" / result["run_id"], result)
        (folder / "samples.png").write_bytes(runs.png_of(torch.rand(23, 1, 4, 4)))
    return tmp_path


def test_save_keeps_result_and_samples(project):
    folder = project / "runs/vae-mlp-mnist/mnist-dynamic-s1-19bb3958"
    out = results.save(folder, project)
    assert out == project / "results/vae-mlp-mnist/mnist-dynamic-s1-19bb3958.json"
    assert json.loads(out.read_text()) == json.loads((folder / "result.json").read_text())
    assert Image.open(out.with_suffix(".png")).size == (40, 8)  # ten in a row, whole rows only
    bad = finished(project / "runs/x/mnist-s0-00000000", changed(["metrics", "elbo", "n"], "many"))
    with pytest.raises(GenbookError, match=r"result: metrics.elbo.n: 'many'"):
        results.save(bad, project)
    assert not (project / "results/x").exists()


def test_samples_are_kept_pixel_by_pixel(tmp_path):
    images = torch.rand(20, 3, 5, 4)
    (tmp_path / "a.png").write_bytes(runs.png_of(images))
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
    out = shown(project, monkeypatch, "--all")
    assert "mnist-dynamic: likelihood" in out and "mnist-dynamic: cost" in out
    assert "3 ± 1.4" in out and "changed" not in out
    assert "elbo [nats]: test, n = 10,000; 500 samples" in out and "device: CPU (x86_64)" in out


def test_what_is_looked_at_first_is_short(project, monkeypatch):
    "A line an experiment; of one by name or pattern a table of at most a screen, at 80 columns and at 200."
    for seed in range(30):
        result = changed(["metrics", "bits_per_dim", "value"], 1.0 + seed / 10)
        result |= {"run_id": f"mnist-dynamic-s0-{seed:08x}", "params": result["params"] | {"model_args": {"zdim": seed}}}
        finished(project / "runs/vae-mlp-mnist" / result["run_id"], result)
    for width in ("80", "200"):
        monkeypatch.setattr(show, "console", lambda stderr=False, width=None, w=int(width): Console(width=w, highlight=False))
        whole = shown(project, monkeypatch).splitlines()
        assert len(whole) <= 5 and whole[1].startswith("vae-mlp-mnist  0.1614–3.9") and "bits_per_dim" in whole[1] and "NAME" in whole[-1]
        for name in ("vae-mlp-mnist", "vae-*"):
            table = shown(project, monkeypatch, name).splitlines()
            assert len(table) <= 24 and max(map(len, table)) <= int(width) and "more: --all shows them" in "".join(table)
            assert "zdim=11" in "".join(table) and "bits_per_dim" in table[1]


def test_the_same_as_markdown_csv_json_and_all(project, monkeypatch):
    assert "| 3 ± 1.4 |" in shown(project, monkeypatch, "--format", "md")
    lines = list(csv.DictReader(io.StringIO(shown(project, monkeypatch, "--format", "csv"))))
    (elbo,) = [line for line in lines if line["metric"] == "elbo"]
    assert float(elbo["mean"]) == 3.0 and float(elbo["sd"]) == pytest.approx(2**0.5) and elbo["seeds"] == "2" and elbo["n"] == "10000"
    (row,) = json.loads(shown(project, monkeypatch, "--format", "json"))
    assert row["metrics"]["elbo"]["mean"] == 3.0 and row["seeds"] == 2 and not row["changed"] and row["data"] == "mnist-dynamic"
    assert "mutual_information" in shown(project, monkeypatch, "--format", "all")


PLANTED = "<img src=x onerror=alert(1)> <script>x</script> $$ | `c` [a](javascript:b) {{< include f >}}\nnext \x1b[31mred"


def test_what_a_stranger_planted_in_a_result_is_text(project, monkeypatch):
    "In every format: no tag, formula, link or cell of Markdown, no line of its own, no code of a terminal."
    path = project / "results/vae/planted.json"
    result = json.loads(next((project / "runs").glob("*/*/result.json")).read_text())
    elbo = result["metrics"]["elbo"]
    planted = result | {"experiment": PLANTED, "run_id": "planted", "device": PLANTED, "unmet": [PLANTED]}
    planted["metrics"] = {"mse": elbo | dict.fromkeys(("estimator", "split", "unit"), PLANTED), f"x{PLANTED}": elbo}
    planted["model"] = {"name": PLANTED, "image_shape": [1, 8, 8], "config": {"levels": 2}}
    planted["params"] = {"dataset": PLANTED, PLANTED: PLANTED}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(planted))
    for how in ((), ("--all",), ("--format", "all"), ("--format", "md")):
        out = shown(project, monkeypatch, *how)
        assert "\x1b" not in out and "\nnext" not in out and "planted" not in how, how
    text = markdown(out)  # of the last one
    assert "alert(1)" in out and not re.search(r"<(?!/?(p|strong|table|thead|tbody|tr|th|td|ul|li)\b)", text), text
    assert "javascript:" in text and "href" not in text and "{{<" not in out and not re.search(r"(?<!\\)\$", out)
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows if "planted" in line or "script" in line}) <= len(tables.TABLES)


def markdown(text):
    "As a page shows it."
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    return markdown2html_mistune(text)


def test_a_missing_number_is_an_empty_cell(project):
    found = results.load(None, project / "runs", project)
    mse = {"mse": found[0]["metrics"]["mse"]}
    other = copy.deepcopy(found[0]) | {"experiment": "ae", "notebook": "models/10_ae", "model": None, "metrics": mse}
    table = tables.tables(results.summary([*found, other]))[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["model"] == "ae" and row["elbo ↑"] == "" and row["mse ↓"] != ""


def test_a_kept_result_that_verify_called_changed_is_marked(project):
    "Until it is kept again; a run of today never is."
    folder = project / "runs/vae-mlp-mnist/mnist-dynamic-s1-19bb3958"
    results.save(folder, project)
    changed = {"vae-mlp-mnist/mnist-dynamic-s1-19bb3958": "total at step 1 is 2, was 1"}
    (project / "results/changed.json").write_text(json.dumps(changed))
    (kept,) = results.load("vae-mlp-mnist", project / "elsewhere", project)
    assert kept["folder"] is None and kept["changed"] == "total at step 1 is 2, was 1"
    assert results.summary([kept])[0]["changed"]
    assert {r["changed"] for r in results.load("vae-mlp-mnist", project / "runs", project)} == {""}


@pytest.mark.parametrize("seed", range(20))
def test_verdict_is_the_t_test_and_the_f_test(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(2, 8, 2)
    low, high = rng.lognormal(0, 0.3, n).tolist(), rng.lognormal(rng.normal(), 0.3 * rng.choice([1, 5]), m).tolist()
    t = stats.ttest_ind(high, low, equal_var=False)
    assert tables.verdict(low, high) == ("not decided" if t.pvalue > 0.05 else "upheld" if t.statistic > 0 else "not upheld")
    k = min(n, m)
    t = stats.ttest_rel(high[:k], low[:k])
    paired = tables.verdict(dict(enumerate(low[:k])), dict(enumerate(high[:k])))
    assert paired == ("not decided" if t.pvalue > 0.05 else "upheld" if t.statistic > 0 else "not upheld")
    gap, below, above = tables.decides(low, high)
    assert [gap - above, gap - below] == pytest.approx(list(stats.ttest_ind(high, low, equal_var=False).confidence_interval()))
    ratio = np.var(np.log(high), ddof=1) / np.var(np.log(low), ddof=1)
    p = 2 * min(stats.f.cdf(ratio, m - 1, n - 1), stats.f.sf(ratio, m - 1, n - 1))
    assert tables.verdict(low, high, of="deviation") == ("not decided" if p > 0.05 else "upheld" if ratio > 1 else "not upheld")


# ---- experiments/


FILES = sorted((ROOT / "experiments").glob("*.yaml"))


def test_experiments_are_short_and_narrow():
    lines = {path.name: path.read_text(encoding="utf-8").splitlines() for path in FILES}
    later = {
        name: found for name, found in lines.items() if name[:1] in "4567" or name[:2] in ("12", "24", "33", "34")
    }  # beyond the reports
    assert sum(len(found) for name, found in lines.items() if name not in ("claims.yaml", *later)) < 600
    assert all(len(found) <= (40 if name[:2] != "34" else 90) for name, found in later.items())  # 34: eight parts, one at a time
    assert len(lines["claims.yaml"]) < 400
    assert [(name, line) for name, found in lines.items() for line in found if len(line) > 120] == []


def test_experiments_are_plain():
    "No anchors and aliases: what entries have in common stands in their variants."
    for path in FILES:
        tokens = yaml.scan(path.read_text(encoding="utf-8"))
        assert not [t for t in tokens if isinstance(t, (yaml.AnchorToken, yaml.AliasToken))], path.name


def test_nothing_is_written_twice():
    "A run belongs to one experiment. (A name or a key that stands twice is refused by the loader.)"
    seen = {}
    for name, mine in JOBS.items():
        for job in mine:
            assert seen.setdefault((job.notebook, job.id), name) == name, (job.id, name)


def test_every_experiment_has_jobs_and_says_what_it_is():
    for name, e in experiments.load_experiments(ROOT).items():
        assert e.about, name
        assert e.suite or JOBS[name], name
        assert len({j.id for j in JOBS.get(name, ())}) == len(JOBS.get(name, ())), name


@pytest.mark.parametrize("path", KEPT, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_kept_result_is_one_of_its_experiments_jobs(path):
    result = json.loads(path.read_text())
    (job,) = [job for job in JOBS[result["experiment"]] if job.id == result["run_id"]]
    assert job.notebook == result["notebook"]
    kept, now = jobs.flat(result["params"]), jobs.flat(job.params)
    assert {k: v for k, v in kept.items() if k in now and v != now[k]} == {}


def test_every_number_of_the_reports_says_what_answers_it():
    "Rows of all five, each with a fault or a value; the numbers beside them are registered metrics of known experiments."
    found = claims.load_claims(ROOT)  # which refuses what it does not know
    assert {p.report for p in found.printed} == {*claims.REPORTS} == {c.report for c in found.concluded if not c.study}
    assert all(p.fault for p in found.printed) and all(p.right or p.value is not None for p in found.printed)
    assert len(found.printed) == 57 and len({c.says for c in found.concluded if not c.study}) == 52
    assert all(experiments.load_experiments(ROOT)[p.experiment].notebook for p in found.printed)


def test_kept_results_decide_some_of_the_claims():
    found, known = claims.load_claims(ROOT), results.load(root=ROOT)
    said = {c.says: claims.overall(c.tests, known) for c in found.concluded if not c.study}
    assert said["variational dequantisation helps"] == "upheld"
    assert said["the GAN does not match the fidelity of the VAE"] == "not upheld"
    assert said["the GAN produces the most visually appealing samples"] == "not decided (1 of 3), upheld (2 of 3)"
    assert said["1,000 epochs go on improving the GAN"] == "no test"
    assert said["feature matching reduces collapse"] == "not decided (1 of 2), not upheld (1 of 2)"  # 1.18 to 1.31 is away from 1


def test_what_is_capped_decides_nothing():
    "Of the kept results the information of a weight of 0.1 is log n, whatever it is; that of a weight of 4 is below that of 1 for certain."
    found, known = claims.load_claims(ROOT), results.load(root=ROOT, kept=True)
    said = {c.says: claims.overall(c.tests, known) for c in found.concluded if c.study == "kl-schedules"}
    assert said["a weight of 0.1 buys information"] == said["and takes the codes away from the prior"] == "not decided: capped"
    assert said["a weight of 4 sells information"] == "upheld"
    marked = {(r["experiment"], name) for r in known for name in r["metrics"] if results.bound(r["metrics"], name)}
    assert ("vae-mlp-mnist", "aggregate_kl") in marked and not any(name.startswith("evaluate-fvae") for name, _ in marked)
    (row,) = results.summary([r for r in known if r["experiment"] == "vae-mlp-mnist"])
    assert tables.cell(row["metrics"]["mutual_information"]).startswith("≥ 9.187") and tables.cell(row["metrics"]["kl"])[0] != "≤"


def test_an_error_of_before_is_dropped_where_none_holds():
    "Kept results of before have errors of precision and the like that left the real images out: loaded, they have none."
    kept = {(r["experiment"], r["run_id"]): r["metrics"] for r in map(json.loads, (p.read_text() for p in KEPT))}
    before, loaded = 0, results.load(root=ROOT, kept=True)
    for r in loaded:
        for name, m in r["metrics"].items():
            old, dropped = kept[r["experiment"], r["run_id"]][name], name.partition("__")[0] in results.NO_ERROR
            before += dropped and old["se"] is not None
            assert m == (old | {"se": None} if dropped else old)
    assert before > 1000 and {name for name in results.NO_ERROR} <= {*METRICS}


def test_copies_are_said_where_a_distance_is():
    "All three seeds of five critic steps are flagged, and none of three."
    known = [r for r in results.load(root=ROOT, kept=True) if r["experiment"] == "gan-k-digits"]
    assert [results.copied(r) for r in known if r["flat"]["train.k"] == 5] == [True] * 3
    five, three = (claims.place(f"gan-k-digits k={k} frechet_classifier", experiments.load_experiments(ROOT)) for k in (5, 3))
    numbers = claims.Comparison("less", "frechet_classifier", five, three).numbers(known)
    assert "k=5, n = 3, copies in 3)" in numbers and "k=3, n = 3)" in numbers
    notes = [row[-1] for t in tables.tables(results.summary(known)) for row in t.rows if row[0] != tables.REAL]
    assert {*notes} == {"", "copies in 3 of 3 runs"}


def test_every_comparison_says_what_it_could_have_seen():
    found, known = claims.load_claims(ROOT), results.load(root=ROOT, kept=True)
    for test in (t for c in found.concluded for t in c.tests):
        said, least = test.verdict(known), test.least(known)
        assert (least == "–") == (said in ("no run", "not decided (one seed)", "not decided (measured unevenly)")), (test, said, least)
