"""The page of all formulas is what the chapters' cards say."""

from pathlib import Path

from nbformat import write
from nbformat.v4 import new_markdown_cell, new_notebook

from tools import formulas


def test_the_page_holds_every_card() -> None:
    page = formulas.PAGE.read_text(encoding="utf-8")
    assert page == formulas.page(), "run python tools/formulas.py"
    chapters = list((formulas.ROOT / "notebooks").glob("0[1-6]_*.ipynb"))  # those that derive
    assert chapters and all(f"](../notebooks/{c.name})" in page for c in chapters)


def test_a_card_is_found_and_cut_out(tmp_path: Path) -> None:
    source = (
        "## Summary\n\n### Formula card\n\n| what | formula |\n|---|---|\n| a | $b$ |\n\nAfter."
    )
    cells = [new_markdown_cell("# 9. Title\n\nText"), new_markdown_cell(source)]
    write(new_notebook(cells=cells), tmp_path / "9.ipynb")
    got = formulas.card(tmp_path / "9.ipynb")
    assert got == (
        "## [9. Title](../notebooks/9.ipynb)\n\n| what | formula |\n|---|---|\n| a | $b$ |\n"
    )
    write(new_notebook(cells=cells[:1]), tmp_path / "9.ipynb")
    assert formulas.card(tmp_path / "9.ipynb") is None
