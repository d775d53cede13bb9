"""Collect the chapters' formula cards into book/formulas.md, or check that it holds them.

python tools/formulas.py            write the page
python tools/formulas.py --check    exit 1 where the page is not what the notebooks say
"""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "book" / "formulas.md"
INTRO = """---
myst:
  html_meta:
    description: "Every formula of the book on one page, chapter by chapter."
---

# All formulas

Each chapter ends with a card of its formulas. Here they are together; each is derived, and checked
against an exact answer, in the chapter that its heading links to. The letters are those of the
{doc}`notation page <notation>`.
"""


def card(path: Path) -> str | None:
    """The section of a chapter: its title as a link, then its card's table; None without a card."""
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    for source in cells:
        found = re.search(r"^### Formula card\n+((?:\|.*\n?)+)", source, re.M)
        if found:
            title = cells[0].splitlines()[0].lstrip("# ")
            return f"## [{title}](../notebooks/{path.name})\n\n{found[1].strip()}\n"
    return None


def page() -> str:
    """The whole page, from the notebooks in their order."""
    cards = [card(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    return "\n".join([INTRO, *filter(None, cards)])


def main() -> int:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        print("book/formulas.md is not what the notebooks say: run python tools/formulas.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
