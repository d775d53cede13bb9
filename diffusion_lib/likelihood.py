"""The variational bound: how many nats a diffusion model needs to describe data.

The bound on -log p(x_0) is a ledger of costs (DDPM, Ho et al. 2020, eq. 5),

    L_T + L_{T-1} + ... + L_1 + L_0,

in nats per example: for the start of the chain, each step, and the last step, the decoder. As for
samplers, a chain is a list of levels, the noisiest first and clean data last.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .data import keyed_generator
from .denoiser import Denoise, randn_like
from .errors import UserError
from .noise import Level
from .predict import Kind, determinant
from .progress import progress


class Ledger(NamedTuple):
    """The bound on -log p(x_0), item by item, in nats.

    Attributes:
        prior: L_T, (B,).
        steps: L_{t-1} for t = T, ..., 2, (n, B). Where steps were drawn at random, a row is the
            drawn step's cost times the size of the stratum it stands for.
        decoder: L_0, (B,).
        dims: numbers in one example.
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor
    dims: int

    @property
    def nats(self) -> Tensor:
        """The bound for each example. Shape (B,)."""
        return self.prior + self.steps.sum(0) + self.decoder

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits per number of an example, nats / (dims log 2). Shape (B,)."""
        return self.nats / (self.dims * math.log(2))


def prior_kl(x0: Tensor, level: Level) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)) in nats, (B,), float64 (DDPM, eq. 5).

    Where signal^2 + noise^2 is not 1, N(0, (signal^2 + noise^2) I) takes the place of N(0, I), as
    in `samplers.start`.

    Args:
        x0: clean data, (B, ...).
        level: the noisiest level, of shape ().
    """
    square = x0.double().flatten(1).square()
    signal2, noise2 = level.signal.to(square) ** 2, level.noise.to(square) ** 2
    variance = signal2 + noise2
    per_number = (signal2 * square + noise2) / variance - 1 - (noise2 / variance).log()
    return 0.5 * per_number.sum(1)


def vlb_weight(kind: Kind, now: Level, to: Level) -> Tensor:
    """The bound's factor on the summed squared error of a network's output, for one step.

    1/2 (SNR_s - SNR_t) on the error of x_0 (Kingma et al. 2021, section 4), in the units of the
    prediction kind; for eps it is that of DDPM's eq. 12 with the fixed-small variance. Shape: as
    the levels'. Infinite where `to` is clean: that step is the decoder's.
    """
    return 0.5 * (to.snr - now.snr) * (now.noise / determinant(kind, now)) ** 2


def step_kl(x0: Tensor, estimate: Tensor, now: Level, to: Level) -> Tensor:
    """L_{t-1} = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) in nats, (B,), float64.

    Both have the fixed-small variance, so this is 1/2 (SNR_s - SNR_t) times the summed squared
    error of the estimate (DDPM, eq. 8).

    Args:
        x0, estimate: clean data and the denoiser's estimate of it, (B, ...).
        now, to: levels t > s > 0, of shape () or (B,). float64, since neighbours' SNRs are close.
    """
    error2 = (x0 - estimate).double().flatten(1).square().sum(1)
    return vlb_weight("x0", now, to).to(error2) * error2


def decoder_nll(
    x0: Tensor, estimate: Tensor, variance: Tensor | float, grey_levels: int | None
) -> Tensor:
    """L_0 = -log p(x_0 | x_1) in nats, (B,), float64 (DDPM, section 3.3, eq. 13).

    p(x_0 | x_1) is N(estimate, variance I). For pictures, the real line is cut into one bin around
    each grey level, the first and the last open, and x_0 costs -log of its bin's probability.

    Args:
        x0: clean data, (B, ...), in [-1, 1] where there are grey levels.
        estimate: of x_0, made from x_1. Shape as x0.
        variance: beta_1 in DDPM. (Fixed-small gives 0 here, for which there is no density.)
        grey_levels: as in `ImageSet.levels`, evenly spaced from -1 to 1; None: the density itself,
            whose -log may be negative.

    Raises:
        UserError: a variance that is not positive, or fewer than 2 grey levels.
    """
    variance = torch.as_tensor(variance, dtype=torch.float64, device=x0.device)
    if not bool(variance > 0):
        raise UserError("The decoder's variance must be above 0; DDPM takes beta_1.")
    x0, estimate = x0.double(), estimate.double()
    if grey_levels is None:
        nll = 0.5 * ((2 * math.pi * variance).log() + (x0 - estimate) ** 2 / variance)
        return nll.flatten(1).sum(1)
    if grey_levels < 2:
        raise UserError(f"A decoder needs at least 2 grey levels, not {grey_levels}.")
    grey = ((x0 + 1) / 2 * (grey_levels - 1)).round().clamp(0, grey_levels - 1)  # 0, 1, ...
    low = ((2 * grey - 1) / (grey_levels - 1) - 1 - estimate) / variance.sqrt()
    high = ((2 * grey + 1) / (grey_levels - 1) - 1 - estimate) / variance.sqrt()
    low = torch.where(grey == 0, -math.inf, low)
    high = torch.where(grey == grey_levels - 1, math.inf, high)
    # Mirrored into the lower tail, where probabilities are small numbers and not close to 1.
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return -(log_high + (-torch.expm1(log_low - log_high)).log()).flatten(1).sum(1)


def vlb(
    denoise: Denoise,
    x0: Tensor,
    levels: Sequence[Level],
    cond: Tensor | None = None,
    *,
    grey_levels: int | None = None,
    variance: Tensor | float | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Ledger:
    """The bound on -log p(x_0) for any denoiser, term by term, with a progress bar.

    p is the chain of `samplers.ddpm`, with the decoder's noise in its last step. Each term is
    estimated from one random x_t, so the sum is unbiased.

    Args:
        denoise: estimates x_0.
        x0: clean data, (B, ...), on the denoiser's device; pictures in [-1, 1].
        levels: for example `denoiser.schedule.levels(1000)`: every step of DDPM's chain.
        cond: class labels (B,), or None.
        grey_levels: `ImageSet.levels` for probabilities of pictures, None for a density.
        variance: the decoder's; None is noise^2 at the lowest level above clean data (beta_1).
        steps: None takes every step. A number n draws one step from each of n strata, for every
            example anew: quicker, noisier and still unbiased.
        seed: fixes the noise and the drawn steps.

    Raises:
        UserError: fewer than 2 steps in the chain, n out of range, or a net in training mode.
    """
    total = len(levels) - 2  # steps between two noisy levels; the decoder takes the last one
    n = total if steps is None else steps
    if not 1 <= n <= total:
        raise UserError(f"This chain has {total} steps besides the decoder's; got steps={steps}.")
    if getattr(getattr(denoise, "net", None), "training", False):
        raise UserError("The net is in training mode: call denoiser.eval() first.")
    table = Level(*(torch.stack([getattr(level, f) for level in levels]) for f in Level._fields))

    def at(index: Tensor) -> Level:
        return Level(*(part[index] for part in table))

    def estimate(now: Level, generator: torch.Generator) -> Tensor:
        now = now.like(x0)
        return denoise(now.signal * x0 + now.noise * randn_like(x0, generator), now, cond)

    costs = []
    edges = (torch.arange(n + 1) * total / n).round().long().tolist()
    with torch.inference_mode():
        for k in progress(range(n), "adding up the bound"):
            generator = keyed_generator(seed, k)
            index = torch.randint(edges[k], edges[k + 1], (len(x0),), generator=generator)
            now, to = at(index), at(index + 1)
            cost = step_kl(x0, estimate(now, generator), now, to)
            costs.append((edges[k + 1] - edges[k]) * cost)
        last = at(torch.full((len(x0),), total))
        decoded = estimate(last, keyed_generator(seed, n))
        variance = levels[-2].noise ** 2 if variance is None else variance
        decoder = decoder_nll(x0, decoded, variance, grey_levels)
    return Ledger(prior_kl(x0, levels[0]), torch.stack(costs), decoder, x0[0].numel())
