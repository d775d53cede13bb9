"""What a reader does besides scrolling: searches, changes the theme, prints, reads a folder."""

import re
from collections.abc import Callable

import pytest
import yaml
from playwright.sync_api import Page

from tools import diagrams, screenshots


@pytest.mark.parametrize(
    ("words", "page_found"),
    [
        ("ELBO", "notebooks/02_elbo_and_loss"),
        ("guidance", "notebooks/05_sampling"),
        ("GroupNorm", "notebooks/03_unet"),
        ("zero terminal", "notebooks/01_forward_process"),
        ("ancestral sampling", "book/glossary"),
    ],
)
def test_search_finds(site, page: Page, words: str, page_found: str):
    page.goto(f"{site.address}/search.html?q={words.replace(' ', '+')}")
    page.locator("#search-results li").first.wait_for()
    page.wait_for_function("document.querySelector('.search-summary')?.textContent.includes('f')")
    links = page.locator("#search-results li a").evaluate_all("all => all.map((e) => e.href)")
    assert any(f"/{page_found}.html" in link for link in links), links


def test_search_says_when_it_finds_nothing(site, page: Page):
    page.goto(f"{site.address}/search.html?q=qqqxyzzy")
    page.get_by_text("did not match any documents").wait_for()


def test_search_from_any_page_by_keyboard(site, page: Page):
    site.open(page, "book/why")
    page.keyboard.press("Control+k")
    field = page.locator("dialog input[type=search]")
    field.wait_for()
    field.fill("sampler")
    field.press("Enter")
    page.locator("#search-results li").first.wait_for()
    assert page.url.startswith(f"{site.address}/search.html?q=sampler")


def test_search_from_a_folder(site, page: Page):
    """Without the lines of each page, which a browser does not read from files."""
    page.goto(f"{site.folder.as_uri()}/search.html?q=ELBO")
    page.locator("#search-results li").first.wait_for()


@pytest.mark.parametrize("theme", screenshots.THEMES)
def test_theme_follows_the_system(site, new_page: Callable[..., Page], theme: str):
    page = new_page(color_scheme=theme)
    site.open(page, "book/why")
    red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    assert (int(red) < 64) == (theme == "dark")
    ink = page.locator(".dl-diagram .nodeLabel").first.evaluate("(e) => getComputedStyle(e).color")
    assert (int(re.search(r"\d+", ink)[0]) > 160) == (theme == "dark")


def test_theme_button_is_remembered(site, page: Page):
    site.open(page, "book/index")
    button = page.locator(".theme-switch-button").locator("visible=true").first
    for _ in range(3):
        button.click()
        if page.evaluate("document.documentElement.dataset.mode") == "dark":
            break
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    site.open(page, "book/notation")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_prints_light_and_whole(site, new_page: Callable[..., Page]):
    """From a dark screen too: black on white, no menus, every output, the sliders' pictures."""
    page = new_page(color_scheme="dark")
    site.open(page, "notebooks/01_forward_process")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    colour = page.locator("article p").first.evaluate("(e) => getComputedStyle(e).color")
    assert int(re.search(r"\d+", colour)[0]) < 100
    size = page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)")
    assert size < 13  # of the letters, in pixels; 16 on the screen
    assert page.locator(".bd-sidebar-primary").is_hidden()
    assert page.locator(".header-article-items").first.is_hidden()
    sheet = page.locator(".dl-scrub [role=img]").first
    assert "sheet-" in sheet.evaluate("(e) => getComputedStyle(e).backgroundImage")
    assert len(page.pdf(format="A4")) > 100_000


def test_diagrams_are_those_of_the_sources():
    wanted = {diagrams.name_of(text) for text in diagrams.diagrams()}
    drawn = {path.stem for path in diagrams.DRAWINGS.glob("*.svg")}
    assert wanted == drawn, "run: .venv/bin/python tools/diagrams.py"


def test_citation_file():
    citation = yaml.safe_load((screenshots.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license", "version"} <= citation.keys()
    assert all({"name"} <= a.keys() or {"family-names"} <= a.keys() for a in citation["authors"])
