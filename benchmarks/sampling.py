"""Sampling of 64 digits, 50 DDIM steps, 16 x 16, on the CPU: each switch on and off.

All variants are timed in one process, taking turns, so that a noisy machine is noisy to all of
them alike. Writes results/sampling.json; the first variant is what `sample` does.
"""

import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from machine import machine
from torch import Tensor

from diffusion_lib import load_pretrained
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.samplers import ddim, sample, start

ROUNDS = 5
SHAPE = (64, 1, 16, 16)
LABELS = torch.arange(64) % 10


def walk(
    model: Denoiser,
    *,
    mode: Callable[[], AbstractContextManager[object]] = torch.inference_mode,
    batch: int = 64,
    channels_last: bool = True,
) -> Tensor:
    """What `sample` does, with its choices as options."""
    levels = model.schedule.levels(50)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    with mode():
        noise = start(SHAPE, levels[0], torch.Generator().manual_seed(0))
        parts = []
        for x, labels in zip(noise.split(batch), LABELS.split(batch), strict=True):
            *_, end = ddim(model, x.contiguous(memory_format=layout), levels, cond=labels)
            parts.append(end.x)
    return torch.cat(parts)


def main() -> None:
    model = load_pretrained("digits16")
    levels = model.schedule.levels(50)
    compiled = model.with_net(torch.compile(model.net)).eval()
    gradients = load_pretrained("digits16").requires_grad_(True)
    variants: dict[str, Callable[[], Tensor]] = {
        "as sample does it": partial(sample, model, SHAPE, levels, cond=LABELS),
        "contiguous layout": partial(walk, load_pretrained("digits16"), channels_last=False),
        "no_grad instead of inference_mode": partial(walk, model, mode=torch.no_grad),
        "with autograd": partial(walk, gradients, mode=nullcontext),
        "batches of 16": partial(walk, model, batch=16),
        "batches of 32": partial(walk, model, batch=32),
        "torch.compile": partial(walk, compiled),
    }
    reference = variants["as sample does it"]()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for name, run in list(variants.items()):
        try:
            assert torch.allclose(run(), reference, atol=2e-3), name  # also the warm-up
        except RuntimeError as error:  # no C++ compiler for torch.compile, for example
            print(f"{name}: not measured ({type(error).__name__})")
            del variants[name], seconds[name]
    for _ in range(ROUNDS):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["as sample does it"])
    rows = {
        name: {
            "median_s": round(statistics.median(s), 3),
            "min_s": round(min(s), 3),
            "max_s": round(max(s), 3),
            "ratio": round(statistics.median(s) / base, 2),
        }
        for name, s in seconds.items()
    }
    result = {"machine": machine(), "rounds": ROUNDS, "variants": rows}
    path = Path(__file__).parent / "results" / "sampling.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(f"{name:36} {row['median_s']:.2f} s  ({row['ratio']:.2f}x)")


if __name__ == "__main__":
    main()
