"""Measurements that take longer than a notebook may: made by `benchmarks/`, stored, and read here.

In the repository they lie in `benchmarks/results/`. An installed library carries a copy, so that a
notebook on Colab or on a machine without a network finds them too.
"""

import json
import math
from pathlib import Path
from typing import Any

from .errors import UserError

_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE.parent / "benchmarks" / "results", _HERE / "stored_results")


def load(name: str) -> dict[str, Any]:
    """What `benchmarks/results/NAME.json` holds; its entry "machine" says where it was measured.

    Raises:
        UserError: there is no such measurement.
    """
    for folder in _FOLDERS:
        path = folder / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    known = sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.json")})
    raise UserError(f"There is no stored result {name!r}. Known: {', '.join(known) or 'none'}.")


def cost(notebook: str, kind: str) -> str:
    """What a recorded run of a notebook took, in one sentence.

    Args:
        notebook: its file name without the ending, "01_forward_process".
        kind: "cpu", "cuda" or another type of a torch device.
    """
    recorded = load("notebooks").get(notebook, {}).get(kind)
    if recorded is None:
        return f"What all cells take on this kind of device ({kind}) was not measured."
    minutes, gigabytes = math.ceil(recorded["seconds"] / 60), math.ceil(recorded["gigabytes"])
    return (
        f"All cells take up to {minutes} min and {gigabytes} GB of memory: "
        f"measured on {recorded['device']}."
    )
