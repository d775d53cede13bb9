"""How to train: the length of the average, the range of the data, the batch size, the precision.

    python benchmarks/training.py

Trains the net of chapter 4 on the 8 x 8 digits, 600 steps of 64 pictures (28 rounds through the
data), with three seeds for each setting. Writes results/training.json; about ten minutes with one
thread. Every set of weights is measured in two ways:

- the eps loss on the 450 held-out pictures, at times and noises that are the same for all;
- 450 samples with the held-out labels, 20 DDIM steps: Fréchet distance and class accuracy.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from machine import machine
from torch import Tensor

from diffusion_lib import EMA, ImageSet, TrainConfig, Trainer, UNetConfig, data, metrics
from diffusion_lib.denoiser import Denoiser, training_loss
from diffusion_lib.recipes import Recipe
from diffusion_lib.samplers import sample
from diffusion_lib.train import pick_device

SEEDS = (0, 1, 2)
STEPS, BATCH = 600, 64
LENGTHS = (6, 30, 60, 120, 240, 600)  # of the average, in steps
LOOKS = (150, 300, 600)  # steps after which every average's held-out loss is taken
NET = UNetConfig(channels=(24, 48), time_channels=96)
CONFIG = TrainConfig(steps=STEPS, batch_size=BATCH, learning_rate=2e-3)
SAMPLER_STEPS = 20


@dataclass(frozen=True)
class UnitRange(ImageSet):
    """The same pictures, handed out in [0, 1] instead of [-1, 1]."""

    def batch(self, step: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
        images, labels = super().batch(step, size, seed)
        return (images + 1) / 2, labels


class Examiner:
    """Measures denoisers on the held-out pictures, all in the same way."""

    def __init__(self, device: torch.device) -> None:
        test = data.digits(8, "test").to(device)
        assert test.labels is not None
        self.x0, self.labels = test.floats(), test.labels
        self.judge = metrics.load_judge().to(device)
        with torch.inference_mode():
            self.features = self.judge.features(self.x0)
        generator = torch.Generator().manual_seed(99)
        n = 2 * len(self.x0)
        self.eps = torch.randn((n, *test.shape), generator=generator).to(device)
        every = 1 + torch.arange(n) * 1000 // n  # every noise level alike
        self.t = every[torch.randperm(n, generator=generator)].to(device)

    @torch.inference_mode()
    def loss(self, denoiser: Denoiser) -> float:
        """The mean eps loss. Averages are in eval mode; nets in training here have no dropout."""
        x0, labels = torch.cat([self.x0, self.x0]), torch.cat([self.labels, self.labels])
        loss, _, _ = training_loss(denoiser, x0, labels, t=self.t, eps=self.eps)
        return float(loss)

    def samples(self, denoiser: Denoiser, unit_range: bool = False) -> dict[str, float]:
        """Fréchet distance and accuracy of one sample per held-out label."""
        x = sample(denoiser, self.x0.shape, denoiser.schedule.levels(SAMPLER_STEPS),
                   cond=self.labels)  # fmt: skip
        x = 2 * x - 1 if unit_range else x
        x = data.to_float(data.to_uint8(x))  # judged as they would be saved
        with torch.inference_mode():
            frechet = metrics.frechet_distance(self.judge.features(x), self.features)
        accuracy = metrics.accuracy(self.judge, x, self.labels)
        return {"frechet": round(frechet, 3), "accuracy": round(accuracy, 4)}


def train(
    config: TrainConfig, pictures: ImageSet, averages: dict[str, EMA] | None = None
) -> Iterator[Trainer]:
    """Train from fresh weights fixed by the seed; yields the trainer after each step.

    `averages` is filled with one EMA for each of LENGTHS: the plain mean of all weights so far
    until there are that many, then exponential with that mean age.
    """
    denoiser = Recipe(pictures.name, NET, config).denoiser(pictures)
    trainer = Trainer(denoiser, pictures, config)
    if averages is not None:
        for length in LENGTHS:
            averages[str(length)] = EMA(denoiser.net, 1 - 1 / length, warmup_power=1.0)
        averages["library, 0.9999"] = EMA(denoiser.net, 0.9999)
        averages["no warm-up, 0.9999"] = EMA(denoiser.net, 0.9999, warmup_power=None)
    for _ in trainer.steps():
        for average in (averages or {}).values():
            average.update(denoiser.net)
        yield trainer


def average_lengths(
    pictures: ImageSet, examiner: Examiner, decay: Literal["none", "cosine"]
) -> list[dict[str, Any]]:
    """One row a seed: every average's loss at every look, and its samples at the end."""
    rows = []
    for seed in SEEDS:
        averages: dict[str, EMA] = {}
        losses: dict[str, dict[str, float]] = {}
        for trainer in train(replace(CONFIG, decay=decay, seed=seed), pictures, averages):
            if trainer.step in LOOKS:
                nets = {"none": trainer.denoiser}
                nets |= {k: trainer.denoiser.with_net(e.model) for k, e in averages.items()}
                losses[str(trainer.step)] = {
                    name: round(examiner.loss(net), 5) for name, net in nets.items()
                }
        samples = {name: examiner.samples(net) for name, net in nets.items()}
        rows.append({"seed": seed, "loss": losses, "samples": samples})
        print(decay, seed, losses[str(STEPS)], flush=True)
    return rows


def final(config: TrainConfig, pictures: ImageSet, examiner: Examiner) -> list[dict[str, Any]]:
    """One row a seed: time, loss and samples of the average at the end."""
    rows = []
    unit_range = isinstance(pictures, UnitRange)
    for seed in SEEDS:
        *_, trainer = train(replace(config, seed=seed), pictures)
        row: dict[str, Any] = {"seed": seed}
        if not unit_range:  # a loss on other data is another quantity
            row["loss"] = round(examiner.loss(trainer.average), 5)
        rows.append(row | examiner.samples(trainer.average, unit_range))
        print(config.batch_size, unit_range, rows[-1], flush=True)
    return rows


def step_seconds(pictures: ImageSet, rounds: int = 7) -> dict[str, Any]:
    """Seconds a training step in each precision, all taking turns; the first round is warm-up."""
    walks, seconds = {}, {}
    for precision in ("fp32", "bf16", "fp16"):
        config = replace(CONFIG, precision=precision)
        walks[precision], seconds[precision] = train(config, pictures), []
    for _ in range(rounds + 1):
        for precision, walk in walks.items():
            began = time.perf_counter()
            next(walk)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[precision].append(time.perf_counter() - began)
    return {
        name: {
            "median": round(statistics.median(s[1:]), 4),
            "min": round(min(s[1:]), 4),
            "max": round(max(s[1:]), 4),
        }
        for name, s in seconds.items()
    }


def main() -> None:
    pictures = data.digits(8)
    examiner = Examiner(pick_device())
    unit = UnitRange(**{k: getattr(pictures, k) for k in pictures.__dataclass_fields__})
    result: dict[str, Any] = {
        "machine": machine(),
        "seeds": SEEDS,
        "config": asdict(CONFIG),
        "net": NET.to_dict(),
        "lengths": LENGTHS,
        "looks": LOOKS,
        "sampler": f"DDIM, {SAMPLER_STEPS} steps, guidance scale 1",
        "step_seconds": step_seconds(pictures),
        "average": {d: average_lengths(pictures, examiner, d) for d in ("none", "cosine")},
        # Equal numbers of pictures, so other numbers of steps. 64 pictures are the row "library,
        # 0.9999" of the cosine runs above.
        "batch": {
            str(b): final(
                replace(CONFIG, batch_size=b, steps=STEPS * BATCH // b), pictures, examiner
            )
            for b in (16, 256)
        },
        "unit_range": final(CONFIG, unit, examiner),
    }
    path = Path(__file__).parent / "results" / "training.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
