"""Pages are light, and load nothing that they do not use.

The budget is 1.5 MB a page before its widgets load, as sent: text is counted compressed with gzip,
as GitHub Pages and other web servers send it. As stored most pages are larger (their MathJax alone
is 0.9 MB); `benchmarks/results/site.json` holds both figures of every page.
"""

import re
from pathlib import Path

from playwright.sync_api import Page

from benchmarks.site import weigh

MAX_BYTES = 1_500_000  # of a page before its widgets load, as sent


def test_weight(site, opened: Page):
    weight = weigh(opened.first_load, site.address, site.folder)
    assert weight["sent"] < MAX_BYTES, weight["sent_by_kind"]


def test_scripts_only_where_they_are_used(opened: Page):
    uses = {
        "/apps/": opened.locator("[data-app]").count(),
        "/mathjax/": opened.locator("main .math").count(),
        "mermaid": opened.locator(".dl-diagram > pre").count(),
        "fontawesome.js": 0,
        "searchindex.js": 0,
        "require.js": 0,
        "thebe": 0,
    }
    unused = [part for part, count in uses.items() if not count]
    loaded = [url for url in opened.first_load for part in unused if part in url]
    assert not loaded


def test_icons_are_drawn(opened: Page):
    """Without the theme's script of 1.5 MB, every button still has its picture."""
    for button in opened.locator(".header-article-items button:visible").all():
        assert button.locator("svg, .navbar-icon").count(), button.evaluate("e => e.outerHTML")
        box = button.locator("svg").first.bounding_box()
        assert box is None or (box["width"] > 8 and box["height"] > 8)


def test_pictures_further_down_wait(site, opened: Page):
    if "/notebooks/01_forward_process" not in opened.url:  # one page is enough
        return
    text = Path(site.folder, "notebooks/01_forward_process.html").read_text(encoding="utf-8")
    in_text = set(re.findall(r'<img[^>]*src="\.\./_images/([^"]+)"', text))
    early = {url.rpartition("/")[2] for url in opened.first_load} & in_text
    assert len(in_text) > 5
    assert len(early) <= len(in_text) / 2
