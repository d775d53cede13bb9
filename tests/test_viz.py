"""Pictures and the kernel-free slider."""

import base64
import io
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import UserError, viz, widgets
from diffusion_lib.noise import linear
from diffusion_lib.samplers import ddim
from diffusion_lib.toy import GaussianMixture


@pytest.fixture(autouse=True)
def close_figures():  # type: ignore[no-untyped-def]
    with plt.rc_context():
        yield
    plt.close("all")


def test_grid_puts_every_picture_in_its_place() -> None:
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 3)
    sheet = viz.grid(images, columns=2, gap=1)
    assert sheet.shape == (1, 8, 7)
    assert [sheet[0, y, x].item() for y, x in ((0, 0), (0, 4), (3, 0), (3, 6), (7, 2))] == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert sheet[0, 2, 0] == sheet[0, 0, 3] == sheet[0, 7, 5] == -1
    with pytest.raises(UserError, match="no pictures"):
        viz.grid(images[:0])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_png_holds_what_was_given(tmp_path: Path) -> None:
    images = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    viz.save_png(images, tmp_path / "a.png", columns=3, scale=2)
    got = pixels(tmp_path / "a.png")
    assert got.shape == (2, 10) and got[0, ::2].tolist() == [0, 0, 128, 0, 255]
    viz.save_png(images, tmp_path / "b.png", columns=3, scale=2, ink=True)
    assert pixels(tmp_path / "b.png")[0, ::2].tolist() == [255, 255, 127, 255, 0]


def test_figures_are_drawn() -> None:
    viz.use_style()
    figure = viz.show(torch.zeros(5, 1, 4, 4), ["a", "b"], columns=2)
    assert len([ax for ax in figure.axes if ax.images]) == 5
    ax = viz.curves([1, 2], {"one": [1, 2], "two": [2, 1]}, xlabel="x", ylabel="y", log="y")
    assert len(ax.lines) == 2 and ax.get_yscale() == "log"
    mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 4), torch.ones(1))

    def as_picture(x, level, cond=None):  # type: ignore[no-untyped-def]
        return mixture(x.flatten(1), level).reshape(x.shape)

    steps = list(ddim(as_picture, torch.randn(2, 1, 2, 2).double(), linear().levels(10)))
    figure = viz.trajectory(steps, columns=4)
    assert [ax.get_title() for ax in figure.axes[:4]] == ["t = 900", "t = 600", "t = 300", "t = 0"]
    assert viz.figure_array(figure, dpi=50).shape[-1] == 3


def sheet_of(page: str) -> np.ndarray:
    data = re.search(r"base64,([^)]+)\)", page)
    assert data
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))


def test_scrubber_shows_the_right_frame_for_each_value() -> None:
    frames = [np.full((40, 6000), 40 * k, np.uint8) for k in range(6)]  # two to a row
    page = viz.scrubber(frames, {"s": ["a", "b"], "t": [0, 1, 2]}, alt='a "test"')
    sheet = sheet_of(page)
    assert sheet.shape == (120, 12000, 3)
    for k in range(6):
        middle = sheet[20 + 40 * (k // 2), 3000 + 6000 * (k % 2), 0]
        assert abs(int(middle) - 40 * k) <= 3
    assert 'aria-label="a &quot;test&quot;"' in page
    assert page.count('type="range"') == 2 and 'max="2"' in page
    labels = re.search(r"labels=(\[\[.*?\]\]);", page)
    assert labels and json.loads(labels[1]) == [["a", "b"], ["0", "1", "2"]]
    assert "http" not in page  # nothing is fetched


def test_scrubber_is_the_same_every_time_and_refuses_what_does_not_fit() -> None:
    frames = np.zeros((3, 4, 5, 3), np.uint8)
    assert viz.scrubber(frames, {"t": [1, 2, 3]}, alt="x") == viz.scrubber(
        frames, {"t": [1, 2, 3]}, alt="x"
    )
    with pytest.raises(UserError, match="2 combinations, but there are 3 frames"):
        viz.scrubber(frames, {"t": [1, 2]}, alt="x")
    with pytest.raises(UserError, match="don't fit one sheet"):
        viz.scrubber(np.zeros((2, 9000, 9000), np.uint8), {"t": [1, 2]}, alt="x")


def test_explore_shows_both_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(
        "IPython.display.display", lambda bundle, raw: shown.append(bundle) if raw else None
    )
    drawn = []

    def draw(t: int, kind: str) -> plt.Figure:
        drawn.append((t, kind))
        figure, ax = plt.subplots(figsize=(1, 1))
        ax.set_title(f"{t} {kind}")
        return figure

    widgets.explore(draw, {"t": [1, 2], "kind": ["a", "b"]}, alt="x", start={"t": 2})
    (bundle,) = shown
    assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= bundle.keys()
    assert 'value="1"' in bundle["text/html"]  # t starts at its second value
    assert drawn == [(1, "a"), (1, "b"), (2, "a"), (2, "b"), (2, "a")]


def test_live_controls_draw_anew() -> None:
    drawn = []

    def draw(t: int) -> plt.Figure:
        drawn.append(t)
        return plt.subplots(figsize=(1, 1))[0]

    view = widgets._live_view(draw, {"t": [1, 2, 3]}, {"t": 1})
    before = view.children[-1].value
    view.children[0].value = 3
    assert drawn == [1, 3] and view.children[-1].value[:4] == before[:4] == b"\x89PNG"
