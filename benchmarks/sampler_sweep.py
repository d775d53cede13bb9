"""Every sampler and guidance scale on the shipped 8 x 8 digits: quality against evaluations.

For chapter 5, on sampling: python benchmarks/sampler_sweep.py writes results/sampler_sweep.json
(about six minutes on one thread). Each setting draws as many digits as there are held-out ones,
with the same labels, once per seed; the seeds are shared, so the settings differ in nothing else.
"""

import json
import math
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from machine import machine
from torch import Tensor

from diffusion_lib import data, load_judge, load_pretrained, metrics
from diffusion_lib.denoiser import Denoise
from diffusion_lib.guidance import cfg, clip
from diffusion_lib.samplers import Sampler, ddim, ddpm, dpmpp_2m, heun, sample

MODEL = "digits8"
SEEDS = (0, 1, 2)
STEPS = (5, 10, 20, 50)
T_QUANTILE = 4.303  # of Student's t for 95% and three seeds (two degrees of freedom)
GUIDANCE = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
GUIDED_STEPS = 20

SAMPLERS: dict[str, Sampler] = {
    "DDIM, eta 0": ddim,
    "DDIM, eta 0.5": partial(ddim, eta=0.5),
    "DDPM, small (eta 1)": ddpm,
    "DDPM, large": partial(ddpm, variance="large"),
    "Heun": heun,
    "DPM-Solver++(2M)": dpmpp_2m,
}


def settings() -> list[tuple[str, Sampler, int, bool]]:
    """(name, sampler, steps, clipped); Heun gets half the steps, for its two evaluations each."""
    rows = []
    for name, sampler in SAMPLERS.items():
        steps = STEPS if name in ("Heun", "DDIM, eta 0.5", "DPM-Solver++(2M)") else (*STEPS, 100)
        rows += [(name, sampler, (n + 1) // 2 if name == "Heun" else n, False) for n in steps]
    for name in ("DDIM, eta 0", "DDPM, large"):
        rows += [(f"{name}, clipped", SAMPLERS[name], n, True) for n in (10, 20)]
    return rows


def matching(wanted: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Random indices into `labels` that hold each class as often as `wanted` does."""
    chosen = []
    for label, count in enumerate(wanted.bincount().tolist()):
        of_class = (labels == label).nonzero().flatten()
        chosen.append(of_class[torch.randperm(len(of_class), generator=generator)[:count]])
    return torch.cat(chosen)


def interval(values: list[float]) -> dict[str, float]:
    """Mean over the seeds and half the width of its 95% interval."""
    half = T_QUANTILE * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": round(statistics.mean(values), 4), "half_width": round(half, 4)}


def main() -> None:
    torch.set_num_threads(1)
    began = time.process_time()
    model, judge = load_pretrained(MODEL), load_judge()
    train, test = data.load(MODEL, "train"), data.load(MODEL, "test")
    assert train.labels is not None and test.labels is not None
    labels = test.labels
    with torch.inference_mode():
        real, pool = judge.features(test.floats()), judge.features(train.floats())

    seen = 0

    def count(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])  # guidance puts two evaluations into one call

    model.net.register_forward_pre_hook(count)

    def measure(denoiser: Denoise, sampler: Sampler, steps: int) -> dict[str, object]:
        nonlocal seen
        seen = 0
        levels = model.schedule.levels(steps)
        shares, distances, seconds = [], [], []
        for seed in SEEDS:
            start = time.process_time()
            x = sample(denoiser, (len(test), *test.shape), levels, sampler=sampler, cond=labels,
                       seed=seed)  # fmt: skip
            seconds.append(time.process_time() - start)
            pictures = data.to_float(data.to_uint8(x))  # judged as they would be saved
            shares.append(metrics.accuracy(judge, pictures, labels))
            with torch.inference_mode():
                distances.append(metrics.frechet_distance(judge.features(pictures), real))
        return {
            "steps": steps,
            "evaluations": seen // (len(SEEDS) * len(test)),
            "accuracy": interval(shares),
            "frechet": interval(distances),
            "ms_a_picture": round(1000 * statistics.median(seconds) / len(test), 2),
        }

    rows = []
    for name, sampler, steps, clipped in settings():
        rows.append({"sampler": name, **measure(clip(model) if clipped else model, sampler, steps)})
        print(rows[-1], flush=True)
    guided = []
    for scale in GUIDANCE:
        guided.append({"scale": scale, **measure(cfg(model, scale), ddim, GUIDED_STEPS)})
        print(guided[-1], flush=True)

    generator = torch.Generator().manual_seed(0)
    floors = [
        metrics.frechet_distance(pool[matching(labels, train.labels, generator)], real)
        for _ in range(20)
    ]
    result = {
        "machine": machine(),
        "model": MODEL,
        "seeds": SEEDS,
        "pictures_a_seed": len(test),
        "cpu_seconds": round(time.process_time() - began),
        "judge_accuracy": round(metrics.accuracy(judge, test.floats(), labels), 4),
        "floor": {
            "mean": round(statistics.mean(floors), 2),
            "std": round(statistics.stdev(floors), 2),
        },
        "samplers": rows,
        "guidance": guided,
    }
    path = Path(__file__).parent / "results" / "sampler_sweep.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
