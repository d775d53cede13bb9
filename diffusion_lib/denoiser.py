"""A denoiser turns a noisy x_t into its best guess of the clean x_0, and how to train one.

Samplers, guidance and metrics know nothing but this one face: `denoise(x_t, level, cond) -> x_0`.
Only `Denoiser` knows that behind it stands a network, and what that network is fed.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from .errors import UserError
from .noise import DiscreteSchedule, Level, Schedule
from .predict import SIGMA_DATA, Kind, Weight, coefficients, solve, target
from .predict import weight as loss_weight

NO_CLASS = -1  # the label that means "no class": the unconditional half of classifier-free guidance


class Denoise(Protocol):
    """Anything that estimates x_0: a `Denoiser`, a `GaussianMixture`, a guided one."""

    def __call__(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor: ...


class TimeSampler(Protocol):
    """Draws training times: `(schedule, n, generator) -> t` of shape (n,)."""

    def __call__(
        self, schedule: Schedule, n: int, generator: torch.Generator | None = None
    ) -> Tensor: ...


def uniform(schedule: Schedule, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Every noise level of the schedule alike: t ~ U{1, ..., T} on a discrete one."""
    return schedule.random_times(n, generator)


class Denoiser(nn.Module):
    """A network, the noise schedule it works on, and the kind of thing it predicts.

    Attributes:
        net: `net(x, t, cond) -> out`, with x and out (B, C, H, W), t (B,) and cond (B,) or None.
        schedule: the noise schedule.
        kind: the prediction kind, see `predict.coefficients`.
        classes: number of classes the net was trained with; None if it knows none.
        image_shape: (C, H, W) of the data it was trained on, where known.
        data: name of the data set it was trained on, where known.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        kind: Kind = "eps",
        *,
        classes: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
        data: str | None = None,
    ) -> None:
        """
        Raises:
            UserError: an unknown kind, or kind "eps" on a schedule that ends in pure noise.
        """
        super().__init__()
        top = schedule(schedule.times(1)[0])
        coefficients(kind, top)  # an unknown kind is refused here, not in the first training step
        if kind == "eps" and bool(top.signal == 0):
            raise UserError(
                "This noise schedule ends in pure noise, where knowing eps says nothing about "
                "x_0. Use the prediction kind 'v' (or 'x0') with it."
            )
        self.net, self.schedule, self.kind = net, schedule, kind
        self.classes, self.image_shape, self.data = classes, image_shape, data

    def with_net(self, net: nn.Module) -> "Denoiser":
        """The same denoiser around another network, such as an average of this one."""
        return Denoiser(
            net,
            self.schedule,
            self.kind,
            classes=self.classes,
            image_shape=self.image_shape,
            data=self.data,
        )

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next(self.net.parameters()).device

    def predict(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        """The network's own output, in the units of the prediction kind. Shape: as x_t.

        This is the one place that knows what a network is fed: the time t itself on a discrete
        schedule, 1000 t on a continuous one, and for "edm" log(noise) / 4 together with an input
        scaled to unit variance (Karras et al. 2022, table 1).
        """
        if self.kind == "edm":
            x_t = x_t / (level.noise**2 + (level.signal * SIGMA_DATA) ** 2).sqrt()
            time = level.noise.log() / 4
        elif isinstance(self.schedule, DiscreteSchedule):
            time = level.t
        else:
            time = 1000 * level.t
        # Integers up to 1000 are exact in float32; float64 times would slow the net down.
        time = time.to(x_t.device, torch.float32).reshape(-1).expand(len(x_t))
        return self.net(x_t, time, cond)

    def forward(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        """The estimate of the clean data, E[x_0 | x_t]. Shape: as x_t.

        Args:
            x_t: noisy data, (B, C, H, W).
            level: its noise level, of shape () or (B, 1, 1, 1).
            cond: class labels, (B,), `NO_CLASS` (-1) for none; None: none for the whole batch.
        """
        x0, _ = solve(self.kind, x_t, self.predict(x_t, level, cond), level)
        return x0


def drop_labels(
    cond: Tensor | None, probability: float, generator: torch.Generator | None = None
) -> Tensor | None:
    """Replace each label by `NO_CLASS` with the given probability, so that one net learns the
    conditional and the unconditional denoiser (Ho & Salimans 2022, algorithm 1). Shape (B,)."""
    if cond is None or probability == 0:
        return cond
    drop = torch.rand(cond.shape, generator=generator, device=cond.device) < probability
    return cond.masked_fill(drop, NO_CLASS)


def training_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Tensor | None = None,
    *,
    weight: Weight = "simple",
    sample_t: TimeSampler = uniform,
    drop_cond: float = 0.0,
    generator: torch.Generator | None = None,
    t: Tensor | None = None,
    eps: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One batch's training loss: algorithm 1 of the DDPM paper, for any kind and weighting.

    Args:
        x0: clean data in [-1, 1], (B, C, H, W).
        cond: class labels (B,), or None.
        weight: see `predict.weight`.
        sample_t: draws the times; used only where `t` is not given.
        drop_cond: probability of hiding a label.
        generator: on x0's device; all random numbers come from it, in the order t, eps, labels.
        t: times (B,) to use instead of drawing them.
        eps: noise, shaped as x0, to use instead of drawing it.

    Returns:
        The mean loss (), each example's unweighted squared error (B,), and the times (B,).
    """
    t = sample_t(denoiser.schedule, len(x0), generator).to(x0.device) if t is None else t
    eps = randn_like(x0, generator) if eps is None else eps
    cond = drop_labels(cond, drop_cond, generator)

    level = denoiser.schedule(t).like(x0)
    x_t = level.signal * x0 + level.noise * eps
    out = denoiser.predict(x_t, level, cond)
    error = out.to(x0.dtype) - target(denoiser.kind, x0, eps, level)  # fp32 under autocast too
    per_example = error.square().flatten(1).mean(1)
    loss = (loss_weight(weight, denoiser.kind, level).flatten() * per_example).mean()
    return loss, per_example.detach(), t


def randn_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise shaped as x, drawn on the generator's device and moved to x's.

    Always drawn in float32, so that one seed means the same noise at every precision.
    """
    device = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, device=device).to(x)
