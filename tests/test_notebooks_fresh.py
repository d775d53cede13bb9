"""The committed notebooks are fresh and readable by all, and the checker sees each violation."""

import base64
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from diffusion_lib import results
from tools import notebooks

COMMITTED = sorted((notebooks.ROOT / "notebooks").glob("*.ipynb"))
PIXEL = "R0lGODlhAQABAAAAACwAAAAAAQABAAAC"  # nothing here decodes it


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebook(path: Path):
    assert notebooks.problems(path) == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_setup_cell_tells_what_running_it_took(path: Path):
    recorded = results.load("notebooks")[path.stem]["cpu"]
    sentence = results.cost(path.stem, "cpu")
    assert re.search(r"up to \d+ min and \d+ GB of memory: measured on \d CPU cores?\.", sentence)
    assert 0 <= float(re.search(r"(\d+) min", sentence)[1]) - recorded["seconds"] / 60 < 1
    assert 0 <= float(re.search(r"(\d+) GB", sentence)[1]) - recorded["gigabytes"] < 1
    setup = notebooks.code_cells(notebooks.read(path))[0]
    assert sentence in "".join(output.text for output in setup.outputs), (
        "run: tools/notebooks.py run"
    )
    assert "was not measured" in results.cost(path.stem, "xpu")


def picture(**data: str) -> NotebookNode:
    return new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>", **data})


def described(name: str = "fig-one") -> dict:
    figure = {"caption": "A dot. It is dark.", "name": name}
    return {"mystnb": {"figure": figure, "image": {"alt": "One dark dot."}}}


def good_notebook() -> NotebookNode:
    """Three code cells, as a run leaves them: setup, a compared output, a described picture."""
    nb = new_notebook(
        cells=[
            new_markdown_cell("# A chapter"),
            new_code_cell(notebooks.setup_source("chapter"), metadata={"tags": ["setup"]}),
            new_code_cell(
                "print(1 + 1)",
                metadata={"tags": ["nbval-check-output"]},
                outputs=[new_output("stream", name="stdout", text="2\n")],
            ),
            new_code_cell("plot()", metadata=described(), outputs=[picture()]),
        ]
    )
    for count, cell in enumerate(notebooks.code_cells(nb), start=1):
        cell.execution_count = count
    nb.metadata[notebooks.STAMP] = {
        "code": notebooks.code_hash(nb),
        "library": notebooks.library_hash(),
    }
    return nb


def problems_of(nb: NotebookNode, folder: Path) -> list[str]:
    path = folder / "chapter.ipynb"
    nbformat.write(nb, path)
    return notebooks.problems(path)


def test_good_notebook_passes(tmp_path: Path):
    assert problems_of(good_notebook(), tmp_path) == []


def change_code(nb: NotebookNode) -> None:
    nb.cells[2].source = "print(1 + 2)"


def change_setup(nb: NotebookNode) -> None:
    nb.cells[1].source += "\nprint('mine')"


def untag_setup(nb: NotebookNode) -> None:
    nb.cells[1].metadata["tags"] = []


def never_stamped(nb: NotebookNode) -> None:
    del nb.metadata[notebooks.STAMP]


def run_out_of_order(nb: NotebookNode) -> None:
    nb.cells[2].execution_count = 7


def not_run(nb: NotebookNode) -> None:
    nb.cells[3].execution_count = None


def error_output(nb: NotebookNode) -> None:
    nb.cells[2].outputs = [new_output("error", ename="E", evalue="e", traceback=[])]


def warning_output(nb: NotebookNode) -> None:
    nb.cells[2].outputs += [new_output("stream", name="stderr", text="deprecated")]


def no_stored_output(nb: NotebookNode) -> None:
    nb.cells[2].outputs = []


def path_of_machine(nb: NotebookNode) -> None:
    nb.cells[2].outputs[0].text = f"{notebooks.ROOT}/notebooks\n"


def object_address(nb: NotebookNode) -> None:
    nb.cells[3].outputs[0].data["text/plain"] = "[<Line2D at 0x7f00dead0000>]"


def no_alt(nb: NotebookNode) -> None:
    del nb.cells[3].metadata["mystnb"]["image"]


def blank_alt(nb: NotebookNode) -> None:
    nb.cells[3].metadata["mystnb"]["image"]["alt"] = " "


def no_caption(nb: NotebookNode) -> None:
    del nb.cells[3].metadata["mystnb"]["figure"]["caption"]


def no_figure_name(nb: NotebookNode) -> None:
    nb.cells[3].metadata["mystnb"]["figure"]["name"] = "dot"


def two_pictures(nb: NotebookNode) -> None:
    nb.cells[3].outputs.append(picture())


def html_image_without_alt(nb: NotebookNode) -> None:
    nb.cells[2].outputs = [new_output("display_data", {"text/html": '<img src="x"> <p alt="no">'})]


def html_role_without_label(nb: NotebookNode) -> None:
    nb.cells[2].outputs = [new_output("display_data", {"text/html": '<div role="img"></div>'})]


def dead_widget(nb: NotebookNode) -> None:
    data = {notebooks.WIDGET: {"model_id": "1"}, "text/plain": "IntSlider()"}
    nb.cells[2].outputs = [new_output("display_data", data)]


def too_big(nb: NotebookNode) -> None:
    nb.cells[3].outputs = [picture(**{"text/latex": "x" * notebooks.MAX_BYTES})]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_code, "code changed"),
        (change_setup, "not the setup cell"),
        (untag_setup, "not the setup cell"),
        (never_stamped, "code changed"),
        (run_out_of_order, "top to bottom"),
        (not_run, "top to bottom"),
        (error_output, "an error"),
        (warning_output, "stderr"),
        (no_stored_output, "no stored output"),
        (path_of_machine, "a path of the machine"),
        (object_address, "object's address"),
        (no_alt, "without alt text"),
        (blank_alt, "without alt text"),
        (no_caption, "without a caption"),
        (no_figure_name, "without a name"),
        (two_pictures, "2 pictures"),
        (html_image_without_alt, "<img> without alt"),
        (html_role_without_label, "without aria-label"),
        (dead_widget, "dead on a page"),
        (too_big, "bytes, over"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_violation_is_seen(damage: Callable[[NotebookNode], None], message: str, tmp_path: Path):
    nb = good_notebook()
    damage(nb)
    assert any(message in problem for problem in problems_of(nb, tmp_path))


def test_expected_errors_and_described_html_pass(tmp_path: Path):
    nb = good_notebook()
    nb.cells[2].metadata["tags"] = ["raises-exception"]
    error_output(nb)
    html = '<img alt="A dot" src="x"><div role="img" aria-label="A dot"></div>'
    nb.cells[3].outputs = [new_output("display_data", {"text/html": html, notebooks.WIDGET: {}})]
    assert problems_of(nb, tmp_path) == []


def test_library_drift_warns_and_fails_a_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(notebooks, "library_hash", lambda: "now")
    nb, path = good_notebook(), tmp_path / "chapter.ipynb"
    nbformat.write(nb, path)
    assert notebooks.main(["check", "--release", str(path)]) == 0
    nb.metadata[notebooks.STAMP]["library"] = "another"
    nbformat.write(nb, path)
    capsys.readouterr()
    assert notebooks.main(["check", str(path)]) == 0
    assert "warning: diffusion_lib changed" in capsys.readouterr().err
    assert notebooks.main(["check", "--release", str(path)]) == 1
    assert "error: diffusion_lib changed" in capsys.readouterr().err


def test_library_hash_follows_the_modules(tmp_path: Path):
    module = tmp_path / "diffusion_lib" / "noise.py"
    module.parent.mkdir()
    module.write_text("a = 1\n")
    before = notebooks.library_hash(tmp_path)
    module.write_text("a = 2\n")
    assert notebooks.library_hash(tmp_path) != before


def test_code_hash_ignores_only_the_address():
    nb = good_notebook()
    before = notebooks.code_hash(nb)
    nb.cells[1].source = nb.cells[1].source.replace("https://github.com/", "https://example.org/")
    assert notebooks.code_hash(nb) == before
    nb.cells[1].source = nb.cells[1].source.replace("profile", "profiles")
    assert notebooks.code_hash(nb) != before


@pytest.mark.parametrize("tagged", [True, False])
def test_setup_cell_is_written_once(tagged: bool):
    metadata = {"tags": ["setup"]} if tagged else {}
    nb = new_notebook(cells=[new_markdown_cell("# T"), new_code_cell("old = 1", metadata=metadata)])
    for _ in range(2):
        notebooks.insert_setup(nb, "chapter")
    sources = [cell.source for cell in nb.cells]
    assert sources == ["# T", notebooks.setup_source("chapter")] + ([] if tagged else ["old = 1"])


def test_run_stamps_and_tidies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notebooks, "COSTS", tmp_path / "costs.json")
    notebooks.COSTS.write_text('{"another": {"cpu": {"seconds": 1}}}')
    nb, path = new_notebook(), tmp_path / "chapter.ipynb"
    shown = ["sys.executable", "os.getcwd()", "os.environ['TQDM_DISABLE']"]
    nb.cells = [new_code_cell(f"import os, sys\nprint({value})") for value in shown]
    nb.metadata["widgets"] = {"state": {}}
    nbformat.write(nb, path)
    notebooks.run(path)
    done = nbformat.read(path, as_version=4)
    # This Python's kernel, in the notebook's folder, without progress bars.
    printed = [cell.outputs[0].text.strip() for cell in done.cells]
    assert printed == [sys.executable, str(tmp_path), "1"]
    assert [dict(cell.metadata) for cell in done.cells] == [{}, {}, {}]
    assert set(done.metadata) == {"kernelspec", "language_info", notebooks.STAMP}
    costs = json.loads(notebooks.COSTS.read_text())
    assert list(costs) == ["another", "chapter"]
    (cost,) = costs["chapter"].values()
    assert cost["seconds"] == done.metadata[notebooks.STAMP]["seconds"]
    assert cost["gigabytes"] > 0.02 or cost["device"].startswith("NVIDIA")  # Python itself
    stamp = done.metadata[notebooks.STAMP]
    assert stamp["code"] == notebooks.code_hash(done)
    assert set(stamp) == {"code", "library", "torch", "python", "device", "seconds", "date"}


def test_failed_run_leaves_the_file(tmp_path: Path):
    path = tmp_path / "chapter.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        notebooks.run(path)
    assert path.read_bytes() == before


def test_tidy_merges_streams_and_drops_widget_views_that_have_html():
    halves = [new_output("stream", name="stdout", text=text) for text in ("a", "b\n")]
    both = new_output("display_data", {notebooks.WIDGET: {}, "text/html": "<p>frames</p>"})
    nb = new_notebook(cells=[new_code_cell("x", outputs=[*halves, both])])
    notebooks.tidy(nb)
    stream, shown = nb.cells[0].outputs
    assert stream.text == "ab\n"
    assert list(shown.data) == ["text/html"]


def test_pictures_are_stored_small_and_look_the_same():
    rows = np.linspace(0, 255, 400, dtype=np.uint8)
    photo = np.stack([np.tile(rows, (400, 1)), np.tile(rows, (400, 1)).T, np.zeros((400, 400))], -1)
    buffer = io.BytesIO()
    Image.fromarray(photo.astype(np.uint8)).save(buffer, "PNG", compress_level=0)
    before = base64.b64encode(buffer.getvalue()).decode()
    after = notebooks.smaller(before)
    assert len(after) < len(before) / 2
    decoded = Image.open(io.BytesIO(base64.b64decode(after))).convert("RGB")
    assert np.abs(np.asarray(decoded, float) - photo).mean() < 8
    assert notebooks.smaller(after) == after  # a second run changes nothing
    clear = Image.new("RGBA", (9, 9), (255, 0, 0, 128))
    buffer = io.BytesIO()
    clear.save(buffer, "PNG")
    half = base64.b64encode(buffer.getvalue()).decode()
    assert notebooks.smaller(half) == half  # transparency would be lost
