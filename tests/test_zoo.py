"Trained models that leave the project and come back: what a run keeps, `export`, `from_pretrained`, `genbook export`."

import json
import math
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_matrix import SMALL, images
from torch import nn

from genbook import create_model, datasets, from_pretrained, list_models, list_pretrained
from genbook.core import GenbookError, metric
from genbook.lab import pretrained, zoo
from genbook.lab.pretrained import export
from genbook.lab.runs import Run
from genbook.lab.training import Training
from genbook.lab.zoo import FAMILIES, entries, register_model
from genbook.measure.variety import similar_pairs

ZOO = {name: e.config for name, e in entries().items()}


def finished(folder, model, name, shape=(1, 8, 8), **config):
    "The folder of a run that has kept this model."
    run = Run(folder)
    run.record(mse=metric("mse", 0.25, se=0.01, n=360, estimator="posterior mean"))
    run.keep(model, name, shape, **config)
    params = {"dataset": "folder:/srv/me/pics", "size": None, "model_args": {"zdim": 4}, "train_args": {"steps": 12}, "seed": 0}
    about = {"experiment": "demo", "run_id": "digits-s0-1", "notebook": "models/11_vae", "params": params}
    (run.dir / "params.json").write_text(json.dumps(about))
    run.finish()
    return run.dir


CONFIG = dict(levels=17, zdim=4, width=8)


def small():
    return create_model("vae_mlp", (1, 8, 8), **CONFIG).eval()


def packed(tmp_path, **how):
    "A small exported model, from a run."
    return export(finished(tmp_path / "runs/demo/a", small(), "vae_mlp", **CONFIG), tmp_path / "vae", **how)


def view(model):
    "What a model makes of noise, or of images where it does not sample."
    torch.manual_seed(0)
    if hasattr(model, "sample"):
        return model.sample(3, generator=torch.Generator().manual_seed(0))
    return model.reconstruct(images(n=3))


def one_line(call, *words):
    with pytest.raises(GenbookError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and all(w in text for w in words), text


@pytest.fixture
def own(monkeypatch):
    "Models that a test registers are forgotten after it."
    monkeypatch.setattr(zoo, "_registered", {})


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_model_comes_back(name, tmp_path):
    "By its whole configuration, as a training keeps it: through JSON, and whatever its weights are. A run and the model itself do alike."
    config = ZOO[name] | {"levels": 17} | (SMALL if "width" in ZOO[name] else {})
    model = create_model(name, (1, 8, 8), **config).eval()
    folder = export(finished(tmp_path / "runs/demo/a", model, name, **config), tmp_path / "out")
    again = export(model, tmp_path / "again", name=name, config=config)
    torch.manual_seed(1)
    twin = from_pretrained(folder)
    assert type(twin) is type(model) and not twin.training
    state = twin.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and len(state) == len(model.state_dict())
    assert torch.equal(view(model), view(twin))
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    first, second = (json.loads((place / "config.json").read_text()) for place in (folder, again))
    second["config"].pop("classes", None)  # which a model knows and this run has not said
    assert first == second


def head(folder):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", (folder / "README.md").read_text(), re.S)[1])


def test_the_folder_is_as_the_hub_has_it(tmp_path):
    folder = packed(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card, top = (folder / "README.md").read_text(), head(folder)
    assert top["library_name"] == "genbook" and {"genbook", "vae"} <= set(top["tags"])
    (result,) = top["model-index"][0]["results"]
    (measured,) = result["metrics"]
    assert (measured["value"], measured["type"]) == (0.25, "mse") and result["task"]["type"] and result["dataset"]["type"] == "folder"
    for said in ("| mse | 0.25 ± 0.01", "| posterior mean |", 'from_pretrained("vae")', "model.zdim 4", "train.steps 12", "seed 0"):
        assert said in card, said
    assert "/srv" not in card and "import " not in card.replace("from genbook import", "") and "genbook run demo." in card
    assert json.loads((folder / "config.json").read_text())["config"]["zdim"] == 4 and load_file(folder / "model.safetensors")


def test_what_a_stranger_planted_in_a_run_is_text_in_its_card(tmp_path):
    "Whoever exports a run that was given to them publishes no tag, link or formula of somebody else, and imports nothing."
    bad = "<img src=x onerror=alert(1)> $$ | `c` [a](javascript:b)\n# head\n```"
    run = finished(tmp_path / "runs/demo/a", small(), "vae_mlp", **CONFIG)
    result = json.loads((run / "result.json").read_text())
    result |= {"run_id": bad, "notebook": bad, "device": bad, "commit": bad, "experiment": bad, "unmet": [bad], "versions": {bad: bad}}
    result["params"] = {"dataset": bad, bad: bad}
    result["model"] |= {"name": bad, "module": "os\nimport this"}
    result["metrics"] = {bad: result["metrics"]["mse"] | {"estimator": bad, "unit": bad, "split": bad}}
    (run / "result.json").write_text(json.dumps(result))
    card = (export(run, tmp_path / "out") / "README.md").read_text()
    yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.S)[1])
    text = card.partition("\n---\n")[2]
    assert "alert(1)" in text and not re.search(r"(?<!\\)(<(?!!--)|\$|\]\(javascript)", text) and text.count("\n#") == 1
    assert text.count("```") == 2 and "import this" not in text and text.count("\n| ") == 2


def test_one_says_more_about_a_model_in_its_card(tmp_path):
    folder = export(small(), tmp_path / "a", name="vae_mlp", config=CONFIG, data="digits", story="Trained in *one* minute.")
    card = (folder / "README.md").read_text()
    assert (
        "trained on digits" in card and "Trained in *one* minute." in card and f"{sum(p.numel() for p in small().parameters()):,}" in card
    )


def test_a_licence_is_the_users_to_give(tmp_path):
    assert "license" not in (packed(tmp_path) / "README.md").read_text().lower()
    assert head(packed(tmp_path / "b", license="mit"))["license"] == "mit"


def test_the_card_of_a_model_of_ones_own_imports_its_module(own, tmp_path):
    @register_model
    def mine(image_shape, *, levels=256, **config):
        return create_model("vae_mlp", image_shape, levels=levels, **({"zdim": 4, "width": 8} | config))

    mine.__module__ = "my_models"
    model = create_model("mine", (1, 8, 8), levels=17)
    run = finished(tmp_path / "runs/demo/a", model, "mine", levels=17)
    assert json.loads((run / "result.json").read_text())["model"]["module"] == "my_models"
    for i, folder in enumerate((export(run, tmp_path / "0"), export(model, tmp_path / "1", name="mine", data="digits"))):
        code = (folder / "README.md").read_text().split("```")[1]
        assert code.startswith("python\nimport my_models  # it registers 'mine'\nfrom genbook import from_pretrained\n"), code
        assert torch.equal(view(from_pretrained(folder)), view(model)) and f'from_pretrained("{i}")' in code
    zoo._registered.clear()  # as in another process, where nothing has imported the module
    one_line(lambda: from_pretrained(tmp_path / "0"), "'mine' is not one of", "known once its module is imported")
    assert "import my_models" in (export(run, tmp_path / "2") / "README.md").read_text()


def test_a_card_that_was_edited_is_kept(tmp_path):
    folder = packed(tmp_path)
    run, card = tmp_path / "runs/demo/a", folder / "README.md"
    export(run, folder, license="mit")  # its own it may replace
    assert head(folder)["license"] == "mit"
    for text in (card.read_text().replace("Weights of", "My weights of"), "Somebody's notes.\n", ""):
        card.write_text(text)
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        one_line(lambda: export(run, folder, half=True), "README.md was not written by export, or edited since", "card=False")
        assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
        export(run, folder, half=True, card=False)
        assert card.read_text() == text and {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
        export(run, folder, card=False)
    assert not (export(run, tmp_path / "new", card=False) / "README.md").exists()


def test_half_is_cast_up_and_refused_where_it_would_overflow(tmp_path):
    model, folder = small(), packed(tmp_path, half=True)
    twin = from_pretrained(export(model, tmp_path / "half", name="vae_mlp", config=CONFIG, half=True))
    assert {p.dtype for p in twin.parameters()} == {torch.float32} == {p.dtype for p in from_pretrained(folder).parameters()}
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.half().float(), b)
    next(model.parameters()).data[0] = 1e6
    one_line(lambda: export(model, tmp_path / "large", name="vae_mlp", config=CONFIG, half=True), "half: ", "1e+06", "65504")
    assert not (tmp_path / "large").exists()


def test_float64_stays(tmp_path):
    folder = export(small().double(), tmp_path / "double", name="vae_mlp", config=CONFIG)
    assert {p.dtype for p in from_pretrained(folder).parameters()} == {torch.float64}


def test_what_a_model_must_say(tmp_path):
    model = small()
    one_line(lambda: export(model, tmp_path / "a"), "name: None; a model needs the name")
    one_line(lambda: export(model, tmp_path / "a", name="vae_mpl"), "did you mean 'vae_mlp'?")
    one_line(lambda: export(model, tmp_path / "a", name="ae_mlp"), "'ae_mlp' builds a AE, not a VAE")
    one_line(lambda: export(model, tmp_path / "a", name="vae_mlp"), "the weights do not fit vae_mlp", "config={...}")
    one_line(lambda: export(model, tmp_path / "a", name="vae_mlp", config=CONFIG | {"zdim": torch.ones(2)}), "config: ", "JSON")
    one_line(lambda: export(nn.Linear(2, 2), tmp_path / "a", name="vae_mlp"), "Linear has no attribute image_shape")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    one_line(lambda: export(model, tmp_path / "file", name="vae_mlp", config=CONFIG), "cannot be written")


def spoil(folder, how):
    about, weights = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    if how == "weights":
        save_file({"w": torch.ones(2)}, weights)
    elif how == "pickle":
        torch.save({"w": torch.ones(2)}, weights)
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how in ("{", "[1]", "null"):
        (folder / "config.json").write_text(how)
    elif isinstance(how, str):
        (folder / how).unlink()
    else:
        (folder / "config.json").write_text(json.dumps({k: v for k, v in (about | how).items() if v != "gone"}))


@pytest.mark.parametrize(
    "how, message",
    [
        ("config.json", "has no config.json; `genbook export RUN vae` writes both"),
        ("model.safetensors", "has no model.safetensors"),
        ("{", "config.json is not what genbook export writes"),
        ("[1]", "config.json is not what genbook export writes"),
        ("null", "config.json is not what genbook export writes"),
        ({"model": "gone"}, "config.json is not what genbook export writes"),
        ({"model": 3}, "config.json is not what genbook export writes"),
        ({"config": None}, "config.json is not what genbook export writes"),
        ({"image_shape": None}, "config.json is not what genbook export writes"),
        ({"image_shape": [1, "8", 8]}, "config.json is not what genbook export writes"),
        ({"schema": 2}, "has schema 2; this version of genbook reads 1"),
        ({"schema": None}, "has schema None; this version of genbook reads 1"),
        ({"model": "vae_mpl"}, "did you mean 'vae_mlp'?"),
        ({"image_shape": [1, 8]}, "image_shape"),
        ({"config": {"zdimm": 4}}, "zdimm"),
        ({"config": {"levels": 17, "zdim": 5, "width": 8}}, "the weights do not fit vae_mlp: size mismatch for"),
        ({"config": {"levels": 17, "zdim": 4, "width": "8"}}, "width"),
        ({"config": {"levels": 17, "zdim": 4, "width": 8, "kl_args": 7}}, "vae_mlp"),
        ("weights", "the weights do not fit vae_mlp: "),
        ("pickle", "model.safetensors cannot be read: "),
        ("cut", "model.safetensors cannot be read: "),
        ("empty", "model.safetensors cannot be read: "),
    ],
)
def test_a_spoiled_folder_gets_one_line(tmp_path, how, message):
    folder = packed(tmp_path)
    spoil(folder, how)
    one_line(lambda: from_pretrained(folder), message)


def test_a_name_is_looked_for_in_folders_then_in_the_package_then_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "assets", lambda *parts: tmp_path.joinpath("assets", *parts))
    assert list_pretrained() == []
    one_line(lambda: from_pretrained("vae-tiny"), "there is no folder vae-tiny")
    inside = export(small(), tmp_path / "assets/pretrained/vae-tiny", name="vae_mlp", config=CONFIG, half=True)
    assert list_pretrained() == ["vae-tiny"] and from_pretrained("vae-tiny").zdim == 4
    one_line(lambda: from_pretrained("vae-tini"), "there is no folder vae-tini; with the package come vae-tiny; did you mean 'vae-tiny'?")
    export(create_model("vae_mlp", (1, 8, 8), zdim=5, width=8), "vae-tiny", name="vae_mlp", config={"zdim": 5, "width": 8})
    assert from_pretrained("vae-tiny").zdim == 5  # a folder comes first
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(name)
        if name != "somebody/vae-tiny":
            raise OSError(f"404 {name}\nand much more")
        assert set(allow_patterns) == {"config.json", "model.safetensors"}  # nothing else is fetched
        return str(inside)

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    one_line(lambda: from_pretrained("somebody/vae-tiny"), "there is no folder somebody/vae-tiny", "pip install huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert from_pretrained("somebody/vae-tiny").zdim == 4
    one_line(lambda: from_pretrained("somebody/else"), "somebody/else could not be fetched from the hub: 404 somebody/else")
    for path in ("../up", "./here", "/there", "a/b/c"):
        one_line(lambda path=path: from_pretrained(path), "there is no folder")
    assert asked == ["somebody/vae-tiny", "somebody/else"]


def test_what_comes_with_the_package_loads():
    others = ["diffusion-mnist", "flow-matching-mnist", "gan-mnist", "style-fashion", "vae-gan-fashion", "vae-gan-twin-vae-fashion"]
    assert list_pretrained() == sorted([name for name, _ in SHIPPED] + others)
    for name in list_pretrained():
        assert view(from_pretrained(name)).isfinite().all(), name


SHIPPED = [
    ("ae-mnist", "mse"),
    ("vae-mnist", "mse"),
    ("flow-vae-mnist", "mse"),
    ("realnvp-mnist", "bits_per_dim"),
    ("pixel-mnist", "bits_per_dim"),
    ("tarflow-mnist", "bits_per_dim"),
    ("vqvae-mnist", "bits_per_dim"),
    ("latent-mnist", "bits_per_dim"),
    ("hierarchy-mnist", "mse"),
    ("fvae-mnist", "mse"),
]
BRIEF = {
    "realnvp-mnist": {"k": 8},
    "tarflow-mnist": {"k": 8},
    "latent-mnist": {"steps": 6},
}  # draws, steps of the solver: where the likelihood is estimated


@pytest.mark.parametrize(("name", "metric"), SHIPPED)
def test_what_comes_with_the_package_does_what_its_card_says(name, metric):
    model, card = from_pretrained(name), (Path(pretrained.assets("pretrained")) / name / "README.md").read_text()
    value, se = map(float, re.search(rf"\| {metric} \| ([\d.e-]+) ± ([\d.e-]+)", card).groups())
    x, generator = (
        datasets.load("fashion-mini" if "fashion" in name else "mnist-mini").test.float(slice(0, 40))[0],
        torch.Generator().manual_seed(0),
    )
    if model.levels == 2:
        x = torch.bernoulli(x, generator=generator)
    with torch.no_grad():
        if metric == "mse":
            each = (model.reconstruct(x) - x).square().flatten(1).mean(1)
        else:
            how = BRIEF[name] | {"generator": generator} if name in BRIEF else {}
            each = -model.log_prob(x, **how) / x[0].numel() / math.log(2)
        shape = model.sample(3, generator=generator).shape
    assert abs(each.mean().item() - value) < 4 * (each.std().item() / 40**0.5 + se) and shape == (3, 1, 28, 28)


def test_a_gan_that_comes_with_the_package_varies_as_its_card_says():
    "It has no likelihood: the share of the pairs of samples that are alike, from six draws of a hundred."
    card = (Path(pretrained.assets("pretrained")) / "style-fashion/README.md").read_text()
    value = float(re.search(r"\| similar_pairs \| ([\d.e-]+)", card).group(1))
    model, middle = from_pretrained("style-fashion"), datasets.load("fashion-mini").train.float()[0].mean(0)
    draws = [(model.sample(100, generator=torch.Generator().manual_seed(s)) - middle).flatten(1) for s in range(6)]
    found = torch.tensor([above / pairs for _, above, pairs in map(similar_pairs, draws)])
    assert draws[0].shape == (100, 784) and abs(found.mean() - value) < 4 * found.std() / 6**0.5 < 0.5 * value


def test_a_run_without_a_model_is_refused(tmp_path):
    run = Run(tmp_path / "runs/demo/a")
    one_line(lambda: export(run.dir, tmp_path / "out"), "is not a finished run")
    run.finish()
    one_line(lambda: export(run.dir, tmp_path / "out"), "has kept no model; run it again with --force")
    one_line(lambda: export(tmp_path / "nowhere", tmp_path / "out"), "is not a finished run")
    assert not (tmp_path / "out").exists()


def test_a_training_exports_its_averaged_weights(tmp_path, root):
    "From the command line, of a run that averages: the weights are the checkpoint's average, not its last ones."
    run = Run(tmp_path / "run")
    Training("vae", "digits", config="mlp_digits", model_args={"width": 16}, train_args={"steps": 12, "every": 6, "ema": 0.9}).fit(
        run, progress=False
    )
    run.finish()
    command = [sys.executable, "-c", "from genbook.lab.cli import main; main()", "export", str(run.dir), str(tmp_path / "vae")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "vae"), done.stderr
    model, step = from_pretrained(tmp_path / "vae"), torch.load(run.dir / "checkpoint/main.pt", weights_only=True)["step"]
    assert [k for k, _ in model.named_parameters()]
    for average, p in zip(step["ema"]["avg"], model.parameters(), strict=True):
        assert torch.equal(average, p)
    assert not all(torch.equal(step["model"][k], p) for k, p in model.named_parameters())
    assert model.sample(2).shape == (2, 1, 8, 8)


def test_all_that_is_in_the_zoo_is_kept_by_its_chapter(root):
    for family, (module, _) in FAMILIES.items():
        (path,) = (root / "nbs/models").glob(f"[0-9][0-9]_{module.rpartition('.')[2]}.ipynb")
        text = path.read_text().replace("\\", "")
        trained = f'Training("{family}"' in text and ".fit(run" in text
        assert trained or "run.keep(" in text, f"{path.name} does not keep its model"
    assert set(ZOO) <= set(list_models()) and all(import_module(module).CONFIGS for module, _ in FAMILIES.values())
