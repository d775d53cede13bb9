"""A ``mermaid`` directive drawn in the page by the vendored script, over http and from file://.

    ```{mermaid}
    :alt: Data flows from the clean image through the noising step to the network.
    flowchart LR
      A[clean image] --> B[noisy image] --> C[network]
    ```

``:alt:`` is required: it is what a screen reader says. Without JavaScript, and in formats other
than HTML, the diagram's text is shown. Only pages with a diagram load the script.
"""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Diagram(nodes.General, nodes.Element):
    """Holds the diagram's text as a literal block, and what it shows in ``alt``."""


class Mermaid(SphinxDirective):
    has_content = True
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        if not self.options.get("alt"):
            raise self.error("A mermaid diagram needs :alt:, one sentence that says what it shows.")
        text = "\n".join(self.content)
        diagram = Diagram("", nodes.literal_block(text, text), alt=self.options["alt"])
        self.set_source_info(diagram)
        return [diagram]


def _html(writer: Any, diagram: Diagram) -> None:
    writer.body.append(
        f'<div class="dl-diagram" role="img" aria-label="{escape(diagram["alt"])}">'
        f"<pre>{escape(diagram.astext())}</pre></div>\n"
    )
    raise nodes.SkipNode


def _as_text(writer: Any, diagram: Diagram) -> None:
    """Other formats show the literal block inside."""


def _add_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if doctree is not None and next(doctree.findall(Diagram), None) is not None:
        app.add_js_file("vendor/mermaid/mermaid.tiny.js", loading_method="defer")
        app.add_js_file("diagrams.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    keep = (_as_text, _as_text)
    app.add_node(Diagram, html=(_html, None), latex=keep, text=keep, man=keep, texinfo=keep)
    app.add_directive("mermaid", Mermaid)
    app.connect("html-page-context", _add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
