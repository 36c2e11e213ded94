"README.md from nbs/index.ipynb, by nbconvert, so that it needs no Quarto: `python .ci/readme.py`."

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

LINK = re.compile(r"(\]\()(?![a-z]+:|[#/])([^)]+)")  # a relative link or picture


def readme(index: Path) -> str:  # the text of README.md
    "The notebook `index` as markdown for the folder above it: hidden cells and `#|` options left out, links kept whole."
    nb = nbformat.read(index, as_version=4)
    nb.metadata.language_info = {"name": "python"}  # which nbdev_clean strips
    nb.cells = [c for c in nb.cells if not re.match(r"#\|\s*(hide|default_exp)", c.source)]
    for c in nb.cells:
        if c.cell_type == "code":
            c.source = re.sub(r"(?m)^#\|.*\n", "", c.source)
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = LINK.sub(rf"\1{index.parent.name}/\2", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    (root / "README.md").write_text(readme(root / "nbs" / "index.ipynb"), encoding="utf-8")
