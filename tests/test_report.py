"The report: what is staged, the plain pages of nbconvert, and the book where there is a Quarto."

import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from genbook.core import GenbookError
from genbook.lab import editions, figures, markup, report, staging, tables

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGD4DwABBAEAX+XDSwAAAABJRU5ErkJggg=="
VOID = {"meta", "link", "img", "br", "hr", "mspace", "col", "input"}
ATTACK = "<script>alert(1)</script> <img src=x onerror=alert(2)> | *a* [b](javascript:c) $d$ `e` @kingma2014 {{< include f >}}"

FORMULAS = r"""## What holds {#sec-one-claims}

Inline $\log p(x) = -\tfrac12 \big\lVert x - \mu_\theta(z) \big\rVert^2$, then a claim

$$\log p(x) \ge \mathbb E_{q}\Big[\log p(x \mid z)\Big] - D_{\mathrm{KL}}\big(q(z \mid x) \,\|\, p(z)\big).$$ {#eq-one-elbo}

It costs \$5, and `$x$` is code. See [@kingma2014; @burda2016, page 2], Burda and others [-@burda2016], and @eq-one-elbo.

| symbol | meaning |
|---|---|
| $\mathcal N(0, 1)$ | normal |

```python
y = "$not math$"  # {#eq-not}
```

### A smaller heading
"""


def run(source, *outputs, tags=()):
    return new_code_cell(source, execution_count=1, outputs=list(outputs), metadata={"tags": list(tags)})


def figure():
    return new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"}, metadata={"image/png": {"width": 20, "height": 20}})


def write(folder, source, title, *cells, params=None, **papermill):
    "A run of the notebook `source`, as `genbook run` leaves it."
    folder.mkdir(parents=True)
    nb = new_notebook(cells=[new_markdown_cell(f"# {title}\n\n> What it is: a sample"), *cells], metadata={"papermill": papermill})
    nbformat.write(nb, folder / "notebook.ipynb")
    (folder / "params.json").write_text(json.dumps({"notebook": source, "params": params or {}}))
    (folder / "result.json").write_text(json.dumps({"notebook": source, "params": params or {}, "device": "CPU", "minutes": 0.5}))
    return folder / "notebook.ipynb"


def project(root):
    "A small project with two executed chapters."
    (root / "nbs").mkdir(parents=True)
    for name in (
        "settings.ini",
        "_quarto.yml",
        "index.qmd",
        "nbs/refs.bib",
        "nbs/shared.yml",
        "nbs/fold.lua",
        "nbs/styles.css",
        "nbs/theme.scss",
        "nbs/00_core.ipynb",
    ):
        shutil.copy(ROOT / name, root / name)
    one = [
        run("#| default_exp models.one"),
        run("model_args: dict = {}  # zdim\nrun_dir: Optional[str] = None", tags=["parameters"]),
        run("# Parameters\nmodel_args = {}\nrun_dir = '/srv/someone/runs'", tags=["injected-parameters"]),
        new_markdown_cell(FORMULAS),
        run("#| exports\ndef bound(x):\n    return x", new_output("stream", text="printed\n")),
        run("#| label: fig-one\n#| fig-cap: Left: real, right: $\\hat x$\n#| fig-alt: One blue pixel\nplot()", figure()),
        run("#| hide\nsecret = 1"),
        run("# eq-one-elbo\nassert True", new_output("execute_result", {"text/plain": "tensor([0.1])"}, execution_count=3)),
    ]
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "VBox()"}
    two = [
        run("model_args: dict = {}", tags=["parameters"]),
        run('# Parameters\nmodel_args = {"zdim": 8}', tags=["injected-parameters"]),
        new_markdown_cell("## Use\n\nSee [one](10_one.ipynb) and [notation](../00_core.ipynb)."),
        run("explore()", new_output("display_data", widget)),
    ]
    return [write(root / "runs/b", "models/20_two", "Two", *two), write(root / "runs/a", "models/10_one", "One", *one)]


def read(folder):
    "Pages by name, e.g. models/10_one, without the style sheets of nbconvert and without the page that searches."
    paths = [p for p in folder.rglob("*.html") if p.name != "find.html"]
    found = {p.relative_to(folder).with_suffix("").as_posix(): p.read_text(encoding="utf-8") for p in paths}
    return {name: re.sub(r"<style.*?</style>", "", page, flags=re.S) for name, page in found.items()}


def built(root, executed):
    "The plain pages of executed chapters."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_quarto", lambda: None)
        first = report.build(executed, root)
    assert first == root / "_report/index.html"
    return read(first.parent)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "The plain pages of the small project."
    root = tmp_path_factory.mktemp("plain")
    return built(root, project(root))


class Outline(HTMLParser):
    "Ids, links, headings, pictures and the text of a page; complains of tags that do not match."

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.headings, self.alts, self.open, self.text = [], [], [], [], [], ""
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h[1-6]", tag) else []
        self.alts += [attrs.get("alt", "")] if tag == "img" else []
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if not {"pre", "code", "style"} & set(self.open):
            self.text += data


def contrast(*pair):  # of colours such as #fff or #a1b2c3
    "Ratio of the luminances of two colours, by WCAG 2: 1 to 21."

    def luminance(color):
        digits = color[1:] if len(color) == 7 else "".join(2 * d for d in color[1:])
        rgb = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, pair))
    return (high + 0.05) / (low + 0.05)


def test_staging_strips_what_is_for_nbdev(tmp_path):
    staged = report.stage(project(tmp_path), tmp_path / "report")
    assert [p.relative_to(tmp_path).as_posix() for p in staged] == ["report/models/10_one.ipynb", "report/models/20_two.ipynb"]
    for path in staged:
        nb = nbformat.read(path, 4)
        nbformat.validate(nb)
        text = "\n".join(c.source for c in nb.cells)
        assert not re.search(r"#\|\s*(export|default_exp|hide)", text) and "secret" not in text and "/home" not in text
        assert all("widget" not in k for c in nb.cells for o in c.get("outputs", []) for k in o.get("data", {}))
    assert '#| fig-cap: "Left: real, right: $\\\\hat x$"' in staged[0].read_text().replace("\\\\\\\\", "\\\\").replace('\\"', '"')
    assert "'zdim': 8" in staged[1].read_text() and "someone" not in staged[0].read_text()


@pytest.mark.parametrize("how", ["error output", "papermill exception", "pending cell", "never executed"])
def test_a_failed_run_is_refused_and_nothing_is_touched(tmp_path, how):
    good = project(tmp_path)
    staged = report.stage(good, tmp_path / "report")
    before = [p.read_bytes() for p in staged]
    cell = run("x = 1")
    if how == "error output":
        cell.outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]
    if how == "pending cell":
        cell.metadata["papermill"] = {"status": "pending"}
    if how == "never executed":
        cell.execution_count = None
    bad = write(tmp_path / "runs/c", "models/30_bad", "Bad", cell, exception=how == "papermill exception" or None)
    with pytest.raises(GenbookError, match="runs/c/notebook.ipynb"):
        report.build([*good, bad], tmp_path)
    assert [p.read_bytes() for p in staged] == before and not (tmp_path / "_report").exists()


def test_notebooks_for_jupyterlab_have_numbers_and_names(tmp_path):
    built(tmp_path, project(tmp_path))
    for name in ("models/10_one", "models/20_two"):
        assert (tmp_path / f"_report/notebooks/{name}.ipynb").is_file()
    nb = nbformat.read(tmp_path / "_report/notebooks/models/10_one.ipynb", 4)
    nbformat.validate(nb)
    text = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    assert "\\tag{1.1}$$" in text and "and Equation 1.1." in text and "{#eq-one-elbo}" not in text and "{=html}" not in text
    assert "See (Kingma and Welling 2014; Burda et al. 2016, page 2), Burda and others (2016)" in text
    assert "`$x$` is code" in text and "# {#eq-not}" in text and "## What holds\n" in text


def test_pages_and_notebooks_lead_to_the_module(tmp_path):
    "A chapter that exports a module has it beside its notebook; one that does not has no such link."
    (tmp_path / "genbook/models").mkdir(parents=True)
    (tmp_path / "genbook/models/one.py").write_text("def bound(x): ...\n")
    found = built(tmp_path, project(tmp_path))
    assert '<a href="../notebooks/genbook/models/one.py">Its module, genbook.models.one</a>' in found["models/10_one"]
    assert "Its module" not in found["models/20_two"]
    assert (tmp_path / "_report/notebooks/genbook/models/one.py").read_text() == "def bound(x): ...\n"
    nb = nbformat.read(tmp_path / "_report/notebooks/models/10_one.ipynb", 4)
    assert "[`genbook.models.one`](../genbook/models/one.py)" in nb.cells[0].source


def test_the_contents_have_the_numbers_of_the_chapters(pages):
    text = Outline(pages["index"]).text
    assert "1. One" in text and "2. Two" in text and "3." not in text


def test_the_book_can_be_searched_from_disk(tmp_path):
    "Every page leads to the search; a definition comes before a section that mentions it, words and names of sections are found."
    found = built(tmp_path, project(tmp_path))
    assert all(f'href="{"../" * name.count("/")}find.html"' in page for name, page in found.items())
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("needs a browser: chromium or google-chrome")
    for words, first in (("bound", "models/10_one.html#"), ("smaller heading", "models/10_one.html#a-smaller-heading"), ("nowhere", None)):
        address = f"{(tmp_path / '_report/find.html').as_uri()}#{words}"
        settings = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
        page = subprocess.run([chromium, *settings, address], capture_output=True, text=True, timeout=120).stdout
        hits = re.findall(r'<li><a href="([^"]*)">([^<]*)</a> \(([^)]*)\)', page)
        assert "found</p>" in page and bool(hits) == bool(first), page[-500:]
        if first:
            assert hits[0][0].startswith(first) and (words != "bound" or hits[0][1:] == ("bound", "definition, One"))


def test_the_code_of_the_pdf_is_what_is_read(tmp_path):
    one, _ = staging.stage(project(tmp_path), tmp_path / "report")
    editions.for_readers(one)
    cells = {c.source for c in nbformat.read(one, 4).cells if c.cell_type == "code"}
    assert not any("model_args" in source for source in cells) and any(
        "def bound" in source and "echo: false" not in source for source in cells
    )
    assert any("plot()" in source and source.startswith("#| echo: false") for source in cells)
    sizes = [o.metadata["image/png"] for c in nbformat.read(one, 4).cells for o in c.get("outputs", []) if o.get("metadata")]
    assert sizes == [{"width": 12, "height": 12}]  # 58 % of 20


def test_the_kind_of_an_explorer_is_known_in_two_places():
    from genbook.lab import explorers

    assert staging.EXPLORER == explorers.MIME  # so that staging loads no torch


def check_page(name, outline):
    "Ids are unique, and headings begin with the one of level 1 and go down by one level at a time."
    assert len(outline.ids) == len(set(outline.ids)), name
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1, name
    assert all(b <= a + 1 for a, b in zip(outline.headings, outline.headings[1:], strict=False)), (name, outline.headings)


def check_links(outlines):
    "Every link within the pages goes to a page, and to a place on it; how many there are."
    seen = 0
    for name, outline in outlines.items():
        for link in (link for link in outline.links if not link.startswith("http")):
            target, _, anchor = link.partition("#")
            place = os.path.normpath(Path(name).parent / target).removesuffix(".html") if target else name
            if place.startswith("notebooks/"):
                place = place.removeprefix("notebooks/").removesuffix(".ipynb")
            if place == "find" or place.endswith(".py"):  # no page of the book
                continue
            assert place in outlines and (not anchor or anchor in outlines[place].ids), (name, link)
            seen += 1
    return seen


def test_pages_are_whole(pages):
    assert set(pages) == {"index", "notation", "checks", "run", "models/10_one", "models/20_two"}
    for name, page in pages.items():
        outline = Outline(page)
        check_page(name, outline)
        assert "#|" not in page and "Traceback" not in page, name
        assert "$" not in outline.text.replace("costs $5", ""), name
        assert "{#" not in outline.text and ":::" not in outline.text and "{{<" not in outline.text, name
        assert "\ue000" not in page and "<script" not in page, name
        assert "http" not in re.sub(r'(href|xmlns)="http[^"]*"|>https?://[^<]*<|https://quarto.org', "", page), name


def test_every_link_goes_somewhere(pages):
    assert check_links({name: Outline(page) for name, page in pages.items()}) > 15


def test_the_whole_book_can_be_read_by_everybody(book):
    "All chapters as plain pages: links, headings in order, a caption and a text for every figure, nothing from a network."
    texts = read(book)
    outlines = {name: Outline(text) for name, text in texts.items()}
    assert {f"{p.parent.name}/{p.stem}" for p in report.chapters(ROOT)} < set(outlines)
    for name, outline in outlines.items():
        check_page(name, outline)
        assert all(len(alt) >= 15 for alt in outline.alts), (name, [alt for alt in outline.alts if len(alt) < 15])
        assert texts[name].count("<figure id=") == len(re.findall(r"<figcaption><p><strong>Figure \d+.\d+.</strong> \S", texts[name])), name
        assert not re.search(r'<script[^>]+src=|<(?:img|link|iframe)[^>]*"https?:', texts[name]), name
    assert check_links(outlines) > 300 and sum(len(o.alts) for o in outlines.values()) > 60


def test_headings_of_all_notebooks_are_in_order():
    "One title, then sections, of which none skips a level."
    for path in NOTEBOOKS:
        text = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        levels = [len(m) for m in re.findall(r"^(#{1,6}) ", staging.SPANS.sub(lambda m: "" if m["code"] else m[0], text), re.M)]
        assert levels[0] == 1 and levels.count(1) == 1, path.name
        assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False)), f"{path.name}: {levels}"


def test_formulas_figures_and_references(pages):
    one, two = pages["models/10_one"], pages["models/20_two"]
    assert one.count("<math") == 4 and "𝔼" in one.replace("&#x1D53C;", "𝔼")
    assert "<code>$x$</code>" in one and "$not math$" in re.sub("<[^>]*>", "", one)
    assert '<span class="equation" id="eq-one-elbo">' in one and "<span>(1.1)</span>" in one
    assert '<a href="#eq-one-elbo">Equation 1.1</a>' in one and 'id="fig-one"' in one
    assert Outline(one).alts == ["One blue pixel"] and "<strong>Figure 1.1.</strong> Left: real, right: <math" in one
    assert "<summary>Code: bound</summary>" in one and "<summary>Check: Equation 1.1</summary>" in one and "printed" in one
    assert '(<a href="#ref-kingma2014">Kingma and Welling 2014</a>; <a href="#ref-burda2016">Burda et al. 2016</a>, page 2)' in one
    assert 'Burda and others (<a href="#ref-burda2016">2016</a>)' in one and 'id="ref-burda2016"' in one and "ref-" not in two
    assert "VBox" not in two and "Parameters of this run" in two and "Parameters of this run" not in one
    assert 'See <a href="10_one.html">one</a> and notation.' in two and "ipynb" not in two.replace("notebooks/models/20_two.ipynb", "")
    mark = '✓ <a href="#check-eq-one-elbo">Checked</a>: by the cell below'
    assert (
        mark in one
        and one.index(mark) < one.index('id="check-eq-one-elbo"')
        and '#eq-one-elbo">Equation 1.1</a>, checked' in pages["checks"]
    )
    assert "quarto.org" in pages["index"] and '<a href="models/10_one.html">One</a>' in pages["index"]


def test_words_of_results_are_no_markup(tmp_path):
    "A data set, a setting or a table of results that looks like markup is shown as it is, on the first page and in the chapter."
    row = {
        "model": ATTACK,
        "experiment": ATTACK,
        "setting": {ATTACK: ATTACK},
        "data": ATTACK,
        "seeds": 1,
        "minutes": 1.0,
        "memory": 0,
        "copied": 0,
    }
    mse = {"mean": 1.0, "sd": None, "se": None, "n": 1, "unit": "", "split": ATTACK, "estimators": [ATTACK]}
    row |= {"device": ATTACK, "changed": False, "unmet": [], "metrics": {"mse": mse}}
    table = {"text/markdown": tables.tables([row])[0].markdown(), "text/plain": ATTACK}
    cells = [
        run("dataset: str = 'digits'", tags=["parameters"]),
        run(f"# Parameters\ndataset = {ATTACK!r}", tags=["injected-parameters"]),
        run("table", new_output("display_data", table)),
        run("print(dataset)", new_output("stream", text=ATTACK), new_output("execute_result", {"text/plain": ATTACK}, execution_count=1)),
    ]
    project(tmp_path)
    bad = write(tmp_path / "runs/c", "models/30_bad", "Bad", *cells, params={"dataset": ATTACK, "config": ATTACK, "seed": 0})
    pages = built(tmp_path, [bad])
    for name in ("run", "models/30_bad"):
        assert "<script" not in pages[name] and "<img" not in pages[name] and "&lt;script&gt;alert(1)" in pages[name], name
        Outline(pages[name])
    assert html.unescape(pages["run"]).count(ATTACK) == 2  # data and configuration
    staged = json.loads((tmp_path / "report/models/30_bad.ipynb").read_text())  # what Quarto reads
    outputs = [o["data"]["text/markdown"] for c in staged["cells"] for o in c.get("outputs", []) if "text/markdown" in o.get("data", {})]
    assert outputs and not re.search(r"(?<!\\)<[a-z/]", "".join(map("".join, outputs)))


def test_figures_are_seen_on_white():
    "Text of figures has the contrast that WCAG asks of text, and the first five colours of lines that of graphics."
    words = [figures.STYLE.get(key, "#000000") for key in ("axes.labelcolor", "xtick.color", "ytick.color", "text.color")]
    assert all(contrast(word, "#ffffff") >= 4.5 for word in words) and contrast(figures.STYLE["axes.edgecolor"], "#ffffff") >= 3
    assert all(contrast(line, "#ffffff") >= 3 for line in figures.COLORS[:5])


def test_an_unknown_reference_is_said(tmp_path, capsys):
    project(tmp_path)
    path = write(tmp_path / "runs/c", "models/10_one", "One", new_markdown_cell("See @eq-nowhere."), run("x = 1"))
    built(tmp_path, [path])
    assert "One: nothing is labelled eq-nowhere" in capsys.readouterr().err


def test_formulas_and_citations_of_all_notebooks():
    "Every formula of the book converts, and every key that is cited is in refs.bib."
    bib, count = markup.bibliography(ROOT / "nbs/refs.bib"), 0
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, 4).cells:
            for m in staging.SPANS.finditer(cell.source) if cell.cell_type == "markdown" else []:
                where = f"{path.name}: {m[0]}"
                if m["display"] or m["inline"]:
                    out = markup.mathml(staging._sizes(m["tex"] or m["math"]))
                    assert out.startswith("<math") and "&<" not in out and not re.search(r"<m[a-z]+[^>]*>\\", out), where
                    assert not re.search(r'mathvariant="(?!normal|bold-italic)', out), where
                    count += 1
                elif m["group"] or m["ref"]:
                    for key in re.findall(r"@([\w](?:[\w.:-]*\w)?)", m[0]):
                        assert key.split("-")[0] in markup.KINDS or key in bib, where
    assert count > 100


def test_the_site_lists_every_notebook():
    listed = re.findall(r"- (\S+\.ipynb)$", (ROOT / "nbs/sidebar.yml").read_text(), re.M)
    assert sorted(listed) == sorted(p.relative_to(ROOT / "nbs").as_posix() for p in NOTEBOOKS)


def test_notebooks_are_as_the_site_needs_them():
    "nbdev drops what follows the summary in a title's cell, runs whole cells that import, and fails on an exported last cell."
    for path in NOTEBOOKS:
        cells = nbformat.read(path, 4).cells
        assert re.fullmatch(r"# .+\n\n> .+", cells[0].source), f"{path.name}: the first cell is '# Title' and '> summary', nothing else"
        assert not re.match(r"#\| *export", cells[-1].source), f"{path.name}: the last cell is exported: put something after it"
        for c in cells:
            for line in re.findall(r"^#\|\s*([\w-]+\s*:.*)", c.source, re.M) if c.cell_type == "code" else []:
                assert all(isinstance(v, str | bool | int) for v in yaml.safe_load(line).values()), (
                    f"{path.name}: quote the text of #| {line}"
                )
            if c.cell_type == "code" and not re.search(r"^#\| *export", c.source, re.M):
                tree = ast.parse(c.source)
                kinds = (ast.Import, ast.ImportFrom)
                plain = all(isinstance(n, (*kinds, ast.FunctionDef, ast.ClassDef)) for n in tree.body)
                imports = any(isinstance(n, kinds) for n in ast.walk(tree))
                assert plain or not imports, f"{path.name}: a cell that imports does nothing else:\n{c.source[:200]}"


def test_the_module_is_light():
    code = "import genbook.lab.report, sys; print(sorted({'torch', 'nbconvert', 'nbdev', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_quarto_that_fails_gives_plain_pages(tmp_path, capsys, monkeypatch):
    broken = tmp_path / "bin/quarto"
    broken.parent.mkdir()
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo 1.9.38; exit; }\necho broken >&2; exit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    page = report.build(project(tmp_path / "p"), tmp_path / "p")
    said = capsys.readouterr().err
    assert "could not make typst" in said and "could not make html" in said and "quarto.log" in said and page.is_file()
    assert "broken" in (tmp_path / "p/report/quarto.log").read_text()


def test_quarto_sees_what_it_renders_and_no_runs(tmp_path, monkeypatch):
    fake = tmp_path / "bin/quarto"
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo 1.9.38; exit; }\n'
        'mkdir _report; for f in * nbs/*; do echo "$f"; done | tee _report/index.html >_report/genbook.pdf\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    root = tmp_path / "p"
    executed = project(root)
    (root / "_report").mkdir()
    (root / "_report/old.html").touch()
    page = report.build(executed, root)
    seen = page.read_text().split()
    assert page == root / "_report/index.html" and {"_quarto.yml", "index.qmd", "nbs", "report", "nbs/shared.yml"} <= set(seen)
    assert not [f for f in seen if f == "runs" or f.endswith(".ipynb")]
    assert sorted(p.name for p in (root / "_report").iterdir()) == ["find.html", "genbook.pdf", "index.html", "notebooks"]


@pytest.mark.skipif(not report._quarto(), reason="no Quarto here: see quarto.org")
def test_quarto_renders_the_book(tmp_path):
    page = report.build(project(tmp_path), tmp_path)
    assert page == tmp_path / "_report/index.html" and (tmp_path / "_report/report/models/10_one.html").is_file()
    log = (tmp_path / "report/quarto.log").read_text()
    assert not re.search("WARN|Unable to resolve|ERROR", log), log
    one, two = ((tmp_path / f"_report/report/models/{name}.html").read_text() for name in ("10_one", "20_two"))
    text = re.sub("<script.*?</script>", "", one + two, flags=re.S)
    assert 'href="#eq-one-elbo"' in text and "?@" not in text and "#|" not in text and "widget" not in text
    assert "<math" in one and "code-name" not in one and "<summary>Code: bound</summary>" in one and "<summary></summary>" not in one
    if report._quarto()[1] >= (1, 9):
        assert (tmp_path / "_report/genbook.pdf").read_bytes().startswith(b"%PDF")


def test_a_page_of_quarto_asks_no_network(tmp_path):
    "For an output with a script Quarto loads two libraries, and a page without a network waits for them."
    remote = '<script src="https://cdn.jsdelivr.net/npm/{}" crossorigin="anonymous"></script>\n'
    head = remote.format("requirejs@2.3.6/require.min.js") + remote.format("jquery@3.5.1/dist/jquery.min.js")
    head += "<script type=\"application/javascript\">define('jquery', [],function() {return window.jQuery;})</script>\n"
    page = tmp_path / "_report/one.html"
    page.parent.mkdir()
    page.write_text(f'<head>\n{head}<script src="ours.js"></script></head><main id="quarto-document-content"></main>', encoding="utf-8")
    report._finished(page, page.parent)
    text = page.read_text(encoding="utf-8")
    assert "https:" not in text and "define" not in text and 'src="ours.js"' in text and "find.html" in text
