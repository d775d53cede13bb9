"""Guidance: functions that take a denoiser and give back a changed one.

Samplers see no difference, so guidance composes: `clip(cfg(denoiser, 2.0))`.
"""

import functools

import torch
from torch import Tensor

from .denoiser import NO_CLASS, Denoise
from .errors import UserError
from .noise import Level

# What a changed denoiser keeps of the one it was made from.
_SHARED = ("net", "device", "schedule", "classes", "image_shape", "data")


def _changed(denoiser: Denoise, function: Denoise) -> Denoise:
    return functools.update_wrapper(function, denoiser, assigned=_SHARED, updated=())


def cfg(denoiser: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, in x_0 instead of eps).

        x_0 = unconditional + scale * (conditional - unconditional)

    The guidance scale is 1 for the plain conditional denoiser and 0 for the unconditional one.
    (The paper's w is scale - 1.) Both halves are one call on a batch of twice the size.

    Raises:
        UserError (when called): no labels given.
    """

    def guided(x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            raise UserError("Guidance pulls towards a class: pass labels (cond=...).")
        if level.signal.ndim:  # one level per example: twice, too
            level = Level(*(torch.cat([part, part]) for part in level))
        both = denoiser(
            torch.cat([x_t, x_t]), level, torch.cat([cond, torch.full_like(cond, NO_CLASS)])
        )
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return _changed(denoiser, guided)


def clip(denoiser: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Keep every estimate of x_0 in the data's range, as the DDPM paper's code does."""

    def clipped(x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        return denoiser(x_t, level, cond).clamp(low, high)

    return _changed(denoiser, clipped)
