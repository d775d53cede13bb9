"""Pictures: image grids, curves, trajectories, and a slider that needs no kernel.

Every function draws on matplotlib and leaves `plt.show()` to the caller. One-channel pictures are
drawn as ink on paper, 1 dark and -1 light, unless another colour map is asked for.
"""

import base64
import hashlib
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .data import to_uint8
from .errors import UserError
from .files import write_atomically
from .samplers import Step

# One palette for figures, page and diagrams. Every pair is told apart by lightness as well.
PAPER, INK, FAINT = "#fbfaf6", "#22303c", "#d8d5cc"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2467a6", "#c8641b", "#2b8159", "#7b519d", "#b3373f"


def use_style() -> None:
    """Make matplotlib draw in the book's style: readable on light and dark pages alike."""
    mpl.rcParams.update(
        {
            "figure.facecolor": PAPER,
            "axes.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "figure.figsize": (7.2, 3.2),
            "figure.dpi": 100,
            "savefig.dpi": 200,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": FAINT,
            "grid.linewidth": 0.6,
            "lines.linewidth": 2.0,
            "legend.frameon": False,
            "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, RED]),
            "image.cmap": "gray_r",
            "image.interpolation": "nearest",
        }
    )
    try:  # sharp figures on sharp screens, where a notebook runs
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")
    except (ImportError, AttributeError):
        pass


def to_array(image: Tensor) -> NDArray[np.uint8]:
    """One picture (C, H, W) in [-1, 1] as what imshow wants: uint8 (H, W) or (H, W, 3)."""
    array = to_uint8(image.detach().cpu()).permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


def grid(images: Tensor, columns: int | None = None, gap: int = 1) -> Tensor:
    """Pictures side by side in one: (N, C, H, W) -> (C, rows * (H + gap) - gap, ...).

    Args:
        columns: pictures per row; None makes it about square.
        gap: pixels of -1 between them.

    Raises:
        UserError: no pictures.
    """
    n, c, h, w = images.shape
    if n == 0:
        raise UserError("There are no pictures to show.")
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    sheet = images.new_full((c, rows * (h + gap) - gap, columns * (w + gap) - gap), -1.0)
    for i, image in enumerate(images):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        sheet[:, y : y + h, x : x + w] = image
    return sheet


def show(
    images: Tensor,
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    row_titles: Sequence[str] | None = None,
    size: float = 1.0,
    cmap: str | None = None,
) -> Figure:
    """A grid of pictures, each in its own axes so that it can have a title.

    Args:
        images: (N, C, H, W) in [-1, 1].
        titles: one per picture, or one per column (above the first row).
        columns: pictures per row; None puts up to 10 in a row.
        row_titles: one per row, on the left.
        size: inches per picture.
        cmap: colour map for one channel; None is ink on paper.
    """
    n = len(images)
    columns = min(columns or 10, n)
    rows = math.ceil(n / columns)
    rows_with_titles = math.ceil(min(len(titles or ()), n) / columns)
    height = rows * size + 0.3 * rows_with_titles
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size, height), squeeze=False, layout="constrained"
    )
    gap = 0.06 if rows_with_titles > 1 else 0.02  # or a title touches the picture above it
    figure.get_layout_engine().set(w_pad=0.02, h_pad=gap, wspace=0.02, hspace=0.02)  # type: ignore[union-attr]
    for i, ax in enumerate(axes.flat):
        ax.grid(False)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if i >= n:
            continue
        ax.imshow(to_array(images[i]), vmin=0, vmax=255, cmap=cmap)
        if titles and i < len(titles):
            ax.set_title(titles[i], fontsize=10, fontweight="normal", loc="center")
        if row_titles and i % columns == 0 and i // columns < len(row_titles):
            ax.set_ylabel(row_titles[i // columns], rotation=0, ha="right", va="center")
    return figure


def curves(
    x: Any,
    lines: Mapping[str, Any],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Labelled lines over one x axis, each with its name at its right end instead of a legend.

    Args:
        x: (N,) numbers.
        lines: name -> (N,) numbers.
        log: "x", "y", "xy" for logarithmic axes.
        ax: where to draw; None makes a new figure.
    """
    if ax is None:
        _, ax = plt.subplots()
    for name, y in lines.items():
        ax.plot(np.asarray(x), np.asarray(y), label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    for axis in log:
        getattr(ax, f"set_{axis}scale")("log")
    if len(lines) > 1:
        ax.legend()
    return ax


def trajectory(
    steps: Sequence[Step], *, columns: int = 8, index: int = 0, cmap: str | None = None
) -> Figure:
    """One sample on its way: x_t above, the denoiser's estimate of x_0 below.

    Args:
        steps: what a sampler yielded, (B, C, H, W) each.
        columns: how many of the steps to show, evenly spaced, the last one included.
        index: which sample of the batch.
    """
    picked = np.linspace(0, len(steps) - 1, min(columns, len(steps))).round().astype(int)
    chosen = [steps[i] for i in picked]
    pictures = torch.stack([s.x[index] for s in chosen] + [s.x0[index] for s in chosen])
    titles = [f"t = {_short(s.level.t)}" for s in chosen]
    return show(
        pictures, titles, columns=len(chosen), row_titles=["$x_t$", r"$\hat x_0$"],
        size=6.6 / len(chosen), cmap=cmap,
    )  # fmt: skip


def _short(t: Tensor) -> str:
    return f"{int(t)}" if not t.is_floating_point() else f"{float(t):.2g}"


def save_png(images: Tensor, path: str | Path, *, columns: int | None = None, scale: int = 4,
             ink: bool = False) -> None:  # fmt: skip
    """Write a grid of pictures as a PNG file.

    Args:
        images: (N, C, H, W) in [-1, 1].
        columns: pictures per row.
        scale: pixels of the file per pixel of a picture.
        ink: draw grey pictures as ink on paper, 1 dark, as the digits are best seen.
    """
    array = to_array(grid(images, columns))
    if ink and array.ndim == 2:
        array = 255 - array
    picture = Image.fromarray(array)
    picture = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    write_atomically(path, lambda file: picture.save(file, "PNG"))


def figure_array(figure: Figure, dpi: int = 120) -> NDArray[np.uint8]:
    """A figure as pixels, (H, W, 3) uint8; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return np.asarray(Image.open(buffer).convert("RGB"))


MAX_WEBP_SIDE = 16_383

_SCRUBBER = """<figure class="dl-scrub" id="{uid}" style="margin:0;max-width:{width}px">
{titles}<div role="img" aria-label="{alt}" style="width:100%;aspect-ratio:{w}/{h};\
background:url(data:image/webp;base64,{data}) 0 0/{columns}00% {rows}00%;\
image-rendering:{rendering}"></div>
{inputs}
{caption}</figure>
<script>(function(){{
var f=document.getElementById("{uid}");if(!f||f.dataset.ready)return;f.dataset.ready=1;
var view=f.querySelector("[role=img]"),inputs=[].slice.call(f.querySelectorAll("input")),\
labels={labels};
function draw(){{var k=0;inputs.forEach(function(r,i){{var L=labels[i],v=+r.value;\
k=k*L.length+v;r.parentNode.querySelector("output").textContent=L[v];\
r.setAttribute("aria-valuetext",L[v]);}});
view.style.backgroundPosition=({columns}>1?100*(k%{columns})/({columns}-1):0)+"% "+\
({rows}>1?100*Math.floor(k/{columns})/({rows}-1):0)+"%";}}
inputs.forEach(function(r){{r.addEventListener("input",draw);}});draw();}})();</script>"""

_TITLES = '<div style="display:flex;gap:.6em;margin-bottom:.4em">{}</div>\n'
_TITLE = '<b style="flex:1 1 0;min-width:0">{}</b>'

_INPUT = (
    '<label style="display:flex;gap:.6em;align-items:center;margin:.3em 0">'
    '<span style="min-width:6em">{name}</span>'
    '<input type="range" min="0" max="{last}" value="{start}" step="1" style="flex:1;min-width:0"'
    ' aria-label="{name}"><output style="min-width:5.5em">{text}</output></label>'
)


def scrubber(
    frames: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    controls: Mapping[str, Sequence[Any]],
    *,
    alt: str,
    start: Mapping[str, int] | None = None,
    scale: float = 1.0,
    quality: int = 80,
    pixelated: bool = False,
    titles: Sequence[str] = (),
    caption: str = "",
) -> str:
    """HTML: a picture with one slider per control, that works with no kernel and no network.

    All frames travel in one WebP sheet; a slider moves the sheet behind a window. It works in a
    static page, in Jupyter and in Colab, by mouse and by keyboard.

    Args:
        frames: one per combination of control values, the last control running fastest. Each
            (H, W) or (H, W, 3), uint8.
        controls: name -> the values' labels, for example {"schedule": [...], "t": [...]}.
        alt: what the picture shows, in words, for readers who don't see it.
        start: name -> index of the value shown first; the first one where not given.
        scale: width on the page per pixel of a frame.
        quality: of the WebP sheet, 1 to 100.
        pixelated: enlarge with hard pixel edges.
        titles: written above the picture, each over an equal share of its width.
        caption: plain text, written below the sliders.

    Raises:
        UserError: the number of frames doesn't fit the controls, or the sheet gets too large.
    """
    stack = np.stack([np.asarray(f) for f in frames])
    if stack.ndim == 3:
        stack = np.repeat(stack[..., None], 3, axis=-1)
    n, h, w, _ = stack.shape
    wanted = math.prod(len(values) for values in controls.values())
    if n != wanted:
        raise UserError(f"The controls have {wanted} combinations, but there are {n} frames.")
    columns = max(1, min(n, MAX_WEBP_SIDE // w))
    rows = math.ceil(n / columns)
    if rows * h > MAX_WEBP_SIDE:
        raise UserError(f"{n} frames of {w} x {h} don't fit one sheet: use fewer or smaller ones.")
    blank = np.zeros((rows * columns - n, h, w, 3), np.uint8)
    sheet = np.concatenate([stack, blank]).reshape(rows, columns, h, w, 3)
    sheet = sheet.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=quality, method=6)

    start = start or {}
    labels = {name: [str(v) for v in values] for name, values in controls.items()}
    inputs = "\n".join(
        _INPUT.format(
            name=html.escape(name), last=len(texts) - 1, start=start.get(name, 0),
            text=html.escape(texts[start.get(name, 0)]),
        )
        for name, texts in labels.items()
    )  # fmt: skip
    key = hashlib.sha256(buffer.getvalue() + json.dumps(labels).encode()).hexdigest()
    above = "".join(_TITLE.format(html.escape(title)) for title in titles)
    return _SCRUBBER.format(
        uid=f"dl-{key[:12]}",
        width=round(w * scale),
        alt=html.escape(alt, quote=True),
        w=w,
        h=h,
        data=base64.b64encode(buffer.getvalue()).decode(),
        columns=columns,
        rows=rows,
        rendering="pixelated" if pixelated else "auto",
        inputs=inputs,
        titles=_TITLES.format(above) if titles else "",
        caption=f"<figcaption><p>{html.escape(caption)}</p></figcaption>\n" if caption else "",
        labels=json.dumps(list(labels.values())).replace("</", "<\\/"),
    )
