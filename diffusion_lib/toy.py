"""A distribution whose every quantity is known: the exact oracle of this book.

A Gaussian mixture stays a Gaussian mixture under noise, so its density, score and best denoiser
have closed forms at every noise level. Formulas and samplers are checked against them, with no
network and no training.
"""

import math

import torch
from torch import Tensor

from .errors import UserError
from .noise import Level


class GaussianMixture:
    """A mixture of K round Gaussians in D dimensions: sum_k weight_k N(mean_k, std_k^2 I).

    It is itself a denoiser, the best one there is: `mixture(x_t, level)` is E[x_0 | x_t].
    Everything is float64.

    Attributes:
        weights: (K,), summing to 1.
        means: (K, D).
        stds: (K,).
        classes: K; the labels for conditional denoising are the components.
    """

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        """
        Raises:
            UserError: shapes that do not fit, or a weight or standard deviation that is not
                positive.
        """
        self.weights, self.means, self.stds = (
            torch.as_tensor(value, dtype=torch.float64) for value in (weights, means, stds)
        )
        k = len(self.weights)
        if self.means.ndim != 2 or len(self.means) != k or self.stds.shape != (k,):
            raise UserError(
                f"{k} weights need means of shape ({k}, D) and stds of shape ({k},); got "
                f"{tuple(self.means.shape)} and {tuple(self.stds.shape)}."
            )
        if not bool((self.weights > 0).all() and (self.stds > 0).all()):
            raise UserError("All weights and standard deviations of a mixture must be positive.")
        self.weights = self.weights / self.weights.sum()
        self.classes = k

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n exact samples (n, D) and the component each came from (n,)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        shape = (n, self.means.shape[1])
        z = torch.randn(shape, generator=generator, dtype=torch.float64)
        return self.means[which] + self.stds[which, None] * z, which

    def log_prob(self, x: Tensor, level: Level | None = None) -> Tensor:
        """log p_t(x) in nats, for the clean data or at a noise level. x: (N, D); result: (N,)."""
        return self._log_joint(x, level).logsumexp(-1)

    def score(self, x: Tensor, level: Level | None = None) -> Tensor:
        """The gradient of `log_prob` with respect to x. Shape: as x."""
        signal, variance = self._at(level)
        pull = -self._away(x, signal) / variance[..., None]
        return (self._posterior(x, level, None)[..., None] * pull).sum(1)

    def __call__(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], or E[x_0 | x_t, component] where cond is not -1. Shape: as x_t, (N, D).

        Within one component, data and noise are jointly Gaussian, and the mean of x_0 given x_t
        is mean + signal std^2 / variance (x_t - signal mean). The components are weighted by
        their posterior probabilities.
        """
        signal, variance = self._at(level)
        gain = (signal * self.stds**2 / variance)[..., None]
        estimates = self.means + gain * self._away(x_t, signal)
        return (self._posterior(x_t, level, cond)[..., None] * estimates).sum(1).to(x_t)

    def _at(self, level: Level | None) -> tuple[Tensor, Tensor]:
        """signal, () or (N, 1), and each component's variance, (K,) or (N, K)."""
        if level is None:
            return torch.ones((), dtype=torch.float64), self.stds**2
        signal = level.signal.double()
        return signal, signal**2 * self.stds**2 + level.noise.double() ** 2

    def _away(self, x: Tensor, signal: Tensor) -> Tensor:
        """x minus each component's mean at this level. Shape (N, K, D)."""
        return x[:, None] - signal[..., None] * self.means

    def _log_joint(self, x: Tensor, level: Level | None) -> Tensor:
        """log of weight_k N(x; signal mean_k, variance_k I). Shape (N, K)."""
        signal, variance = self._at(level)
        distance2 = self._away(x, signal).square().sum(-1)
        log_normal = -0.5 * (x.shape[-1] * (2 * math.pi * variance).log() + distance2 / variance)
        return self.weights.log() + log_normal

    def _posterior(self, x: Tensor, level: Level | None, cond: Tensor | None) -> Tensor:
        """Probability of each component given x; 0 or 1 where cond names it. Shape (N, K)."""
        posterior = self._log_joint(x, level).softmax(-1)
        if cond is None:
            return posterior
        known = torch.nn.functional.one_hot(cond.clamp(min=0), self.classes).double()
        return torch.where((cond < 0)[:, None], posterior, known)


def ring(n: int = 8, radius: float = 2.0, std: float = 0.15) -> GaussianMixture:
    """n equal Gaussians on a circle in the plane."""
    angle = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    ones = torch.ones(n, dtype=torch.float64)
    return GaussianMixture(ones, means, std * ones)
