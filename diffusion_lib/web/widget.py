"""The page's apps in a live notebook: the same scripts; the sampler's model lives in the kernel."""

import numpy as np
import torch
import traitlets
from anywidget import AnyWidget
from torch import Tensor

from .build import WEB, script

_RENDER = """
export default {
  render({ model, el }) {
    const root = document.createElement("div");
    root.className = "dl-app";
    root.dataset.app = "sampler";
    el.append(root);
    const { buffer, byteOffset, byteLength } = model.get("weights");
    const weights = buffer.slice(byteOffset, byteOffset + byteLength);
    root.addEventListener("dl-samples", ({ detail }) => {
      model.set("drawn", new DataView(detail.samples.buffer));
      model.save_changes();
    });
    globalThis.DiffusionApps.sampler(root, { ...model.get("options"), weights });
    return () => root.dispatchEvent(new Event("dl-end"));
  },
};
"""

_START = """
export default {
  render({ model, el }) {
    const root = document.createElement("div");
    root.className = "dl-app";
    root.dataset.app = "APP";
    el.append(root);
    globalThis.DiffusionApps.APP(root, model.get("options"));
  },
};
"""


class Live(AnyWidget):
    """An app with two faces: live where a kernel runs, HTML where none does.

    Attributes:
        options: as the app's directive takes them.
        html: what stands for it where no kernel runs; on the site, the site's own copy of the app.
    """

    _css = (WEB / "apps.css").read_text(encoding="utf-8")
    options = traitlets.Dict().tag(sync=True)

    def __init__(self, options: dict[str, str], html: str, **values: object) -> None:
        super().__init__(options=options, **values)
        self.html = html

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # an address would differ in every run

    def _repr_mimebundle_(self, **options: object) -> tuple[dict, dict]:
        shown = super()._repr_mimebundle_(**options) or {}
        data, about = shown if isinstance(shown, tuple) else (shown, {})
        return {**data, "text/html": self.html}, about


class Explorer(Live):
    """The forward process of a picture. Made by `widgets.forward_explorer`."""

    _esm = script("explorer") + _START.replace("APP", "explorer")


class Lab(Live):
    """A mixture of Gaussians and its samplers. Made by `widgets.mixture_lab`."""

    _esm = script("lab") + _START.replace("APP", "lab")


class Sampler(Live):
    """Draws pictures in the notebook's page, with controls. Made by `widgets.sampler`."""

    _esm = script("sampler") + _RENDER
    weights = traitlets.Bytes().tag(sync=True)
    # What a front end sends arrives as a memoryview.
    drawn = traitlets.Bytes(b"").tag(sync=True, from_json=lambda value, _: bytes(value))

    def __init__(
        self, weights: bytes, options: dict[str, str], shape: tuple[int, int, int], html: str
    ) -> None:
        super().__init__(options, html, weights=weights)
        self.shape = shape

    @property
    def samples(self) -> Tensor | None:
        """What was drawn last, in the data's units, (10, C, H, W); None before that."""
        if not self.drawn:
            return None
        values = np.frombuffer(self.drawn, "<f4").reshape(-1, *self.shape)
        return torch.from_numpy(values.copy())
