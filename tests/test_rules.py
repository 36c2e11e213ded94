"The rules of `rules.py` hold in this repository, and each of them catches a violation planted in a tiny book."

import filecmp
import json
import re
import runpy
import shutil
import subprocess
import sys
from configparser import ConfigParser
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rules import RULES, Book

# ---- this repository


@pytest.mark.parametrize("name", RULES)
def test_repository(name, root):
    assert not (broken := list(RULES[name](Book(root)))), "\n".join([RULES[name].__doc__ or name, *broken])


def regenerated(root: Path, copy: Path) -> list[str]:  # files that differ
    "What `nbdev_clean` and `nbdev_export` would change in the repository `root`, found in a `copy`."
    for name in ("nbs", "genbook", "settings.ini"):
        source = root / name
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy / name)
    for module in (copy / "genbook").rglob("*.py"):  # all are to be made anew, so an orphan is missed
        if module.name not in ("__init__.py", "__main__.py"):
            module.unlink()
    tool = "from nbdev.clean import nbdev_clean; from nbdev.doclinks import nbdev_export; nbdev_clean(); nbdev_export()"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", tool], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    different = []
    for folder in ("nbs", "genbook"):
        a, b = ({p.relative_to(r) for p in (r / folder).rglob("*") if p.suffix in (".py", ".ipynb")} for r in (root, copy))
        a = {p for p in a if ".ipynb_checkpoints" not in p.parts}
        different += [str(p) for p in sorted(a | b) if p not in a & b or not filecmp.cmp(root / p, copy / p, shallow=False)]
    return different


def test_exported(root, tmp_path):
    "The notebooks are clean, and genbook/ is what they export: no file differs, is new, or is left over."
    advice = "notebooks and modules differ: edit notebooks, not modules, then `make export` and commit both: "
    assert not (changed := regenerated(root, tmp_path)), advice + ", ".join(changed)


def modules_after(code: str) -> set[str]:  # top-level names
    "What a fresh interpreter has imported after `code`."
    end = "\nimport sys; print('\\n' + ' '.join({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import genbook; genbook.__version__", {"torch", "numpy", "matplotlib", "papermill"}),
        ("from genbook.lab.cli import cli; cli(['--help'], standalone_mode=False)", {"torch", "numpy", "matplotlib", "papermill"}),
        ("from genbook.lab.cli import cli; cli(['list'], standalone_mode=False)", {"torch", "numpy", "matplotlib", "papermill"}),
        ("import genbook.models.vae", {"matplotlib", "torchvision", "papermill", "sklearn", "IPython"}),
        ("import genbook.datasets, genbook.measure.protocol, genbook.train", {"matplotlib", "torchvision", "papermill", "IPython"}),
    ],
)
def test_imports_are_light_when_they_run(code, heavy):
    assert not heavy & modules_after(code)


def test_a_heavy_import_is_seen():
    assert {"csv", "email"} <= modules_after("import csv, email.message")


EXTRAS = ("lab", "report", "cluster", "fid", "peers", "dev")


def requirements(root, *extras):  # canonical name -> requirement
    "What settings.ini requires for these extras; for none of them the core."
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini")
    texts = [config["DEFAULT"][f"{extra}_requirements"] for extra in extras] or [config["DEFAULT"]["requirements"]]
    return {canonicalize_name(r.name): r for text in texts for r in map(Requirement, text.split())}


def test_constraints_fit_settings(root):
    "Each dependency of settings.ini has an exact version in constraints.txt, inside its range; what is installed here is inside it too."
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(r.name): r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    for name, r in (requirements(root) | requirements(root, *EXTRAS)).items():
        pin = next(iter(pins[name].specifier))
        assert pin.operator == "==" and r.specifier.contains(pin.version), f"{r} and {pins[name]}"
    for name, r in (requirements(root) | requirements(root, "dev")).items():  # peers are installed by who compares with them
        assert r.specifier.contains(version(name)), f"{r}: {version(name)} is installed"


def with_their_own(needed) -> set[str]:  # requirements -> canonical names
    "What installing these installs: they, and all that they require."
    todo, seen = list(needed), set()
    while todo:
        r = todo.pop()
        key = canonicalize_name(r.name), *sorted(r.extras)
        if key not in seen:
            seen.add(key)
            with suppress(PackageNotFoundError):  # of another platform
                every = map(Requirement, requires(r.name) or [])
                todo += [q for q in every if not q.marker or any(q.marker.evaluate({"extra": e}) for e in {"", *r.extras})]
    return {name for name, *_ in seen}


def importable(needed) -> set[str]:  # requirements -> names of modules
    "The modules that come with these distributions and with all that they require."
    seen = with_their_own(needed)
    return {module for module, found in packages_distributions().items() if seen & {canonicalize_name(d) for d in found}}


def test_the_core_is_small_and_the_extras_have_the_rest(root, monkeypatch):
    "At most 45 packages beside torch and what torch requires; every environment of the project has all that its readers work with."
    core = with_their_own(requirements(root).values())
    assert 20 < len(core - with_their_own([Requirement("torch")])) <= 45
    assert not core & {"jupyterlab", "papermill", "nbdev", "ipywidgets", "dask", "nbconvert", "pytest", "ipython"}
    known = {}
    monkeypatch.chdir(root)
    monkeypatch.setattr("setuptools.setup", lambda **about: known.update(about))
    runpy.run_path("setup.py")
    named = lambda extra: {Requirement(r).name for r in known["extras_require"][extra]}
    assert set(known["extras_require"]) == set(EXTRAS) and {"jupyterlab", "papermill", "nbdev", "ipywidgets"} <= named("lab") <= named(
        "report"
    )
    assert named("dev") == set().union(*(named(e) for e in EXTRAS if e != "peers")) and "dask" in named("dev")
    assert {Requirement(r).name for r in known["install_requires"]} == set(requirements(root))


IMPORTED_BY = {"kernel": ["lab"], "launch": ["lab"], "explorers": ["lab"], "staging": ["lab", "report"], "report": ["lab", "report"]}
IMPORTED_BY |= {"editions": ["lab"], "markup": ["report"], "signatures": ["lab"]}
IMPORTED_BY |= {"grid": ["cluster"], "inception": ["fid"]}  # where they are used, and only if they are installed


def test_what_is_imported_is_required(root):
    "The package imports the standard library and what its core requires; a few modules also what comes with an extra."
    always = {"genbook", *sys.stdlib_module_names} | importable(requirements(root).values())
    assert {"torch", "yaml", "sklearn"} <= always and not {"pythae", "traitlets", "IPython"} & always
    for path in (root / "genbook").rglob("*.py"):
        imported = set(re.findall(r"(?m)^\s*(?:from|import) (\w+)", path.read_text()))
        extras = importable(requirements(root, *IMPORTED_BY[path.stem]).values()) if path.stem in IMPORTED_BY else {"huggingface_hub"}
        assert not (missing := imported - always - extras), f"{path.name} imports {missing}"


def test_what_is_installed_is_whole(root, tmp_path):
    "A wheel holds every module, also of packages in packages, and data in folders of folders; the command is where it says."
    for name in ("setup.py", "settings.ini", "README.md", "genbook"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / name, tmp_path / name, ignore=ignore) if (root / name).is_dir() else shutil.copy(root / name, tmp_path)
    deep = tmp_path / "genbook/assets/one/two/three.bin"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"3")
    done = subprocess.run([sys.executable, "setup.py", "-q", "build", "-b", "made"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = lambda folder: {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    assert files(tmp_path / "made/lib") == {Path("genbook") / p for p in files(tmp_path / "genbook")}
    module, _, name = re.search(r"genbook=([\w.]+)(:)(\w+)", (root / "setup.py").read_text()).groups()
    assert f"def {name}(" in (root / module.replace(".", "/")).with_suffix(".py").read_text()


# ---- a tiny book, with violations planted

INFRASTRUCTURE = """
# %% [markdown]
# Core

> What all notebooks share

# %%
#| default_exp core

# %%
#| export
import math

# %%
#| exports
def area(
    radius: float,  # in metres
    scale: float = 1.0,  # of the map
) -> float:
    "The area of a disc, in square metres; raises `ValueError` for a negative radius."
    radius = radius * scale
    if radius < 0:
        raise ValueError("radius")
    return math.pi * radius**2
"""

SECOND = """
# %% [markdown]
# Models

> The second notebook

# %%
#| default_exp prob

# %%
#| exports
class Disc:
    "A disc of some `radius`."

    def __init__(self, radius: float):
        self.radius = radius

    def contains(self, x: float) -> bool:
        "Is `x` inside?"
        return abs(x) < self.radius
"""

CHAPTER = r"""
# %% [markdown]
# Discs

> A chapter

# %%
#| default_exp models.disc

# %%
#| hide
from typing import Optional

# %% tags=parameters
dataset: str = "discs"  # which
size: Optional[int] = None  # of an image
config: str = "disc"  # which
model_args: dict = {}  # of the model
train_args: dict = {}  # of the training
measure_args: dict = {}  # of the measures
seed: int = 0  # of everything
device: str = "auto"  # where
run_dir: Optional[str] = None  # folder of the run

# %%
#| export
from genbook.core import area

# %% [markdown]
## The idea

## Derivation

$$ A(r) = \pi r^2 $$ {#eq-disc-area}

and with @eq-disc-area the definition

$$ d = 2r. $$ {#eq-def-diameter}

## Building blocks

## The model

## Does it agree with theory?

# %%
# eq-disc-area
assert abs(area(1.0) - 3.14159) < 1e-5

# %% [markdown]
## Train, look, measure

# %%
#| label: fig-disc
#| fig-cap: A disc.
#| fig-alt: A black disc on white.
run.figure(draw(area), "disc")

# %% [markdown]
## Studies

### Smaller discs

## What the reports did

## Summary

## Exercises

## Notes

## References

Crónin and O'Dea [-@cronin1994] for discs.
"""

INDEX = """
# %% [markdown]
# Tiny

> A book of discs

See [the chapter](models/10_disc.ipynb) and [the web](https://example.org).

# %%
#| hide
secret = 1

# %%
from genbook.core import area
"""


def notebook(text: str) -> dict:
    "A notebook from its cells in percent format."
    cells = []
    for i, (head, body) in enumerate(re.findall(r"(?ms)^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", text)):
        cell = {"cell_type": "markdown", "id": f"cell{i:04}", "metadata": {}, "source": body.strip("\n").splitlines(keepends=True)}
        if "[markdown]" not in head:
            tags = {"tags": [head.split("=")[1]]} if "tags=" in head else {}
            cell |= {"cell_type": "code", "execution_count": None, "metadata": tags, "outputs": []}
        cells.append(cell)
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


COMMANDS = """
# %% [markdown]
# Command line

> A shop of discs

# %%
#| default_exp lab.cli

# %%
#| export
from genbook.core import area

# %%
#| export
@cli.command()
def run():
    "Sell a disc."
"""

READING = """
# %% [markdown]
# A study

> It exports nothing

# %%
from genbook.lab.cli import run
"""

BOOK = {
    "nbs/00_core.ipynb": INFRASTRUCTURE,
    "nbs/03_prob.ipynb": SECOND,
    "nbs/models/10_disc.ipynb": CHAPTER,
    "nbs/lab/10_cli.ipynb": COMMANDS,
    "nbs/studies/90_discs.ipynb": READING,
    "nbs/index.ipynb": INDEX,
    "experiments/10_disc.yaml": "experiments:\n  disc-digits:\n    variants: {small: , large: {size: 3}}\n",
    "genbook/__init__.py": '__version__ = "0.1.0"\n',
    "genbook/core.py": "# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/00_core.ipynb.\n",
    "genbook/models/disc.py": "# AUTOGENERATED! DO NOT EDIT! File to edit: ../../nbs/models/10_disc.ipynb.\n",
    "nbs/refs.bib": "@article{cronin1994,\n  author = {Crónin, A. and O'Dea, B.},\n  title  = {Discs},\n  year   = {1994}\n}\n",
    ".gitignore": "/runs/\n__pycache__/\n",
}


def write(root: Path, files: dict[str, str]) -> Book:
    "A repository with these files; notebooks are given in percent format, and README.md is made."
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(notebook(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n" if name.endswith(".ipynb") else text
        )
    if "README.md" not in files:
        readme = runpy.run_path(str(Path(__file__).parents[1] / ".ci" / "readme.py"))["readme"]
        (root / "README.md").write_text(readme(root / "nbs" / "index.ipynb"))
    return Book(root)


CORE, PROB, DISC, STUDY = (f"nbs/{n}.ipynb" for n in ("00_core", "03_prob", "models/10_disc", "studies/90_discs"))


def test_tiny_book_is_sound(tmp_path):
    book = write(tmp_path, BOOK)
    assert {name: broken for name, r in RULES.items() if (broken := list(r(book)))} == {}
    assert "[the chapter](nbs/models/10_disc.ipynb)" in (tmp_path / "README.md").read_text()
    assert "secret" not in (tmp_path / "README.md").read_text()


def test_a_figure_on_the_first_page_is_that_of_its_chapter(tmp_path):
    book = write(tmp_path, BOOK | {"nbs/index.ipynb": BOOK["nbs/index.ipynb"] + "\n# %% [markdown]\n![A disc](images/fig-disc.png)\n"})
    nb, picture = json.loads((tmp_path / DISC).read_text()), tmp_path / "nbs/images/fig-disc.png"
    shown = next(c for c in nb["cells"] if "label: fig-disc" in "".join(c["source"]))
    shown["outputs"] = [{"output_type": "display_data", "data": {"image/png": "b25l"}, "metadata": {}}]
    (tmp_path / DISC).write_text(json.dumps(nb))
    assert any("fig-disc.png" in line for line in RULES["readme_is_index"](book))
    picture.parent.mkdir()
    picture.write_bytes(b"one")
    assert not list(RULES["readme_is_index"](book))


LONG = "def long(\n    x: int,  # a number\n) -> int:\n    'Long.'\n" + "    x += 1\n" * 37 + "    return x\n"
COPY = INFRASTRUCTURE[INFRASTRUCTURE.index("def area(") :]
PLANTED = [  # rule, file, what is replaced, by what, a word of the complaint
    ("one_notebook_one_module", DISC, "default_exp models.disc", "default_exp models.disk", "exports to models.disk"),
    ("one_notebook_one_module", CORE, "#| exports", "#| exports other.module", "exports elsewhere"),
    ("one_notebook_one_module", DISC, "#| default_exp models.disc", "", "exports to None"),
    ("one_notebook_one_module", STUDY, "# %%\nfrom", "# %%\n#| export\nfrom", "no `#| default_exp`"),
    ("one_notebook_one_module", "nbs/runs/11_disc.ipynb", "", CHAPTER, "not of the form"),
    ("one_notebook_one_module", "nbs/models/11_disc.new.ipynb", "", CHAPTER, "not of the form"),
    ("one_notebook_one_module", "nbs/models/index.ipynb", "", INDEX, "not of the form"),
    ("one_notebook_one_module", "genbook/models/disk.py", "", "# File to edit: ../../nbs/models/10_disc.ipynb.\n", "models/disk.py"),
    ("one_notebook_one_module", "genbook/old.py", "", "# File to edit: ../nbs/05_old.ipynb.\n", "old.py"),
    ("one_notebook_one_module", "genbook/hand.py", "", "x = 1\n", "hand.py"),
    ("numbers_are_unique", "nbs/models/10_other.ipynb", "", CHAPTER.replace("disc", "other"), "same number"),
    ("modules_are_small", "genbook/core.py", "", "x = 1\n" * 401, "401 lines"),
    ("imports_go_down", CORE, "import math", "from genbook.models.disc import area", "imports models.disc"),
    ("imports_go_down", CORE, "import math", "from genbook.models import disc", "imports models.disc"),
    ("imports_go_down", CORE, "import math", "from genbook.prob import Disc", "imports prob"),
    ("imports_go_down", CORE, "import math", "import genbook.prob", "imports prob"),
    ("imports_go_down", DISC, "from genbook.core import area", "from genbook.lab import cli", "imports lab.cli"),
    ("imports_go_down", DISC, "from genbook.core import area", "from genbook.models import area", "imports models"),
    ("imports_go_down", CORE, "    radius = ", "    from genbook import create_model\n    radius = ", "imports lab.zoo"),
    ("imports_go_down", DISC, "import area", "import *", "star"),
    ("imports_go_down", DISC, "from genbook.core", "from ..core", "relative"),
    ("imports_are_light", CORE, "import math", "import math\nimport torch.nn", "torch"),
    ("imports_are_light", PROB, "# %%\n#| exports", "# %%\n#| export\nimport torchvision\n\n# %%\n#| exports", "prob: loads torchvision"),
    ("imports_are_light", CORE, "import math", "import math\nimport torch", "lab.cli: loads torch"),
    ("imports_are_light", CORE, "import math", "try:\n    import matplotlib.pyplot\nexcept ImportError:\n    pass", "matplotlib"),
    ("imports_stand_alone", CORE, "import math", "import math\n\ntau = 2 * math.pi", "other code"),
    ("small", CORE, "#| exports\ndef area", f"#| exports\n{LONG}\n\ndef area", "long has 42 lines"),
    ("small", DISC, "# eq-disc-area", "# eq-disc-area\n" + "area(1.0)\n" * 60, "lines"),
    ("small", DISC, "# eq-disc-area", "# eq-disc-area " + "x" * 140, "140 characters"),
    ("small", DISC, "## References", "## References\n" + "x" * 400_000, "kB"),
    ("options_are_sound", CORE, "#| exports", "#| exports:", "exports:"),
    ("options_are_sound", DISC, "#| fig-cap: A disc.", "#| fig-cap: |\n#|   A disc.", "option"),
    ("options_are_sound", CORE, "#| exports\n", "x = 1\n#| exports\n", "after the code"),
    ("nothing_is_skipped", DISC, "# eq-disc-area", "#| eval: false\n# eq-disc-area", "skipped"),
    ("nothing_is_skipped", DISC, "# eq-disc-area", "#| slow\n# eq-disc-area", "skipped"),
    ("nothing_is_skipped", DISC, "> A chapter", "> A chapter\n\n- skip_exec: true", "never executed"),
    ("nothing_is_skipped", DISC, "# eq-disc-area", "import nbdev; nbdev.nbdev_export()\n# eq-disc-area", "never executed"),
    ("nothing_is_skipped", DISC, "# eq-disc-area", 'quick = "CI" in environ\n# eq-disc-area', "branches"),
    ("nothing_is_skipped", "nbs/.notest", "", "", ".notest"),
    ("plain_python", CORE, "import math", "%matplotlib inline\nimport math", "not Python"),
    ("plain_python", CORE, "    return math", "    plt.show()\n    return math", "shows a figure"),
    ("plain_python", DISC, "## Studies", "---\n## Studies", "begins with ---"),
    ("parameters", DISC, " tags=parameters", "", "0 parameters cells"),
    ("parameters", DISC, "# %%\n#| label", "# %% tags=parameters\n#| label", "2 parameters cells"),
    ("parameters", DISC, "dataset: str = ", "dataset = ", "annotated scalar"),
    ("parameters", DISC, "size: Optional[int] = None", "size: list = [3]", "annotated scalar"),
    ("parameters", DISC, "size: Optional[int] = None", "size: int | None = None", "annotated scalar"),
    ("parameters", DISC, "seed: int = 0", "seed: int = 3 * 4", "annotated scalar"),
    ("parameters", DISC, "train_args: dict = {}", "train_args: dict = {'lr': 1}", "annotated scalar"),
    ("parameters", DISC, "  # of an image", "", "no comment"),
    ("parameters", DISC, "seed: int = 0  # of everything\n", "", "no seed"),
    ("parameters", DISC, "config: str = ", "layers: int = 3  # of discs\nconfig: str = ", "a chapter has dataset, size"),
    ("no_loop_outside_train", DISC, "# eq-disc-area", "loss.backward()\n# eq-disc-area", "trains by itself"),
    ("no_loop_outside_train", DISC, "# eq-disc-area", "torch.optim.Adam(p)\n# eq-disc-area", "trains by itself"),
    ("no_loop_outside_train", DISC, "import area", "import area\nfrom torch.optim import Adam", "trains by itself"),
    ("no_copies", DISC, "# %%\n# eq-disc-area", f"# %%\n{COPY}\n\n# %%\n# eq-disc-area", "00_core"),
    ("documented", CORE, '    "The area', '    # "The area', "no docstring"),
    ("documented", CORE, "radius: float,", "radius,", "radius) has no type"),
    ("documented", CORE, "  # of the map", "", "scale) has neither"),
    ("documented", PROB, 'Is `x` inside?"', '"', "Disc.contains has no docstring"),
    ("documented", PROB, "x: float", "x", "contains(x) has no type"),
    ("documented", PROB, "of some `radius`", "", "__init__(radius) has neither"),
    ("sections_in_order", DISC, "\n\n> A chapter", "", "title"),
    ("sections_in_order", DISC, "## Building blocks", "## Parts", "building blocks"),
    ("sections_in_order", DISC, "## Derivation", "## The model", "derivation"),
    (
        "sections_in_order",
        DISC,
        "## Studies\n\n### Smaller discs\n\n## What the reports did",
        "## What the reports did\n\n## Studies",
        "do not follow",
    ),
    ("sections_in_order", DISC, "## Summary", "### Summary", "summary"),
    (
        "results_are_tables",
        DISC,
        "# %%\n# eq-disc-area\n",
        "# %%\n{'radius': 1.0} | {'area': area(1.0)}\n\n# %%\n# eq-disc-area\n",
        "prints a dict",
    ),
    ("equations_are_asserted", DISC, "# eq-disc-area", "# the area", "no cell asserts eq-disc-area"),
    ("equations_are_asserted", DISC, "assert abs(area(1.0) - 3.14159) < 1e-5", "print(area(1.0))", "no cell asserts eq-disc-area"),
    ("equations_are_asserted", DISC, " {#eq-disc-area}", "", "no label"),
    ("equations_are_asserted", DISC, "# eq-disc-area", "# eq-disc-area, eq-disc-volume", "no equation eq-disc-volume"),
    ("equations_are_asserted", DISC, "## Exercises", "## Exercises\n$$ a $$ {#eq-def-diameter}", "2 equations"),
    ("figures_have_captions", DISC, "#| fig-alt: A black disc on white.\n", "", "without fig-alt"),
    ("figures_have_captions", DISC, "#| label: fig-disc\n", "", "without label"),
    ("figures_have_captions", DISC, "# eq-disc-area", "#| label: fig-disc\n# eq-disc-area", "2 figures"),
    ("references_resolve", DISC, "@eq-disc-area", "@eq-disc-volume", "no eq-disc-volume"),
    ("citations_resolve", DISC, "[-@cronin1994]", "[-@cronin1995]", "no cronin1995 in refs.bib"),
    ("citations_resolve", DISC, "[-@cronin1994]", "(1994)", "nobody cites cronin1994"),
    ("citations_resolve", DISC, "[-@cronin1994] for", "[-@cronin1994] and Rossi (2001) for", "Rossi (2001) is not in refs.bib"),
    ("citations_resolve", CORE, "in square metres;", "in square metres (Cronin et al. 1994);", "cite cronin1994"),
    ("citations_resolve", CORE, "in square metres;", "in square metres (Rossi 2001);", "Rossi 2001 is not in refs.bib"),
    ("citations_resolve", "nbs/refs.bib", "{1994}", "{1995}", "cronin1994 is by Crónin, 1995"),
    ("readme_is_index", "README.md", "", "# Tiny\n", "README"),
    ("commands_exist", "CONTRIBUTING.md", "", "Type `make tea`.\n", "Makefile has no tea"),
    ("commands_exist", "CONTRIBUTING.md", "", "genbook run disc-mnist -p seed 3\n", "no disc-mnist"),
    ("commands_exist", "CONTRIBUTING.md", "", "genbook run disc-digits-huge\n", "no disc-digits-huge"),
    (
        "commands_exist",
        "nbs/guide/10_discs.ipynb",
        "",
        READING.replace("It exports", "`genbook run disc-none`: it exports"),
        "no disc-none",
    ),
    ("commands_exist", "CONTRIBUTING.md", "", "genbook brew\n", "no brew"),
    ("no_machine_is_named", DISC, "## References", "## References\n\nsee /{}/me/notes".format("home"), "10_disc.ipynb:"),
    ("no_machine_is_named", "nbs/runs/notes.txt", "", "see /{}/me/notes".format("home"), "nbs/runs/notes.txt"),
    ("no_machine_is_named", "Makefile", "", "pip install -i https://{}.org/simple genbook\n".format("pypi"), "Makefile:1"),
]


SOUND = [  # what no rule forbids
    ("imports_go_down", DISC, "# %%\n# eq-disc-area", "# %%\nfrom genbook.lab.cli import run\n\n# %%\n# eq-disc-area"),
    ("parameters", DISC, "run_dir: Optional[str] = None", "run_dir: Optional[str] = 'here'"),
    ("parameters", DISC, "dataset: str = ", "#| hide\ndataset: str = "),
    ("numbers_are_unique", "nbs/studies/10_discs.ipynb", "", READING),
    ("commands_exist", "CONTRIBUTING.md", "", "genbook run disc-digits disc-digits-small\ngenbook run mine.ipynb\n"),
    ("citations_resolve", DISC, "for discs.", "for discs, as Cronin et al. (1994) say at ICML 2015 of MNIST 1998."),
    ("no_machine_is_named", "runs/notes.txt", "", "see /{}/me/notes".format("home")),
]


@pytest.mark.parametrize(("name", "file", "old", "new"), SOUND, ids=[s[0] for s in SOUND])
def test_nothing_is_wrong_with(name, file, old, new, tmp_path):
    assert old in BOOK.get(file, ""), "the change needs its place"
    assert not list(RULES[name](write(tmp_path, BOOK | {file: BOOK[file].replace(old, new, 1) if old else new})))


@pytest.mark.parametrize(("name", "file", "old", "new", "word"), PLANTED, ids=[f"{p[0]}-{p[4]}" for p in PLANTED])
def test_planted(name, file, old, new, word, tmp_path):
    assert old in BOOK.get(file, ""), "the plant needs its place"
    broken = list(RULES[name](write(tmp_path, BOOK | {file: BOOK[file].replace(old, new, 1) if old else new})))
    assert any(word in line for line in broken), broken


DIRTY = [
    (lambda nb: nb["metadata"].update(papermill={}), "metadata papermill"),
    (lambda nb: nb["cells"][1].update(execution_count=3), "execution count"),
    (lambda nb: nb["cells"][1]["metadata"].update(collapsed=True), "metadata collapsed"),
    (lambda nb: nb["cells"][1].pop("id"), "without ids"),
    (lambda nb: nb["cells"][1].update(id=nb["cells"][0]["id"]), "the same"),
    (lambda nb: nb["cells"][1].update(outputs=[{"output_type": "stream", "name": "stderr", "text": ["0%"]}]), "progress bar"),
    (lambda nb: nb["cells"][1].update(outputs=[{"output_type": "error"}]), "an error"),
]


@pytest.mark.parametrize(("spoil", "word"), DIRTY, ids=[d[1] for d in DIRTY])
def test_dirty_notebook(spoil, word, tmp_path):
    book = write(tmp_path, BOOK)
    nb = json.loads((tmp_path / DISC).read_text())
    spoil(nb)
    (tmp_path / DISC).write_text(json.dumps(nb))
    assert any(word in line for line in RULES["clean"](book))


def test_figure_among_the_outputs_needs_a_caption(tmp_path):
    book = write(tmp_path, BOOK)
    nb = json.loads((tmp_path / DISC).read_text())
    check = next(c for c in nb["cells"] if "# eq-disc-area" in "".join(c["source"]))
    check["outputs"] = [{"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}]
    (tmp_path / DISC).write_text(json.dumps(nb))
    assert any("eq-disc-area" in line and "without" in line for line in RULES["figures_have_captions"](book))


def test_drift_is_seen(root, tmp_path):
    "What is exported is found to agree; an edited module, a new notebook and an orphan are found to differ."
    book, made, again = (tmp_path / n for n in ("book", "made", "again"))
    write(book, BOOK)
    shutil.copy(root / "settings.ini", book)
    for d in (made, again):
        d.mkdir()
    new = {f"genbook/{name}.py" for name in ("_modidx", "core", "prob", "models/__init__", "models/disc", "lab/__init__", "lab/cli")}
    assert set(regenerated(book, made)) == new
    shutil.copytree(made / "genbook", book / "genbook", dirs_exist_ok=True)
    (book / "genbook" / "core.py").write_text((made / "genbook" / "core.py").read_text().replace("math.pi", "3.14"))
    (book / "genbook" / "prob.py").unlink()
    (book / "genbook" / "old.py").write_text("x = 1\n")
    assert regenerated(book, again) == ["genbook/core.py", "genbook/old.py", "genbook/prob.py"]
