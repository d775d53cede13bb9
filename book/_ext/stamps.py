"""A last line on each page: when its text last changed, and on what its notebook was run.

The run comes from the stamp that ``tools/notebooks.py run`` leaves in the notebook's metadata, the
date of the text from git. Without git, or in a shallow clone, which knows no dates, the line leaves
the date out.
"""

from __future__ import annotations

import datetime
import functools
import json
import subprocess
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx


def _git(*arguments: str, folder: str) -> str:
    try:
        ran = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


@functools.cache
def _knows_dates(folder: str) -> bool:
    return _git("rev-parse", "--is-shallow-repository", folder=folder) == "false"


def _day(date: str) -> str:
    """2026-11-20 as 20 November 2026."""
    day = datetime.date.fromisoformat(date)
    return f"{day.day} {day:%B %Y}"


def _changed(source: Path) -> str:
    folder = str(source.parent)
    date = _git("log", "-1", "--format=%cs", "--", source.name, folder=folder) \
        if _knows_dates(folder) else ""  # fmt: skip
    return f"Text last changed on {_day(date)}." if date else ""


def _run(source: Path) -> str:
    if source.suffix != ".ipynb":
        return ""
    stamp = json.loads(source.read_text(encoding="utf-8"))["metadata"].get("diffusion_book")
    if stamp is None:
        return ""
    device = "a CPU" if stamp["device"] == "cpu" else f"an {stamp['device']}"
    return (
        f"Notebook run on {device} in {stamp['seconds']} s on {_day(stamp['date'])}, "
        f"with Python {stamp['python']} and PyTorch {stamp['torch'].partition('+')[0]}."
    )


def _stamp(app: Sphinx, doctree: nodes.document) -> None:
    source = Path(app.env.doc2path(app.env.docname))
    text = " ".join(filter(None, [_run(source), _changed(source)]))
    section = doctree.next_node(nodes.section)
    if text and section is not None:
        section.parent += nodes.paragraph("", text, classes=["dl-stamp"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", _stamp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
