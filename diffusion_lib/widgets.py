"""Controls for notebooks that work with and without a kernel.

One cell, one output, two faces: where a kernel runs, ipywidgets controls that recompute; on a
static page, the same pictures precomputed behind sliders.
"""

import base64
import html
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from . import guidance, pretrained, samplers
from .denoiser import NO_CLASS, Denoise, Denoiser
from .errors import UserError
from .progress import progress
from .train import describe
from .viz import figure_array, grid, scrubber, to_array

if TYPE_CHECKING:
    from .web.widget import Explorer, Lab, Sampler


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


def sampler(
    denoiser: Denoiser,
    *,
    label: int | Literal["each", "none"] | None = None,
    method: Literal["ddim", "ddpm"] = "ddim",
    steps: int = 20,
    eta: float = 0.0,
    scale: float = 2.0,
    seed: int = 0,
    clip: bool = True,
) -> "Sampler":
    """Sample a model in the page itself, with controls: the reader's browser does the work.

    Where a kernel runs, this is a live widget of any model, also one just trained; what it drew
    last is in its `samples`. On a page without a kernel a shipped model can still be sampled, and
    of any other one there is a picture. The same seed draws the same pictures as `samplers.sample`.

    Args:
        denoiser: with a `UNet` and a known `image_shape`.
        label: class to draw at first, "each" for one of each, or "none"; by default "each" where
            there are ten classes.
        method, steps, eta, scale, seed: where the controls stand at first (`scale` is the guidance
            scale).
        clip: keep estimates of x_0 within [-1, 1].

    Raises:
        UserError: a model that can't run in the page, or anywidget is not installed.
    """
    from .web import contents

    live = _live_apps()
    if method not in ("ddim", "ddpm"):
        raise UserError(f"The sampler in the page knows 'ddim' and 'ddpm', not {method!r}.")
    if label is None:
        label = "each" if denoiser.classes == 10 else 0 if denoiser.classes else "none"
    options = {
        "class": label, "sampler": method, "steps": steps, "eta": eta, "guidance": scale,
        "seed": seed, "clip": "yes" if clip else "no",
    }  # fmt: skip
    options = {name: str(value) for name, value in options.items()}
    # float32, so that the page draws to the last digit what the notebook draws.
    weights = contents(denoiser, torch.float32)
    guided: Denoise = denoiser
    labels = {"each": range(10), "none": [NO_CLASS] * 10}.get(str(label), [label] * 10)
    if denoiser.classes is not None and label != "none":
        guided = guidance.cfg(guided, scale)
    if clip:
        guided = guidance.clip(guided)
    assert denoiser.image_shape is not None
    drawn = samplers.sample(
        guided,
        (10, *denoiser.image_shape),
        denoiser.schedule.levels(steps),
        sampler=samplers.ddpm if method == "ddpm" else partial(samplers.ddim, eta=eta),
        cond=None if denoiser.classes is None else list(labels),
        seed=seed,
    )
    page = _sampler_page(drawn, _shipped_name(denoiser), options)
    return live.Sampler(weights, options, denoiser.image_shape, page)


def forward_explorer(*, t: int = 300, schedule: str = "linear") -> "Explorer":
    """The forward process in the page: pick or draw a picture, and move time and schedule.

    Computed in the reader's browser, with and without a kernel. T is 1000.

    Args:
        t: time shown first, from 0 to 1000.
        schedule: noise schedule shown first.

    Raises:
        UserError: a time or a schedule that the explorer does not have, or anywidget is not
            installed.
    """
    schedules = ("linear", "quadratic", "cosine", "sigmoid")
    if schedule not in schedules:
        raise UserError(f"The explorer knows {', '.join(schedules)}, not {schedule!r}.")
    options = {"t": _time(t), "schedule": schedule}
    return _live_apps().Explorer(options, _app_page("explorer", options))


def mixture_lab(*, t: int = 0, seed: int = 0) -> "Lab":
    """A mixture of Gaussians in the page: its exact score, and particles led by samplers.

    Computed in the reader's browser, with and without a kernel. T is 1000.

    Args:
        t: time shown first, from 0, where the run ends, to 1000.
        seed: of the starting and the fresh noise.

    Raises:
        UserError: a time outside 0 to 1000, or anywidget is not installed.
    """
    options = {"t": _time(t), "seed": str(seed)}
    return _live_apps().Lab(options, _app_page("lab", options))


def _live_apps() -> Any:
    """The module of the live apps, which needs a package that Colab may not have."""
    try:
        from .web import widget
    except ImportError as error:
        raise UserError(
            "An app in a live notebook needs the package anywidget: run `%pip install anywidget`."
        ) from error
    return widget


def _time(t: int) -> str:
    if not 0 <= t <= 1000:
        raise UserError(f"Time runs from 0 to 1000 here; {t} lies outside.")
    return str(t)


def _app_page(app: str, options: Mapping[str, str]) -> str:
    """HTML for a page without a kernel: the site's own copy of an app, or words."""
    attributes = {"app": app, **options}
    text = " ".join(f'data-{key}="{html.escape(value)}"' for key, value in attributes.items())
    return f'<div class="dl-app" {text}><p>{_ELSEWHERE}</p></div>'


_ELSEWHERE = "Run the notebook, or open this chapter of the book with JavaScript on, to try this."


def _shipped_name(denoiser: Denoiser) -> str | None:
    """The name of the shipped model that this one is, if it is one."""
    weights = denoiser.net.state_dict()
    for name in pretrained.available():
        other = pretrained.load_pretrained(name)
        if describe(other) == describe(denoiser) and all(
            torch.equal(value.cpu(), weights[key].cpu())
            for key, value in other.net.state_dict().items()
        ):
            return name
    return None


def _sampler_page(drawn: Tensor, name: str | None, options: Mapping[str, str]) -> str:
    """HTML for a page without a kernel: the site's sampler of a shipped model, or a picture."""
    array = to_array(grid(drawn, columns=5))
    picture = Image.fromarray(255 - array if array.ndim == 2 else array)  # grey: ink on paper
    size = (4 * picture.width, 4 * picture.height)
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(buffer, "WEBP", lossless=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    image = (
        f'<img alt="Ten pictures that the model drew." src="data:image/webp;base64,{data}" '
        'style="max-width: 100%">'
    )
    if name is None:
        return _FIGURE.format(
            image, "Drawn by this notebook's model. Run the notebook to sample it with controls."
        )
    attributes = {"app": "sampler", "model": name, **options}
    text = " ".join(f'data-{key}="{html.escape(value)}"' for key, value in attributes.items())
    figure = _FIGURE.format(image, "Drawn by the model when the notebook was run.")
    return f'<div class="dl-app" {text}>{figure}</div>'


_FIGURE = "<figure>{}<figcaption><p>{}</p></figcaption></figure>"
