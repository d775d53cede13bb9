"""Every page: opens without an error or an outside request, is drawn, fits, and is accessible."""

import re
import shutil
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tools import screenshots

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
# All its rules, in seconds instead of minutes: of thousands of coloured words in code and in
# signatures one of each kind is left to look at, and each formula is a letter of its colour (axe
# does not read inside).
RUN_AXE = """async (options) => {
  const seen = new Set();
  for (const e of document.querySelectorAll(".highlight span[class], dt.sig span[class]")) {
    const kind = `${e.parentElement.className}, ${e.className}`;
    seen.has(kind) ? e.replaceWith(...e.childNodes) : seen.add(kind);
  }
  for (const e of document.querySelectorAll("mjx-assistive-mml math")) e.replaceChildren();
  for (const e of document.querySelectorAll("mjx-container"))
    if (e.scrollWidth <= e.clientWidth + 1) e.querySelector("mjx-math").replaceChildren("x");
  document.body.normalize();
  return (await axe.run(document, options)).violations
  .filter((rule) => ["serious", "critical"].includes(rule.impact))
  .flatMap((rule) => rule.nodes.map((node) => `${rule.id}: ${node.target.join(" ")}: ${
    node.html.slice(0, 160)} (${(node.any[0] ?? node.none[0] ?? node.all[0])?.message})`));
}"""
NAMELESS = """() => [...document.querySelectorAll("main :is(img, svg, canvas, [role=img])")]
  .filter((e) => !e.closest("[aria-hidden=true], mjx-container, button"))
  .filter((e) => !(e.getAttribute("alt") ?? e.getAttribute("aria-label") ?? "").trim())
  .filter((e) => !e.getAttribute("aria-labelledby") && !e.parentElement.closest("[role=img]"))
  .map((e) => e.outerHTML.slice(0, 160))"""
UNCAPTIONED = """() => [...document.querySelectorAll("main .cell_output img")]
  .filter((e) => !e.closest("figure")?.querySelector("figcaption")?.textContent.trim())
  .map((e) => e.outerHTML.slice(0, 160))"""
# Formulas that were left as they were typed, outside code.
RAW_TEX = """() => {
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (parent.closest("pre, code, script, style, mjx-container")) continue;
    const text = walker.currentNode.textContent;
    const tex =
      /\\$\\$|\\\\\\(|\\\\\\[|\\\\(frac|sqrt|bar|alpha|text)\\b/;
    if (tex.test(text)) found.push(text.trim());
  }
  return found;
}"""
BROKEN = """() => [...document.images].filter((e) => e.complete && !e.naturalWidth)
  .map((e) => e.currentSrc)"""


def test_opens(opened: Page):
    """The watch on the page fails on console errors and outside requests; see conftest."""
    assert opened.locator("article h1").count() == 1
    assert opened.title()
    assert opened.evaluate("document.documentElement.lang") == "en"


def test_opens_from_a_folder_on_a_phone_and_fits(from_folder: Page):
    """And no small screen scrolls sideways."""
    assert from_folder.url.startswith("file:///")
    assert from_folder.evaluate(screenshots.WRONG_FORMULAS) == []
    assert from_folder.evaluate(screenshots.UNDRAWN) == 0
    assert from_folder.evaluate(screenshots.TOO_WIDE) == []
    from_folder.set_viewport_size({"width": 768, "height": 1024})
    assert from_folder.evaluate(screenshots.TOO_WIDE) == []


def test_apps_work_from_a_folder(site, page: Page):
    """All of them, where a page may load less than from a server."""
    site.open(page, "book/playground", file=True)
    apps = page.locator(".dl-app[data-app]").all()
    names = {app.get_attribute("data-app") for app in apps}
    assert names == {"sampler", "explorer", "lab"}
    for app in apps:
        app.scroll_into_view_if_needed()
        works = "(e) => e.dataset.seed === '0' || e.dataset.state === 'ready'"
        page.wait_for_function(works, arg=app.element_handle(), timeout=60_000)
        blank = """(c) => new Set(new Uint32Array(
            c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer)).size < 2"""
        assert not app.locator("canvas").first.evaluate(blank)


def test_formulas_are_drawn(opened: Page):
    assert opened.evaluate(screenshots.WRONG_FORMULAS) == []
    assert opened.evaluate(RAW_TEX) == []


def test_diagrams_are_drawn(opened: Page):
    assert opened.evaluate(screenshots.UNDRAWN) == 0
    for diagram in opened.locator(".dl-diagram").all():
        assert diagram.locator("svg g.node").count() > 1
    drawn_by_page = [url for url in opened.watch.requests if "mermaid" in url]
    assert not drawn_by_page, "draw new diagrams once: .venv/bin/python tools/diagrams.py"


def test_pictures_are_there_and_described(opened: Page):
    opened.evaluate("for (const e of document.images) e.loading = 'eager'")
    opened.wait_for_function("[...document.images].every((e) => e.complete)")
    assert opened.evaluate(BROKEN) == []
    assert opened.evaluate(NAMELESS) == []
    assert opened.evaluate(UNCAPTIONED) == []


@pytest.mark.parametrize("theme", screenshots.THEMES)
def test_accessible(opened: Page, theme: str):
    """axe-core finds nothing serious or critical, contrast included, in either theme."""
    opened.emulate_media(color_scheme=theme, reduced_motion="reduce")
    opened.wait_for_function("(t) => document.documentElement.dataset.theme === t", arg=theme)
    if not opened.evaluate("'axe' in window"):
        opened.add_script_tag(path=AXE)
    # In the second theme only the colours are others.
    options = {"runOnly": ["color-contrast"]} if theme == "dark" else {}
    found = opened.evaluate(RUN_AXE, options | {"resultTypes": ["violations"]})
    opened.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert not found, "\n".join(found)


@pytest.fixture(scope="session")
def dated() -> bool:
    """Whether git knows when a text changed: not in a shallow clone, nor in a bare copy."""
    if shutil.which("git") is None:
        return False
    command = ["git", "rev-parse", "--is-shallow-repository"]
    asked = subprocess.run(command, cwd=screenshots.ROOT, capture_output=True, text=True)
    return asked.stdout.strip() == "false"


def test_stamped(opened: Page, dated: bool):
    """Each page says when its text changed; a chapter also on what it was run, how long, by what.

    Where git knows no dates they are left out. The workflows fetch them: see tests/test_web.py.
    """
    lines = opened.locator(".dl-stamp").all_inner_texts()
    if "/notebooks/" in opened.url:
        run = r"run on .+ in \d+ s on \d+ \w+ \d{4}, with Python 3\.\d+.* and PyTorch \d"
        assert re.search(run, lines[0])
    if dated:
        (line,) = lines
        changed = re.search(r"Text last changed on (\d+ \w+ \d{4})\.$", line)
        assert changed, line
        assert datetime.strptime(changed[1], "%d %B %Y") <= datetime.now() + timedelta(days=1)
