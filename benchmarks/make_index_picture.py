"""Draw ten digits on their way out of noise, with the shipped models.

    python benchmarks/make_index_picture.py

Writes book/_static/samples_digits.webp, the first page's picture, and samples_mnist.webp: one
column a digit, one row a noise level, pure noise at the top. The seed was not chosen: it is 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor

from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import cfg
from diffusion_lib.pretrained import load_pretrained
from diffusion_lib.samplers import ddim, start
from diffusion_lib.viz import INK, PAPER

STATIC = Path(__file__).resolve().parents[1] / "book" / "_static"
STEPS = 50
GAP = 14  # screen pixels between images


def denoising(denoiser: Denoiser, n_rows: int, seed: int = 0) -> torch.Tensor:
    """The samples x at some levels from noise to data: (n_rows, 10, 1, H, W)."""
    levels = denoiser.schedule.levels(STEPS)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(10)
    with torch.inference_mode():
        x = start((10, *denoiser.image_shape), levels[0], generator)
        walk = [x, *(now.x for now in ddim(cfg(denoiser, 1.5), x, levels, cond=labels))]
    # The digit shows itself late, so the rows crowd towards the end.
    rows = [round(STEPS * (1 - (1 - row / (n_rows - 1)) ** 1.6)) for row in range(n_rows)]
    return torch.stack([walk[row] for row in rows])


def picture(frames: np.ndarray, zoom: int) -> Image.Image:
    """Lay frames (rows, columns, H, W), -1 paper to 1 ink, out as a table of images.

    Args:
        zoom: screen pixels to an image's pixel.
    """
    share = (frames.clip(-1, 1)[..., None] + 1) / 2
    paper, ink = ImageColor.getrgb(PAPER), ImageColor.getrgb(INK)
    tiles = (1 - share) * np.array(paper) + share * np.array(ink)
    tiles = tiles.repeat(zoom, axis=2).repeat(zoom, axis=3)
    rows, columns, height, width, _ = tiles.shape
    page = np.full(
        (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), paper, dtype=float
    )
    for row in range(rows):
        for column in range(columns):
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            page[top : top + height, left : left + width] = tiles[row, column]
    return Image.fromarray(page.round().astype(np.uint8))


def main() -> None:
    torch.set_num_threads(1)
    for name, file, n_rows, zoom in (
        ("digits16", "samples_digits.webp", 6, 7),
        ("mnist", "samples_mnist.webp", 3, 3),
    ):
        frames = denoising(load_pretrained(name), n_rows)
        picture(frames[:, :, 0].numpy(), zoom).save(STATIC / file, "WEBP", lossless=True, method=6)
        print(f"wrote {file}, {(STATIC / file).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
