"""Pages for everybody: on a phone, without a mouse, with a screen reader.

The rules of contrast, names and roles are those of axe-core, which is not of this project: `npm install axe-core` at the root of the
repository, or GENBOOK_AXE=PATH/axe.min.js. Without it, and without a browser, these tests are skipped.
"""

import os
import shutil
from pathlib import Path

import pytest

browser = pytest.importorskip("test_browser", reason="needs playwright: pip install playwright -c constraints.txt")
pytestmark = pytest.mark.skipif(not browser.CHROMIUM, reason="needs a browser: Chromium or Chrome is not installed")
PHONE = {"width": 390, "height": 844}

WIDE = """width => {
  const found = [];
  for (const e of document.querySelectorAll("img, svg, table, math, canvas, pre, figure, h1, h2, h3, p, li, select, button, input")) {
    const box = e.getBoundingClientRect();
    if (!box.width || box.right <= width + 1 || getComputedStyle(e).visibility === "hidden") continue;
    let up = e, scrolls = false;
    while ((up = up.parentElement)) {
      const style = getComputedStyle(up), outer = up.getBoundingClientRect();
      if (/auto|scroll/.test(style.overflowX) && outer.right <= width + 1) scrolls = true;
    }
    if (!scrolls && !e.closest(".skip, #quarto-sidebar, .offcanvas"))
      found.push(e.tagName + " " + Math.round(box.right) + " " + e.outerHTML.slice(0, 90));
  }
  return found;
}"""


def too_wide(folder, pages):
    "What does not fit a phone: by page."
    found = {}
    with browser.opened() as (page, _):
        page.set_viewport_size(PHONE)
        for path in pages:
            page.goto(path.as_uri())
            page.wait_for_timeout(100)
            wide = page.evaluate(WIDE, PHONE["width"])
            if (scroll := page.evaluate("document.documentElement.scrollWidth")) > PHONE["width"]:
                wide.append(f"the page scrolls sideways: {scroll} px")
            if wide:
                found[path.relative_to(folder).as_posix()] = wide[:5]
    return found


def axe():
    "The file of axe-core."
    root = Path(__file__).parents[1]
    places = [os.environ.get("GENBOOK_AXE"), root / "node_modules/axe-core/axe.min.js"]
    path = next((Path(p) for p in places if p and Path(p).is_file()), None)
    if path is None:
        pytest.skip("needs axe-core: npm install axe-core, or GENBOOK_AXE=PATH/axe.min.js")
    return path


def serious(pages):
    "What axe-core calls serious or critical: by page."
    script, found = axe().read_text(encoding="utf-8"), {}
    with browser.opened() as (page, _):
        for path in pages:
            page.goto(path.as_uri())
            page.wait_for_timeout(500)
            page.evaluate(script)
            said = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
            lines = [
                f"{v['id']} ({len(v['nodes'])}): {v['nodes'][0]['html'][:120]} {v['nodes'][0].get('failureSummary', '')[-160:]}"
                for v in said
                if v["impact"] in ("serious", "critical")
            ]
            if lines:
                found[path.name] = lines
    return found


def ten(folder):
    "The first page and nine more, spread over the book."
    pages = sorted(p for p in folder.rglob("*.html") if p.name != "index.html")
    return [folder / "index.html", *pages[:: max(1, len(pages) // 9)][:9]]


def test_plain_pages_fit_a_phone(book):
    assert not (found := too_wide(book, sorted(book.rglob("*.html")))), found


def test_plain_pages_have_no_serious_finding(book):
    assert not (found := serious(ten(book))), found


def test_keys_reach_the_text_and_tables_that_scroll(book):
    page_with_tables = next(p for p in sorted(book.rglob("*.html")) if p.read_text(encoding="utf-8").count('class="scroll"') > 1)
    with browser.opened() as (page, _):
        page.goto(page_with_tables.as_uri())
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        frames = page.locator(".scroll")
        assert frames.count() and all(f.get_attribute("tabindex") == "0" and f.get_attribute("aria-label") for f in frames.all())


def test_what_is_too_wide_and_what_cannot_be_read_is_seen(tmp_path):
    (tmp_path / "index.html").write_text(
        '<!DOCTYPE html><html lang="en"><meta name="viewport" content="width=device-width"><title>t</title>'
        '<main><h1>t</h1><svg width="700" height="9"></svg><p style="color:#bbb">pale</p></main>'
    )
    assert "svg" in str(too_wide(tmp_path, [tmp_path / "index.html"])).lower()
    assert "color-contrast" in str(serious([tmp_path / "index.html"]))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("quarto"), reason="needs Quarto on the PATH, and make report")
def test_the_pages_of_quarto_fit_a_phone_and_have_no_serious_finding(root):
    folder = root / "_report"
    if not (folder / "index.html").is_file() or not (folder / "site_libs").is_dir():
        pytest.skip("make report has not been run here with Quarto")
    assert not (found := too_wide(folder, sorted(folder.rglob("*.html")))), found
    assert not (found := serious(ten(folder))), found
