"""What each knob of training is worth, and six failures with their remedies.

    OMP_NUM_THREADS=1 python benchmarks/tuning.py

Every setting differs from the base in the one or two things that its row names. It is trained on
the 8 x 8 digits from fresh weights, once for each seed, and measured by the average of its
weights. More than an hour of one core. Each finished run is written to
results/tuning.json at once, and one that is there already is not measured again.

Short runs of a small net, two or three seeds: they rank what helps *early*, not what a long
training ends with.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from ablations import with_norm
from machine import machine
from torch import Tensor, nn
from training import Examiner

from diffusion_lib import (
    Denoiser,
    ImageSet,
    TrainConfig,
    Trainer,
    UNet,
    UNetConfig,
    UserError,
    data,
    metrics,
    noise,
)
from diffusion_lib.predict import Kind
from diffusion_lib.samplers import ddim, eps_from, sample, start

SEEDS = (0, 1, 2)
STEPS, BATCH = 400, 64
NET = UNetConfig(channels=(16, 32), time_channels=64, classes=10)
CONFIG = TrainConfig(steps=STEPS, batch_size=BATCH, learning_rate=2e-3)
LINEAR = noise.linear().spec
SAMPLER_STEPS = 20
CURVE_EVERY = 10  # the loss curve holds the mean of so many steps
RESULT = Path(__file__).parent / "results" / "tuning.json"


class ScaledTime(nn.Module):
    """A net that is told t / 1000, from 0 to 1, where its embedding expects 0 to 1000."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x, t / 1000, cond)


BUILD: dict[str, Callable[[UNetConfig], nn.Module]] = {
    "UNet": UNet,
    "UNet with BatchNorm": lambda config: with_norm(config, nn.BatchNorm2d),
    "UNet told t / 1000": lambda config: ScaledTime(UNet(config)),
}


@dataclass(frozen=True)
class Setting:
    """One row: where it differs from the base."""

    group: str
    label: str
    net: UNetConfig = NET
    config: TrainConfig = CONFIG
    schedule: dict[str, Any] = field(default_factory=lambda: LINEAR)
    kind: Kind = "eps"
    build: str = "UNet"
    seeds: tuple[int, ...] = SEEDS

    @property
    def key(self) -> str:
        return f"{self.group}: {self.label}"


def train_with(**changes: Any) -> TrainConfig:
    return replace(CONFIG, **changes)


def settings() -> list[Setting]:
    """All rows: three seeds for the base and the learning rate, two for the rest."""
    wild = {"learning_rate": 0.02, "warmup": 0, "grad_clip": math.inf}
    sweep = [Setting("base", "base")]
    sweep += [
        Setting("learning rate", f"{rate:g}", config=train_with(learning_rate=rate))
        for rate in (1e-4, 2e-4, 5e-4, 1e-3, 5e-3)
    ]
    sweep += [
        Setting("prediction kind", "v", kind="v"),
        Setting("prediction kind", "x0", kind="x0"),
        Setting("schedule", "cosine", schedule=noise.cosine().spec),
        Setting("steps", "100", config=train_with(steps=100)),
        Setting("steps", "800", config=train_with(steps=800)),
        Setting("width", "8, 16", net=replace(NET, channels=(8, 16))),
        Setting("width", "32, 64", net=replace(NET, channels=(32, 64))),
        Setting("loss weight", "min-SNR", config=train_with(weight="min_snr")),
        # A quarter of the steps through time; with betas four times as large the same curve, and
        # with the same betas a chain that stops half way.
        Setting("T", "250, betas x 4", schedule=noise.linear(250, 4e-4, 0.08).spec),
        Setting("T", "250, same betas", schedule=noise.linear(250).spec),
    ]
    failures = [
        Setting("won't fall", "learning rate 1e-5", config=train_with(learning_rate=1e-5)),
        Setting("won't fall", "told t / 1000", build="UNet told t / 1000"),
        Setting("explodes", "0.02, no warm-up, no clipping", config=train_with(**wild)),
        Setting("explodes", "+ clipping", config=train_with(**{**wild, "grad_clip": 1.0})),
        Setting("explodes", "+ warm-up", config=train_with(**{**wild, "warmup": 50})),
        Setting("explodes", "+ both", config=train_with(learning_rate=0.02)),
        Setting("normalisation", "BatchNorm", build="UNet with BatchNorm"),
        Setting("embedding", "width 4", net=replace(NET, time_channels=4)),
    ]
    fewer = [replace(setting, seeds=SEEDS[:2]) for setting in [*failures, *sweep[6:]]]
    return [*sweep[:6], *fewer]


class Tuner:
    """Trains and measures settings, all on the same pictures and noises."""

    def __init__(self) -> None:
        self.pictures: ImageSet = data.digits(8)
        self.examiner = Examiner(torch.device("cpu"))
        self.real_roughness = roughness(self.examiner.x0)

    def denoiser(self, setting: Setting, seed: int) -> Denoiser:
        torch.manual_seed(seed)
        return Denoiser(
            BUILD[setting.build](setting.net),
            noise.make_schedule(setting.schedule),
            setting.kind,
            classes=10,
        )

    def run(self, setting: Setting, seed: int) -> dict[str, Any]:
        """One training: its figures, or why it stopped."""
        config = replace(setting.config, seed=seed)
        trainer = Trainer(self.denoiser(setting, seed), self.pictures, config, "cpu")
        losses, norms, began = [], [], time.perf_counter()
        stopped = None
        try:
            for now in trainer.steps():
                losses.append(now.loss)
                norms.append(now.grad_norm)
        except UserError as error:
            stopped = str(error)
        seconds = time.perf_counter() - began
        curve = torch.stack(losses).split(CURVE_EVERY)
        row: dict[str, Any] = {
            "seed": seed,
            "seconds": round(seconds, 1),
            "curve": [_number(part.mean()) for part in curve],
            "largest_gradient": _number(torch.stack(norms).max()),
        }
        if stopped:
            return row | {"stopped": stopped}
        row |= {"loss": _number(self.examiner_loss(trainer.average))}
        row |= {"eps_error": _number(self.eps_error(trainer.average))}
        row |= self.quality(trainer.average)
        if setting.build == "UNet with BatchNorm":
            row["without_average"] = self.quality(trainer.denoiser)
            row["in_training_mode"] = self.quality(trainer.denoiser, training=True)
        return row

    def examiner_loss(self, denoiser: Denoiser) -> float:
        """The loss it was trained on, on held-out pictures, with times spread over its own T."""
        times = self.examiner.t
        T = denoiser.schedule.T
        self.examiner.t = 1 + (times - 1) * T // 1000
        loss = self.examiner.loss(denoiser)
        self.examiner.t = times
        return loss

    @torch.inference_mode()
    def eps_error(self, denoiser: Denoiser) -> float:
        """Mean squared error of the noise that its guess of x_0 stands for. Where the schedule is
        the same, all prediction kinds see the same x_t, and this compares them."""
        examiner = self.examiner
        x0, labels = (torch.cat([v, v]) for v in (examiner.x0, examiner.labels))
        t = 1 + (examiner.t - 1) * denoiser.schedule.T // 1000
        level = denoiser.schedule(t).like(x0)
        x_t = level.signal * x0 + level.noise * examiner.eps
        eps = eps_from(x_t, denoiser(x_t, level, labels), level)
        return float((eps - examiner.eps).square().mean())

    def quality(self, denoiser: Denoiser, training: bool = False) -> dict[str, Any]:
        """Figures of one sample per held-out label, judged as they would be saved."""
        examiner, levels = self.examiner, denoiser.schedule.levels(SAMPLER_STEPS)
        if training:  # what happens where `.eval()` was forgotten
            x = start(examiner.x0.shape, levels[0], torch.Generator().manual_seed(0))
            walker = copy.deepcopy(denoiser).train()
            with torch.inference_mode():
                *_, last = ddim(walker, x, levels, cond=examiner.labels)
            x = last.x
        else:
            x = sample(denoiser, examiner.x0.shape, levels, cond=examiner.labels)
        if not x.isfinite().all():
            return {"broken": "samples that are not finite"}
        x = data.to_float(data.to_uint8(x))
        with torch.inference_mode():
            features = examiner.judge.features(x)
        precision, recall = metrics.precision_recall(examiner.features, features)
        return {
            "frechet": _number(metrics.frechet_distance(features, examiner.features)),
            "kernel": _number(metrics.kernel_distance(features, examiner.features)),
            "precision": _number(precision),
            "recall": _number(recall),
            "accuracy": _number(metrics.accuracy(examiner.judge, x, examiner.labels)),
            "roughness": _number(roughness(x) / self.real_roughness),
        }


def roughness(x: Tensor) -> float:
    """Mean squared difference of neighbouring pixels: small in blurred pictures, large in noise."""
    return float(x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean())


def _number(value: Tensor | float) -> float | None:
    """Five digits; None where it is not finite, which JSON doesn't know."""
    value = float(value)
    return float(f"{value:.5g}") if math.isfinite(value) else None


def agrees(stored: Any, now: Any) -> bool:
    """Whether all that a row was measured with is still so (options may have been added since)."""
    if isinstance(stored, dict):
        return all(key in now and agrees(value, now[key]) for key, value in stored.items())
    return stored == now


def main() -> None:
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"rows": {}}
    tuner = Tuner()
    rows = result["rows"]
    result = {
        "machine": machine(),
        "data": "digits8",
        "samples_a_seed": len(tuner.examiner.x0),
        "sampler": f"DDIM, {SAMPLER_STEPS} steps, guidance scale 1",
        "base": asdict(Setting("base", "base")),
        "curve_every": CURVE_EVERY,
        "rows": rows,
    }
    wanted = settings()
    for number, setting in enumerate(wanted, 1):
        plain = json.loads(json.dumps(asdict(setting)))  # as it comes back from the file
        known = rows.get(setting.key)
        if known is None or not agrees(known["setting"], plain):
            known = {"setting": plain, "runs": []}
        rows[setting.key] = known
        for seed in setting.seeds[len(known["runs"]) :]:
            run = tuner.run(setting, seed)
            known["runs"].append(run)
            result["rows"] = {s.key: rows[s.key] for s in wanted if s.key in rows}
            RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            told = {k: v for k, v in run.items() if k != "curve"}
            print(f"{number}/{len(wanted)} {setting.key}: {told}", flush=True)
    print(f"written: {RESULT.name}")


if __name__ == "__main__":
    main()
