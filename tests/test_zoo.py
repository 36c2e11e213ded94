"Trained models that leave the project and come back: what a run keeps, `genbook export`, `from_pretrained`."

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_matrix import SMALL, images

from genbook import create_model, from_pretrained, list_models
from genbook.core import GenbookError, metric
from genbook.runs import Run
from genbook.zoo import FAMILIES, export

ZOO = {f"{family}_{config}": (family, config) for family, (module, _) in FAMILIES.items() for config in import_module(module).CONFIGS}


def finished(folder, model, name, shape=(1, 8, 8), **config):
    "The folder of a run that has kept this model."
    run = Run(folder)
    run.record(mse=metric("mse", 0.25, se=0.01, n=360))
    run.keep(model, name, shape, **config)
    about = {
        "experiment": "demo",
        "run_id": "digits-s0-1",
        "notebook": "11_models.vae",
        "params": {"dataset": "folder:/srv/me/pics", "zdim": 4},
    }
    (run.dir / "params.json").write_text(json.dumps(about))
    run.finish()
    (run.dir / "status.json").write_text('{"state": "done"}')
    return run.dir


def packed(tmp_path):
    "A small exported model."
    config = dict(levels=17, zdim=4, width=8)
    run = finished(tmp_path / "runs/demo/a", create_model("vae_mlp", (1, 8, 8), **config), "vae_mlp", **config)
    return export(run, tmp_path / "vae")


def view(model):
    "What a model makes of noise, or of images where it does not sample."
    if hasattr(model, "sample"):
        return model.sample(3, generator=torch.Generator().manual_seed(0))
    return model.reconstruct(images(n=3))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_model_comes_back(name, tmp_path):
    "By its whole configuration, as the chapters keep it: through JSON, and whatever its weights are."
    family, config = ZOO[name]
    config = import_module(FAMILIES[family][0]).CONFIGS[config] | {"levels": 17}
    config |= SMALL if "width" in config else {}
    model = create_model(name, (1, 8, 8), **config).eval()
    folder = export(finished(tmp_path / "runs/demo/a", model, name, **config), tmp_path / "out")
    torch.manual_seed(1)
    twin = from_pretrained(folder)
    assert type(twin) is type(model) and not twin.training
    state = twin.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and len(state) == len(model.state_dict())
    torch.manual_seed(0)
    first = view(model)
    torch.manual_seed(0)
    assert torch.equal(view(twin), first)


def test_the_folder_is_as_the_hub_has_it(tmp_path):
    folder = packed(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.S)[1])
    assert (head["license"], head["library_name"]) == ("apache-2.0", "genbook") and {"genbook", "vae"} <= set(head["tags"])
    (result,) = head["model-index"][0]["results"]
    assert (
        result["metrics"][0]["value"] == 0.25
        and result["metrics"][0]["type"] == "mse"
        and result["task"]["type"]
        and result["dataset"]["type"]
    )
    assert "0.25 ± 0.01" in card and 'from_pretrained("vae")' in card and "zdim 4" in card and "/srv" not in card
    assert json.loads((folder / "config.json").read_text())["config"]["zdim"] == 4
    assert "to the hub" not in card and load_file(folder / "model.safetensors")


def spoil(folder, how):
    about = json.loads((folder / "config.json").read_text())
    if how == "weights":
        save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    elif how == "not safetensors":
        torch.save({"w": torch.ones(2)}, folder / "model.safetensors")
    elif how == "not JSON":
        (folder / "config.json").write_text("{")
    elif isinstance(how, str):
        (folder / how).unlink()
    else:
        (folder / "config.json").write_text(json.dumps({k: v for k, v in (about | how).items() if v is not None}))


@pytest.mark.parametrize(
    "how, message",
    [
        ("config.json", "has no config.json; `genbook export RUN vae` writes both"),
        ("model.safetensors", "has no model.safetensors"),
        ("not JSON", "config.json is not what genbook export writes"),
        ({"model": None}, "config.json is not what genbook export writes"),
        ({"schema": 2}, "has schema 2; this version of genbook reads 1"),
        ({"model": "vae_mpl"}, "did you mean 'vae_mlp'?"),
        ({"config": {"zdimm": 4}}, "zdimm"),
        ({"config": {"levels": 17, "zdim": 5, "width": 8}}, "the weights do not fit vae_mlp: size mismatch for"),
        ("weights", "the weights do not fit vae_mlp: "),
        ("not safetensors", "the weights do not fit vae_mlp: "),
    ],
)
def test_a_spoiled_folder_gets_one_line(tmp_path, how, message):
    folder = packed(tmp_path)
    spoil(folder, how)
    with pytest.raises(GenbookError, match=re.escape(message)) as error:
        from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_a_run_without_a_model_is_refused(tmp_path):
    run = Run(tmp_path / "runs/demo/a")
    run.finish()
    with pytest.raises(GenbookError, match="is not a finished run"):
        export(run.dir, tmp_path / "out")
    (run.dir / "status.json").write_text('{"state": "done"}')
    with pytest.raises(GenbookError, match="has kept no model; run it again with --force"):
        export(run.dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_chapter_exports_its_averaged_weights(root, tmp_path):
    "From the command line, of a run that averages: the weights are the checkpoint's average, not its last ones."
    for name in ("settings.ini", "experiments.yaml", "nbs/11_models.vae.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, tmp_path / name)

    def genbook(*args):
        command = [sys.executable, "-c", "from genbook.cli import main; main()", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    quick = {"steps": 12, "every": 6, "ema": 0.9, "iw_k": 2, "iw_n": 20, "width": 16}
    known = {k: v for k, v in quick.items() if re.search(rf'"{k}: ', (root / "nbs/11_models.vae.ipynb").read_text())}
    genbook("run", "vae-mlp-digits", *[word for k, v in known.items() for word in ("-p", k, str(v))])
    (run,) = (tmp_path / "runs/vae-mlp-digits").iterdir()
    assert genbook("export", str(run), str(tmp_path / "vae")).strip() == str(tmp_path / "vae")
    model, step = from_pretrained(tmp_path / "vae"), torch.load(run / "checkpoint/main.pt", weights_only=True)["step"]
    assert [k for k, _ in model.named_parameters()]
    for average, p in zip(step["ema"]["avg"], model.parameters(), strict=True):
        assert torch.equal(average, p)
    assert not all(torch.equal(step["model"][k], p) for k, p in model.named_parameters())
    assert model.sample(2).shape == (2, 1, 8, 8)


def test_all_that_is_in_the_zoo_is_kept_by_its_chapter(root):
    for family, (module, _) in FAMILIES.items():
        (path,) = (root / "nbs").glob(f"[1-5]?_{module.removeprefix('genbook.')}.ipynb")
        assert f'"{family}_{{config}}"' in path.read_text().replace("\\", ""), f"{path.name} does not keep its model"
    assert set(ZOO) <= set(list_models())
