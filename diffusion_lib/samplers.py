"""Samplers: from pure noise to data, one step at a time.

Every sampler here is a loop around one formula, `step`. They differ in how they choose the pair
(x_0, eps) and the amount of fresh noise. All are generators, so a caller sees each step:

    for now in ddim(denoise, x, schedule.levels(50)):
        show(now.x0)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .denoiser import Denoise, randn_like
from .errors import UserError
from .noise import Level
from .progress import progress


class Step(NamedTuple):
    """Where a sampler stands after a step.

    Attributes:
        x: the sample, now at `level`. Shape: as the sampler's input.
        x0: the denoiser's estimate of the clean data, made on the way here.
        level: the noise level reached.
    """

    x: Tensor
    x0: Tensor
    level: Level


def step(
    x0: Tensor,
    eps: Tensor,
    to: Level,
    *,
    nu: Tensor | float = 0.0,
    noise_scale: Tensor | float | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Put clean data and noise together again at the level `to`.

        x = signal x_0 + sqrt(noise^2 - nu^2) eps + nu z

    This is eq. 12 of DDIM (Song et al. 2020): part of the old noise eps gives way to fresh noise
    z of standard deviation nu, and the sum keeps the variance noise^2.

    Args:
        x0: estimate of the clean data, (B, ...).
        eps: estimate of the noise, (B, ...).
        to: the level to go to.
        nu: standard deviation of the fresh noise, from 0 to `to.noise`.
        noise_scale: scale z by this instead of by nu (DDPM's fixed-large variance).
        z: fresh standard normal noise; needed where nu is not 0. It is never added into clean
            data.
    """
    x = to.signal * x0 + (to.noise**2 - nu**2).sqrt() * eps
    if z is None:
        return x
    scale = torch.as_tensor(nu if noise_scale is None else noise_scale).to(to.noise)
    return x + torch.where(to.noise > 0, scale, 0) * z


def posterior_nu(now: Level, to: Level) -> Tensor:
    """Standard deviation of q(x_s | x_t, x_0) between two levels t > s. Shape: as the levels'.

    noise_s sqrt(1 - SNR_t / SNR_s): the square root of DDPM's beta-tilde (eq. 7), for any two
    levels of any schedule.
    """
    ratio = (now.signal * to.noise) / (now.noise * to.signal)  # sqrt(SNR_t / SNR_s)
    return to.noise * (1 - ratio**2).clamp(min=0).sqrt()


def eps_from(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise that x holds if its clean part is x0: (x - signal x0) / noise. Shape: as x."""
    return (x - level.signal * x0) / level.noise


def x0_from(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """The clean part of x if its noise is eps: (x - noise eps) / signal. Shape: as x."""
    return (x - level.noise * eps) / level.signal


class Sampler(Protocol):
    """What `sample` runs: `(denoise, x, levels, generator=..., cond=...)` -> steps."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Sequence[Level],
        *,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Step]: ...


def ddpm(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    variance: Literal["small", "large"] = "small",
) -> Iterator[Step]:
    """Ancestral sampling: algorithm 2 of the DDPM paper (Ho et al. 2020).

    Each step draws from q(x_s | x_t, x_0) with the estimated x_0.

    Args:
        denoise: estimates x_0.
        x: noise at `levels[0]`, (B, ...).
        levels: the noisiest first, clean data last.
        cond: class labels (B,), or None.
        generator: source of the fresh noise.
        variance: "small": that of q(x_s | x_t, x_0), beta-tilde. "large": the mean is the same,
            the variance 1 - signal_t^2 / signal_s^2, which is beta_t between neighbours.
    """
    for now, to in pairwise(levels):
        x0 = denoise(x, now, cond)
        eps = eps_from(x, x0, now)
        large = (1 - (now.signal / to.signal) ** 2).sqrt() if variance == "large" else None
        z = randn_like(x, generator) if to.noise > 0 else None
        x = step(x0, eps, to, nu=posterior_nu(now, to), noise_scale=large, z=z)
        yield Step(x, x0, to)


def ddim(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    eta: float = 0.0,
) -> Iterator[Step]:
    """DDIM (Song et al. 2020, eq. 12 and 16): as few steps as you like.

    eta = 0 adds no noise, so a starting noise always leads to the same sample; eta = 1 is `ddpm`
    with the small variance. On the flow schedule eta = 0 is Euler's method, on EDM's too.

    Takes what `ddpm` takes, and `eta`, the share of the posterior's standard deviation to draw
    afresh, from 0 to 1.

    Raises:
        UserError: eta outside 0 to 1.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta must lie between 0 (no fresh noise) and 1 (DDPM), not at {eta}.")
    for now, to in pairwise(levels):
        x0 = denoise(x, now, cond)
        eps = eps_from(x, x0, now)
        z = randn_like(x, generator) if eta > 0 and to.noise > 0 else None
        x = step(x0, eps, to, nu=eta * posterior_nu(now, to), z=z)
        yield Step(x, x0, to)


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """DPM-Solver++(2M), second order with one evaluation a step (Lu et al. 2022b, algorithm 2).

    x_0 is extrapolated in log SNR from this step's estimate and the last one's. The first step
    and the step to clean data, where log SNR is infinite, are DDIM steps; so is the one after pure
    noise, since an estimate made infinitely far away counts for nothing.

    Takes what `ddpm` takes; `generator` is not used, nothing random is added.
    """
    last: tuple[Tensor, Level] | None = None
    for now, to in pairwise(levels):
        x0 = denoise(x, now, cond)
        ahead = x0
        if last is not None and to.noise > 0:
            r = (now.log_snr - last[1].log_snr) / (to.log_snr - now.log_snr)
            ahead = x0 + (x0 - last[0]) / (2 * r)
        # The noise that belongs to the extrapolated x_0, solved again from x. Keeping the
        # network's own eps instead leaves an error that no number of steps removes.
        x = step(ahead, eps_from(x, ahead, now), to)
        last = x0, now
        yield Step(x, x0, to)


def heun(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Heun's method, second order with two evaluations a step (Karras et al. 2022, algorithm 1).

    In x / signal as a function of noise / signal, eps is the slope: it is averaged over both ends
    of the step. A step from pure noise or to clean data, where one end has no slope, is a DDIM
    step.

    Takes what `ddpm` takes; `generator` is not used, nothing random is added.
    """
    for now, to in pairwise(levels):
        x0 = denoise(x, now, cond)
        eps = eps_from(x, x0, now)
        there = step(x0, eps, to)
        if now.signal > 0 and to.noise > 0:
            mean_eps = (eps + eps_from(there, denoise(there, to, cond), to)) / 2
            there = step(x0_from(x, mean_eps, now), mean_eps, to)
        x = there
        yield Step(x, x0, to)


def invert(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """DDIM run upwards: from data to the noise that `ddim` would lead back to it.

    The walk starts at the first level above clean data, since clean data holds no noise to scale
    up (Song et al. 2020, section 4.3 and appendix D).

    Takes what `ddpm` takes, `levels` in the same order (noisiest first), but x is data;
    `generator` is not used.
    """
    for now, to in pairwise(reversed(levels[:-1])):
        x0 = denoise(x, now, cond)
        x = step(x0, eps_from(x, x0, now), to)
        yield Step(x, x0, to)


def start(
    shape: Sequence[int],
    level: Level,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise to start a sampler from: x_T ~ N(0, (signal^2 + noise^2) I), of the given shape.

    That is the variance of unit-variance data at this level: N(0, I) on a variance-preserving
    schedule, as in DDPM's algorithm 2.
    """
    std = float((level.signal**2 + level.noise**2).sqrt())
    return std * randn_like(torch.empty(tuple(shape), dtype=dtype, device=device), generator)


def sample(
    denoiser: Denoise,
    shape: Sequence[int],
    levels: Sequence[Level],
    *,
    sampler: Sampler = ddim,
    cond: Tensor | Sequence[int] | None = None,
    seed: int = 0,
) -> Tensor:
    """Draw samples: from noise at `levels[0]` down to clean data, with a progress bar.

    All random numbers come from one CPU generator in a fixed order, so a seed gives the same
    picture on a CPU, on a GPU and in the page.

    Args:
        denoiser: a `Denoiser`, also a guided or clipped one.
        shape: of the result, (B, C, H, W).
        levels: the noisiest first, for example `denoiser.schedule.levels(50)`.
        sampler: `ddim`, `ddpm`, `dpmpp_2m`, `heun`, or one with options bound by
            `functools.partial(ddim, eta=1.0)`.
        cond: one class label per sample, or None.
        seed: fixes the starting noise and all fresh noise.

    Returns:
        Samples in the data's units, [-1, 1] for images (not clipped). Shape as asked, on the
        denoiser's device.

    Raises:
        UserError: labels of the wrong number or out of range.
    """
    device = getattr(denoiser, "device", torch.device("cpu"))
    cond = check_labels(cond, shape[0], getattr(denoiser, "classes", None), device)
    generator = torch.Generator().manual_seed(seed)
    # inference_mode: no autograd bookkeeping at all (measured in benchmarks/sampling.py).
    with torch.inference_mode(), _evaluating(getattr(denoiser, "net", None)):
        x = start(shape, levels[0], generator, device=device)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        steps = sampler(denoiser, x, levels, cond=cond, generator=generator)
        for now in progress(steps, "sampling", total=len(levels) - 1):
            x = now.x
    return x.clone(memory_format=torch.contiguous_format)


@contextmanager
def _evaluating(net: nn.Module | None) -> Iterator[None]:
    """Eval mode for a while: with dropout on, a net never draws the same sample twice."""
    training = net is not None and net.training
    if net is not None and training:
        net.eval()
    try:
        yield
    finally:
        if net is not None and training:
            net.train()


def check_labels(
    cond: Tensor | Sequence[int] | None,
    n: int,
    classes: int | None,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """Class labels as an int64 tensor (n,) on the device, checked before the work begins.

    On a GPU a label out of range would otherwise end in a device assertion that names neither.

    Raises:
        UserError: not n labels, a label that is neither -1 nor in 0..classes - 1, or labels for
            a denoiser without classes.
    """
    if cond is None:
        return None
    labels = torch.as_tensor(cond, dtype=torch.long).cpu()
    if labels.shape != (n,):
        raise UserError(
            f"{n} samples need {n} labels in a row, one each; got shape {tuple(labels.shape)}."
        )
    if classes is None and bool((labels >= 0).any()):
        raise UserError("This denoiser was trained without classes: leave the labels out.")
    if classes is not None:
        wrong = labels[(labels < -1) | (labels >= classes)]
        if len(wrong):
            raise UserError(
                f"Label {int(wrong[0])} is out of range: this denoiser knows the classes 0 to "
                f"{classes - 1}, and -1 for none."
            )
    return labels.to(device)
