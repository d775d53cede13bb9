"""Small things that the API page needs from Sphinx's autodoc."""

from __future__ import annotations

import re
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


def _one_entry_a_name(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Under "Attributes:", `a, b: text` becomes an entry for a and one for b.

    napoleon would take the "a," for b's type.
    """
    result, inside, i = list[str](), False, 0
    while i < len(lines):
        line = lines[i]
        if line and not line.startswith(" "):
            inside = line.startswith("Attributes")
        i += 1
        names = re.match(r"    (\w+(?:, \w+)+): ", line) if inside else None
        if names is None:
            result.append(line)
            continue
        text = [line[names.end() :]]
        while i < len(lines) and lines[i].startswith("     "):
            text.append(lines[i])
            i += 1
        for one in names[1].split(", "):
            result += [f"    {one}: {text[0]}", *text[1:]]
    lines[:] = result


def _factory(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """A dataclass's default that is made anew: what autodoc writes for it is not Python."""
    if signature and "<factory>" in signature:
        return signature.replace("<factory>", "..."), returns
    return None


def _skip_field_aliases(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any
) -> bool | None:
    """A named tuple's fields are described under "Attributes" of its docstring already."""
    return (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") or None


def setup(app: Sphinx) -> dict[str, bool]:
    # Document this checkout's library, whether or not (another copy of) it is installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    app.connect("autodoc-process-docstring", _indented_is_code, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", _one_entry_a_name, priority=101)
    app.connect("autodoc-process-signature", _factory)
    app.connect("autodoc-skip-member", _skip_field_aliases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
