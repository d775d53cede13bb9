"""What a training step costs, in time and memory, and what makes it cheaper.

    OMP_NUM_THREADS=1 python benchmarks/training_cost.py

Nine parts, each written to results/training_cost.json as soon as it is done; a part that is there
already is not measured again (delete the file for a fresh start). A quarter of an hour of one core.

- switches: channels_last, bf16, compile, fused optimiser, data in memory, one at a time against
  one plain step. All variants take turns in every round, so that a busy machine slows all alike.
- attention: PyTorch's fused attention against the same sums written out, in time and memory.
- accumulation: a batch in one part and in four, through the library's trainer.
- workers: photos read from files by this process, by one worker and by two, against the same ones
  in memory.
- batch: time and memory of a step by batch size, for the net of results/training.json, where
  losses and samples by batch size are.
- shape: time, floating point operations and memory by the pictures' side and by the net's width;
  of a training step, and of a step of sampling.
- memory: bytes kept for the backward pass, with and without two remedies.
- out_of_memory: a process that may take only so much memory, with and without accumulation.
- processes: two processes by torchrun (benchmarks/ddp.py) against one.
"""

import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import training
from machine import machine
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lib import Denoiser, ImageSet, TrainConfig, Trainer, UNet, UNetConfig, data, noise
from diffusion_lib.denoiser import training_loss
from diffusion_lib.recipes import Recipe
from diffusion_lib.train import forward_flops

RESULT = Path(__file__).parent / "results" / "training_cost.json"
NET = UNetConfig(channels=(32, 64), time_channels=96, classes=10)  # for the switches: 16 x 16
BATCH, ROUNDS = 64, 15
BATCHES = (16, 32, 64, 128, 256)
MB = 1e6


def summary(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ms = [1000 * s for s in seconds]
    return {
        "median": round(statistics.median(ms), 1),
        "min": round(min(ms), 1),
        "max": round(max(ms), 1),
    }


def taking_turns(walks: dict[str, Iterator[Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Time of one `next` of each walk, all in turn; the first two rounds are warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in walks}
    for _ in range(rounds + 2):
        for name, walk in walks.items():
            began = time.perf_counter()
            next(walk)
            seconds[name].append(time.perf_counter() - began)
    return {name: summary(s[2:]) for name, s in seconds.items()}


# switches


class OneByOne(Dataset):  # type: ignore[type-arg]
    """The usual data set: a picture at a time, each turned to floats by itself."""

    def __init__(self, pictures: ImageSet) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        assert self.pictures.labels is not None
        return data.to_float(self.pictures.images[i]), self.pictures.labels[i]


def step_with(
    *,
    channels_last: bool = False,
    precision: str = "fp32",
    compiled: bool = False,
    optimizer: dict[str, bool] | None = None,
    in_memory: bool = False,
) -> Iterator[Tensor]:
    """Plain training steps with some of the switches on; yields the loss after each."""
    pictures = data.digits(16)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = UNet(NET).to(memory_format=layout)
    working = torch.compile(net) if compiled else net
    denoiser = Denoiser(working, noise.linear(), classes=10)
    adamw = torch.optim.AdamW(
        net.parameters(), 1e-3, **(optimizer or {"foreach": False, "fused": False})
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from DataLoader(OneByOne(pictures), BATCH, shuffle=True, drop_last=True)

    loader = batches()
    step = 0
    while True:
        x0, labels = pictures.batch(step, BATCH) if in_memory else next(loader)
        x0 = x0.contiguous(memory_format=layout)
        adamw.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _, _ = training_loss(denoiser, x0, labels)
        loss.backward()
        adamw.step()
        step += 1
        yield loss.detach()


def switches() -> dict[str, Any]:
    fused, foreach = {"fused": True}, {"foreach": True}
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "channels_last": {"channels_last": True},
        "bf16 autocast": {"precision": "bf16"},
        "torch.compile": {"compiled": True},
        "AdamW, foreach": {"optimizer": foreach},
        "AdamW, fused": {"optimizer": fused},
        "data in memory": {"in_memory": True},
        "all but bf16 and compile": {
            "channels_last": True, "optimizer": fused, "in_memory": True
        },
    }  # fmt: skip
    walks = {name: step_with(**options) for name, options in variants.items()}
    return {
        "net": NET.to_dict(),
        "data": "digits16",
        "batch": BATCH,
        "rounds": ROUNDS,
        "milliseconds": taking_turns(walks, ROUNDS),
    }


# switches that the trainer and the data have


def attention_written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What `F.scaled_dot_product_attention` gives: (B, heads, pixels, channels) -> same."""
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


def attention() -> dict[str, Any]:
    """On a net that attends at 16 x 16 and at 8 x 8, after every block."""
    net = replace(NET, attention=(0, 1))
    pictures = data.digits(16)

    def written_out() -> AbstractContextManager[Any]:
        return mock.patch.object(F, "scaled_dot_product_attention", attention_written_out)

    kinds = {"fused": nullcontext, "written out": written_out}

    def steps(kind: Callable[[], AbstractContextManager[Any]]) -> Iterator[Any]:
        walk = trainer_of(net, TrainConfig(steps=1000, batch_size=BATCH), pictures).steps()
        while True:
            with kind():
                now = next(walk)
            yield now.loss  # not inside: the others' turns must not see the change

    trainer = trainer_of(net, TrainConfig(batch_size=BATCH), pictures)
    kept, losses = {}, {}
    for name, kind in kinds.items():
        with kind():
            kept[name] = kept_for_backward(lambda: loss_of(trainer, BATCH))
            # The last layers begin with zeros, so the loss is compared after a few steps.
            run = trainer_of(net, TrainConfig(steps=4, batch_size=BATCH), pictures)
            losses[name] = [round(float(now.loss), 5) for now in run.steps()][-1]
    return {
        "net": net.to_dict(),
        "data": "digits16",
        "batch": BATCH,
        "rounds": ROUNDS,
        "kept_mb": kept,
        "loss_of_step_4": losses,
        "milliseconds": taking_turns({name: steps(k) for name, k in kinds.items()}, ROUNDS),
    }


def accumulation() -> dict[str, Any]:
    def steps(parts: int) -> Iterator[Any]:
        config = TrainConfig(steps=1000, batch_size=BATCH, accumulate=parts)
        return trainer_of(NET, config, data.digits(16)).steps()

    return {
        "net": NET.to_dict(),
        "data": "digits16",
        "batch": BATCH,
        "rounds": ROUNDS,
        "milliseconds": taking_turns({str(parts): steps(parts) for parts in (1, 4)}, ROUNDS),
    }


PHOTOS, BLOCKS, BLOCK = 256, 5, 5


def photos(folder: Path) -> None:
    """Files as of CelebA: 178 x 218, JPEG. Smooth random colours, so of a photo's size in bytes."""
    random = np.random.default_rng(0)
    for k in range(PHOTOS):
        coarse = Image.fromarray(random.integers(0, 256, (28, 23, 3), np.uint8))
        photo = coarse.resize((178, 218), Image.Resampling.BICUBIC)
        photo.save(folder / f"{k:03}.jpg", quality=90)


def workers() -> dict[str, Any]:
    """Blocks of steps take turns, not single steps: workers read ahead, and would do it for
    nothing while the others have their turn. Each block starts its own workers, and its first
    step is left out."""
    net = replace(NET, image_channels=3, classes=None)
    config = TrainConfig(steps=1000, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos(folder)
        bytes_each = sum(f.stat().st_size for f in folder.iterdir()) / PHOTOS
        whole = data.image_folder(folder, 16)
        streamed = data.image_folder(folder, 16, memory_limit=0)
        assert isinstance(streamed, data.StreamedSet)
        sources: dict[str, data.Pictures] = {"in memory": whole}
        sources |= {f"workers = {n}": replace(streamed, workers=n) for n in (0, 1, 2)}
        trainers = {name: trainer_of(net, config, source) for name, source in sources.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sources}
        for block in range(BLOCKS + 1):
            for name, trainer in trainers.items():
                walk = trainer.steps()
                next(walk)
                for _ in range(BLOCK):
                    began = time.perf_counter()
                    next(walk)
                    if block:  # the first round is warm-up
                        seconds[name].append(time.perf_counter() - began)
                walk.close()
        began = time.perf_counter()
        streamed.batch(0, BATCH)
        reading = time.perf_counter() - began
    return {
        "net": net.to_dict(),
        "data": f"{PHOTOS} JPEG files of 178 x 218, as 16 x 16",
        "bytes_a_file": round(bytes_each),
        "batch": BATCH,
        "blocks": BLOCKS,
        "steps_a_block": BLOCK,
        "cores": os.cpu_count(),
        "reading_a_batch_ms": round(1000 * reading, 1),
        "milliseconds": {name: summary(s) for name, s in seconds.items()},
    }


# batch size and memory


def trainer_of(
    net: UNetConfig, config: TrainConfig, pictures: data.Pictures | None = None
) -> Trainer:
    """On the 8 x 8 digits, or other pictures."""
    if pictures is None:
        pictures = data.digits(8)
    return Trainer(Recipe("digits8", net, config).denoiser(pictures), pictures, config, "cpu")


def kept_for_backward(run: Callable[[], Any]) -> float:
    """MB that autograd keeps between the forward and the backward pass, each tensor once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = run()  # bound to a name: everything that was kept is alive until here
    assert loss.isfinite()
    return round(sum(kept.values()) / MB, 2)


def loss_of(trainer: Trainer, size: int, bf16: bool = False) -> Tensor:
    x0, labels = trainer.data.batch(0, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return training_loss(trainer.denoiser, x0, labels)[0]


def batch() -> dict[str, Any]:
    def config(size: int) -> TrainConfig:
        pictures = training.STEPS * training.BATCH  # equal for all: so other numbers of steps
        return replace(training.CONFIG, batch_size=size, steps=pictures // size)

    walks = {str(b): trainer_of(training.NET, config(b)).steps() for b in BATCHES}
    trainer = trainer_of(training.NET, config(64))
    weights = sum(p.numel() for p in trainer.denoiser.parameters())
    return {
        "net": training.NET.to_dict(),
        "weights": weights,
        # weights, gradients, two averages of AdamW, the moving average; four bytes each
        "fixed_mb": round(5 * 4 * weights / MB, 2),
        "kept_mb": {
            str(b): kept_for_backward(lambda b=b: loss_of(trainer, b)) for b in BATCHES
        },
        "milliseconds": taking_turns(walks, 7),
    }  # fmt: skip


SIDES, WIDTHS, SHAPE_BATCH = (8, 16, 32, 64), (8, 16, 32, 64), 16


def _shaped(side: int, width: int) -> Trainer:
    """Training on random pictures of a side, with a net of two levels, `width` and its double."""
    generator = torch.Generator().manual_seed(0)
    shape = (256, 1, side, side)
    pictures = ImageSet(
        "random", torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    )
    denoiser = Denoiser(UNet(UNetConfig(channels=(width, 2 * width))), noise.linear())
    return Trainer(denoiser, pictures, TrainConfig(steps=100, batch_size=SHAPE_BATCH), "cpu")


def _sampling(trainer: Trainer) -> Iterator[Tensor]:
    """What one step of sampling asks of the net, again and again."""
    x0, _ = trainer.data.batch(0, SHAPE_BATCH)
    level = trainer.denoiser.schedule(torch.tensor(500))
    average = trainer.average
    while True:
        with torch.inference_mode():
            x0_hat = average(x0, level)
        yield x0_hat  # not inside: the mode would be on for whoever called


def _row(trainer: Trainer) -> dict[str, Any]:
    """What needs no clock: parameters, operations for one picture forward, MB for the backward."""
    x0, _ = trainer.data.batch(0, 1)
    return {
        "parameters": sum(p.numel() for p in trainer.denoiser.parameters()),
        "forward_flops": forward_flops(trainer.denoiser.net, x0),
        "kept_mb": kept_for_backward(lambda: loss_of(trainer, SHAPE_BATCH)),
    }


def shape() -> dict[str, Any]:
    kinds = {
        "side": {str(side): _shaped(side, 16) for side in SIDES},
        "width": {str(width): _shaped(16, width) for width in WIDTHS},
    }
    found: dict[str, Any] = {"batch": SHAPE_BATCH, "width_of_sides": 16, "side_of_widths": 16}
    for kind, trainers in kinds.items():
        rows = {name: _row(trainer) for name, trainer in trainers.items()}
        walks = {name: t.steps() for name, t in trainers.items()}
        walks |= {f"{name}, sampling": _sampling(t) for name, t in trainers.items()}
        times = taking_turns(walks, 9)
        for name, row in rows.items():
            row["training_ms"], row["sampling_ms"] = times[name], times[f"{name}, sampling"]
        found[kind] = rows
    return found


def memory() -> dict[str, Any]:
    trainer = trainer_of(training.NET, training.CONFIG)
    return {
        "batch": 256,
        "kept_mb": {
            "fp32": kept_for_backward(lambda: loss_of(trainer, 256)),
            "accumulate = 8": kept_for_backward(lambda: loss_of(trainer, 32)),
            "bf16 autocast": kept_for_backward(lambda: loss_of(trainer, 256, bf16=True)),
        },
    }


# too little memory


LARGE, ALLOWED_MB = 1024, 400


def _train_in_little_memory(accumulate: int, answer: Any) -> None:
    """In a process of its own: one step of a large batch with ALLOWED_MB more than it has."""
    torch.set_num_threads(1)
    config = replace(training.CONFIG, batch_size=LARGE, accumulate=accumulate, steps=2)
    steps = trainer_of(training.NET, config)
    loss_of(steps, 2).backward()  # libraries load what they need
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + int(ALLOWED_MB * MB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    began = time.perf_counter()
    try:
        loss = float(next(steps.steps()).loss)
        answer.send({"loss": round(loss, 4), "seconds": round(time.perf_counter() - began, 2)})
    except (RuntimeError, MemoryError) as error:
        answer.send({"error": str(error).splitlines()[0][:200] or type(error).__name__})


def out_of_memory() -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {"batch": LARGE, "allowed_mb": ALLOWED_MB}
    for accumulate in (1, 4, 16):
        ours, theirs = context.Pipe()
        process = context.Process(target=_train_in_little_memory, args=(accumulate, theirs))
        process.start()
        theirs.close()  # so that a child that dies unheard ends the wait
        found[f"accumulate = {accumulate}"] = ours.recv()
        process.join()
    return found


# several processes


def processes() -> dict[str, Any]:
    script = Path(__file__).parent / "ddp.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    found: dict[str, Any] = {"cores": os.cpu_count(), "1": [], "2": []}
    for n in (1, 2, 1, 2):  # in turn: on a busy machine one measurement says little
        done = subprocess.run(
            [*torchrun, f"--nproc-per-node={n}", str(script)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        found[f"{n}"].append(json.loads(done.stdout.splitlines()[-1]))
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "out_of_memory": out_of_memory,
    "memory": memory,
    "processes": processes,
    "switches": switches,
    "attention": attention,
    "accumulation": accumulation,
    "workers": workers,
    "batch": batch,
    "shape": shape,
}


def main() -> None:
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    result["machine"] = machine()
    for name, measure in PARTS.items():
        if name not in result:
            result[name] = measure()
            RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(name, json.dumps(result[name])[:1500], flush=True)
    print(f"written: {RESULT.name}")


if __name__ == "__main__":
    main()
