"""Every link and every file that a page names is there, its anchor included."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ELSEWHERE = {"http", "https", "mailto", "data", "javascript"}


class Names(HTMLParser):
    """The addresses that a page refers to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.meta: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.anchors |= {named[key] for key in ("id", "name") if named.get(key)}
        if tag == "meta" and "content" in named:
            self.meta[named.get("property", named.get("name", ""))] = named["content"]
        # The page's own address on the web is no link that a reader follows.
        if tag == "link" and named.get("rel") == "canonical":
            return
        self.links += [named[key] for key in ("href", "src", "data-src") if named.get(key)]
        self.links += re.findall(r"url\(['\"]?([^)'\"]+)", named.get("style", ""))


@cache
def read(path: Path) -> Names:
    return Names(path.read_text(encoding="utf-8"))


def problems(folder: Path) -> list[str]:
    """Each dead link of the site, and each file that only another site has."""
    found = []
    for path in sorted(folder.rglob("*.html")):
        if "_static" in path.relative_to(folder).parts:
            continue
        for link in read(path).links:
            url = urlsplit(link)
            if url.scheme in ELSEWHERE:
                continue
            target = path if not url.path else Path(path.parent, unquote(url.path)).resolve()
            where = f"{path.relative_to(folder)}: {link}"
            if not target.is_relative_to(folder) or not target.exists():
                found.append(f"{where}: no such file")
                continue
            is_page = url.fragment and target.suffix == ".html"
            if is_page and unquote(url.fragment) not in read(target).anchors:
                found.append(f"{where}: no such place")
    return found


def test_links_and_anchors(site):
    assert problems(site.folder) == []


def test_style_sheets_name_files_that_are_there(site):
    missing = []
    for sheet in site.folder.glob("_static/**/*.css"):
        for link in re.findall(r"url\(['\"]?([^)'\"#?]+)", sheet.read_text(encoding="utf-8")):
            if not link.startswith(("data:", "http")) and not (sheet.parent / link).exists():
                missing.append(f"{sheet.name}: {link}")
    assert not missing


def test_outside_addresses_are_links_only(site, pages):
    """Nothing but links, and the page's own public address, names another site."""
    loaded = re.compile(
        r"<(?:img|script|iframe|source|video|audio|embed|object)\b[^>]*\b(?:src|data)=\"https?://"
        r"|<link\b(?![^>]*rel=\"canonical\")[^>]*href=\"https?://|url\(['\"]?https?://|@import"
    )
    found = []
    for name in pages:
        text = (site.folder / f"{name}.html").read_text(encoding="utf-8")
        found += [f"{name}: {m[0]}" for m in loaded.finditer(text)]
    assert not found


def test_every_page_has_its_card_for_shared_links(site, pages):
    for name in pages:
        meta = read(site.folder / f"{name}.html").meta
        for key in ("og:title", "og:description", "og:url", "og:image", "og:image:alt"):
            assert meta.get(key, "").strip(), f"{name} has no {key}"
        assert meta["og:url"].endswith(f"/{name}.html")
        image = meta["og:image"].rpartition("/_static/")[2]
        assert (site.folder / "_static" / image).exists(), image


def test_sitemap_lists_every_page(site, pages):
    sitemap = (site.folder / "sitemap.xml").read_text(encoding="utf-8")
    listed = set(re.findall(r"<loc>(.*?)</loc>", sitemap))
    for name in pages:
        canonical = [url for url in listed if url.endswith(f"/{name}.html")]
        assert len(canonical) == 1, name
        assert canonical[0].startswith("https://")


def test_icon_of_the_site(site, pages):
    for name in pages:
        links = read(site.folder / f"{name}.html").links
        assert any(link.endswith("favicon.svg") for link in links), name
