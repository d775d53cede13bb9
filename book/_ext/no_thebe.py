"""Take sphinx-thebe's scripts off the pages.

Jupyter Book always loads sphinx-thebe, which runs cells on a public Binder server. This book's
buttons open Colab instead, so on its pages the extension would only add scripts, an address of
another site, and a console error.
"""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.config import Config


def _unhook(app: Sphinx, config: Config) -> None:
    for listeners in app.events.listeners.values():
        listeners[:] = [one for one in listeners if one.handler.__module__ != "sphinx_thebe"]
    app.registry.css_files[:] = [
        (name, attributes)
        for name, attributes in app.registry.css_files
        if name != "sphinx-thebe.css"
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", _unhook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
