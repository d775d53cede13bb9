"""Prediction kinds: what the network is asked for, and how to get x_0 and eps back from it.

Every kind asks for a linear combination of the clean data and the noise,

    target = a * x_0 + b * eps,

and x_t = signal * x_0 + noise * eps is another one. Two equations, two unknowns: one 2x2 solve
serves all kinds.
"""

from typing import Literal

import torch
from torch import Tensor

from .errors import UserError
from .noise import Level

Kind = Literal["eps", "x0", "v", "flow", "edm"]
Weight = Literal["simple", "min_snr", "edm"]

KINDS: tuple[Kind, ...] = ("eps", "x0", "v", "flow", "edm")
WEIGHTS: tuple[Weight, ...] = ("simple", "min_snr", "edm")

SIGMA_DATA = 0.5  # standard deviation of the data that EDM's preconditioning assumes


def coefficients(kind: Kind, level: Level) -> tuple[Tensor, Tensor]:
    """(a, b) of target = a * x_0 + b * eps. Shapes: as the level's.

    - "eps": the noise (DDPM, Ho et al. 2020, eq. 12).
    - "x0": the clean data.
    - "v": signal * eps - noise * x_0 (Salimans & Ho 2022, appendix D).
    - "flow": eps - x_0, the velocity dx/dt of the straight path (Lipman et al. 2022).
    - "edm": the output of EDM's preconditioned net F (Karras et al. 2022, eq. 8), for any signal.

    Raises:
        UserError: an unknown kind.
    """
    signal, noise = level.signal, level.noise
    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    if kind == "eps":
        return zero, one
    if kind == "x0":
        return one, zero
    if kind == "v":
        return -noise, signal
    if kind == "flow":
        return -one, one
    if kind == "edm":
        scale = SIGMA_DATA * (noise**2 + (signal * SIGMA_DATA) ** 2).sqrt()
        return noise / scale, -signal * SIGMA_DATA**2 / scale
    raise UserError(f"Unknown prediction kind {kind!r}: use one of {', '.join(KINDS)}.")


def determinant(kind: Kind, level: Level) -> Tensor:
    """signal * b - noise * a. Where it is 0, x_t and the target say the same thing twice."""
    a, b = coefficients(kind, level)
    return level.signal * b - level.noise * a


def target(kind: Kind, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """What a perfect network would put out: a * x_0 + b * eps. Shape: as x0."""
    a, b = coefficients(kind, level)
    return a * x0 + b * eps


def solve(kind: Kind, x_t: Tensor, out: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """The (x_0, eps) that agree with both x_t and the network's output. Shapes: as x_t.

    Cramer's rule for the system x_t = signal x_0 + noise eps, out = a x_0 + b eps. Not finite
    where the determinant is 0, for example for "eps" at signal = 0.
    """
    a, b = coefficients(kind, level)
    det = level.signal * b - level.noise * a
    return (b * x_t - level.noise * out) / det, (level.signal * out - a * x_t) / det


def weight(name: Weight, kind: Kind, level: Level, *, gamma: float = 5.0) -> Tensor:
    """Factor on the squared error of the network's output. Shape: as the level's.

    An error in the output is (det / noise) times an error in x_0. So a weighting stated for the
    error of x_0 serves every kind, multiplied by (noise / det)^2.

    Args:
        name: "simple": 1, each kind's own plain squared error (DDPM, eq. 14 for eps).
            "min_snr": min(SNR, gamma) on the error of x_0 (Hang et al. 2023).
            "edm": (sigma^2 + s^2) / (sigma s)^2 on the error of x_0, s = SIGMA_DATA and sigma =
            noise / signal scaled to any signal (Karras et al. 2022, section 5).

    Raises:
        UserError: an unknown name.
    """
    if name == "simple":
        return torch.ones_like(level.signal)
    if name == "min_snr":
        on_x0 = level.snr.clamp(max=gamma)
    elif name == "edm":
        variance = level.noise**2 + (level.signal * SIGMA_DATA) ** 2
        on_x0 = variance / (level.noise * SIGMA_DATA) ** 2
    else:
        raise UserError(f"Unknown loss weighting {name!r}: use one of {', '.join(WEIGHTS)}.")
    return on_x0 * (level.noise / determinant(kind, level)) ** 2
