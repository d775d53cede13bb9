"""A browser, the built book, and a watch on every page that a test opens.

The tests look at `_build/html`, or at the folder that the variable DIFFUSION_SITE names. They build
nothing: `make test-site` does. Chromium is looked for by name; the variable CHROMIUM overrides it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socketserver
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tools import screenshots

FOLDER = Path(os.environ.get("DIFFUSION_SITE") or screenshots.ROOT / "_build" / "html").resolve()
# What the theme logs by itself, and what it does not break.
NOISE = re.compile(r"THEBE_JS_URL.* already declared")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "allow(*patterns): problems of a page that match one of these regular expressions are "
        "part of the test (a file that it takes away, say)",
    )


@dataclass(frozen=True)
class Site:
    """The built book: its folder, and where it is served from. Neither ends in a slash."""

    folder: Path
    address: str

    def url(self, page: str, *, file: bool = False) -> str:
        """Address of a page such as "book/index", over http or from the folder."""
        name, hash_, anchor = page.partition("#")
        base = self.folder.as_uri() if file else self.address
        return f"{base}/{name.removesuffix('.html')}.html{hash_}{anchor}"

    def open(self, page: Page, name: str, *, file: bool = False) -> Page:
        """Go to a page; returns when its formulas, fonts and diagrams are drawn."""
        page.goto(self.url(name, file=file), wait_until="load")
        page.evaluate(screenshots.READY)
        return page


@dataclass
class Watch:
    """What went wrong on the pages of one browser context since it was opened."""

    site: Site
    allowed: list[re.Pattern[str]]
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def attach(self, context: BrowserContext) -> None:
        # The context's events cover its workers and pop-ups too.
        context.on("console", lambda m: self.note(m.type == "error", f"console error: {m.text}"))
        context.on("weberror", lambda e: self.note(True, f"uncaught: {e.error}"))
        # A page that is left cancels what it still waits for: net::ERR_ABORTED.
        context.on(
            "requestfailed",
            lambda r: self.note(r.failure != "net::ERR_ABORTED", f"failed request: {r.url}"),
        )
        context.on("request", lambda r: self.seen(r.url))

    def note(self, wrong: bool, what: str) -> None:
        if wrong and not any(p.search(what) for p in [NOISE, *self.allowed]):
            self.problems.append(what)

    def seen(self, url: str) -> None:
        self.requests.append(url)
        inside = (self.site.address + "/", self.site.folder.as_uri() + "/", "data:", "blob:")
        self.note(not url.startswith(inside) and url != "about:blank", f"outside request: {url}")


@contextlib.contextmanager
def watched(
    browser: Browser, site: Site, allowed: Sequence[str] = ()
) -> Iterator[Callable[..., Page]]:
    """Gives a function that opens watched pages; fails at the end if anything went wrong on one."""
    patterns = [re.compile(pattern) for pattern in allowed]
    opened: list[tuple[BrowserContext, Watch]] = []

    def open_one(**options: object) -> Page:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        context = browser.new_context(**options)
        context.set_default_timeout(15_000)
        watch = Watch(site, patterns)
        watch.attach(context)
        opened.append((context, watch))
        page = context.new_page()
        page.watch = watch
        return page

    yield open_one
    for context, _ in opened:
        context.close()
    problems = list(dict.fromkeys(p for _, watch in opened for p in watch.problems))
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    if not (FOLDER / "book" / "index.html").is_file():
        pytest.fail(f"There is no built book in {FOLDER}: run `make book` first.", pytrace=False)
    with pytest.MonkeyPatch.context() as patch, screenshots.served(FOLDER) as address:
        # A browser that leaves a page hangs up on the server: no error, and nothing to print.
        patch.setattr(socketserver.BaseServer, "handle_error", lambda *_: None)
        yield Site(FOLDER, address)


@pytest.fixture(scope="session")
def pages(site: Site) -> list[str]:
    """Every page that came from a source of ours, such as "book/index"."""
    return screenshots.built_pages(site.folder)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        path = screenshots.chromium()
    except SystemExit as no_chromium:
        pytest.fail(str(no_chromium), pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=screenshots.FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(
    request: pytest.FixtureRequest, browser: Browser, site: Site
) -> Iterator[Callable[..., Page]]:
    """Opens empty, watched pages: `new_page(color_scheme="dark", java_script_enabled=False)`.

    Takes the options of Playwright's `Browser.new_context`; 1280 x 800 unless told otherwise. After
    the test a console error, a failed request or one outside the site makes it fail, but for what
    the test's marker `allow` names. `page.watch.requests` lists the addresses asked for.
    """
    allowed = [pattern for mark in request.node.iter_markers("allow") for pattern in mark.args]
    with watched(browser, site, allowed) as open_one:
        yield open_one


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    """One watched page of 1280 x 800 in the light theme; `site.open(page, "book/index")`."""
    return new_page(color_scheme="light")


@pytest.fixture(
    scope="session", params=screenshots.built_pages(FOLDER) or ["book/index"], ids=lambda p: p
)
def opened(request: pytest.FixtureRequest, browser: Browser, site: Site) -> Iterator[Page]:
    """Each built page in turn, drawn once for all tests; leave it light and 1280 wide.

    `opened.first_load` lists what was asked for before anybody scrolled.
    """
    with watched(browser, site) as open_one:
        page = site.open(open_one(color_scheme="light"), request.param)
        page.evaluate("() => new Promise((idle) => requestIdleCallback(idle))")
        page.first_load = list(page.watch.requests)
        yield page


@pytest.fixture(scope="session")
def from_folder(opened: Page, browser: Browser, site: Site) -> Iterator[Page]:
    """The same page from file://, with no server; loaded 360 px wide, a test may widen it."""
    name = opened.url.removeprefix(site.address + "/").removesuffix(".html")
    with watched(browser, site) as open_one:
        yield site.open(open_one(viewport={"width": 360, "height": 740}), name, file=True)
