"""Noise schedules: how much signal and how much noise a picture holds at time t.

Everything rests on one line, the forward process in closed form (DDPM, Ho et al. 2020, eq. 4):

    x_t = signal_t * x_0 + noise_t * eps,    eps ~ N(0, I)

A schedule maps a time t to a `Level`, the pair (signal_t, noise_t). Discrete schedules count
t = 0, 1, ..., T as the DDPM paper does, with alpha_bar_0 = 1: t = 0 is clean data.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .errors import UserError

Spacing = Literal["trailing", "leading", "linspace"]


class Level(NamedTuple):
    """How noisy: the coefficients of x_t = signal * x_0 + noise * eps at time t.

    The three tensors share one shape: `()` for a whole batch at one level, or `(B, 1, ...)` for
    one level per example, broadcastable against x.
    """

    signal: Tensor
    noise: Tensor
    t: Tensor

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio, (signal / noise)^2; infinite for clean data."""
        return (self.signal / self.noise) ** 2

    @property
    def log_snr(self) -> Tensor:
        """log SNR = 2 (log signal - log noise)."""
        return 2 * (self.signal.log() - self.noise.log())

    def like(self, x: Tensor) -> "Level":
        """This level with x's dtype and device, and trailing dimensions to broadcast against x.

        Args:
            x: (B, ...); a level of shape (B,) becomes (B, 1, ..., 1), one of shape () stays so.
        """

        def fit(value: Tensor, dtype: torch.dtype) -> Tensor:
            value = value.to(x.device, dtype)
            return value if value.ndim == 0 else value.reshape(-1, *[1] * (x.ndim - 1))

        return Level(fit(self.signal, x.dtype), fit(self.noise, x.dtype), fit(self.t, self.t.dtype))


class Schedule(ABC):
    """A noise schedule. Call it with times to get a `Level`; ask it for a grid of them.

    Attributes:
        spec: name and arguments, enough for `make_schedule` to build it again.
    """

    spec: dict[str, Any]

    @abstractmethod
    def __call__(self, t: Tensor) -> Level:
        """The level at times t. Shape: as t. The coefficients are float64; cast on use."""

    @abstractmethod
    def times(self, n: int, spacing: Spacing = "trailing") -> Tensor:
        """n times from the noisiest down, all above 0 (clean data). Shape (n,)."""

    @abstractmethod
    def random_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n random times for training, each noise level alike. Shape (n,), on the generator's
        device."""

    def levels(self, n: int, spacing: Spacing = "trailing") -> list[Level]:
        """The grid a sampler walks down: n + 1 levels, the noisiest first, clean data last.

        Args:
            n: number of steps.
            spacing: which of a discrete schedule's T times to use (the names are those of Lin
                et al. 2023, table 2). "trailing" starts at T, "leading" at about T - T/n
                (so a sampler that starts from pure noise starts wrong), "linspace" takes both
                ends, T and 1.

        Raises:
            UserError: n < 1, more steps than the schedule has, or an unknown spacing.
        """
        if n < 1:
            raise UserError(f"A sampler needs at least 1 step, not {n}.")
        if spacing not in ("trailing", "leading", "linspace"):
            raise UserError(
                f"Unknown spacing {spacing!r}: use 'trailing', 'leading' or 'linspace'."
            )
        times = self.times(n, spacing)
        return [self(t) for t in torch.cat([times, times.new_zeros(1)])]


class DiscreteSchedule(Schedule):
    """T noise levels, given by their betas (DDPM, section 2).

    All three tables are float64, of length T + 1 and indexed by t; index 0 is clean data.

    Attributes:
        betas: beta_t, the variance added in step t; betas[0] = 0.
        alphas: alpha_t = 1 - beta_t.
        alpha_bars: alpha_bar_t = alpha_1 ... alpha_t, the signal's share of the variance.
    """

    def __init__(self, betas: Tensor, spec: dict[str, Any]) -> None:
        """
        Args:
            betas: beta_1, ..., beta_T, each in [0, 1]. Shape (T,).
            spec: see `Schedule`.
        """
        betas = betas.double()
        if betas.ndim != 1 or len(betas) == 0 or not bool(((betas >= 0) & (betas <= 1)).all()):
            raise UserError("A discrete schedule needs a row of betas, each between 0 and 1.")
        self.spec = spec
        self.T = len(betas)
        # float64: in float32, 1 - alpha_bar_1 loses so many digits that SNR_1 is off by 1.7.
        self.betas = torch.cat([betas.new_zeros(1), betas])
        self.alphas = 1 - self.betas
        self.alpha_bars = self.alphas.cumprod(0)
        # The (signal, noise) table, copied once to each device that asks: a copy in every
        # training step would make the GPU wait for the CPU.
        table = torch.stack([self.alpha_bars.sqrt(), (1 - self.alpha_bars).sqrt()])
        self._tables = {table.device: table}

    def __call__(self, t: Tensor) -> Level:
        if t.device not in self._tables:
            self._tables[t.device] = self._tables[torch.device("cpu")].to(t.device)
        signal, noise = self._tables[t.device][:, t]
        return Level(signal, noise, t)

    def times(self, n: int, spacing: Spacing = "trailing") -> Tensor:
        if n > self.T:
            raise UserError(
                f"{n} steps were asked for, but this schedule has T = {self.T} noise levels. "
                f"Ask for at most {self.T} steps."
            )
        if spacing == "trailing":
            return (self.T - torch.arange(n, dtype=torch.float64) * self.T / n).round().long()
        if spacing == "leading":
            return 1 + torch.arange(n).flip(0) * (self.T // n)
        return torch.linspace(self.T, 1, n, dtype=torch.float64).round().long()

    def random_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        device = generator.device if generator is not None else None
        return torch.randint(1, self.T + 1, (n,), generator=generator, device=device)


class ContinuousSchedule(Schedule):
    """A schedule given by two functions of a real t >= 0, with t = 0 clean data.

    `quantile` maps u in [0, 1] to a time, u = 0 being the lowest noise level worth a network's
    attention and u = 1 the highest. Grids take evenly spaced u, training takes uniform u.
    """

    def __init__(
        self,
        signal: Callable[[Tensor], Tensor],
        noise: Callable[[Tensor], Tensor],
        quantile: Callable[[Tensor], Tensor],
        spec: dict[str, Any],
    ) -> None:
        self.spec = spec
        self._signal, self._noise, self._quantile = signal, noise, quantile

    def __call__(self, t: Tensor) -> Level:
        t64 = t.double()
        return Level(self._signal(t64), self._noise(t64), t)

    def times(self, n: int, spacing: Spacing = "trailing") -> Tensor:
        i = torch.arange(n, dtype=torch.float64)
        u = {
            "trailing": 1 - i / n,
            "leading": 1 - (i + 1) / n,
            "linspace": 1 - i / max(n - 1, 1),
        }[spacing]
        return self._quantile(u)

    def random_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        device = generator.device if generator is not None else None
        u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        return self._quantile(u)


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteSchedule:
    """Betas evenly spaced from beta_start to beta_end (DDPM, section 4)."""
    betas = torch.linspace(beta_start, beta_end, T, dtype=torch.float64)
    return DiscreteSchedule(
        betas, {"name": "linear", "T": T, "beta_start": beta_start, "beta_end": beta_end}
    )


def quadratic(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteSchedule:
    """Square roots of the betas evenly spaced (DDIM's code, Song et al. 2020): gentler at first."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
    return DiscreteSchedule(
        roots**2, {"name": "quadratic", "T": T, "beta_start": beta_start, "beta_end": beta_end}
    )


def cosine(T: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> DiscreteSchedule:
    """alpha_bar_t = f(t) / f(0) with f(t) = cos^2((t/T + s)/(1 + s) * pi/2).

    Improved DDPM (Nichol & Dhariwal 2021, eq. 17). `s` keeps the first steps from being too
    small; betas are cut at beta_max, since f(T) = 0 would make the last one exactly 1.
    """
    t = torch.arange(T + 1, dtype=torch.float64)
    f = ((t / T + s) / (1 + s) * math.pi / 2).cos() ** 2
    spec = {"name": "cosine", "T": T, "s": s, "beta_max": beta_max}
    return _from_alpha_bars(f / f[0], beta_max, spec)


def sigmoid(
    T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, beta_max: float = 0.999
) -> DiscreteSchedule:
    """alpha_bar_t falls along a logistic curve, rescaled to run from 1 to 0.

    Jabri et al. 2022 (RIN), as in Chen 2023, algorithm 1. A smaller `tau` makes it steeper.
    """
    t = torch.arange(T + 1, dtype=torch.float64)
    curve = torch.sigmoid((start + t / T * (end - start)) / tau)
    alpha_bars = (curve[-1] - curve) / (curve[-1] - curve[0])
    spec = {
        "name": "sigmoid", "T": T, "start": start, "end": end, "tau": tau, "beta_max": beta_max,
    }  # fmt: skip
    return _from_alpha_bars(alpha_bars, beta_max, spec)


def _from_alpha_bars(alpha_bars: Tensor, beta_max: float, spec: dict[str, Any]) -> DiscreteSchedule:
    betas = (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=beta_max)
    return DiscreteSchedule(betas, spec)


def rescale_zero_terminal_snr(schedule: DiscreteSchedule) -> DiscreteSchedule:
    """Shift and scale signal_t so that signal_T = 0, keeping signal_1 (Lin et al. 2023, alg. 1).

    At t = T nothing of x_0 is left then, as a sampler that starts from pure noise assumes. The
    net cannot predict eps usefully there (x_T is eps): use the prediction kind v.
    """
    signal = schedule.alpha_bars.sqrt()
    first, last = signal[1], signal[-1]
    signal = torch.cat([signal[:1], (signal[1:] - last) * first / (first - last)])
    spec = {"name": "rescale_zero_terminal_snr", "schedule": schedule.spec}
    return _from_alpha_bars(signal**2, 1.0, spec)


def flow(t_min: float = 1e-3) -> ContinuousSchedule:
    """The straight path of flow matching: signal 1 - t, noise t, for t from 0 to 1.

    Lipman et al. 2022 and Liu et al. 2022; their time may run the other way.
    """
    return ContinuousSchedule(
        signal=lambda t: 1 - t,
        noise=lambda t: t,
        quantile=lambda u: u.clamp(min=t_min),
        spec={"name": "flow", "t_min": t_min},
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> ContinuousSchedule:
    """Variance exploding, with t the noise level itself: signal 1, noise t (Karras et al. 2022).

    `levels(n, "linspace")` is the grid of the paper's eq. 5.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return ContinuousSchedule(
        signal=torch.ones_like,
        noise=lambda t: t,
        quantile=lambda u: (low + u * (high - low)) ** rho,
        spec={"name": "edm", "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho},
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "quadratic": quadratic,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "flow": flow,
    "edm": edm,
}


def make_schedule(spec: dict[str, Any]) -> Schedule:
    """The schedule that a `spec` describes; checkpoints store their schedule so.

    Raises:
        UserError: a name that is not in `SCHEDULES`.
    """
    arguments = dict(spec)
    name = arguments.pop("name")
    if name == "rescale_zero_terminal_snr":
        inner = make_schedule(arguments["schedule"])
        assert isinstance(inner, DiscreteSchedule)
        return rescale_zero_terminal_snr(inner)
    if name not in SCHEDULES:
        raise UserError(f"Unknown noise schedule {name!r}: use one of {', '.join(SCHEDULES)}.")
    return SCHEDULES[name](**arguments)
