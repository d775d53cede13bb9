"""What each part of the UNet is worth: leave it out, train, and compare on held-out digits.

    OMP_NUM_THREADS=1 python benchmarks/ablations.py

Every variant is trained for 200 steps on the 8 x 8 digits, three times, and measured by its eps
loss on the 450 held-out ones. All variants of one seed see the same pictures, times and noises in
the same order, and all are measured on the same noises: so differences are paired by seed. Writes
results/ablations.json, which chapter 3 draws. Short runs of small nets: they rank what helps
*early*, not what a long training ends with.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from machine import machine
from torch import Tensor, nn

from diffusion_lib import Denoiser, TrainConfig, Trainer, UNet, UNetConfig, data, noise
from diffusion_lib.denoiser import training_loss
from diffusion_lib.unet import Stage

SEEDS = (0, 1, 2)
STEPS, BATCH, RATE = 200, 64, 2e-3
ROUNDS = 4  # every held-out digit is measured with this many noises
BASE = UNetConfig(channels=(16, 32), time_channels=64, classes=10)
THIRDS = ((1, 99), (100, 399), (400, 1000))  # little, middling and much noise, as times


class WithoutSkip(nn.Module):
    """A stage of the way up that is handed its own features and the skip, and sees only its own."""

    def __init__(self, own: int, config: UNetConfig, attend: bool, out: int) -> None:
        super().__init__()
        self.own = own
        self.stage = Stage(own, out, config, attend)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.stage(x[:, : self.own], embedding)


class Timeless(nn.Module):
    """A net that is always told t = 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x, torch.zeros_like(t), cond)


def without_skips(config: UNetConfig) -> nn.Module:
    net = UNet(config)
    c, deepest = config.channels[-1], len(config.channels) - 1
    for i, stages in enumerate(net.up):
        level = deepest - i
        for j in range(len(stages)):
            width = config.channels[level]
            stages[j] = WithoutSkip(c, config, level in config.attention, width)
            c = width
    return net


def with_norm(config: UNetConfig, make: Callable[[int], nn.Module]) -> nn.Module:
    """The net with every group normalisation replaced by `make(channels)`."""
    net = UNet(config)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, make(child.num_channels))
    return net


# name: (what it shows, how to build it)
VARIANTS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "base": ("base", lambda: UNet(BASE)),
    "no skips": ("part", lambda: without_skips(BASE)),
    "no attention": ("part", lambda: UNet(replace(BASE, middle_attention=False))),
    "no time embedding": ("part", lambda: Timeless(UNet(BASE))),
    "BatchNorm": ("part", lambda: with_norm(BASE, nn.BatchNorm2d)),
    "no normalisation": ("part", lambda: with_norm(BASE, lambda _: nn.Identity())),
    "scale-shift": ("part", lambda: UNet(replace(BASE, conditioning="scale_shift"))),
    "attention everywhere": ("part", lambda: UNet(replace(BASE, attention=(0, 1)))),
    "half the width": ("width", lambda: UNet(replace(BASE, channels=(8, 16)))),
    "twice the width": ("width", lambda: UNet(replace(BASE, channels=(32, 64)))),
    "one level": ("depth", lambda: UNet(replace(BASE, channels=(16,)))),
    "three levels": ("depth", lambda: UNet(replace(BASE, channels=(16, 32, 32)))),
    "two blocks a level": ("depth", lambda: UNet(replace(BASE, blocks=2))),
}


def held_out() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures, labels, times and noises that every variant is measured on."""
    test = data.digits(8, "test")
    assert test.labels is not None
    generator = torch.Generator().manual_seed(1234)
    x0, labels = test.floats().repeat(ROUNDS, 1, 1, 1), test.labels.repeat(ROUNDS)
    # Times spread evenly over 1..1000 instead of at random: less noise in the comparison.
    t = 1 + torch.randperm(len(x0), generator=generator) * 1000 // len(x0)
    return x0, labels, t, torch.randn(x0.shape, generator=generator)


@torch.no_grad()
def measure(denoiser: Denoiser, batch: int = 90) -> Tensor:
    """Each held-out example's eps loss, in whatever mode the net is. (450 * ROUNDS,)"""
    parts = zip(*(part.split(batch) for part in held_out()), strict=True)
    losses = [training_loss(denoiser, x0, y, t=t, eps=eps)[1] for x0, y, t, eps in parts]
    return torch.cat(losses)


def train(build: Callable[[], nn.Module], seed: int) -> tuple[Denoiser, float]:
    """A variant after STEPS steps, in training mode, and the seconds that took."""
    torch.manual_seed(seed)
    denoiser = Denoiser(build(), noise.linear(), classes=10)
    config = TrainConfig(steps=STEPS, batch_size=BATCH, learning_rate=RATE, seed=seed)
    began = time.perf_counter()
    for _ in Trainer(denoiser, data.digits(8), config, "cpu").steps():
        pass
    return denoiser, time.perf_counter() - began


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean over the seeds and its standard error."""
    x = torch.tensor(values, dtype=torch.float64)
    return round(x.mean().item(), 4), round(x.std().item() / len(x) ** 0.5, 4)


def ablate(name: str, baseline: list[float]) -> dict[str, object]:
    """All seeds of one variant. `baseline`: the base's loss by seed, empty for the base itself."""
    group, build = VARIANTS[name]
    losses, in_training, seconds, by_third = [], [], [], []
    t = held_out()[2]
    for seed in SEEDS:
        denoiser, took = train(build, seed)
        # A pass in training mode moves BatchNorm's running averages: put them back after it.
        state = {k: v.clone() for k, v in denoiser.state_dict().items()}
        in_training.append(measure(denoiser.train()).mean().item())
        denoiser.load_state_dict(state)
        each = measure(denoiser.eval())
        losses.append(each.mean().item())
        by_third.append([each[(t >= a) & (t <= b)].mean().item() for a, b in THIRDS])
        seconds.append(took)
    loss, error = mean_and_error(losses)
    pairs = zip(losses, baseline or losses, strict=True)
    gap, gap_error = mean_and_error([ours - base for ours, base in pairs])
    return {
        "group": group,
        "parameters": sum(p.numel() for p in build().parameters()),
        "losses": [round(value, 4) for value in losses],
        "loss": loss,
        "standard_error": error,
        "over_base": gap,
        "over_base_standard_error": gap_error,
        "loss_in_training_mode": round(sum(in_training) / len(SEEDS), 4),
        "loss_by_noise": [mean_and_error(list(row))[0] for row in zip(*by_third, strict=True)],
        "milliseconds_a_step": round(1000 * sum(seconds) / len(SEEDS) / STEPS, 1),
    }


def main() -> None:
    torch.set_num_threads(1)
    began, variants = time.perf_counter(), {}
    for name in VARIANTS:
        baseline = variants["base"]["losses"] if variants else []
        variants[name] = ablate(name, baseline)
        row = variants[name]
        print(
            f"{name:22s} {row['parameters']:>8,} parameters  loss {row['loss']:.4f} "
            f"± {row['standard_error']:.4f}  {row['milliseconds_a_step']} ms a step",
            flush=True,
        )
    result = {
        "machine": machine(),
        "seconds": round(time.perf_counter() - began),
        "seeds": SEEDS,
        "data": "digits8",
        "steps": STEPS,
        "batch": BATCH,
        "learning_rate": RATE,
        "base": BASE.to_dict(),
        "noises_a_picture": ROUNDS,
        "noise_by_time": THIRDS,
        "variants": variants,
    }
    path = Path(__file__).parent / "results" / "ablations.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path.name}, {result['seconds']} s")


if __name__ == "__main__":
    main()
