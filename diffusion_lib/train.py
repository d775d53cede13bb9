"""Training: algorithm 1 of the DDPM paper, run many times, safely.

`Trainer.steps()` is a generator: the caller logs, plots and stops as it likes. `Trainer.fit()`
drives it with a progress bar and checkpoints. A step's randomness is keyed by (seed, step), so N
steps, a save, a load and N more steps equal 2N steps bit for bit.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .data import ImageSet, keyed_generator
from .denoiser import Denoiser, drop_labels, randn_like, training_loss, uniform
from .ema import EMA
from .errors import UserError
from .files import read_checkpoint, write_atomically
from .predict import Weight
from .progress import progress


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimiser steps in all.
        batch_size: pictures per step.
        learning_rate: of AdamW, after the warm-up.
        warmup: steps over which the learning rate rises linearly from 0.
        decay: "none" keeps the learning rate; "cosine" lets it fall to 0 at the last step.
        weight_decay: of AdamW.
        grad_clip: largest norm of the gradient.
        ema_decay: largest decay of the average of the weights.
        drop_cond: probability of hiding a label, for classifier-free guidance.
        weight: loss weighting, see `predict.weight`.
        accumulate: split each batch into this many parts that go through the net one by one;
            the gradient is the same, the memory less.
        precision: "auto" is bf16 where a GPU has it, fp16 on other GPUs, fp32 elsewhere (an
            AVX2 CPU runs bf16 five times slower).
        compile: run the net through torch.compile.
        seed: fixes the order of the data and all noise.
    """

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 50
    decay: Literal["none", "cosine"] = "cosine"
    weight_decay: float = 1e-4
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    drop_cond: float = 0.1
    weight: Weight = "simple"
    accumulate: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    seed: int = 0


class TrainStep(NamedTuple):
    """What one step of training tells.

    Attributes:
        step: how many steps have been taken, this one included.
        loss: the batch's mean loss, (), on the device: `.item()` makes a GPU wait.
        grad_norm: the gradient's norm before clipping, (), on the device.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor


class Trainer:
    """Trains a denoiser on an image set.

    Attributes:
        denoiser: the one in training.
        ema: the running average; `trainer.average` is the denoiser to sample from.
        step: how many steps have been taken.
    """

    CHECK_EVERY = 50  # steps between looks at the loss; a look makes a GPU wait for the CPU

    def __init__(
        self,
        denoiser: Denoiser,
        data: ImageSet,
        config: TrainConfig,
        device: torch.device | str | None = None,
    ) -> None:
        """
        Args:
            device: None takes a GPU where there is one.

        Raises:
            UserError: CUDA is asked for and absent, a batch that can't be split as asked, or
                labels that the denoiser's net doesn't know.
        """
        self.device = pick_device(device)
        if config.batch_size % config.accumulate:
            raise UserError(
                f"A batch of {config.batch_size} can't be split into {config.accumulate} equal "
                "parts: choose a batch size that is a multiple of it."
            )
        if data.classes is not None and denoiser.classes not in (None, data.classes):
            raise UserError(
                f"The data has {data.classes} classes and the denoiser {denoiser.classes}: "
                "build the net with the data's number of classes."
            )
        self.config = config
        self.data = data.to(self.device)
        # channels_last: the convolutions' own layout, on CPUs and GPUs.
        self.denoiser = denoiser.to(self.device, memory_format=torch.channels_last)
        self.ema = EMA(denoiser.net, config.ema_decay)
        self.step = 0
        self._dtype = next(denoiser.net.parameters()).dtype
        on_gpu = self.device.type == "cuda"
        self.precision = _pick_precision(config.precision, self.device)
        self.optimizer = torch.optim.AdamW(
            denoiser.net.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        # The compiled net shares the denoiser's weights; only the plain one is ever saved, so no
        # checkpoint's keys begin with "_orig_mod.".
        self._working = denoiser
        if config.compile:
            self._working = denoiser.with_net(torch.compile(denoiser.net))
        if on_gpu:
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        # The first step whose loss or gradient was not finite, or -1; kept on the device.
        self._bad_step = torch.full((), -1, device=self.device)

    @property
    def average(self) -> Denoiser:
        """The denoiser with the averaged weights: the one to sample from and to ship."""
        return self.denoiser.with_net(self.ema.model).eval()

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 1."""
        config = self.config
        rate = config.learning_rate * min(1.0, step / max(config.warmup, 1))
        if config.decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, (step - 1) / config.steps)))
        return rate

    def steps(self) -> Iterator[TrainStep]:
        """Train from where we are to `config.steps`, yielding after each step.

        Raises:
            UserError: the loss or its gradient stopped being finite; the message names the step.
        """
        while self.step < self.config.steps:
            yield self._one_step()
            if self.step % self.CHECK_EVERY == 0 or self.step == self.config.steps:
                self._check_finite()

    def fit(self, checkpoint: str | Path | None = None, save_every: int = 500) -> None:
        """Train to the end with a progress bar, saving to `checkpoint` as we go.

        A run that is stopped goes on from its last checkpoint: `trainer.load(path)`, then `fit`
        again. Ctrl-C saves before it stops.
        """
        saved = self.step
        bar = progress(self.steps(), "training", total=self.config.steps - self.step)
        try:
            for now in bar:
                if now.step % self.CHECK_EVERY == 0:
                    bar.set_postfix(loss=f"{now.loss.item():.3f}")
                if checkpoint is not None and now.step % save_every == 0:
                    self.save(checkpoint)
                    saved = now.step
        finally:
            if checkpoint is not None and self.step > saved and self._bad_step.item() < 0:
                self.save(checkpoint)

    def _one_step(self) -> TrainStep:
        config, step = self.config, self.step
        self.denoiser.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step + 1)

        # All of a step's random numbers come from its own key: no random state to save.
        x0, cond = self.data.batch(step, config.batch_size, config.seed)
        x0 = x0.to(self._dtype)
        generator = keyed_generator(config.seed, step, device=self.device)
        t = uniform(self.denoiser.schedule, len(x0), generator)
        eps = randn_like(x0, generator)
        if self.denoiser.classes is None:
            cond = None
        cond = drop_labels(cond, config.drop_cond, generator)

        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        with _keyed_dropout(config.seed, step, self.device):
            for part in torch.arange(len(x0)).chunk(config.accumulate):
                some = slice(int(part[0]), int(part[-1]) + 1)
                with self._autocast():
                    loss, _, _ = training_loss(
                        self._working,
                        x0[some].contiguous(memory_format=torch.channels_last),
                        None if cond is None else cond[some],
                        weight=config.weight,
                        t=t[some],
                        eps=eps[some].contiguous(memory_format=torch.channels_last),
                    )
                loss = loss / config.accumulate
                self.scaler.scale(loss).backward()
                total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.denoiser.net.parameters(), config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.denoiser.net)
        self.step += 1

        # fp16's scaler skips steps whose gradient overflowed, so there only the loss counts.
        fine = total.isfinite() if self.scaler.is_enabled() else (total + norm).isfinite()
        self._bad_step = torch.where(fine | (self._bad_step >= 0), self._bad_step, self.step)
        return TrainStep(self.step, total, norm)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def _check_finite(self) -> None:
        bad = int(self._bad_step.item())
        if bad >= 0:
            raise UserError(
                f"The loss stopped being finite in step {bad}; the last checkpoint is still "
                "good. Go on from it with a smaller learning rate, or check the data for NaN."
            )

    def save(self, path: str | Path) -> None:
        """Write everything needed to go on to one file, all of it or nothing.

        Raises:
            UserError: the loss is no longer finite, or the disk is full; the file that was there
                before is untouched.
        """
        self._check_finite()
        state = {
            "step": self.step,
            "config": asdict(self.config),
            "architecture": describe(self.denoiser),
            "net": self.denoiser.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        write_atomically(path, lambda file: torch.save(state, file))

    def load(self, path: str | Path) -> None:
        """Go on from a checkpoint that `save` wrote.

        Raises:
            UserError: no such file, a damaged one, or one of another architecture.
        """
        state = read_checkpoint(path, self.device)
        if not {"step", "net", "ema", "optimizer", "scaler", "architecture"} <= state.keys():
            raise UserError(f"{path} holds no state of a training run: `Trainer.save` writes it.")
        check_architecture(path, state["architecture"], describe(self.denoiser))
        self.denoiser.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def describe(denoiser: Denoiser) -> dict[str, Any]:
    """What must agree for weights to fit: net, schedule, kind and classes, as plain values."""
    config = getattr(denoiser.net, "config", None)
    net = config.to_dict() if config is not None else {"type": type(denoiser.net).__name__}
    return {
        "net": {k: list(v) if isinstance(v, tuple) else v for k, v in net.items()},
        "schedule": denoiser.schedule.spec,
        "kind": denoiser.kind,
        "classes": denoiser.classes,
    }


def check_architecture(path: str | Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """
    Raises:
        UserError: the two descriptions differ; the message names the first difference.
    """
    for part in here:
        if there.get(part) != here[part]:
            a, b = there.get(part), here[part]
            if isinstance(a, dict) and isinstance(b, dict):
                key = next(k for k in {**a, **b} if a.get(k) != b.get(k))
                part, a, b = f"{part}'s {key}", a.get(key), b.get(key)
            raise UserError(
                f"{path} was made with another {part}: {a} there, {b} here. "
                "Build the denoiser as it was, or start a new run in another file."
            )


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """The device asked for, or the best one there is: CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: CUDA is asked for and absent.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "CUDA was asked for, but PyTorch finds no NVIDIA GPU here. On Colab choose Runtime > "
            "Change runtime type > GPU; elsewhere use the device 'cpu'."
        )
    return device


def _pick_precision(wanted: str, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    if wanted in ("fp32", "bf16", "fp16"):
        return wanted  # type: ignore[return-value]
    if wanted != "auto":
        raise UserError(f"Unknown precision {wanted!r}: use 'auto', 'fp32', 'bf16' or 'fp16'.")
    if device.type != "cuda":
        return "fp32"
    # Older GPUs emulate bf16 slowly: take it only from compute capability 8 on.
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


class _keyed_dropout(AbstractContextManager[None]):
    """Dropout draws from torch's global generators: key them for a while, then put them back."""

    def __init__(self, seed: int, step: int, device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else []
        self._fork = torch.random.fork_rng(devices)
        self._key = (seed, step, 1)

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(keyed_generator(*self._key).initial_seed())

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)
