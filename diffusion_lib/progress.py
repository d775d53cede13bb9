"""Progress bars that appear only for work over two seconds, and only where somebody looks."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], label: str, total: int | None = None) -> "tqdm[Item]":
    """Wrap `items` in a progress bar.

    The bar appears after 2 s, in a terminal, in Jupyter and in Colab. Elsewhere (a pipe, a log
    file, a test run, or with TQDM_DISABLE=1 set) nothing is printed.

    Args:
        items: what to loop over.
        label: a few words, shown left of the bar.
        total: number of items, where `len(items)` does not tell.
    """
    # tqdm's `disable=None` means "off unless the output is a terminal". A notebook's output is
    # none, but tqdm.auto draws a widget there, so it must not be switched off by that rule. Nor
    # does that widget heed TQDM_DISABLE by itself.
    disable = True if _switched_off() else False if _in_notebook() else None
    return tqdm(items, desc=label, total=total, delay=2, leave=False, disable=disable)


def _switched_off() -> bool:
    import os

    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
