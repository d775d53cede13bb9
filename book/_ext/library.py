"""Small things that the API page needs from Sphinx's autodoc."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


def _indented_is_code(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """An indented paragraph after a flush one is a formula or code: show it as typed.

    Our docstrings keep to plain text that reads well in ``help()``; to Sphinx such a paragraph
    would be a quotation.
    """
    flush_before, result = False, list[str]()
    for before, line in zip(["", *lines], lines, strict=False):
        indented = line.startswith("    ")
        if indented and flush_before and not before.strip():
            result += ["::", ""]
        if line.strip():
            flush_before = not indented
        result.append(line)
    lines[:] = result


def _skip_field_aliases(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any
) -> bool | None:
    """A named tuple's fields are described under "Attributes" of its docstring already."""
    return (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") or None


def setup(app: Sphinx) -> dict[str, bool]:
    # Document this checkout's library, whether or not (another copy of) it is installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    app.connect("autodoc-process-docstring", _indented_is_code, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", _skip_field_aliases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
