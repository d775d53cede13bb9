"""Training: algorithm 1 of the DDPM paper, run many times, safely.

`Trainer.steps()` is a generator: the caller logs, plots and stops as it likes. `Trainer.fit()`
drives it with a progress bar and checkpoints. A step's randomness is keyed by (seed, step), so N
steps, a save, a load and N more steps equal 2N steps bit for bit.

Where `torchrun` started several processes, each trains on its part of every batch, and gradients
are averaged (`several_processes`). A batch has the same pictures and noise however many share it.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from .data import Pictures, keyed_generator
from .denoiser import NO_CLASS, Denoiser, drop_labels, randn_like, training_loss, uniform
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
        batch_size: pictures per step, those of all processes together.
        learning_rate: of AdamW, after the warm-up.
        warmup: steps over which the learning rate rises linearly from 0.
        decay: "none" keeps the learning rate; "cosine" lets it fall to 0 at the last step.
        weight_decay: of AdamW.
        grad_clip: largest norm of the gradient.
        ema_decay: largest decay of the average of the weights.
        drop_cond: probability of hiding a label, for classifier-free guidance.
        flip: mirror each picture, left to right, with probability 1/2.
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
    flip: bool = False
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


class Speed(NamedTuple):
    """How fast the training went, all processes together.

    Attributes:
        images_per_second: pictures trained on.
        flops_per_second: floating point operations that the net takes for them: three times those
            of the forward pass, since the backward pass takes two for each.
        utilisation: their share of what the GPUs could do at this precision (model FLOP
            utilisation); None where that is not known.
        memory: the most bytes in use so far: of this process's GPU, or of the process on a CPU;
            None where that is not known.
        seconds_left: expected, until the last step.
    """

    images_per_second: float
    flops_per_second: float
    utilisation: float | None
    memory: int | None
    seconds_left: float

    def __str__(self) -> str:
        giga = self.flops_per_second / 1e9
        parts = [
            f"{self.images_per_second:,.0f} pictures/s",
            f"{giga / 1000:,.3g} TFLOP/s" if giga >= 1000 else f"{giga:,.3g} GFLOP/s",
        ]
        if self.utilisation is not None:
            parts[-1] += f" ({self.utilisation:.0%} of the GPU's peak)"
        if self.memory is not None:
            parts.append(f"{self.memory / 2**30:.1f} GiB")
        return ", ".join([*parts, f"about {_duration(self.seconds_left)} left"])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Trainer:
    """Trains a denoiser on an image set.

    Attributes:
        denoiser: the one in training.
        ema: the running average; `trainer.average` is the denoiser to sample from.
        step: how many steps have been taken.
        seconds: how long they took, without what the caller did between them.
    """

    CHECK_EVERY = 50  # steps between looks at the loss; a look makes a GPU wait for the CPU

    def __init__(
        self,
        denoiser: Denoiser,
        data: Pictures,
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
        self.rank, self.processes = rank_and_processes()
        parts = self.processes * config.accumulate
        if config.batch_size % parts:
            raise UserError(
                f"A batch of {config.batch_size} can't be split into {parts} equal "
                "parts: choose a batch size that is a multiple of it."
            )
        mine = config.batch_size // self.processes
        self._part = slice(self.rank * mine, (self.rank + 1) * mine)
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
        self.seconds = 0.0
        self._looks = [(0, 0.0)]  # (step, seconds) when the loss was last looked at, twice
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
        net: nn.Module = denoiser.net
        if config.compile:
            net = torch.compile(net)
        if self.processes > 1:
            net = DistributedDataParallel(net, [self.device] if on_gpu else None)
        self._working = denoiser if net is denoiser.net else denoiser.with_net(net)
        if on_gpu:
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        # The first step whose loss or gradient was not finite, or -1; kept on the device.
        self._bad_step = torch.full((), -1, device=self.device)
        self._flops: int | None = None

    @property
    def average(self) -> Denoiser:
        """The denoiser with the averaged weights, the one to sample from and to ship."""
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
        config, expected = self.config, -1
        while self.step < config.steps:
            if self.step != expected:  # at first, and where the caller has loaded a checkpoint
                steps = range(self.step, config.steps)
                batches = self.data.batches(steps, config.batch_size, config.seed, self._part)
                self._looks = [(self.step, self.seconds)]
            expected = self.step + 1
            began = time.perf_counter()
            now = self._one_step(*next(batches))
            look = self.step % self.CHECK_EVERY == 0 or self.step == config.steps
            if look:  # waits for the GPU, so the time is that of the steps themselves
                self._check_finite()
            self.seconds += time.perf_counter() - began
            if look:
                self._looks = [self._looks[-1], (self.step, self.seconds)]
            yield now

    @property
    def speed(self) -> Speed | None:
        """How fast the latest steps went, `CHECK_EVERY` of them; None before there are any."""
        (first, began), (last, ended) = self._looks[0], self._looks[-1]
        if last == first or ended == began:
            return None
        config, rate = self.config, (last - first) / (ended - began)
        images = rate * config.batch_size
        flops = 3 * images * self._forward_flops()
        peak = _peak_flops(self.device) if self.precision != "fp32" else None
        return Speed(
            images,
            flops,
            None if peak is None else flops / (peak * self.processes),
            _memory_used(self.device),
            (config.steps - self.step) / rate,
        )

    def _forward_flops(self) -> int:
        if self._flops is None:
            x = torch.zeros(1, *self.data.shape, dtype=self._dtype, device=self.device)
            self._flops = forward_flops(self.ema.model, x)
        return self._flops

    def fit(
        self,
        checkpoint: str | Path | None = None,
        save_every: int = 500,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Train to the end with a progress bar, saving to `checkpoint` as we go.

        A run that is stopped goes on from its last checkpoint: `trainer.load(path)`, then `fit`
        again. Ctrl-C saves before it stops.

        Args:
            checkpoint: file to save to, by the first of several processes.
            save_every: steps between two saves.
            report: gets a line on speed, memory and time left, first after `CHECK_EVERY` steps and
                then about every five minutes; for logs, where no bar is drawn.
        """
        saved, next_report = self.step, self.seconds
        bar = progress(self.steps(), "training", total=self.config.steps - self.step)
        try:
            for now in bar:
                if now.step % self.CHECK_EVERY == 0:
                    bar.set_postfix(loss=f"{now.loss.item():.3f}")
                    if report is not None and self.seconds >= next_report:
                        report(f"step {now.step:,}: loss {now.loss.item():.3f}, {self.speed}")
                        next_report = self.seconds + 300
                if checkpoint is not None and now.step % save_every == 0:
                    self.save(checkpoint)
                    saved = now.step
        finally:
            if checkpoint is not None and self.step > saved and self._bad_step.item() < 0:
                self.save(checkpoint)

    def _one_step(self, x0: Tensor, cond: Tensor | None) -> TrainStep:
        config, step = self.config, self.step
        self.denoiser.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step + 1)

        # All of a step's random numbers come from its own key: no random state to save. They are
        # those of the whole batch, of which a process uses its part.
        mine, n = self._part, config.batch_size
        x0 = x0.to(self._dtype)
        generator = keyed_generator(config.seed, step, device=self.device)
        t = uniform(self.denoiser.schedule, n, generator)[mine]
        eps = randn_like(x0.new_empty(n, *x0.shape[1:]), generator)[mine]
        if self.denoiser.classes is None:
            cond = None
        if cond is not None:
            hide = drop_labels(cond.new_zeros(n), config.drop_cond, generator)[mine]
            cond = torch.where(hide == NO_CLASS, NO_CLASS, cond)
        if config.flip:
            generator = keyed_generator(config.seed, step, 2, device=self.device)
            flip = torch.rand(n, generator=generator, device=self.device)[mine] < 0.5
            x0 = torch.where(flip[:, None, None, None], x0.flip(-1), x0)

        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        with _keyed_dropout((config.seed, step, 1, self.rank), self.device):
            for part in torch.arange(len(x0)).chunk(config.accumulate):
                some = slice(int(part[0]), int(part[-1]) + 1)
                last = some.stop == len(x0)
                with nullcontext() if last else self._no_sync():
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
        if self.processes > 1:  # the mean over the whole batch; the gradients are averaged already
            dist.all_reduce(total)
            total /= self.processes
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

    def _no_sync(self) -> AbstractContextManager[Any]:
        """Gradients of all but the last part of a batch stay here, to be averaged only once."""
        net = self._working.net
        return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()

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

        Of several processes the first writes.

        Raises:
            UserError: the loss is no longer finite, or the disk is full; the file that was there
                before is untouched.
        """
        self._check_finite()
        if self.rank > 0:  # all hold the same
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
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
        self.step, self.seconds = state["step"], state.get("seconds", 0.0)


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
    """Refuse weights that were made for another net, schedule, kind or number of classes.

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


@contextmanager
def several_processes(device: torch.device | str | None = None) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did, and give this one's device.

    Within it a `Trainer` shares the work with those of the other processes: each GPU has one, or,
    on a CPU, they talk by gloo.

    Raises:
        UserError: CUDA is asked for and absent, or more processes than GPUs.
    """
    device = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started more processes than there are GPUs ({torch.cuda.device_count()})"
                ": give --nproc_per_node that number."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank_and_processes() -> tuple[int, int]:
    """This process's number, from 0, and how many train together: (0, 1) where one does alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


# Dense peak in half precision, by the makers' data sheets: operations a second.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "V100": 125e12, "L4": 121e12,
               "T4": 65e12}  # fmt: skip


def forward_flops(net: nn.Module, x: Tensor) -> int:
    """Floating point operations of `net(x, t)`, a multiplication and an addition counted as two.

    Args:
        net: takes x and one time t per picture.
        x: (B, C, H, W), on the net's device and of its dtype; its values do not matter.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, torch.ones(len(x), device=x.device))
    return counter.get_total_flops()


def _peak_flops(device: torch.device) -> float | None:
    """What the device can do at most in half precision; None where that is not known."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    # The PCIe and NVL cards of the same names are slower.
    if {"PCIe", "PCIE", "NVL"} & set(words):
        return None
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in words), None)


def _memory_used(device: torch.device) -> int | None:
    """The most bytes in use so far, on the GPU or of this process; None where not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # Linux counts in KiB


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

    def __init__(self, key: tuple[int, ...], device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else []
        self._fork = torch.random.fork_rng(devices)
        self._key = key

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(keyed_generator(*self._key).initial_seed())

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)
