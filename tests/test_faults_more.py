"""Relatives of the faults of `test_faults.py` and `test_pictures.py`: what else people meet with files, settings, pictures and names.

None starts a kernel; what trains, trains three steps on pictures of eight pixels."""

import ast
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_faults import pictures
from test_pictures import fill, one_line
from test_runs import project, said

from genbook import from_pretrained
from genbook.core import GenbookError, write_together
from genbook.datasets import load
from genbook.lab import grid, jobs, launch, own, results
from genbook.lab.experiments import get_experiment
from genbook.lab.jobs import expand
from genbook.lab.pretrained import export
from genbook.lab.zoo import create_model

__all__ = ["project", "said"]  # fixtures
ROOT = Path(__file__).parents[1]
TINY = ("--config", "vae_mlp_digits", "--size", 8, "--device", "cpu")


def model():
    return create_model("vae_mlp_digits", (1, 8, 8), levels=17).eval()


# ---- A. what exists is destroyed before its replacement does


@pytest.mark.parametrize("name, content", [("config.json", '{"model_type": "bert"}'), ("model.safetensors", "precious")])
def test_an_export_replaces_no_files_of_another_library(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    one_line(lambda: export(model(), tmp_path, name="vae_mlp_digits"), f"{name} was not written by export")
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == content


def test_an_export_is_written_wholly_or_not_at_all(tmp_path):
    folder = export(model(), tmp_path / "model", name="vae_mlp_digits", data="first")
    (folder / "notes").mkdir()
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    (folder / "config.json").rename(folder / "config.old")
    (folder / "config.json").mkdir()  # so that the last of three files cannot be written
    (folder / "model.safetensors").unlink()
    one_line(lambda: export(model(), folder, name="vae_mlp_digits", data="second"), "cannot be written: Is a directory")
    assert (folder / "README.md").read_bytes() == before["README.md"] and not (folder / "model.safetensors").exists()
    assert (folder / "notes").is_dir() and not list(folder.glob(".*.tmp"))


def test_files_written_together_stay_as_they_were_where_one_has_no_room(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_together({one: "1", two: b"2"})
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        write_together({one: "new", tmp_path / "file/below": "x"})
    assert (one.read_text(), two.read_text(), len(list(tmp_path.iterdir()))) == ("1", "2", 3)


def test_an_edited_result_is_not_replaced_by_that_of_its_run(project, said):
    (project / "results").mkdir()
    (project / "results/schema.json").write_text((ROOT / "results/schema.json").read_text())
    (job,) = expand(get_experiment("quick"), {"steps": 20})
    folder = launch.execute(job, project / "runs", 1).dir
    kept = results.save(folder, project)
    assert results.save(folder, project) == kept  # the same again
    edited = json.dumps(json.loads(kept.read_text()) | {"minutes": 99})
    kept.write_text(edited)
    code, _, err = said("results", "--save", folder)
    assert code == 2 and "was edited since it was kept" in err and kept.read_text() == edited
    again = json.loads((folder / "result.json").read_text()) | {"finished": "2030-01-01T00:00:00Z"}  # made anew, with --force
    (folder / "result.json").write_text(json.dumps(again))
    assert json.loads(results.save(folder, project).read_text()) == again


def test_only_what_a_run_left_half_written_is_removed(project):
    (job,) = expand(get_experiment("quick"), {"steps": 20})
    folder = project / "runs/quick" / job.id
    (folder / ".album.tmp").mkdir(parents=True)
    for name in (".mine.tmp", ".album.tmp/x", ".result.json.123.tmp"):
        (folder / name).touch()
    assert launch.execute(job, project / "runs", 1).state == "done"
    assert (folder / ".mine.tmp").exists() and (folder / ".album.tmp/x").exists() and not (folder / ".result.json.123.tmp").exists()


def test_samples_replace_no_picture_of_ones_own(tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(model(), "small", name="vae_mlp_digits")
    Image.new("RGB", (9, 9), "red").save("grid.png")
    photo = Path("grid.png").read_bytes()
    for args, words in (
        ((), "grid.png is there already and no picture of samples"),
        (("--out", "x.jpg"), "ends in .jpg; allowed: .png"),
        (("--out", "small"), "is a directory"),
        (("--out", ""), "an empty path"),
        (("--out", "small/config.json"), "ends in .json"),
        (("--out", "grid.png/x.png"), "cannot be written: Not a directory"),
    ):
        code, _, err = said("sample", "small", *args)
        assert code == 2 and words in err and len(err.splitlines()) == 1, (args, err)
    assert Path("grid.png").read_bytes() == photo and not Path("x.jpg").exists()
    for _ in range(2):  # its own it may
        assert said("sample", "small", "-n", 2, "--out", "new/two.png")[0] == 0
    assert Image.open("new/two.png").size == (64, 32)


def test_halves_never_replace_the_weights_of_their_run(tmp_path):
    out = own.train(str(pictures(tmp_path / "pics", 30)), tmp_path / "out", config="vae_mlp_digits", size=8, steps=3, device="cpu", say=str)
    before = (out / "model.safetensors").read_bytes()
    one_line(lambda: export(out, out, half=True), "half:", "the run itself")
    assert (out / "model.safetensors").read_bytes() == before and export(out, out) == out  # itself, in full
    assert (export(out, tmp_path / "half", half=True) / "model.safetensors").stat().st_size < len(before)


# ---- B. conditions are checked after the cost


@pytest.mark.parametrize(
    "args, words",
    [
        (("--seeds", ""), "--seeds: '' is not a list of whole numbers"),
        (("--seeds", "0,0"), "seeds: [0, 0] hold one twice"),
        (("--seeds", str(2**63)), "below 2^63"),
        (("--cluster", ""), "cluster: '' is not an address"),
        (("--time-limit", "nan"), "nan is not finite"),
        (("--time-limit", "inf"), "inf is not finite"),
        (("--devices", 1000), "devices: 1000, but 1 to"),
        (("-p", "zdim", "nan"), "'nan' is not one"),
    ],
)
def test_settings_of_a_run_that_cannot_be(project, said, monkeypatch, args, words):
    monkeypatch.setattr(grid, "_pool", lambda *args: pytest.fail("a worker was started"))
    code, _, err = said("run", "quick", *args)
    assert code == 2 and words in err and len(err.splitlines()) == 1, err


def test_tables_of_settings_are_named_and_no_folder_is_none():
    e = get_experiment("vae-mlp-digits", ROOT)
    one_line(lambda: expand(e, {"model_args": {}}, root=ROOT), "'model_args' is a table, whose entries are set: model.NAME")
    one_line(lambda: expand(e, {"dataset": "folder:"}, root=ROOT), "names no folder")
    one_line(lambda: expand(e, seeds=[], root=ROOT), "seeds: [] are none")
    assert jobs.mistakes(expand(e, {"device": "cpu:7"}, root=ROOT)) == [
        "vae-mlp-digits: device: 'cpu:7' is not available on this machine; available: cpu"
        + ", cuda" * torch.cuda.is_available()
        + ", mps" * torch.backends.mps.is_available()
    ]


@pytest.mark.parametrize(
    "source, args, words",
    [
        ("pics", ("--minutes", "nan"), "nan is not finite"),
        ("pics", ("--minutes", "inf"), "inf is not finite"),
        ("pics", ("--lr", "nan"), "nan is not finite"),
        ("pics", ("--seed", str(2**63)), "--seed"),
        ("pics", ("--out", "file/below"), "cannot be written: Not a directory"),
        ("pics", ("--out", "pics/model"), "lies among the pictures"),
        ("pics", ("--out", ""), "an empty path"),
        ("pics", ("--device", "cpu:7"), "is not available on this machine"),
        ("pics", ("--import", "broken.py"), "SyntaxError"),
        ("pics", ("--import", "random.py"), "has the name of another module"),
        ("pics", ("--import", "raises.py"), "raises.py: ZeroDivisionError"),
        ("", (), "source: an empty name"),
        ("folder:", (), "names no folder"),
    ],
)
def test_trainings_that_cannot_be_are_refused_before_they_begin(tmp_path, said, monkeypatch, source, args, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own.datasets, "load", lambda *a, **k: pytest.fail("pictures were read"))
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    pictures(tmp_path / "pics", 3)
    for name, text in {"file": "", "broken.py": "def", "random.py": "x = 1", "raises.py": "1 / 0"}.items():
        (tmp_path / name).write_text(text)
    there = {*tmp_path.rglob("*")}
    code, _, err = said("train", source, *TINY, *args)
    assert code == 2 and words in err and len(err.splitlines()) == 1, err
    assert {p for p in tmp_path.rglob("*") if "__pycache__" not in str(p)} == there


@pytest.mark.parametrize(
    "args, words",
    [
        (("-n", 10_001), "10001 is not in the range"),
        (("--seed", str(2**63)), "--seed"),
        (("-p", "temperature", "-1"), "temperature: -1.0 is not a number from 0"),
        (("-p", "temperature", "inf"), "inf is not finite"),
        (("-p", "temperature", "1", "-p", "temperature", "2"), "temperature is given twice"),
    ],
)
def test_samples_that_cannot_be(tmp_path, said, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    export(model(), "small", name="vae_mlp_digits")
    code, _, err = said("sample", "small", *args)
    assert code == 2 and words in err and len(err.splitlines()) == 1 and not Path("grid.png").exists(), err


# ---- C. silently wrong


def test_pictures_where_one_stands_are_not_mixed_with_what_a_training_writes(tmp_path, monkeypatch):
    pics = pictures(tmp_path / "pics", 30)
    (pics / "b").mkdir()
    for where in (pics, pics / "b"):
        monkeypatch.chdir(where)
        assert own._place(own._pictures(str(pics))["dataset"], "vae_mlp") == tmp_path / "vae_mlp-pics"
    assert own._place(own._pictures(".")["dataset"], "vae_mlp") == pics / "vae_mlp-b"  # beside the folder b
    monkeypatch.chdir(tmp_path)
    assert (
        own._place(own._pictures("pics/")["dataset"], "ae") == tmp_path / "ae-pics" and own._place("digits", "ae") == tmp_path / "ae-digits"
    )


@pytest.mark.parametrize("config", ["vqvae_digits", "latent_digits"])
def test_models_of_two_stages_learn_from_few_pictures(tmp_path, said, monkeypatch, config):
    "Their second stage is as long as the first asks for, in batches that there are."
    monkeypatch.setattr(own, "_measured", lambda *how: ({}, []))
    model_args, train_args = own.scaled(config, load("digits"), steps=100, batch_size=9, lr=1e-4)
    stage = train_args["prior"]
    assert stage["lr"] == 1e-4 and stage.get("batch_size", 9) == 9 and stage.get("steps", 100) <= 100
    out = tmp_path / "out"
    code, _, err = said("train", pictures(tmp_path / "pics", 40), *TINY[2:], "--config", config, "--steps", 2, "--out", out)
    assert code == 0, err
    assert from_pretrained(out).sample(2).shape == (2, 3, 8, 8) and (out / "samples.png").is_file()


def test_classes_are_what_their_folders_are_called(tmp_path):
    accents = [fill(tmp_path / "accents" / name, 6) for name in ("caf\u00e9", "cafe\u0301", "tea")]
    if len(accents) == len(os.listdir(tmp_path / "accents")):  # not so where the file system itself makes them one
        assert load(f"folder:{tmp_path}/accents", size=8).classes == ("caf\u00e9", "tea")
    for name in ("a\nb", r"a\nb"):
        fill(tmp_path / "alike" / name, 6)
    one_line(lambda: load(f"folder:{tmp_path}/alike", size=8), "two folders whose names read 'a\\\\nb'")
    for i in (0, 1, 2, 10):
        fill(tmp_path / "numbers" / str(i), 6)
    ds = load(f"folder:{tmp_path}/numbers", size=8)
    assert ds.classes == ("0", "1", "2", "10") and ds.train.y.max() == 3


def test_classes_that_vanish_are_said(tmp_path):
    fill(tmp_path / "pics/a", 12)
    (tmp_path / "pics/b").mkdir()
    (tmp_path / "pics/c").mkdir()
    for path in (tmp_path / "pics/a").iterdir():
        (tmp_path / "pics/c" / path.name).write_bytes(path.read_bytes())
    about = repr(load(f"folder:{tmp_path}/pics", size=8))
    assert "1 class of copies alone (c)" in about and "1 empty folder" in about and "12 exact copies dropped" in about
    for part, label in (("train", "a"), ("test", "a"), ("test", "b")):
        fill(tmp_path / "split" / part / label, 8, seed=len(part))
    one_line(lambda: load(f"folder:{tmp_path}/split", size=8), "no different picture of 'b' to train on")


# ---- D. an environment


def test_relative_folders_of_data_hold_wherever_a_notebook_runs(project, monkeypatch):
    "A kernel stands in the folder of its notebook."
    path = project / "nbs/11_quick.ipynb"
    path.write_text(path.read_text().replace("run = Run(run_dir)", "assert os.environ['GENBOOK_DATA'] == text\\nrun = Run(run_dir)"))
    monkeypatch.setenv("GENBOOK_DATA", "my data")
    (job,) = expand(get_experiment("quick"), {"steps": 20, "text": str(project / "my data")})
    outcome = launch.execute(job, project / "runs", 1)
    assert (outcome.state, outcome.error) == ("done", "")


def test_text_is_read_and_written_in_utf8_whatever_the_locale():
    "What names no encoding takes that of the system, which need not have the letters."

    def careless(call):
        name, given = getattr(call.func, "attr", getattr(call.func, "id", "")), {k.arg for k in call.keywords}
        mode = call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else "r"
        text = name in ("read_text", "write_text") or isinstance(call.func, ast.Name) and name == "open" and "b" not in mode
        return text and "encoding" not in given

    def found(path):
        return [c.lineno for c in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(c, ast.Call) and careless(c)]

    assert {p.name: lines for p in (ROOT / "genbook").rglob("*.py") if (lines := found(p))} == {}


# ---- E. one line


@pytest.mark.parametrize(
    "text, words",
    [
        ("notebook: 3\nexperiments: {a: {}}", "notebook: 3 is not the name of a notebook"),
        ("notebook: null\nexperiments: {a: {}}", "notebook: None is not the name"),
        ("notebook: 11_quick\nexperiments: {a: {params: {zdim: " + "9" * 5000 + "}}}", "is not YAML: Exceeds the limit"),
        ("notebook: 11_quick\nexperiments: {a: {params: {text: 2020-13-45}}}", "is not YAML: month must be in"),
        ("notebook: 11_quick\nexperiments: {a: {params: {zdim: 010}}}", "010 means 8 in YAML, line 2"),
        ("notebook: 11_quick\nexperiments: {a: {params: {zdim: 1:30}}}", "1:30 means 90 in YAML"),
        ("notebook: 11_quick\nexperiments: {a: {chosen: [3]}}", "parameter 3 is none of this notebook's"),
        ("notebook: 11_quick\nexperiments: {a: {grid: {3: [1]}}}", "parameter 3 is none of this notebook's"),
        ("notebook: 11_quick\nexperiments: {a: {seeds: [0, 0]}}", "hold one twice"),
        ("notebook: 11_quick\nexperiments: &e {a: *e}", "unconstructable recursive node"),
        ("experiments: " + "{a: " * 3000 + "1" + "}" * 3000, "maximum recursion depth"),
        ("experiments:\n\ta: {}", "cannot start any token"),
        ("[a, b]", "allowed at the top"),
        ("null", "allowed at the top"),
        ("notebook: 11_quick\nexperiments: {null: {}}", "None is not a name"),
        ("notebook: 11_quick\nexperiments: {a: {about: !!python/name:os.system x}}", "could not determine a constructor"),
    ],
)
def test_more_files_of_experiments_that_are_wrong(project, said, text, words):
    (project / "experiments/12_x.yaml").write_text(text)
    code, _, err = said("run", "a")
    assert code == 2 and words in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("text", ["{}", "\ufeff{}", "{<<: {about: x}}", "{}\r\n"])
def test_files_of_experiments_as_other_programs_write_them(project, text):
    (project / "experiments/12_x.yaml").write_text(f"notebook: 11_quick\nexperiments: {{a: {text.lstrip(chr(65279))}}}")
    if text[0] == "\ufeff":
        (project / "experiments/12_x.yaml").write_bytes(b"\xef\xbb\xbf" + (project / "experiments/12_x.yaml").read_bytes())
    assert len(expand(get_experiment("a"))) == 1


CELL = {"cell_type": "code", "source": "", "metadata": {}}
NOTEBOOKS = {
    "": "is not a notebook, or damaged",
    "null": "is not a notebook, or damaged",
    '{"cells": {}}': "is not a notebook, or damaged",
    '{"cells": ["x"]}': "is not a notebook, or damaged",
    json.dumps({"cells": [CELL | {"source": 3}]}): "is not a notebook, or damaged",
    json.dumps({"cells": [CELL | {"source": [3]}]}): "is not a notebook, or damaged",
    json.dumps({"cells": [CELL | {"cell_type": "heading"}]}): "is not a notebook, or damaged",
    json.dumps({"cells": [{"source": "x"}]}): "is not a notebook, or damaged",
    '{"cells": ' + "[" * 100_000: "is not a notebook, or damaged (RecursionError)",
    '{"nbformat": 3, "worksheets": []}': "has version 3 of the format; allowed: 4",
    '{"nbformat": "4", "cells": []}': "has version '4' of the format",
    json.dumps({"cells": [CELL], "metadata": {"kernelspec": {"language": "R"}}}): "is written in 'R'; allowed: python",
}


@pytest.mark.parametrize("text", NOTEBOOKS, ids=range(len(NOTEBOOKS)))
def test_notebooks_that_are_none(project, said, text):
    (project / "mine.ipynb").write_text(text)
    code, _, err = said("run", "mine.ipynb")
    assert code == 2 and NOTEBOOKS[text] in err and len(err.splitlines()) == 1, err


def test_a_notebook_with_a_mark_of_its_byte_order_runs(project):
    path = project / "nbs/11_quick.ipynb"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (job,) = expand(get_experiment("quick"), {"steps": 20})
    assert launch.execute(job, project / "runs", 1).state == "done"


GOOD = {"value": 1.0, "se": None, "n": 3, "unit": "", "split": "test", "estimator": ""}
RESULTS = [
    ({"params": {"dataset": {"a": 1}}}, "dataset"),
    ({"params": {"dataset": 3}}, "dataset"),
    ({"params": {"size": "<b>"}}, "size"),
    ({"model": {"name": 3, "image_shape": [1], "config": {}}}, "model.name"),
    ({"model": {"name": "x", "image_shape": 3, "config": {}}}, "model.image_shape"),
    ({"model": {"name": "x", "image_shape": [1], "config": []}}, "model.config"),
    ({"minutes": float("nan")}, "minutes"),
    ({"metrics": {"mse": GOOD | {"value": 10**400}}}, "metric mse"),
    ({"metrics": {"mse": GOOD | {"value": True}}}, "metric mse"),
    ({"metrics": {"mse": GOOD | {"se": float("inf")}}}, "metric mse"),
    ({"metrics": {"mse": None}}, "metric mse"),
]


@pytest.mark.parametrize("changes, words", RESULTS)
def test_more_results_that_are_left_out(project, changes, words):
    about = {"schema": 2, "experiment": "quick", "notebook": "11_quick", "params": {}, "model": None, "minutes": 1.0, "device": "CPU"}
    for run_id, change in (("a-s0-00000000", {}), ("a-s1-00000000", changes | {"content": "other"})):
        folder = project / "runs/quick" / run_id
        folder.mkdir(parents=True)
        (folder / "status.json").write_text('{"state": "done"}')
        (folder / "result.json").write_text(json.dumps(about | {"run_id": run_id, "metrics": {"mse": GOOD}, "unmet": []} | change))
    with pytest.warns(UserWarning, match=rf"1 result is left out: .*a-s1-00000000/result.json .{words} is missing or damaged"):
        (row,) = results.summary(results.load("quick", project / "runs"))
    assert row["seeds"] == 1 and row["metrics"]["mse"]["mean"] == 1.0


def test_patterns_that_match_no_model_are_said(said):
    code, out, err = said("list", "--models", "nope*")
    assert (code, out, err) == (2, "", "genbook: list: no model matches 'nope*'\n")


# ---- G. the library without the checkout


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: {k: v * float("nan") for k, v in state.items()}, "no weights"),
        (lambda state: {k: v.to(torch.int8) for k, v in state.items()}, "no weights (torch.int8"),
        (lambda state: state | {"more": torch.zeros(1)}, "the weights do not fit"),
    ],
)
def test_weights_of_a_stranger_that_are_none(tmp_path, change, words):
    from safetensors.torch import load_file, save_file

    folder = export(model(), tmp_path / "model", name="vae_mlp_digits")
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    one_line(lambda: from_pretrained(folder), words)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("planted",)


def test_nothing_that_a_stranger_names_is_imported_or_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = export(model(), tmp_path / "model", name="vae_mlp_digits")
    about = json.loads((folder / "config.json").read_text())
    (tmp_path / "evil.py").write_text("import os; os.mkdir('planted')")
    monkeypatch.syspath_prepend(tmp_path)
    for change in ({"model": "evil.Model"}, {"model": "evil:Model"}, {"config": {"act": "evil.f"}}, {"config": {"__class__": "evil"}}):
        (folder / "config.json").write_text(json.dumps(about | change))
        one_line(lambda: from_pretrained(folder), "from_pretrained: ")
    (folder / "config.json").write_text(json.dumps(about | {"auto_map": {"AutoModel": "evil.Model"}}))
    assert from_pretrained(folder).sample(1).shape == (1, 1, 8, 8)
    torch.save({"w": Evil()}, folder / "model.safetensors")
    one_line(lambda: from_pretrained(folder), "model.safetensors cannot be read")
    (folder / "config.json").write_text("[" * 100_000)
    one_line(lambda: from_pretrained(folder), "config.json is not what genbook export writes")
    for name in ("org/na\nme", "../a/b", "a/../b", ""):
        with pytest.raises(GenbookError, match="from_pretrained: ") as error:
            from_pretrained(name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "planted").exists()
