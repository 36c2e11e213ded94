"""The rules of the repository: each is a function from a `Book` to the places where it is broken, one line each.

They read the notebooks as text (nothing is executed) and take whatever lies under nbs/, so a new chapter is covered when it is written.
`test_rules.py` applies them to this repository, and to a tiny book with each violation planted in it.
"""

import ast
import io
import json
import re
import runpy
import sys
import tokenize
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

# ---- what the rules read

FOLDERS = ("", "measure", "models", "lab", "studies", "guide")  # of nbs/, each may import from those before it


@dataclass(frozen=True)
class Cell:
    "A cell of a notebook."

    notebook: "Notebook"
    raw: dict

    @cached_property
    def source(self):
        return "".join(self.raw["source"])

    @cached_property
    def kind(self):
        return self.raw["cell_type"]

    @cached_property
    def options(self):  # the leading `#|` lines, without the mark
        return [line[2:].strip() for line in re.match(r"(?:#\|.*\n?|\s*\n)*", self.source)[0].splitlines() if line.strip()]

    @cached_property
    def option(self):  # {"label": "fig-x", "export": ""}
        return {k.strip(): v.strip() for k, _, v in (o.partition(":") for o in self.options)}

    @cached_property
    def code(self):  # without the options, lines kept
        return re.sub(r"(?m)^#\|.*$", "", self.source)

    @cached_property
    def tree(self):  # parsed; None for what is not Python
        try:
            return ast.parse(self.code)
        except SyntaxError:
            return None

    @property
    def body(self):
        return self.tree.body if self.tree else []

    @cached_property
    def nodes(self):
        return list(ast.walk(self.tree)) if self.tree else []

    @cached_property
    def comments(self):  # {line: text}
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(self.code).readline))
        except (tokenize.TokenError, SyntaxError):
            return {}
        return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}

    @property
    def exported(self):
        return any(re.match(r"exports?i?\b", o) for o in self.options)

    @property
    def public(self):
        return any(re.match(r"exports?\b", o) for o in self.options)

    @property
    def tags(self):
        return self.raw["metadata"].get("tags", [])

    def __str__(self):
        first = next((line for line in self.source.splitlines() if line.strip() and not line.startswith("#|")), "")
        return f"{self.notebook.name} [{self.raw.get('id', '?')}] {first.strip()[:60]!r}"


@dataclass(frozen=True)
class Notebook:
    "A notebook under nbs/."

    path: Path

    @cached_property
    def raw(self):
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def cells(self):
        return [Cell(self, c) for c in self.raw["cells"]]

    @property
    def code(self):
        return [c for c in self.cells if c.kind == "code"]

    @property
    def markdown(self):
        return [c for c in self.cells if c.kind == "markdown"]

    @cached_property
    def name(self):  # below nbs/, e.g. "models/11_vae"
        parts = self.path.with_suffix("").parts
        return "/".join(parts[len(parts) - parts[::-1].index("nbs") :])

    @property
    def folder(self):  # "" at the top
        return self.name.rpartition("/")[0]

    @property
    def number(self):  # decade and place; index has none
        digits = self.path.stem[:2]
        return int(digits) if digits.isdigit() else None

    @property
    def order(self):  # by which imports go down
        return FOLDERS.index(self.folder) if self.folder in FOLDERS else len(FOLDERS), 100 if self.number is None else self.number

    @property
    def chapter(self):  # of a family of models
        return self.folder == "models" and self.number in range(10, 60)

    @cached_property
    def module(self):  # what it exports to, e.g. "models.vae"
        return next((o.split()[-1] for c in self.code for o in c.options if o.startswith("default_exp")), None)


@dataclass(frozen=True)
class Book:
    "A repository: nbs/, genbook/ and the files around them."

    root: Path

    @cached_property
    def notebooks(self):
        found = sorted((self.root / "nbs").rglob("*.ipynb"))
        return [Notebook(p) for p in found if ".ipynb_checkpoints" not in p.parts]

    @property
    def code(self):
        return [c for n in self.notebooks for c in n.code]

    @property
    def markdown(self):
        return [c for n in self.notebooks for c in n.markdown]

    @cached_property
    def orders(self):  # module -> place of its notebook
        return {n.module: n.order for n in self.notebooks if n.module}

    @cached_property
    def modules(self):  # what is exported, and what is written by hand
        return [p for p in sorted((self.root / "genbook").rglob("*.py")) if p.name != "_modidx.py"]

    @cached_property
    def files(self):  # text files that git would keep, by .gitignore's folders: /name/ is one at the top, name/ one anywhere
        folders = re.findall(r"(?m)^(/?)([\w.]+)/$", (self.root / ".gitignore").read_text(encoding="utf-8"))
        top, anywhere = ({name for mark, name in folders if bool(mark) == at} for at in (True, False))
        kinds = {".py", ".ipynb", ".md", ".qmd", ".yml", ".yaml", ".toml", ".ini", ".txt", ".json", ".css", ".bib", ".html", ""}
        found = []
        for p in (p for p in self.root.rglob("*") if p.suffix in kinds):
            parts = p.relative_to(self.root).parts
            if parts[0] not in top and not {".git", *anywhere} & set(parts) and not any(part.endswith(".egg-info") for part in parts):
                found.append(p)
        return sorted(p for p in found if p.is_file())


RULES: dict[str, Callable[[Book], Iterator[str]]] = {}


def rule(f):
    RULES[f.__name__] = f
    return f


# ---- notebooks and modules


@rule
def one_notebook_one_module(book):
    "A folder is a package and a notebook a module: folder/NN_name exports to folder.name, and nowhere else, and that module comes from it."
    names = {n.name: n for n in book.notebooks}
    for n in book.notebooks:
        if n.folder not in FOLDERS or not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*" + "|index" * (not n.folder), n.path.stem):
            yield f"nbs/{n.name}.ipynb: not of the form nbs/NN_name.ipynb, nbs/{'/, nbs/'.join(FOLDERS[1:])}/"
        elif (
            n.number is not None and n.module != f"{n.folder}.{n.path.stem[3:]}".lstrip(".") and (n.module or n.folder not in FOLDERS[-2:])
        ):
            yield f"{n.name}: exports to {n.module}"
        for c in n.code:
            yield from (f"{c}: exports elsewhere" for o in c.options if re.match(r"exports?i?\s+\S", o))
            if c.exported and not n.module:
                yield f"{c}: exports, but its notebook has no `#| default_exp`"
    for path in book.modules:
        if path.name in ("__init__.py", "__main__.py"):
            continue
        name = path.relative_to(book.root)
        header = re.search(r"File to edit: \S*nbs/(\S+)\.ipynb", path.read_text(encoding="utf-8"))
        module = ".".join(name.with_suffix("").parts[1:])
        if not header or header[1] not in names or names[header[1]].module != module:
            yield f"{name}: no notebook exports it; code belongs in nbs/, so delete it, or give a notebook `#| default_exp {module}`"


@rule
def numbers_are_unique(book):
    "Within a folder."
    seen = defaultdict(list)
    for n in book.notebooks:
        seen[n.folder, n.number].append(n.name)
    return (f"{', '.join(s)}: the same number" for s in seen.values() if len(s) > 1)


@rule
def modules_are_small(book):
    "One responsibility a module: at most 400 lines."
    for path in book.modules:
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400:
            yield f"{path.relative_to(book.root)}: {lines} lines; split its notebook"


def _imported(node, modules):
    "Modules of genbook that an import statement names."
    if isinstance(node, ast.Import):
        return [a.name.removeprefix("genbook.") for a in node.names if a.name.startswith("genbook.")]
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "genbook":
        base = node.module.removeprefix("genbook").lstrip(".")
        inner = [f"{base}.{a.name}".lstrip(".") for a in node.names if not a.name.startswith("__")]
        return [m if m in modules else base or "lab.zoo" for m in inner]  # genbook's own public names are the zoo's
    return []


@rule
def imports_go_down(book):
    """What is exported imports only from folders before its own and lower numbers, so infrastructure imports no model.

    What is not exported, shows and tests, and may import anything. Imports are absolute and named."""
    for c in book.code:
        for node in c.nodes:
            if isinstance(node, ast.ImportFrom) and (node.level or any(a.name == "*" for a in node.names)):
                yield f"{c}: relative or star import"
            for m in _imported(node, book.orders) if c.exported else ():
                if m != c.notebook.module and book.orders.get(m, (99,)) >= c.notebook.order:
                    yield f"{c}: {c.notebook.name} imports {m}"


def _at_import(nodes):
    "Import statements that run when a module is imported."
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _at_import(ast.iter_child_nodes(node))


def loads(book, module):  # packages that importing a module imports, through the modules that it imports
    "Top-level packages that `import genbook.<module>` loads, by its text."
    direct, packages = {}, defaultdict(set)
    for n in book.notebooks:
        nodes = [i for c in n.code if c.exported for i in _at_import(c.body)]
        direct[n.module] = {m for i in nodes for m in _imported(i, book.orders)}
        for i in nodes:
            names = [a.name for a in i.names] if isinstance(i, ast.Import) else [i.module or ""]
            packages[n.module] |= {name.split(".")[0] for name in names}
    seen, todo = set(), [module]
    while todo:
        m = todo.pop()
        if m not in seen:
            seen.add(m)
            todo += direct.get(m, ())
    return set().union(*(packages[m] for m in seen)) - {"genbook"}


LIGHT = {
    "core",
    *(f"lab.{name}" for name in ("experiments", "runs", "kernel", "launch", "grid", "results", "tables", "staging", "report", "cli")),
}


@rule
def imports_are_light(book):
    "What the command line loads at once needs no torch; the library at the top, measures and models no pictures and no papermill."
    for module, (folder, _) in book.orders.items():
        heavy = {"torchvision", "matplotlib", "papermill", "lightning", "lightning_fabric"} if folder < FOLDERS.index("lab") else set()
        if module in LIGHT:
            heavy |= {"torch", "numpy", "torchvision", "papermill", "matplotlib", "sklearn", "scipy", "nbconvert", "nbdev"}
        if found := heavy & loads(book, module):
            yield f"{module}: loads {', '.join(sorted(found))} when it is imported"


@rule
def imports_stand_alone(book):
    "A cell either imports or does something: the site executes every cell that imports."
    for c in book.code:
        imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in c.body]
        if any(imports) and not all(imports):
            yield f"{c}: imports and other code in one cell"


# ---- cells


@rule
def clean(book):
    "What nbdev_clean leaves: ids, no execution counts, no metadata but tags; no errors, no progress bars, no executed copy."
    for n in book.notebooks:
        ids = [c.raw.get("id") for c in n.cells]
        if None in ids or len(set(ids)) < len(ids):
            yield f"{n.name}: cells without ids, or with the same; `make export` mends it"
        if extra := set(n.raw["metadata"]) - {"kernelspec"}:
            yield f"{n.name}: metadata {', '.join(sorted(extra))}; `make export` removes it"
        for c in n.cells:
            outputs = c.raw.get("outputs", [])
            if c.raw.get("execution_count") is not None or any(o.get("execution_count") is not None for o in outputs):
                yield f"{c}: execution count; `make export` removes it"
            if extra := set(c.raw["metadata"]) - {"tags"}:
                yield f"{c}: metadata {', '.join(sorted(extra))}"
            if any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs):
                yield f"{c}: an error, a warning or a progress bar among its outputs; mend the cause and run the notebook again"


@rule
def small(book):
    "A notebook has at most 400 kB, a cell at most 60 lines of 140 characters, an exported definition at most 40 (blank ones not counted)."
    for n in book.notebooks:
        if n.path.stat().st_size > 400_000:
            yield f"{n.name}: {n.path.stat().st_size // 1000} kB; draw its figures with fewer pixels, or clear outputs that nobody needs"
        for c in n.code:
            full = [i for i, line in enumerate(c.code.splitlines(), 1) if line.strip()]
            if len(full) > 60:
                yield f"{c}: {len(full)} lines"
            if wide := [line for line in c.code.splitlines() if len(line) > 140]:
                yield f"{c}: {len(wide)} lines of more than 140 characters, {wide[0].strip()[:40]!r}"
            for node in c.body if c.exported else ():
                lines = sum(node.lineno <= i <= node.end_lineno for i in full)
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and lines > 40:
                    yield f"{c}: {node.name} has {lines} lines"


@rule
def options_are_sound(book):
    "Options that nbdev and Quarto both read: `#| export` without a colon, each on one line, none after the code begins."
    plain = r"exports?|exporti|hide|hide_input|hide_output|default_exp \S+|filter_stream \S+"
    for c in book.code:
        for o in c.options:
            if not re.fullmatch(rf"(?:{plain})|(?!exports?i?:|hide:|default_exp:)[a-z][a-z-]*: [^|>\s].*", o):
                yield f"{c}: option {o!r}"
        if len(re.findall(r"(?m)^#\|", c.source)) > len(c.options):
            yield f"{c}: an option after the code"


@rule
def nothing_is_skipped(book):
    "papermill runs every cell, so none may be meant for another occasion: no eval: false, slow, gpu, no branch on CI."
    yield from (f"{p.relative_to(book.root)}: skips its folder" for p in (book.root / "nbs").rglob(".notest"))
    for n in book.notebooks:
        for c in n.cells:
            if {"eval", "slow", "gpu"} & set(c.option) or {"slow", "gpu"} & set(c.tags):
                yield f"{c}: skipped on some occasions"
            if "nbdev_export(" in c.source or c.kind != "code" and re.search(r"(?m)^- *skip_", c.source):
                yield f"{c}: never executed by nbdev_test"
            if re.search(r"""["'](CI|IN_TEST)["']""", c.source):
                yield f"{c}: branches on where it runs"


@rule
def plain_python(book):
    "No magics anywhere; no plt.show() in an exported cell; no markdown cell that begins a YAML block."
    for c in book.code:
        if c.tree is None or re.search(r"(?m)^\s*[%!]", c.code) and c.exported:
            yield f"{c}: not Python"
        if c.exported and re.search(r"\bplt\.show\(", c.code):
            yield f"{c}: shows a figure"
    yield from (f"{c}: begins with ---" for c in book.markdown if c.source.startswith("---"))


NINE = ["dataset", "size", "config", "model_args", "train_args", "measure_args", "seed", "device", "run_dir"]


def _is_parameter(node):
    "An annotated scalar, as papermill reads it (`Optional[int]`, it does not know `int | None`), or an empty table."
    if not isinstance(node, ast.AnnAssign) or node.value is None:
        return False
    kind, value = ast.unparse(node.annotation), node.value.operand if isinstance(node.value, ast.UnaryOp) else node.value
    scalar = re.fullmatch(r"(Optional\[)?(str|int|float|bool)(?(1)\])", kind) and isinstance(value, ast.Constant)
    return bool(scalar) or kind == "dict" and ast.unparse(value) == "{}"


@rule
def parameters(book):
    "Chapters have one cell of the same nine parameters, others at most one: one a line, each with a type and a comment."
    for n in book.notebooks:
        cells = [c for c in n.code if "parameters" in c.tags]
        if len(cells) > 1 or n.chapter and not cells:
            yield f"{n.name}: {len(cells)} parameters cells; give one cell the tag `parameters` (JupyterLab: Property Inspector, Cell Tags)"
        for c in cells:
            names = [node.target.id for node in c.body if isinstance(node, ast.AnnAssign)]
            if missing := [name for name in NINE[-3:] if name not in names]:
                yield f"{c}: no {', '.join(missing)}"
            elif n.chapter and "model_args" in names and names != NINE:
                yield f"{c}: {', '.join(names)}; a chapter has {', '.join(NINE)}"
            if c.exported or set(c.options) - {"hide"}:
                yield f"{c}: options or export"
            for node in c.body:
                if not _is_parameter(node):
                    yield f"{c}: {ast.unparse(node)!r} is not an annotated scalar, Optional[scalar] or dict = {{}}"
                elif node.lineno != node.end_lineno or not c.comments.get(node.lineno):
                    yield f"{c}: {ast.unparse(node)!r} has no comment on its line"


@rule
def no_loop_outside_train(book):
    "`fit` is the one loop: no `.backward()` and no optimizer but in `steps` and `optim`, which are made for it."
    for c in book.code:
        if c.notebook.module not in ("steps", "optim"):
            attributes = {node.attr for node in c.nodes if isinstance(node, ast.Attribute)}
            imports = [i.module or "" for i in c.nodes if isinstance(i, ast.ImportFrom)] + [
                a.name for i in c.nodes if isinstance(i, ast.Import) for a in i.names
            ]
            if {"backward", "optim"} & attributes or any(m.startswith("torch.optim") for m in imports):
                yield f"{c}: trains by itself"


@rule
def no_copies(book):
    "No six lines twice: neither a cell nor a definition."
    seen = defaultdict(dict)
    for c in book.code:
        if "parameters" not in c.tags and not all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in c.body):
            definitions = [node for node in c.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
            for text in {ast.unparse(node) for node in [c.tree, *definitions]}:
                if len(text.splitlines()) >= 6:
                    seen[text][id(c)] = str(c)
    return (f"the same code in {' and '.join(cells.values())}" for cells in seen.values() if len(cells) > 1)


# ---- documentation


CONVENTIONS = {"seed", "generator", "device", "root"}  # the same everywhere, explained in 00_core and 02_data


def _undocumented(c, f, about="", method=False):
    "Arguments of an exported function without type or, where `about` is given, without a comment or a word there."
    a = f.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    static = any(getattr(d, "id", "") == "staticmethod" for d in f.decorator_list)
    for a in given[1:] if method and not static else given:
        if a.annotation is None:
            yield f"{c}: {f.name}({a.arg}) has no type"
        elif about and a.arg not in CONVENTIONS:
            if not any(c.comments.get(i) for i in range(a.lineno, a.end_lineno + 1)) and not re.search(rf"\b{a.arg}\b", about):
                yield f"{c}: {f.name}({a.arg}) has neither a comment nor a word in the docstring"


def _definitions(book):
    "Exported public functions and classes; those that click documents are left out."
    for c in book.code:
        for node in c.body if c.public else ():
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                decorators = {getattr(d, "attr", getattr(d, "id", "")) for d in (getattr(d, "func", d) for d in node.decorator_list)}
                if not decorators & {"command", "group"}:
                    yield c, node


@rule
def documented(book):
    """Public functions and classes have a docstring, their arguments a type and a comment or a word in it.

    Methods have types, and a docstring unless torch or an earlier class of the book explains what they are.
    """
    explained = {"forward", "extra_repr", "state_dict", "load_state_dict"}
    for c, node in _definitions(book):
        doc = ast.get_docstring(node) or ""
        if not doc:
            yield f"{c}: {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            yield from _undocumented(c, node, doc, method=any(getattr(d, "id", "") == "patch" for d in node.decorator_list))
            continue
        for f in (f for f in node.body if isinstance(f, ast.FunctionDef)):
            if f.name == "__init__":
                yield from _undocumented(c, f, doc + (ast.get_docstring(f) or " "), method=True)
            elif not f.name.startswith("_"):
                yield from _undocumented(c, f, method=True)
                explained |= {f.name} if ast.get_docstring(f) else set()
                if f.name not in explained:
                    yield f"{c}: {node.name}.{f.name} has no docstring"


SECTIONS = [  # of a chapter, after title, goals and the first picture
    ("the idea", r"idea"),
    ("derivation", r"deriv"),
    ("building blocks", r"building blocks?"),
    ("the model", r"\bmodels?\b"),
    ("does it agree with theory?", r"agrees? with theory"),
    ("train, look, measure", r"train"),
    ("what the reports did", r"reports"),
    ("summary", r"summary"),
    ("exercises", r"exercises"),
    ("notes", r"notes"),
    ("references", r"references"),
]


@rule
def sections_in_order(book):
    "A chapter has a title with one line of summary, then its sections in order; studies, if any, follow the training."
    for n in book.notebooks:
        first = n.cells[0].source if n.cells else ""
        if not re.match(r"# \S.*\n\n> \S", first):
            yield f"{n.name}: does not begin with a title and a one-line summary"
        every = headings = [h for c in n.markdown for h in re.findall(r"(?m)^## +(.+)$", c.source)] if n.chapter else []
        for name, pattern in SECTIONS if n.chapter else ():
            at = next((i for i, h in enumerate(headings) if re.search(pattern, h, re.I)), None)
            if at is None:
                yield f"{n.name}: no section {name!r} in its place"
            else:
                headings = headings[at + 1 :]
        if "Studies" in every and not re.search(r"train", every[every.index("Studies") - 1], re.I):
            yield f"{n.name}: the studies do not follow the training"


@rule
def results_are_tables(book):
    "A chapter prints no dict: what it has measured is a table, with units and no more digits than are sure."
    for c in (c for n in book.notebooks if n.chapter for c in n.code):
        last = c.body[-1] if c.body else None
        value = last.value if isinstance(last, ast.Expr) else None
        while isinstance(value, ast.BinOp):  # {...} | {...}
            value = value.left
        alone = [o["data"]["text/plain"] for o in c.raw.get("outputs", []) if set(o.get("data", {})) == {"text/plain"}]
        printed = [o["text"] for o in c.raw.get("outputs", []) if o["output_type"] == "stream"]
        if isinstance(value, (ast.Dict, ast.DictComp)) or any("".join(text).lstrip().startswith("{") for text in alone + printed):
            yield f"{c}: prints a dict; show it by tables.Table or tables.of_metrics"


EQUATION = re.compile(r"\$\$(.+?)\$\$[ \t]*(?:\{#([\w-]+)\})?", re.S)


def _prose(c):  # a markdown cell without its code
    return re.sub(r"(?s)```.*?```|`[^`\n]*`", "", c.source)


@rule
def equations_are_asserted(book):
    "Every displayed equation has a label of its own; unless it is a definition, a cell of its notebook names it and asserts it."
    labels = defaultdict(list)
    for n in book.notebooks:
        mine, named = set(), set()
        for c in n.markdown:
            for text, label in EQUATION.findall(_prose(c)):
                labels[label].append(c)
                mine.add(label)
                if not label.startswith("eq-"):
                    yield f"{c}: equation {' '.join(text.split())[:40]!r} has no label"
        for c in n.code:
            names = {name for comment in c.comments.values() for name in re.findall(r"\beq-[a-z0-9-]*[a-z0-9]", comment)}
            named |= names if _asserts(c) else set()
            yield from (f"{c}: there is no equation {name}" for name in sorted(names - mine))
        for label in sorted(mine - named):
            if label.startswith("eq-") and not label.startswith("eq-def-"):
                yield f"{n.name}: no cell asserts {label}"
    yield from (f"{label}: {len(cells)} equations of that label" for label, cells in labels.items() if label and len(cells) > 1)


def _asserts(c):
    called = [getattr(node.func, "attr", getattr(node.func, "id", "")) for node in c.nodes if isinstance(node, ast.Call)]
    return any(isinstance(node, ast.Assert) for node in c.nodes) or any(re.match(r"assert_|test_", name) for name in called)


@rule
def figures_have_captions(book):
    "A cell of a chapter that makes a figure has a label of its own, a caption and a text for those who cannot see it."
    labels = defaultdict(list)
    for c in book.code:
        if "label" in c.option:
            labels[c.option["label"]].append(c)
        mimes = {m for o in c.raw.get("outputs", []) for m in o.get("data", {})}
        makes = any(m.startswith("image/") for m in mimes) or any(getattr(node, "attr", "") == "figure" for node in c.nodes)
        if c.notebook.folder in ("models", "studies", "guide") and makes and not c.exported:
            wanted = {"label": "fig-.+", "fig-cap": ".+", "fig-alt": ".+"}
            if missing := [k for k, v in wanted.items() if not re.fullmatch(v, c.option.get(k, ""))]:
                yield f"{c}: a figure without {', '.join(missing)}"
    yield from (f"{label}: {len(cells)} figures of that label" for label, cells in labels.items() if len(cells) > 1)


@rule
def references_resolve(book):
    "Every @eq- and @fig- in the prose is a label of its own notebook: the site numbers the labels of each page by themselves."
    for n in book.notebooks:
        labels = _labels(n.cells)
        for c in n.markdown:
            for name in re.findall(r"@((?:eq|fig|sec|tbl)-[a-z0-9-]*[a-z0-9])", _prose(c)):
                if name not in labels:
                    yield f"{c}: there is no {name} in this notebook; name the chapter instead"


NAME = r"(?:van den |Van den )?[A-ZÀ-Ž][\w-]+"
CITATION = re.compile(  # "Burda et al. 2016", "Miyato & Koyama (2018)", "Welch's (1947)", "(Nowozin 2018"
    rf"({NAME})(?:,? et al\.|(?:, {NAME})* (?:&|and) {NAME}) \(?((?:19|20)\d\d)\b"
    rf"|({NAME})(?:['’]s)? \(((?:19|20)\d\d)\)|\(({NAME}) ((?:19|20)\d\d)\b"
)


def _bibliography(book):  # key -> (family name of the first author, year)
    path = book.root / "nbs" / "refs.bib"
    entries = re.findall(r"(?ms)^@\w+\{([^,\s]+),\n(.*?)^\}", path.read_text(encoding="utf-8") if path.is_file() else "")
    field = lambda name, body: re.search(rf"(?m)^\s*{name}\s*=\s*\{{(.*)\}},?\s*$", body)[1]
    return {key: (field("author", body).partition(",")[0], field("year", body)) for key, body in entries}


@rule
def citations_resolve(book):
    """Whoever is named with a year is in refs.bib and is cited as a @key in the same notebook; each entry of refs.bib is cited, and its
    key is its first author's family name and its year."""
    entries, plain, used = _bibliography(book), lambda text: re.sub(r"[^a-z]", "", _ascii(text).lower()), set()
    for key, (family, year) in entries.items():
        name, of = re.match("([a-z]*)(\\d*)", key).groups()
        if not (name and (plain(family).startswith(name) or plain(family).endswith(name)) and of == year):
            yield f"refs.bib: {key} is by {family}, {year}"
    for n in book.notebooks:
        keys = {key for c in n.markdown for key in re.findall(r"@([a-z]+\d{4}[a-z]*)", _prose(c))}
        used |= keys
        yield from (f"{n.name}: no {key} in refs.bib" for key in sorted(keys - {*entries}))
        for c in n.cells:
            for m in CITATION.finditer(c.source if c.exported or c.kind == "markdown" else ""):
                family, year = (next(filter(None, m.groups()[i::2])) for i in (0, 1))
                meant = {key for key, (f, y) in entries.items() if y == year and plain(f).endswith(plain(family))}
                if not meant:
                    yield f"{c}: {m[0]} is not in refs.bib"
                elif not meant & keys:
                    yield f"{c}: {m[0]} is not listed; cite {' or '.join(sorted(meant))} among the references of {n.name}"
    yield from (f"refs.bib: nobody cites {key}" for key in sorted({*entries} - used))


def _ascii(text):  # letters without accents: é and {\'e} are e, ø is o
    text = re.sub(r"\{?\\[^a-z]?\{?([A-Za-z])\}*", r"\1", text).replace("ø", "o").replace("ł", "l")
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _labels(cells):
    found = set()
    for c in cells:
        found |= set(re.findall(r"\{#([\w-]+)", c.source)) | {c.option.get("label")}
    return found


# ---- the files around


@rule
def readme_is_index(book):
    "README.md is what .ci/readme.py makes of nbs/index.ipynb, and its figures are those of the chapters."
    maker, index = runpy.run_path(str(Path(__file__).parents[1] / ".ci" / "readme.py")), book.root / "nbs" / "index.ipynb"
    made = {book.root / "README.md": maker["readme"](index).encode(), **maker["figures"](index)}
    for path, content in made.items():
        if not path.exists() or path.read_bytes() != content:
            yield f"{path.relative_to(book.root)}: not what `make readme` writes; edit the notebook instead, then make readme"


def _experiments(book):
    "Names of all experiments, as far as the files say them: those with variants are suites."
    for path in (book.root / "experiments").glob("*.yaml"):
        for name, entry in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("experiments", {}).items():
            yield from (name, *(f"{name}-{variant}" for variant in (entry or {}).get("variants", ())))


def _commands(book):
    "Names of the commands of genbook."
    for c in book.code:
        for f in (node for node in c.body if isinstance(node, ast.FunctionDef) and c.exported):
            for d in (d for d in f.decorator_list if ast.unparse(d).startswith("cli.command(")):
                yield d.args[0].value if d.args else f.name


@rule
def commands_exist(book):
    "What README and the guide tell one to type: targets of the Makefile, named experiments, commands of genbook."
    make = (book.root / "Makefile").read_text(encoding="utf-8") if (book.root / "Makefile").exists() else ""
    known = {"Makefile": set(re.findall(r"(?m)^([a-z]+):", make)), "experiments": set(_experiments(book)), "genbook": set(_commands(book))}
    typed = {
        "Makefile": r"`?\bmake ([a-z]+)\b(?=`|\s+#|\n)",
        "experiments": r"genbook (?:run|list|results|verify) ([a-z][\w.-]*)",
        "genbook": r"(?m)^\s*genbook (\w+)",
    }
    texts = {p.name: p.read_text(encoding="utf-8") for p in (book.root / name for name in ("README.md", "CONTRIBUTING.md")) if p.exists()}
    texts |= {n.name: "\n".join(c.source for c in n.markdown) for n in book.notebooks if n.folder == "guide"}
    for name, text in texts.items():
        for where, pattern in typed.items():
            yield from (
                f"{name}: {where} has no {word}"
                for word in re.findall(pattern, text)
                if word not in known[where] and not word.endswith(".ipynb")
            )


@rule
def no_machine_is_named(book):
    "No path of one machine and no host of a package registry: neither in the text nor in the outputs."
    hosts = r"(?:py" r"pi|python" r"hosted|ana" r"conda)\.org|download\.py" r"torch"
    paths = r"(?<![\w./:~-])/(?:root|home|Users|tmp|work)/\w"
    for p in book.files:
        for i, line in enumerate(p.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if len(line) < 5000 and (m := re.search(rf"{hosts}|{paths}", line)):
                yield f"{p.relative_to(book.root)}:{i}: {m[0]}"


if __name__ == "__main__":  # what is broken, one line each: a hook of .pre-commit-config.yaml
    sys.exit("\n".join(line for holds in RULES.values() for line in holds(Book(Path(__file__).parents[1]))) or None)
