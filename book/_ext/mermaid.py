"""A ``mermaid`` directive drawn in the page by the vendored script, over http and from file://.

    ```{mermaid}
    :alt: Data flows from the clean image through the noising step to the network.
    flowchart LR
      A[clean image] --> B[noisy image] --> C[network]
    ```

``:alt:`` is required: it is what a screen reader says. ``tools/diagrams.py`` draws every diagram
once into ``book/diagrams``, and such a drawing is put into the page. Until a new diagram is drawn,
its page loads mermaid and draws it itself. Formats other than HTML show the diagram's text.
"""

from __future__ import annotations

import hashlib
import re
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

DRAWINGS = Path(__file__).resolve().parents[1] / "diagrams"


class Diagram(nodes.General, nodes.Element):
    """Holds the diagram's text as a literal block, and what it shows in ``alt``."""

    @property
    def drawing(self) -> Path:
        """Where `tools/diagrams.py` puts the drawing of this text."""
        name = hashlib.sha256(self.astext().strip().encode()).hexdigest()[:16]
        return DRAWINGS / f"{name}.svg"


class Mermaid(SphinxDirective):
    has_content = True
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        if not self.options.get("alt"):
            raise self.error("A mermaid diagram needs :alt:, one sentence that says what it shows.")
        text = "\n".join(self.content)
        diagram = Diagram("", nodes.literal_block(text, text), alt=self.options["alt"])
        self.set_source_info(diagram)
        self.env.note_dependency(str(diagram.drawing))
        return [diagram]


def _inline(svg: str) -> str:
    """A stored drawing as part of a page: silent, and legible on a phone."""
    width = float(re.search(r'viewBox="\S+ \S+ (\S+) ', svg)[1])
    # On a phone the words must stay legible: shrink this far, then scroll inside the box.
    svg = svg.replace('style="', f'style="min-width: {min(0.7 * width, 600):.0f}px; ', 1)
    svg = re.sub(r' (role|aria-roledescription)="[^"]*"', "", svg, count=2)
    return svg.replace("<svg", '<svg aria-hidden="true"', 1).strip()


def _html(writer: Any, diagram: Diagram) -> None:
    if diagram.drawing.exists():
        content = _inline(diagram.drawing.read_text(encoding="utf-8"))
    else:
        content = f"<pre>{escape(diagram.astext())}</pre>"
    alt = escape(diagram["alt"])
    writer.body.append(f'<div class="dl-diagram" role="img" aria-label="{alt}">{content}</div>\n')
    raise nodes.SkipNode


def _as_text(writer: Any, diagram: Diagram) -> None:
    """Other formats show the literal block inside."""


def _add_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    diagrams = doctree.findall(Diagram) if doctree is not None else ()
    if not all(diagram.drawing.exists() for diagram in diagrams):
        app.add_js_file("vendor/mermaid/mermaid.tiny.js", loading_method="defer")
        app.add_js_file("diagrams.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    keep = (_as_text, _as_text)
    app.add_node(Diagram, html=(_html, None), latex=keep, text=keep, man=keep, texinfo=keep)
    app.add_directive("mermaid", Mermaid)
    app.connect("html-page-context", _add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
