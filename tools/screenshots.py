"""Look at the built book in a real browser: screenshots, and a list of what is wrong.

    python tools/screenshots.py                              every page, three widths, both themes
    python tools/screenshots.py book/index --widths 360      one page, as a phone shows it
    python tools/screenshots.py --no-pictures --file         only check, from file://

Needs requirements-site.txt and Chromium (found by its name, or named by the variable CHROMIUM).
The exit status is 1 where a page logs an error, asks for anything outside the site, scrolls
sideways, or holds a formula that MathJax refuses.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
THEMES = ("light", "dark")
# --no-sandbox: containers run as root. The others keep Chromium itself from using the network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Resolved when the formulas are drawn, the fonts loaded, and the diagrams no longer plain text.
READY = """async () => {
  if (window.MathJax) await MathJax.startup.promise;
  await document.fonts.ready;
  for (let i = 0; i < 100 && document.querySelector('.dl-diagram > pre'); i++)
    await new Promise((done) => setTimeout(done, 100));
}"""
# The elements that reach past the right edge, outside anything that scrolls by itself.
TOO_WIDE = """() => {
  const root = document.scrollingElement, found = [];
  if (root.scrollWidth <= root.clientWidth) return found;
  for (const e of document.querySelectorAll('main *')) {
    if (e.getBoundingClientRect().right <= root.clientWidth + 1) continue;
    let p = e;
    while (p && getComputedStyle(p).overflowX === 'visible') p = p.parentElement;
    if (!p || p === root || p === document.body) found.push(e.tagName + '.' + e.className);
  }
  return [...new Set(found)].slice(0, 5).concat(`${root.scrollWidth} > ${root.clientWidth} px`);
}"""
# Unbalanced braces make no MathJax error: the formula is left as it was typed.
WRONG_FORMULAS = """() => [...document.querySelectorAll('.math.notranslate')]
  .filter((e) => !e.querySelector('mjx-container') || e.querySelector('mjx-merror'))
  .map((e) => e.querySelector('mjx-merror')?.dataset.mjxError ?? `not drawn: ${e.textContent}`)"""
UNDRAWN = "() => document.querySelectorAll('.dl-diagram > pre').length"


def chromium() -> str:
    """Path of the installed Chromium.

    Raises:
        SystemExit: there is none.
    """
    named = os.environ.get("CHROMIUM")
    found = named or shutil.which("chromium") or shutil.which("chromium-browser")
    found = found or shutil.which("google-chrome")
    if not found:
        raise SystemExit(
            "No Chromium found: install it (Debian: apt-get install chromium) or set CHROMIUM."
        )
    return found


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free local port; gives its address, without a final slash."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def look(page: Page, address: str, base: str) -> list[str]:
    """Open one page, wait until it is drawn, and list what is wrong with it."""
    found: list[str] = []

    def local(url: str) -> bool:
        return url.startswith((base + "/", "data:", "blob:"))

    page.on("console", lambda m: found.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: found.append(f"error: {e}"))
    page.on("requestfailed", lambda r: found.append(f"failed request: {r.url}"))
    page.on("request", lambda r: None if local(r.url) else found.append(f"leaves site: {r.url}"))
    page.goto(address, wait_until="load")
    page.evaluate(READY)
    found += [f"formula: {text}" for text in page.evaluate(WRONG_FORMULAS)]
    if undrawn := page.evaluate(UNDRAWN):
        found.append(f"{undrawn} diagrams are not drawn")
    if wide := page.evaluate(TOO_WIDE):
        found.append("scrolls sideways: " + ", ".join(wide))
    return found


def visit(
    browser: Browser,
    base: str,
    pages: list[str],
    widths: list[int],
    themes: list[str],
    out: Path | None,
    full: bool,
) -> dict[str, list[str]]:
    """Look at every page at every width in every theme; the problems found, by page and view."""
    problems: dict[str, list[str]] = {}
    for theme in themes:
        for width in widths:
            context = browser.new_context(
                viewport={"width": width, "height": 740 if width < 600 else 900},
                color_scheme=theme,
                device_scale_factor=2 if width < 600 else 1,
                has_touch=width < 600,
                is_mobile=width < 600,
                reduced_motion="reduce",
            )
            for name in pages:
                page = context.new_page()
                found = look(page, f"{base}/{name}.html", base)
                if found:
                    problems[f"{name} at {width} px, {theme}"] = found
                if out is not None:
                    picture = out / f"{name.replace('/', '_')}-{width}-{theme}.png"
                    page.screenshot(path=picture, full_page=full)
                page.close()
            context.close()
    return problems


def built_pages(site: Path) -> list[str]:
    """Every page of the built site that came from a source of ours."""
    chosen = [*site.glob("book/*.html"), *site.glob("notebooks/*.html")]
    return sorted(p.relative_to(site).with_suffix("").as_posix() for p in chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="such as book/index; every page if none is named")
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "screenshots")
    parser.add_argument("--widths", type=int, nargs="+", default=[360, 820, 1280])
    parser.add_argument("--themes", nargs="+", choices=THEMES, default=list(THEMES))
    parser.add_argument("--viewport", action="store_true", help="only what is seen at first")
    parser.add_argument("--no-pictures", action="store_true", help="check, but draw nothing")
    parser.add_argument("--file", action="store_true", help="open the pages from file://")
    parser.add_argument("--browser", action="store_true", help="only say which Chromium it is")
    args = parser.parse_args()
    if args.browser:
        print(chromium())
        return

    site = args.site.resolve()
    pages = [p.removesuffix(".html") for p in args.pages] or built_pages(site)
    missing = [p for p in pages if not (site / f"{p}.html").is_file()]
    if missing or not pages:
        raise SystemExit(f"Not built: {', '.join(missing) or site}. Run 'make book' first.")
    out = None if args.no_pictures else args.out
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)

    with contextlib.ExitStack() as stack:
        base = site.as_uri() if args.file else stack.enter_context(served(site))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        problems = visit(
            browser, base, pages, args.widths, args.themes, out, full=not args.viewport
        )
        browser.close()

    for view, found in problems.items():
        print(view, *(f"  {line}" for line in found), sep="\n")
    views = len(pages) * len(args.widths) * len(args.themes)
    print(f"{views - len(problems)} of {views} views are fine" + (f"; see {out}" if out else ""))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
