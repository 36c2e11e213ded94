"README.md from nbs/index.ipynb, by nbconvert, so that it needs no Quarto, and the figures of chapters in it: `python .ci/readme.py`."

import re
from base64 import b64decode
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
            c.outputs = [o for o in c.outputs if not any(kind.startswith("image/") for kind in o.get("data", {}))]  # README has files
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = LINK.sub(rf"\1{index.parent.name}/\2", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def figures(index: Path) -> dict[Path, bytes]:  # file -> what it should hold
    "The pictures of the notebook `index` that are called as a figure of a chapter, images/fig-NAME.png."
    wanted = set(re.findall(r"images/(fig-[\w-]+)\.png", index.read_text(encoding="utf-8")))
    found = {}
    for path in sorted(index.parent.rglob("[0-9]*.ipynb")) if wanted else ():
        for c in nbformat.read(path, as_version=4).cells:
            label = re.search(r"(?m)^#\| label: ([\w-]+)$", c.source) if c.cell_type == "code" else None
            if label and label[1] in wanted:
                png = next((o.data["image/png"] for o in c.outputs if "image/png" in o.get("data", {})), "")
                found[index.parent / "images" / f"{label[1]}.png"] = b64decode(png)
    return found


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    for path, png in figures(root / "nbs" / "index.ipynb").items():
        path.write_bytes(png)
    (root / "README.md").write_text(readme(root / "nbs" / "index.ipynb"), encoding="utf-8")
