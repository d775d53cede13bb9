"""Controls for notebooks that work with and without a kernel.

One cell, one output, two faces: where a kernel runs, ipywidgets controls that recompute; on a
static page, the same pictures precomputed behind sliders.
"""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .progress import progress
from .viz import figure_array, scrubber


def explore(
    draw: Callable[..., Figure],
    options: Mapping[str, Sequence[Any]],
    *,
    alt: str,
    start: Mapping[str, Any] | None = None,
    live: Mapping[str, Sequence[Any]] | None = None,
    dpi: int = 100,
    quality: int = 70,
) -> None:
    """Display a figure with a control for each argument of the function that draws it.

    Args:
        draw: called as `draw(name=value, ...)`; returns a figure. All figures must be of one size.
        options: name -> the values to precompute for the page without a kernel.
        alt: what the picture shows, in words.
        start: name -> the value shown first; the first one where not given.
        live: name -> finer values for where a kernel runs; those of `options` where not given.
        dpi: of the precomputed pictures.
        quality: of the precomputed pictures, 1 to 100.
    """
    from IPython.display import display

    start = {name: (start or {}).get(name, values[0]) for name, values in options.items()}
    combinations = list(itertools.product(*options.values()))
    frames = [
        figure_array(draw(**dict(zip(options, values, strict=True))), dpi)
        for values in progress(combinations, "drawing")
    ]
    page = scrubber(
        frames,
        options,
        alt=alt,
        start={name: list(values).index(start[name]) for name, values in options.items()},
        scale=100 / dpi,
        quality=quality,
    )
    view = _live_view(draw, {**options, **(live or {})}, start)
    bundle = view._repr_mimebundle_() or {}
    if isinstance(bundle, tuple):
        bundle = bundle[0]
    display({**bundle, "text/html": page}, raw=True)


def _live_view(
    draw: Callable[..., Figure], options: Mapping[str, Sequence[Any]], start: Mapping[str, Any]
) -> Any:
    """ipywidgets controls above a picture that is drawn anew at each change."""
    import ipywidgets

    first = draw(**start)
    # Drawn at twice its size on the page, for sharp screens; narrow screens shrink it.
    size = ipywidgets.Layout(width=f"{100 * first.get_figwidth():.0f}px", max_width="100%")
    picture = ipywidgets.Image(format="png", value=_png(first), layout=size)
    controls = {
        name: ipywidgets.SelectionSlider(
            options=[(str(v), v) for v in values], value=start[name], description=name,
            continuous_update=False, layout=ipywidgets.Layout(width="28em"),
        )
        for name, values in options.items()
    }  # fmt: skip

    def redraw(_: Any) -> None:
        picture.value = _png(draw(**{name: c.value for name, c in controls.items()}))

    for control in controls.values():
        control.observe(redraw, "value")
    return ipywidgets.VBox([*controls.values(), picture])


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    plt.close(figure)
    return buffer.getvalue()
