"""The last hand on every finished page: it loads little at first, and a screen reader reads it.

The theme would send every page all 2,000 icons as a script of 1.5 MB, the whole search index, and
MathJax even where there is no formula. Notebooks carry the sheets of their sliders inside the page.
Here each finished page is rewritten:

- an icon becomes the SVG that the theme's script would have drawn, and the script goes;
- MathJax and the search index stay only where there is a formula or a search;
- a picture loads when it comes near (its size stands in the page, so that nothing jumps);
- scripts do not hold up the text;
- a slider's sheet becomes a file, and loads when it comes near (``_static/page.js``);
- a control is called what is written on it: the theme hides that behind other words;
- the lines of a long signature are lines, and no list of definitions without terms.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydata_sphinx_theme
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri

THEME = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme"
ICON = re.compile(r'<(i|span) class="([^"]*\bfa-[^"]*)"([^>]*)></\1>')
SHAPE = re.compile(r'"?([\w-]+)"?:\[(\d+),(\d+),\[([^\]]*)\],"[0-9a-f]+","([^"]+)"\]')
SHEET = re.compile(r"url\(data:image/webp;base64,([^)]+)\)")
# Names that are not the words that one sees on the control, so that "click Search" finds nothing.
OTHER_NAME = re.compile(
    r'(<summary) aria-label="Toggle hidden content"'
    r'|(<button class="[^"]*search-button-field[^>]*?) aria-label="Search"'
)
# A box of a list of tasks is no control, but its state is worth a word.
NAMELESS_BOX = (
    '<input class="task-list-item-checkbox"',
    '<input aria-label="done" class="task-list-item-checkbox"',
)
# Scripts that hold up the text, but for the one that scripts within the page build on.
BLOCKING = re.compile(
    r"<script (?![^>]*\b(?:defer|async)\b)(?![^>]*documentation_options)(?=[^>]*\bsrc=)"
)
# A long signature is a list of definitions that have no terms.
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>(?:(?!</dd>).)*</dd>\s*)+)</dl>", re.S)
IMAGE = re.compile(r'<img\b(?![^>]*\bloading=)[^>]*\bsrc="([^"]+)"[^>]*>')


def _script(source: str) -> re.Pattern[str]:
    return re.compile(rf'\s*<script[^>]*\bsrc="[^"]*{source}[^"]*"[^>]*></script>')


@functools.cache
def icon_shapes() -> dict[str, dict[str, tuple[str, str, str]]]:
    """Of each style ("fab", "far", "fas"): name -> (width, height, path), from the theme's script.

    Raises:
        ValueError: the theme's script is not as expected (after an update, say).
    """
    script = (THEME / "static" / "scripts" / "fontawesome.js").read_text(encoding="utf-8")
    shapes: dict[str, dict[str, tuple[str, str, str]]] = {}
    start = 0
    for end in re.finditer(r'\("(fa[brs])",\w+\),\w+\("fa-(?:brands|regular|solid)"', script):
        of_style = shapes.setdefault(end[1], {})
        for name, width, height, others, path in SHAPE.findall(script, start, end.start()):
            for each in [name, *re.findall(r'"([^"]+)"', others)]:
                of_style[each] = (width, height, path)
        start = end.end()
    if set(shapes) != {"fab", "far", "fas"} or "rocket" not in shapes["fas"]:
        raise ValueError("The theme stores its icons in another way now: see finished_pages.py.")
    return shapes


def _svg(match: re.Match[str]) -> str:
    classes, rest = match[2].split(), match[3]
    styles = {"fa-brands": "fab", "fa-regular": "far", "fa-solid": "fas", "fa": "fas"}
    style = next((styles.get(c, c) for c in classes if styles.get(c, c) in icon_shapes()), None)
    names = [c.removeprefix("fa-") for c in classes if c.startswith("fa-")]
    shape = next((icon_shapes()[style][n] for n in names if n in icon_shapes()[style]), None) \
        if style else None  # fmt: skip
    if shape is None:
        return match[0]  # the theme's font draws it
    width, height, path = shape
    # Without the style's class, which would lend it the font and the shape of a letter.
    kept = " ".join(["svg-inline--fa", *(c for c in classes if styles.get(c, c) != style)])
    hidden = "" if "aria-hidden" in rest else ' aria-hidden="true"'
    return (
        f'<svg class="{kept}"{rest}{hidden} viewBox="0 0 {width} {height}" focusable="false">'
        f'<path fill="currentColor" d="{path}"></path></svg>'
    )


def _lines(match: re.Match[str]) -> str:
    lines = match[1].replace("<dd>", '<span class="dl-line">').replace("</dd>", "</span>")
    return f'<span class="dl-lines">{lines}</span>'


class FinishedPages:
    """Rewrites one builder's pages as they are rendered."""

    def __init__(self, app: Sphinx) -> None:
        self.app = app
        self.render = app.builder.templates.render

    def __call__(self, template: str, context: Mapping[str, Any]) -> str:
        page = self.render(template, context)
        if "<body" not in page:
            return page
        name = context["pagename"]
        page = _script("/scripts/fontawesome.js").sub("", ICON.sub(_svg, page))
        if not re.search(r'class="[^"]*\bmath\b', page):
            page = _script("/vendor/mathjax/").sub("", page)
            page = re.sub(r"\s*<script>window.MathJax = .*?</script>", "", page)
        if 'class="highlight' not in page:  # nothing to copy
            page = _script("clipboard.min.js").sub("", _script("copybutton.js").sub("", page))
        if name != "search":
            for script in ("searchtools.js", "language_data.js", "searchindex.js"):
                page = _script(script).sub("", page)
            page = BLOCKING.sub("<script defer ", page)
        page = SHEET.sub(lambda m: f"url({self.sheet(name, m[1])})", page)
        page = PARAMETERS.sub(_lines, page)
        # The role of ARIA 1.0 is withdrawn: a list's entries are its items.
        page = page.replace('role="doc-biblioentry"', 'role="listitem"')
        page = OTHER_NAME.sub(lambda m: m[1] or m[2], page)
        page = page.replace(*NAMELESS_BOX)
        # What stands before the first section is seen at once.
        section = page.find("<h2", page.find("<article"))
        return page[:section] + IMAGE.sub(self.later, page[section:])

    def uri(self, name: str) -> str:
        return self.app.builder.get_target_uri(name)

    def sheet(self, name: str, data: str) -> str:
        """Write a slider's sheet beside the pictures; its address as seen from the page."""
        content = base64.b64decode(data)
        file = f"_images/sheet-{hashlib.sha256(content).hexdigest()[:16]}.webp"
        path = Path(self.app.outdir, file)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return relative_uri(self.uri(name), file)

    def later(self, match: re.Match[str]) -> str:
        """An `<img>` that loads when it comes near, with its size in pixels."""
        tag, file = match[0], match[1].rpartition("/")[2]
        source = self.sources().get(file)
        size = ""
        if source is not None and source.suffix in {".png", ".webp", ".jpg", ".gif"}:
            with Image.open(source) as picture:
                size = f' width="{picture.width}" height="{picture.height}"'
        if re.search(r"\b(width|height)=", tag):
            size = ""
        return tag.replace("<img", f'<img loading="lazy" decoding="async"{size}', 1)

    def sources(self) -> dict[str, Path]:
        """Of each picture's name on the site: the file that it comes from."""
        images = self.app.builder.images
        return {file: Path(self.app.srcdir, source) for source, file in images.items()}


def _rewrite_pages(app: Sphinx) -> None:
    if app.builder.format == "html":
        app.builder.templates.render = FinishedPages(app)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _rewrite_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
