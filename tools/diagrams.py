"""Draw the book's mermaid diagrams once, so that no page has to load the 2.5 MB that draw them.

    python tools/diagrams.py            draw what is new, remove what no page shows any more
    python tools/diagrams.py --check    say whether the drawings are those of the sources

Needs requirements-site.txt and Chromium. Each drawing lies in `book/diagrams` under the hash of its
text; its colours are the theme's variables, so that one drawing serves light and dark. A diagram
without a drawing still works: its page draws it itself (`book/_ext/mermaid.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DRAWINGS = ROOT / "book" / "diagrams"
MERMAID = ROOT / "book" / "_static" / "vendor" / "mermaid" / "mermaid.tiny.js"
FENCE = re.compile(r"^(`{3,}|:{3,})\{mermaid\}[^\n]*\n(.*?)^\1[ \t]*$", re.M | re.S)
# Colours that stand for variables of the theme while mermaid draws, which knows no variables.
COLOURS = {
    "#010203": "--pst-color-text-base",
    "#020304": "--pst-color-text-muted",
    "#030405": "--pst-color-surface",
    "#040506": "--pst-color-background",
    "#050607": "--pst-color-primary",
}
INK, LINE, FILL, GROUND, BORDER = COLOURS
FONT = '-apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif'
DRAW = """async ([text, id, settings]) => {
  mermaid.initialize(settings);
  return (await mermaid.render(id, text)).svg;
}"""
SETTINGS = {
    "startOnLoad": False,
    "securityLevel": "strict",
    "theme": "base",
    "fontFamily": FONT,
    "themeVariables": {
        "background": GROUND,
        "primaryColor": FILL,
        "primaryTextColor": INK,
        "primaryBorderColor": BORDER,
        "secondaryColor": FILL,
        "tertiaryColor": GROUND,
        "lineColor": LINE,
        "textColor": INK,
        "edgeLabelBackground": GROUND,
    },
}


def name_of(text: str) -> str:
    """A diagram's name: the hash of its text, without the space around it."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def diagrams() -> Iterator[str]:
    """The text of every diagram in the book's pages and notebooks."""
    for path in sorted([*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.ipynb")]):
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(content)["cells"]
            content = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        for _, body in FENCE.findall(content):
            yield re.sub(r"^(:\w+:.*\n)+\s*", "", body).strip()


def draw(texts: dict[str, str]) -> dict[str, str]:
    """Name -> SVG, its colours those of the theme."""
    from playwright.sync_api import sync_playwright

    from tools.screenshots import FLAGS, chromium

    drawn = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page()
        page.set_content("<!doctype html><body></body>")
        page.add_script_tag(path=MERMAID)
        for name, text in texts.items():
            svg = page.evaluate(DRAW, [text, f"dl-diagram-{name}", SETTINGS])
            for colour, variable in COLOURS.items():
                svg = re.sub(colour, f"var({variable})", svg, flags=re.I)
                red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
                rgb = rf"rgba?\({red}, ?{green}, ?{blue}(, ?[\d.]+)?\)"
                svg = re.sub(rgb, f"var({variable})", svg)
            drawn[name] = svg
        browser.close()
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only; draw nothing")
    parser.add_argument("--all", action="store_true", help="draw every diagram anew")
    options = parser.parse_args()
    wanted = {name_of(text): text for text in diagrams()}
    there = {path.stem: path for path in DRAWINGS.glob("*.svg")}
    missing = {n: t for n, t in wanted.items() if options.all or n not in there}
    stale = [path for name, path in there.items() if name not in wanted]
    if options.check:
        for text in missing.values():
            print(f"not drawn: {text.splitlines()[0]} ... {text.splitlines()[1].strip()}")
        for path in stale:
            print(f"on no page: {path.relative_to(ROOT)}")
        if missing or stale:
            print("Run: python tools/diagrams.py")
        return 1 if missing or stale else 0
    DRAWINGS.mkdir(exist_ok=True)
    for name, svg in draw(missing).items() if missing else ():
        (DRAWINGS / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")
        print(f"drew {name}")
    for path in stale:
        path.unlink()
        print(f"removed {path.name}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
