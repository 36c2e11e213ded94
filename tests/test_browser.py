"""What only a browser shows: a notebook runs in JupyterLab and its sliders move the picture; pages have no broken link and no error.

It takes whichever Chromium or Chrome the system has; nothing is downloaded.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import nbformat
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright -c constraints.txt")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason=f"needs a browser: none of {', '.join(NAMES)} is installed")


@contextlib.contextmanager
def opened():
    "A page of a fresh browser, and what goes wrong on it."
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, wrong = browser.new_page(viewport={"width": 1300, "height": 1000}), []
        page.on("console", lambda m: wrong.append(f"{page.url}: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda e: wrong.append(f"{page.url}: {e}"))
        page.on("requestfailed", lambda r: wrong.append(f"{page.url}: {r.url} {r.failure}"))
        yield page, wrong
        browser.close()


# ---- JupyterLab


@contextlib.contextmanager
def jupyter_lab(folder, home):
    "The address of JupyterLab on a folder: on loopback, with a token, and with no settings but its own."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port, token = s.getsockname()[1], secrets.token_hex(16)
    options = {"ip": "127.0.0.1", "port": port, "root_dir": folder, "open_browser": False, "allow_root": True}
    command = [sys.executable, "-m", "jupyterlab", *(f"--ServerApp.{k}={v}" for k, v in options.items())]
    places = ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    env = {"JUPYTER_TOKEN": token} | {name: str(home / name.lower()) for name in places}
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | env)
    try:
        for _ in range(150):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=2)
                break
            time.sleep(0.2)
        else:
            raise AssertionError((home / "server.log").read_text())
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}"
    finally:
        server.terminate()
        server.wait(20)


def copied(root, folder, name):
    "A copy of a notebook where nothing of it can be spoiled, and of what it looks up; without its outputs."
    path = folder / f"nbs/{name}.ipynb"
    path.parent.mkdir(parents=True)
    shutil.copy(root / "settings.ini", folder)
    shutil.copytree(root / "experiments", folder / "experiments")
    nb = nbformat.read(root / f"nbs/{name}.ipynb", 4)
    for c in nb.cells:
        if c.cell_type == "code":
            c.outputs, c.execution_count = [], None
    nbformat.write(nb, path)
    return path


def run_all(page):
    "Run all cells and wait for the last."
    page.get_by_text(re.compile(r"\| Idle")).first.wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    for status in ("busy", "idle"):
        page.wait_for_selector(f".jp-Notebook-ExecutionIndicator[data-status={status}]", timeout=240_000)


def check(path):
    "Every cell was executed, and none printed an error, a warning or a progress bar."
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    wrong = [(c.source[:80], o) for c in code for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not wrong, wrong
    assert all(c.execution_count for c in code)


@pytest.mark.parametrize("name", ["lab/13_explorers", pytest.param("models/11_vae", marks=pytest.mark.slow)])
def test_a_notebook_runs_in_jupyterlab_and_its_slider_moves_the_picture(name, root, tmp_path):
    path = copied(root, tmp_path, name)
    with jupyter_lab(path.parent, tmp_path) as address, opened() as (page, _):
        page.goto(address(path.name))
        run_all(page)
        page.keyboard.press("Control+s")
        page.get_by_text(re.compile("Saving completed")).first.wait_for(timeout=20_000)
        check(path)
        host = page.locator(".gb-explorer[data-mounted=done]").first
        host.scroll_into_view_if_needed()
        canvas, knob = host.locator("canvas").first, host.locator("input[type=range]").first
        before = canvas.screenshot()
        knob.focus()
        for _ in range(15):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(500)
        assert canvas.screenshot() != before, "the picture does not follow the slider"


# ---- pages


def follow(folder, look=lambda page: None):
    """Open every page that is there or that a link leads to: what is wrong on it, which of its links go nowhere; how many links there
    are; and what `look` says of each."""
    base, links, places, said = folder.resolve().as_uri(), {}, {}, {}
    todo = [p.resolve().as_uri() for p in folder.rglob("*.html")]
    with opened() as (page, wrong):
        while todo:
            url = todo.pop()
            page.goto(url)
            hrefs = page.eval_on_selector_all("a[href]", "links => links.map(a => a.href)")
            links[url] = {urldefrag(h) for h in hrefs if h.startswith(base)}
            places[url] = {"", "top", *page.eval_on_selector_all("[id]", "marked => marked.map(e => e.id)")}
            said[url] = look(page)
            todo += {target for target, _ in links[url] if target.endswith(".html")} - set(links) - set(todo)
    for url, found in links.items():
        for target, place in found:
            if target not in links and not Path(unquote(urlparse(target).path)).exists() or unquote(place) not in places.get(target, {""}):
                wrong.append(f"{url}: {target}#{place}: no such place")
    return wrong, sum(map(len, links.values())), said


def formulas(page):
    "How many displayed formulas a page has, and which are wider than their column."
    wide = "all => all.filter(e => e.scrollWidth > e.clientWidth + 2).map(e => e.closest('[id]').id)"
    return page.locator("math[display=block]").count(), page.eval_on_selector_all("math[display=block]", wide)


def test_the_plain_pages_have_no_broken_link_and_no_error_and_formulas_fit(book):
    wrong, links, seen = follow(book, formulas)
    assert not wrong and links > 300, (wrong[:10], links)
    assert sum(n for n, _ in seen.values()) > 100 and not any(found for _, found in seen.values()), seen


def test_a_broken_link_and_an_error_are_seen(tmp_path):
    (tmp_path / "index.html").write_text('<a href="two.html#here">two</a> <a href="#there">there</a> <script>missing()</script>')
    (tmp_path / "two.html").write_text('<h1 id="here">Two</h1> <img src="none.png"> <a href="index.html">back</a>')
    wrong, links, _ = follow(tmp_path)
    assert links == 3 and all(any(word in line for line in wrong) for word in ("#there", "missing", "none.png")), wrong
    assert not any("#here: no such place" in line for line in wrong)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["_report", "_docs"])
def test_the_pages_that_were_made_here_have_no_broken_link(folder, root):
    "Pages of Quarto ask for fonts of a network and for modules of a server, so here only links count."
    if not (root / folder / "index.html").is_file():
        pytest.skip(f"make {folder[1:]} has not been run here")
    wrong, links, _ = follow(root / folder)
    assert not [line for line in wrong if "no such place" in line] and links > 300, links
