"""Make what the page's explorer and 2-D lab need besides their scripts, all with the library.

    python tools/app_pictures.py

- diffusion_lib/web/pictures.js: some held-out digits for the explorer to start from;
- book/_static/explorer.webp and lab.webp: what readers without JavaScript see in their places.
"""

from __future__ import annotations

import base64
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from diffusion_lib import data, noise, samplers, toy, viz

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "diffusion_lib" / "web" / "pictures.js"
STATIC = ROOT / "book" / "_static"
SHOWN = 6


def digits() -> dict[str, torch.Tensor]:
    """Name -> picture (16, 16), uint8: the first held-out examples of SHOWN different digits."""
    test = data.digits(16, "test")
    assert test.labels is not None
    chosen: dict[str, torch.Tensor] = {}
    for image, label in zip(test.images, test.labels.tolist(), strict=True):
        if len(chosen) < SHOWN:
            chosen.setdefault(f"digit {label}", image[0])
    return chosen


def pictures_script() -> str:
    lines = [
        f'  "{name}": "{base64.b64encode(bytes(picture.flatten().tolist())).decode()}",'
        for name, picture in digits().items()
    ]
    return "\n".join(
        [
            "// Made by tools/app_pictures.py: name -> 16 x 16 bytes in base64, 0 paper, 255 ink.",
            "const PICTURES = {",
            *lines,
            "};\n",
        ]
    )


def explorer() -> Figure:
    """One digit at five times, and the curves of two schedules."""
    times = torch.tensor([0, 100, 300, 500, 1000])
    x0 = next(iter(digits().values())).double() / 127.5 - 1
    eps = torch.randn((16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    schedules = {"linear": noise.linear(), "cosine": noise.cosine()}

    figure = mpl.pyplot.figure(figsize=(7.2, 3.9))
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.4])
    for ax, t in zip(top.subplots(1, len(times)), times, strict=True):
        level = schedules["linear"](t)
        ax.imshow(level.signal * x0 + level.noise * eps, vmin=-1, vmax=1)
        ax.set_title(f"$x_{{{int(t)}}}$", loc="center")
        ax.set_axis_off()
    left, right = bottom.subplots(1, 2)
    for name, schedule in schedules.items():
        left.plot(schedule.alpha_bars, label=name)
        right.plot(torch.arange(1, 1001), schedule(torch.arange(1, 1001)).log_snr)
    left.set(title=r"$\bar\alpha_t$", xlabel="t")
    right.set(title="log SNR", xlabel="t", ylim=(-12, 12))
    left.legend()
    return figure


def lab() -> Figure:
    """DDIM from one noise in 2, 5 and 50 steps, over the density it should reach."""
    mixture = toy.GaussianMixture([0.5, 0.3, 0.2], [[-1.5, 0.8], [1.5, 1.1], [0.4, -1.5]],
                                  [0.35, 0.2, 0.3])  # fmt: skip
    schedule = noise.linear()
    axis = torch.linspace(-3, 3, 121, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    density = mixture.log_prob(torch.stack([x.flatten(), y.flatten()], 1)).exp().reshape(x.shape)
    figure, axes = mpl.pyplot.subplots(1, 3, figsize=(7.2, 2.7))
    for ax, steps in zip(axes, (2, 5, 50), strict=True):
        levels = schedule.levels(steps)
        start = samplers.start(
            (400, 2), levels[0], torch.Generator().manual_seed(0), dtype=torch.float64
        )
        *_, last = samplers.ddim(mixture, start, levels)
        ax.contourf(x, y, density, levels=12, cmap="Blues", alpha=0.7)
        ax.plot(*last.x.T, ".", color=viz.ORANGE, markersize=2)
        ax.set(title=f"{steps} steps", xticks=[], yticks=[], aspect="equal")
    return figure


def main() -> None:
    viz.use_style()
    PICTURES.write_text(pictures_script(), encoding="utf-8")
    for name, draw in {"explorer": explorer, "lab": lab}.items():
        figure = draw()
        path = STATIC / f"{name}.webp"
        figure.savefig(path, pil_kwargs={"quality": 80, "method": 6})
        print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
