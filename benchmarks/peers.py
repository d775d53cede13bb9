"""Training and sampling beside two well-known libraries, on nets of equal cost.

    make benchmark                  # installs them beside .venv, and writes runs/peers.json
    make benchmark OUT=benchmarks/results/peers.json        # renews the figures that are quoted

or, where they are installed already,

    PYTHONPATH=. python benchmarks/peers.py                # writes results/peers.json
    PYTHONPATH=. python benchmarks/peers.py --compiled     # adds the rows with compiled nets

The peers are denoising-diffusion-pytorch and diffusers. Nets have the same input shape, and forward
passes whose floating point operations agree within 5% (counted here, written down). All contestants
are timed in one process, taking turns, so that a noisy machine is noisy to all of them alike.

A peer's training step is that of its own trainer: the class `Trainer` there, the example script
train_unconditional.py here, with their optimisers, EMA and gradient clipping. Left out are
accelerate, which could only add to their time, and their reading of picture files: all get the same
batches from memory. A peer's sampling is its own DDIM, ours clips x_0 as theirs do.

On a CPU the clock is the processor time of this process, run with one thread (OMP_NUM_THREADS=1):
what other programs take of the machine does not count. On a GPU it is wall time.

Rows: "default" is what each does if asked for nothing else. On a GPU ours then computes in bf16
or fp16, so a row "equal precision" gives theirs the same; on a CPU all compute in float32 by
default, and the rows would be one.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor, nn

from diffusion_lib import EMA, ImageSet, TrainConfig, Trainer, UNet, UNetConfig, clip, sample
from diffusion_lib.denoiser import Denoiser, training_loss
from diffusion_lib.noise import linear
from diffusion_lib.train import forward_flops, pick_device

try:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from ema_pytorch import EMA as LucidrainsEMA
except ModuleNotFoundError as missing:
    sys.exit(
        f"This compares with two other libraries, of which {missing.name} is not installed. "
        "`make benchmark` installs them and runs it."
    )

SIDE, BATCH, SAMPLES, SAMPLER_STEPS = 32, 64, 64, 10
WIDTHS = (32, 64, 72)
RESULTS = Path(__file__).parent / "results"
Step = Callable[[], object]


# --- the nets ---------------------------------------------------------------------------------


def our_net() -> UNet:
    return UNet(UNetConfig(channels=WIDTHS))


def lucidrains_net() -> Unet:
    return Unet(24, dim_mults=(1, 2, 4), channels=1)


def diffusers_net() -> UNet2DModel:
    """With the same widths it is the same architecture as ours, to the last parameter."""
    return UNet2DModel(
        sample_size=SIDE, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=WIDTHS, norm_num_groups=8, attention_head_dim=None,
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3,
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {
    "diffusion_lib": our_net,
    "denoising-diffusion-pytorch": lucidrains_net,
    "diffusers": diffusers_net,
}


def describe(net: nn.Module) -> dict[str, int]:
    """Parameters, and floating point operations of a forward pass for one picture."""
    parameters = sum(p.numel() for p in net.parameters())
    flops = forward_flops(net, torch.zeros(1, 1, SIDE, SIDE))
    return {"parameters": parameters, "forward_flops": flops}


# --- a training step of each ------------------------------------------------------------------


def our_step(pictures: ImageSet, device: torch.device, compiled: bool, half: bool) -> Step:
    config = TrainConfig(steps=10**6, batch_size=BATCH, compile=compiled)
    trainer = Trainer(Denoiser(our_net(), linear()), pictures, config, device)
    steps = trainer.steps()
    return lambda: next(steps)


def batches(pictures: ImageSet, device: torch.device) -> Iterator[Tensor]:
    there = pictures.to(device)
    return (there.batch(step, BATCH)[0] for step in count())


def autocast(device: torch.device, half: bool) -> AbstractContextManager[Any]:
    if not half:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def lucidrains_step(pictures: ImageSet, device: torch.device, compiled: bool, half: bool) -> Step:
    """As in `Trainer.train`, with the defaults of `Trainer`."""
    diffusion = GaussianDiffusion(lucidrains_net(), image_size=SIDE).to(device)
    ema = LucidrainsEMA(diffusion, beta=0.995, update_every=10).to(device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    model = torch.compile(diffusion) if compiled else diffusion
    source = batches(pictures, device)

    def step() -> None:
        diffusion.train()
        with autocast(device, half):
            loss = model((next(source) + 1) / 2)  # it wants [0, 1]
        loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return step


def diffusers_step(pictures: ImageSet, device: torch.device, compiled: bool, half: bool) -> Step:
    """As in examples/unconditional_image_generation/train_unconditional.py, with --use_ema."""
    net = diffusers_net().to(device)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    ema.to(device)
    scheduler = DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10**6)
    model = torch.compile(net) if compiled else net
    net.train()
    source = batches(pictures, device)

    def step() -> None:
        images = next(source)
        noise = torch.randn(images.shape, device=device)
        t = torch.randint(0, 1000, (len(images),), device=device).long()
        noisy = scheduler.add_noise(images, noise, t)
        with autocast(device, half):
            out = model(noisy, t).sample
            loss = F.mse_loss(out.float(), noise.float())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        loss.detach().item()

    return step


STEPS = {
    "diffusion_lib": our_step,
    "denoising-diffusion-pytorch": lucidrains_step,
    "diffusers": diffusers_step,
}


# --- sampling by each -------------------------------------------------------------------------


def our_sampling(device: torch.device, compiled: bool, half: bool) -> Step:
    net = our_net().to(device, memory_format=torch.channels_last)
    # Labels, classes and the like play no part: the net alone is compiled, as with the peers.
    denoiser = Denoiser(torch.compile(net) if compiled else net, linear()).eval()
    levels = denoiser.schedule.levels(SAMPLER_STEPS)

    def run() -> Tensor:
        with autocast(device, half):
            return sample(clip(denoiser), (SAMPLES, 1, SIDE, SIDE), levels)

    return run


def lucidrains_sampling(device: torch.device, compiled: bool, half: bool) -> Step:
    diffusion = GaussianDiffusion(
        lucidrains_net(), image_size=SIDE, sampling_timesteps=SAMPLER_STEPS
    )
    diffusion = diffusion.to(device).eval()
    if compiled:
        diffusion.model.forward = torch.compile(diffusion.model.forward)

    def run() -> Tensor:
        with autocast(device, half):
            return diffusion.sample(batch_size=SAMPLES)

    return run


def diffusers_sampling(device: torch.device, compiled: bool, half: bool) -> Step:
    net = diffusers_net().to(device).eval()
    if compiled:
        net.forward = torch.compile(net.forward)
    pipeline = DDIMPipeline(net, DDIMScheduler(1000))
    pipeline.set_progress_bar_config(disable=True)

    def run() -> object:
        with autocast(device, half):
            return pipeline(batch_size=SAMPLES, num_inference_steps=SAMPLER_STEPS, output_type="np")

    return run


SAMPLINGS = {
    "diffusion_lib": our_sampling,
    "denoising-diffusion-pytorch": lucidrains_sampling,
    "diffusers": diffusers_sampling,
}


# --- our switches, one at a time --------------------------------------------------------------


def switched_step(
    pictures: ImageSet,
    device: torch.device,
    *,
    channels_last: bool = True,
    fused: bool = True,
    foreach_ema: bool = True,
    wait: bool = False,
) -> Step:
    """What `Trainer` does in a step, written out, with its choices as options."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    denoiser = Denoiser(our_net(), linear()).to(device, memory_format=layout)
    ema = EMA(denoiser.net)
    parameters = list(denoiser.net.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-3, betas=(0.9, 0.99), fused=fused or None)
    source = batches(pictures, device)

    def step() -> None:
        x0 = next(source).contiguous(memory_format=layout)
        eps = torch.randn_like(x0)
        loss, _, _ = training_loss(denoiser, x0, eps=eps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if foreach_ema:
            ema.update(denoiser.net)
        else:
            with torch.no_grad():
                for mine, theirs in zip(ema.model.parameters(), parameters, strict=True):
                    mine.lerp_(theirs, 1 - ema.decay)
        if wait:
            loss.item()

    return step


def switches(pictures: ImageSet, device: torch.device) -> dict[str, Step]:
    off: dict[str, dict[str, bool]] = {
        "all on": {},
        "contiguous layout": {"channels_last": False},
        "AdamW not fused": {"fused": False},
        "EMA tensor by tensor": {"foreach_ema": False},
        "loss.item() each step": {"wait": True},
    }
    steps = {name: switched_step(pictures, device, **options) for name, options in off.items()}
    if device.type == "cpu":  # slower or faster, by processor; see results/training.json
        config = TrainConfig(steps=10**6, batch_size=BATCH)
        for precision in ("fp32", "bf16"):
            trainer = Trainer(
                Denoiser(our_net(), linear()), pictures, replace(config, precision=precision),
                device,
            )  # fmt: skip
            steps[f"Trainer, {precision}"] = trainer.steps().__next__
    return steps


# --- timing -----------------------------------------------------------------------------------


def race(runs: dict[str, Step], rounds: int, warm_up: int = 1) -> dict[str, dict[str, float]]:
    """Seconds of each contestant, all taking turns, each round in another order."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for k in range(warm_up + rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            began = clock()
            runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if k >= warm_up:
                seconds[name].append(clock() - began)
    return {
        name: {
            "median": round(statistics.median(s), 4),
            "min": round(min(s), 4),
            "max": round(max(s), 4),
        }
        for name, s in seconds.items()
    }


def with_ratio(row: dict[str, dict[str, float]], goal: float) -> dict[str, Any]:
    """A row with how many times faster ours is than the faster peer."""
    peers = {name: times["median"] for name, times in row.items() if name != "diffusion_lib"}
    best = min(peers, key=peers.__getitem__)
    ratio = round(peers[best] / row["diffusion_lib"]["median"], 3)
    medians = ", ".join(f"{name} {times['median']:.3f} s" for name, times in row.items())
    print(f"{ratio:.2f} times as fast as {best}, goal {goal}; medians: {medians}", flush=True)
    return {"seconds": row, "faster_peer": best, "ratio": ratio, "goal": goal, "met": ratio >= goal}


def made_pictures() -> ImageSet:
    """Random pictures: what is drawn on them makes no step faster."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1024, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return ImageSet("made", images)


def contest(device: torch.device, compiled: bool, half: bool, options: argparse.Namespace,
            goals: tuple[float, float]) -> dict[str, Any]:  # fmt: skip
    pictures = made_pictures()
    steps = {name: make(pictures, device, compiled, half) for name, make in STEPS.items()}
    training = race(steps, options.rounds)
    del steps
    sampling = {name: make(device, compiled, half) for name, make in SAMPLINGS.items()}
    return {
        "training": with_ratio(training, goals[0]),
        "sampling": with_ratio(race(sampling, options.sampling_rounds), goals[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true", help="only the rows of compiled nets")
    parser.add_argument("--rounds", type=int, default=7, help="of training steps")
    parser.add_argument("--sampling-rounds", type=int, default=3, help="of drawing 64 pictures")
    parser.add_argument("--note", default="", help="what else the machine was doing, for the JSON")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = pick_device()
    gpu = device.type == "cuda"
    nets = {name: describe(make()) for name, make in NETS.items()}
    flops = [net["forward_flops"] for net in nets.values()]
    assert max(flops) / min(flops) <= 1.05, f"the nets differ too much in cost: {nets}"

    if options.compiled:
        result = json.loads(options.out.read_text(encoding="utf-8"))
        result["rows"]["compiled"] = contest(device, True, gpu, options, (1.2, 1.2))
        result["rows"]["compiled"]["machine"] = {**machine(), "note": options.note}
    else:
        result = {
            "machine": {**machine(), "note": options.note},
            "versions": {n: importlib.metadata.version(n) for n in list(NETS)[1:]},
            "input": [1, SIDE, SIDE],
            "batch": BATCH,
            "clock": "wall" if gpu else "processor time, one thread",
            "sampling": f"{SAMPLES} pictures, DDIM, {SAMPLER_STEPS} steps, x_0 clipped",
            "nets": nets,
            "rows": {"compiled": "not measured"},
            "gpu": "this one" if gpu else "not measured",
        }
        goals = (2.0, 2.0) if gpu else (1.3, 1.5)
        result["rows"]["default"] = contest(device, False, False, options, goals)
        if gpu:
            result["rows"]["equal precision"] = contest(device, False, True, options, (1.2, 1.2))
        write(result, options.out)  # what follows can be long
        result["switches"] = race(switches(made_pictures(), device), options.rounds)
    write(result, options.out)


def write(result: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
