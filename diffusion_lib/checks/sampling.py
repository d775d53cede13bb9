"""Checks for chapter 5, sampling."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import guidance, noise, samplers, toy
from ..noise import Level
from .engine import Case, Check, Mistake, ddpm_schedule, fixed_normal


def _at(t: int) -> Level:
    return ddpm_schedule()(torch.tensor(t))


def _nu(t: int, s: int) -> Tensor:
    return samplers.posterior_nu(_at(t), _at(s))


def _ancestral(x_t: Tensor, eps: Tensor, t: int, z: Tensor) -> Tensor:
    x0 = samplers.x0_from(x_t, eps, _at(t))
    return samplers.step(x0, eps, _at(t - 1), nu=_nu(t, t - 1), z=z)


def _ddpm_mean(x_t: Tensor, eps: Tensor, t: int) -> Tensor:
    return _ancestral(x_t, eps, t, torch.zeros_like(x_t))


def _steps_down() -> list[Case]:
    x_t, eps, z = fixed_normal(3, 2, 3, 4, 5, seed=1)
    return [(x_t.clone(), eps.clone(), t, z.clone()) for t in (1, 2, 300, 999)]


def _beta(t: int) -> Tensor:
    return ddpm_schedule().betas[t]


def _alpha(t: int) -> Tensor:
    return ddpm_schedule().alphas[t]


ddpm_step = Check(
    signature="ddpm_step(x_t, eps, t, z)",
    task="x_{t-1} by DDPM with the small variance: from x_t, the predicted eps and fresh noise z.",
    oracle=_ancestral,
    cases=_steps_down,
    verified="mean and fresh noise are right at t = 1, 2, 300 and 999.",
    mistakes=(
        Mistake(
            "you use ᾱ_t where α_t, that of a single step, belongs.",
            lambda x_t, eps, t, z: (x_t - _at(t).noise * eps) / _at(t).signal + _at(t).noise * z,
        ),
        Mistake(
            "you divide the mean by √ᾱ_t. One step shrinks by √α_t only.",
            lambda x_t, eps, t, z: (
                (x_t - _beta(t) / _at(t).noise * eps) / _at(t).signal + _nu(t, t - 1) * z
            ),
        ),
        Mistake(
            "the index is shifted by one: this is the step from t + 1 to t. Do your tables begin "
            "with t = 0, clean data?",
            lambda x_t, eps, t, z: _ancestral(x_t, eps, t + 1, z),
        ),
        Mistake(
            "the index of β is shifted by one: you take that of t + 1. Does your row of betas "
            "begin with β_1?",
            lambda x_t, eps, t, z: (
                (x_t - _beta(t + 1) / _at(t).noise * eps) / (1 - _beta(t + 1)).sqrt()
                + _at(t - 1).noise / _at(t).noise * _beta(t + 1).sqrt() * z
            ),
        ),
        Mistake(
            "the predicted noise is used again as the fresh noise: z is not used.",
            lambda x_t, eps, t, z: _ancestral(x_t, eps, t, eps),
        ),
        Mistake(
            "z is multiplied by the variance; its square root, the standard deviation, belongs "
            "there.",
            lambda x_t, eps, t, z: _ddpm_mean(x_t, eps, t) + _nu(t, t - 1) ** 2 * z,
        ),
        Mistake(
            "noise is added at the last step, into clean data.",
            lambda x_t, eps, t, z: _ancestral(x_t, eps, t, z) + (t == 1) * _beta(1).sqrt() * z,
        ),
        Mistake(
            "this is the large variance, β_t, and it adds noise at the last step, too. The small "
            "one was asked for.",
            lambda x_t, eps, t, z: _ddpm_mean(x_t, eps, t) + _beta(t).sqrt() * z,
        ),
        Mistake(
            "this is the large variance, β_t. The small one was asked for.",
            lambda x_t, eps, t, z: _ddpm_mean(x_t, eps, t) + (t > 1) * _beta(t).sqrt() * z,
        ),
        Mistake(
            "no fresh noise is added: this is the mean only.",
            lambda x_t, eps, t, z: _ddpm_mean(x_t, eps, t),
        ),
        Mistake(
            "eps is divided by 1 − ᾱ_t; you forgot the square root.",
            lambda x_t, eps, t, z: (
                (x_t - _beta(t) / _at(t).noise ** 2 * eps) / _alpha(t).sqrt() + _nu(t, t - 1) * z
            ),
        ),
        Mistake(
            "the mean is not divided by √α_t: the shrinking of the forward step is not undone.",
            lambda x_t, eps, t, z: x_t - _beta(t) / _at(t).noise * eps + _nu(t, t - 1) * z,
        ),
        Mistake(
            "the mean is divided by α_t; you forgot the square root.",
            lambda x_t, eps, t, z: (
                (x_t - _beta(t) / _at(t).noise * eps) / _alpha(t) + _nu(t, t - 1) * z
            ),
        ),
        Mistake(
            "the predicted noise is added. It must be taken away.",
            lambda x_t, eps, t, z: (
                (x_t + _beta(t) / _at(t).noise * eps) / _alpha(t).sqrt() + _nu(t, t - 1) * z
            ),
        ),
        Mistake(
            "all of the predicted noise is taken away at once. One step removes a small part.",
            lambda x_t, eps, t, z: (
                (x_t - _at(t).noise * eps) / _alpha(t).sqrt() + _nu(t, t - 1) * z
            ),
        ),
    ),
    hints=(
        "Mean plus standard deviation times z. The mean takes a small piece of eps away and undoes "
        "the shrinking of one step.",
        "The piece is β_t/√(1 − ᾱ_t), and the result is divided by √α_t. The variance of z's term "
        "is β_t (1 − ᾱ_{t−1})/(1 − ᾱ_t), which is 0 at t = 1.",
        """def ddpm_step(x_t, eps, t, z):
    beta, before, now = 1 - alphas[t], alpha_bars[t - 1], alpha_bars[t]
    mean = (x_t - beta / (1 - now).sqrt() * eps) / alphas[t].sqrt()
    return mean + ((1 - before) / (1 - now) * beta).sqrt() * z""",
    ),
)


def _leaps() -> list[Case]:
    x_t, x0, z = fixed_normal(3, 2, 3, 4, 5, seed=2)
    leaps = [(300, 299, 0.0), (600, 300, 0.0), (600, 300, 0.5), (900, 20, 1.0), (50, 0, 0.0)]
    return [(x_t.clone(), x0.clone(), t, s, eta, z.clone()) for t, s, eta in leaps]


def _eps(x_t: Tensor, x0: Tensor, t: int) -> Tensor:
    return samplers.eps_from(x_t, x0, _at(t))


def _leap(x_t: Tensor, x0: Tensor, t: int, s: int, eta: float, z: Tensor) -> Tensor:
    return samplers.step(x0, _eps(x_t, x0, t), _at(s), nu=eta * _nu(t, s), z=z)


ddim_step = Check(
    signature="ddim_step(x_t, x0, t, s, eta, z)",
    task="x_s by DDIM from x_t and the guess x0, with the share eta of fresh noise z; s < t.",
    oracle=_leap,
    cases=_leaps,
    verified="short and long steps, the last one to s = 0, with eta 0, ½ and 1.",
    mistakes=(
        Mistake(
            "fresh noise is added, but the old noise is not reduced for it: x_s gets too noisy.",
            lambda x_t, x0, t, s, eta, z: (
                samplers.step(x0, _eps(x_t, x0, t), _at(s)) + eta * _nu(t, s) * z
            ),
        ),
        Mistake(
            "under the root, the standard deviation is subtracted from the variance: square it "
            "first.",
            lambda x_t, x0, t, s, eta, z: (
                _at(s).signal * x0
                + (_at(s).noise ** 2 - eta * _nu(t, s)).sqrt() * _eps(x_t, x0, t)
                + eta * _nu(t, s) * z
            ),
        ),
        Mistake(
            "the old noise is reduced by subtracting standard deviations. Variances add up, not "
            "deviations.",
            lambda x_t, x0, t, s, eta, z: (
                _at(s).signal * x0
                + (_at(s).noise - eta * _nu(t, s)) * _eps(x_t, x0, t)
                + eta * _nu(t, s) * z
            ),
        ),
        Mistake(
            "eta scales the variance. It is meant for the standard deviation: at ½ you add too "
            "much fresh noise.",
            lambda x_t, x0, t, s, eta, z: samplers.step(
                x0, _eps(x_t, x0, t), _at(s), nu=eta**0.5 * _nu(t, s), z=z
            ),
        ),
        Mistake(
            "eta is not used for the fresh noise: this is DDPM's step at every eta.",
            lambda x_t, x0, t, s, eta, z: _leap(x_t, x0, t, s, 1.0, z),
        ),
        Mistake(
            "eta is not used: nothing random is ever added.",
            lambda x_t, x0, t, s, eta, z: _leap(x_t, x0, t, s, 0.0, z),
        ),
        Mistake(
            "at s = 0 some noise is left: ᾱ_0 is 1, not ᾱ_1.",
            lambda x_t, x0, t, s, eta, z: _leap(x_t, x0, t, max(s, 1), eta, z),
        ),
        Mistake(
            "the index is shifted by one: this is the step from t + 1 to s + 1. Does your table "
            "begin with ᾱ_0 = 1?",
            lambda x_t, x0, t, s, eta, z: _leap(x_t, x0, t + 1, s + 1, eta, z),
        ),
        Mistake(
            "the guess is put together at the level t where you come from, not at s.",
            lambda x_t, x0, t, s, eta, z: samplers.step(
                x0, _eps(x_t, x0, t), _at(t), nu=eta * _nu(t, s), z=z
            ),
        ),
        Mistake(
            "the guess of x_0 is not shrunk to the signal of level s.",
            lambda x_t, x0, t, s, eta, z: _leap(x_t, x0, t, s, eta, z) + (1 - _at(s).signal) * x0,
        ),
        Mistake(
            "x_t is taken for the noise. Solve for eps first, from x_t and the guess.",
            lambda x_t, x0, t, s, eta, z: samplers.step(x0, x_t, _at(s), nu=eta * _nu(t, s), z=z),
        ),
        Mistake(
            "the old noise comes in with a minus: the root under which it stands is positive.",
            lambda x_t, x0, t, s, eta, z: samplers.step(
                x0, -_eps(x_t, x0, t), _at(s), nu=eta * _nu(t, s), z=z
            ),
        ),
        Mistake(
            "your step goes to t − 1, whatever s is.",
            lambda x_t, x0, t, s, eta, z: _leap(x_t, x0, t, t - 1, eta, z),
        ),
    ),
    hints=(
        "First the noise that belongs to the guess, from x_t. Then put both together at level s: "
        "signal times x_0, old noise, fresh noise.",
        "ν is eta times the posterior's standard deviation. The old noise gets the factor "
        "√(noise_s² − ν²), the fresh noise ν.",
        """def ddim_step(x_t, x0, t, s, eta, z):
    signal, noise_std = alpha_bars.sqrt(), (1 - alpha_bars).sqrt()
    eps = (x_t - signal[t] * x0) / noise_std[t]
    ratio = signal[t] * noise_std[s] / (noise_std[t] * signal[s])  # root of SNR_t / SNR_s
    nu = eta * noise_std[s] * (1 - ratio**2).sqrt()
    return signal[s] * x0 + (noise_std[s] ** 2 - nu**2).sqrt() * eps + nu * z""",
    ),
)


def _grid(T: int, n: int, spacing: noise.Spacing = "trailing") -> list[int]:
    return [int(level.t) for level in noise.linear(T).levels(n, spacing)]


trailing = Check(
    signature="trailing(T, n)",
    task="The n + 1 times of a sampler with n steps: from T down in even strides, 0 last; rounded.",
    oracle=_grid,
    cases=lambda: [(1000, 5), (1000, 7), (100, 30)],
    verified="starts at T, ends at 0, in even strides even where n does not divide T.",
    mistakes=(
        Mistake(
            "this is the leading grid: its first time lies below T, but a sampler starts from pure "
            "noise.",
            lambda T, n: _grid(T, n, "leading"),
        ),
        Mistake(
            "this is the linspace grid: it goes to T and 1 in even strides, and then to 0.",
            lambda T, n: _grid(T, n, "linspace"),
        ),
        Mistake(
            "the last time, 0, is missing: n steps join n + 1 times.",
            lambda T, n: _grid(T, n)[:-1],
        ),
        Mistake(
            "the times rise. A sampler goes from noise to data, downwards.",
            lambda T, n: _grid(T, n)[::-1],
        ),
        Mistake(
            "the index is shifted by one: you start at T − 1. Times run from 0, clean, to T.",
            lambda T, n: [max(t - 1, 0) for t in _grid(T, n)],
        ),
        Mistake(
            "the fractions are cut off. Round, so that the strides are as even as can be.",
            lambda T, n: [int(T - i * T / n) for i in range(n + 1)],
        ),
        Mistake(
            "your stride is a whole number, so the last step to 0 is too long.",
            lambda T, n: [T - i * (T // n) for i in range(n)] + [0],
        ),
        Mistake(
            "your stride is a whole number, so you don't arrive at 0.",
            lambda T, n: [T - i * (T // n) for i in range(n + 1)],
        ),
    ),
    hints=(
        "The strides are T/n, in general not a whole number. Where does step i begin?",
        "T − i·T/n for i = 0, ..., n, rounded at the very end.",
        """def trailing(T, n):
    return [round(T - i * T / n) for i in range(n + 1)]""",
    ),
)


def _by_the_library(eps_c: Tensor, eps_u: Tensor, w: float) -> Tensor:
    def denoise(x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        assert cond is not None
        return torch.where((cond < 0)[:, None, None, None], eps_u.repeat(2, 1, 1, 1), x_t)

    labels = torch.zeros(len(eps_c), dtype=torch.long)
    return guidance.cfg(denoise, float(w))(eps_c, _at(300), labels)


guided_eps = Check(
    signature="guided_eps(eps_c, eps_u, w)",
    task="The guided noise, from the conditional and the unconditional one; w = 1 is conditional.",
    oracle=_by_the_library,
    cases=lambda: [(*fixed_normal(2, 2, 3, 4, 5, seed=3), w) for w in (2.5, 0.0, 1.0)],
    verified="w = 0 is unconditional, w = 1 conditional, and w = 2.5 goes beyond.",
    mistakes=(
        Mistake(
            "the guidance sign: the unconditional noise is added where it must be subtracted.",
            lambda c, u, w: w * c + (w - 1) * u,
        ),
        Mistake(
            "this is the paper's w, which is 0 for the plain conditional model. Ours is 1 there.",
            lambda c, u, w: c + w * (c - u),
        ),
        Mistake(
            "conditional and unconditional are exchanged: you steer away from the class.",
            lambda c, u, w: c + w * (u - c),
        ),
        Mistake(
            "only the difference is left: the unconditional noise must be added to it.",
            lambda c, u, w: w * (c - u),
        ),
        Mistake(
            "the difference is added to the conditional noise with a factor that is not w − 1.",
            lambda c, u, w: u + w * c,
        ),
        Mistake(
            "the sign of the difference: from the unconditional noise you must go towards the "
            "conditional one.",
            lambda c, u, w: u + w * (u - c),
        ),
        Mistake(
            "w is not used: this is the conditional noise.",
            lambda c, u, w: c.clone(),
        ),
    ),
    hints=(
        "Start at one of the two and walk w times the way to the other. Where must you be for "
        "w = 0, and where for w = 1?",
        "The factors of the two noises add up to 1. The conditional one has the factor w.",
        """def guided_eps(eps_c, eps_u, w):
    return eps_u + w * (eps_c - eps_u)""",
    ),
)


def _arcs() -> list[Case]:
    z0, z1 = fixed_normal(2, 2, 3, 4, seed=4)
    return [(z0.clone(), 1.5 * z1, u) for u in (0.3, 0.5, 0.9)]


def _angle(z0: Tensor, z1: Tensor) -> Tensor:
    return ((z0 * z1).sum() / (z0.norm() * z1.norm())).acos()


def _arc(z0: Tensor, z1: Tensor, u: float) -> Tensor:
    # In the plane of the two, with axes along z0 and at a right angle to it.
    along = z0 / z0.norm()
    across = z1 - (z1 * along).sum() * along
    across = across / across.norm()
    theta = torch.atan2((z1 * across).sum(), (z1 * along).sum())
    end = z1.norm() * (u * theta).sin()
    start = z0.norm() * ((1 - u) * theta).sin() / theta.sin()
    return (start + end / theta.tan()) * along + end * across


def _on_arc(z0: Tensor, z1: Tensor, u: float, theta: Tensor) -> Tensor:
    return (((1 - u) * theta).sin() * z0 + (u * theta).sin() * z1) / theta.sin()


slerp = Check(
    signature="slerp(z0, z1, u)",
    task="The point at share u of the arc from z0 to z1, two noises of any one shape.",
    oracle=_arc,
    cases=_arcs,
    verified="a third, half, and nine tenths of the way, for noises of unequal length.",
    mistakes=(
        Mistake(
            "this is the straight line. Its middle lies too near to 0, where no noise is.",
            lambda z0, z1, u: (1 - u) * z0 + u * z1,
        ),
        Mistake(
            "the ends are exchanged: at u = 0 you must be at z0.",
            lambda z0, z1, u: _arc(z0, z1, 1 - u),
        ),
        Mistake(
            "the division by sin θ is missing, so the ends are not reached.",
            lambda z0, z1, u: _arc(z0, z1, u) * _angle(z0, z1).sin(),
        ),
        Mistake(
            "the factors √(1−u) and √u keep the variance, but they are not the arc: the speed is "
            "uneven.",
            lambda z0, z1, u: (1 - u) ** 0.5 * z0 + u**0.5 * z1,
        ),
        Mistake(
            "the cosine of the angle is the dot product divided by both lengths; they are missing.",
            lambda z0, z1, u: _on_arc(z0, z1, u, (z0 * z1).sum().acos()),
        ),
        Mistake(
            "the angle is taken for each row by itself. The two noises are one vector each.",
            lambda z0, z1, u: _on_arc(
                z0,
                z1,
                u,
                torch.nn.functional.cosine_similarity(z0, z1, dim=-1).acos()[..., None],
            ),
        ),
        Mistake(
            "you use the cosine where the angle belongs: take the arc cosine.",
            lambda z0, z1, u: _on_arc(z0, z1, u, _angle(z0, z1).cos()),
        ),
    ),
    hints=(
        "On a circle the angle grows evenly. First find the angle θ between the two noises, each "
        "taken as one long vector.",
        "cos θ is the dot product divided by both lengths. The factors are sin((1−u)θ)/sin θ and "
        "sin(uθ)/sin θ.",
        """def slerp(z0, z1, u):
    theta = ((z0 * z1).sum() / (z0.norm() * z1.norm())).acos()
    return (((1 - u) * theta).sin() * z0 + (u * theta).sin() * z1) / theta.sin()""",
    ),
)


def _straight() -> list[Case]:
    x0, eps = fixed_normal(2, 2, 3, 4, 5, seed=5)
    path = [(1.0, 0.8), (0.8, 0.55), (0.3, 0.0)]
    return [((1 - t) * x0 + t * eps, eps - x0, t, s) for t, s in path]


def _on_path(x_t: Tensor, v: Tensor, t: float, s: float) -> Tensor:
    to = noise.flow()(torch.tensor(s, dtype=torch.float64))
    return samplers.step(x_t - t * v, x_t + (1 - t) * v, to)


flow_step = Check(
    signature="flow_step(x_t, v, t, s)",
    task="x_s by a DDIM step (eta 0) on the straight path of flow matching, from x_t and v.",
    oracle=_on_path,
    cases=_straight,
    verified="from pure noise, in the middle, and into clean data.",
    mistakes=(
        Mistake(
            "you walk away from the data: mind the sign of the time step.",
            lambda x_t, v, t, s: x_t + (t - s) * v,
        ),
        Mistake(
            "you go all the way to the guess of x_0, whatever s is.",
            lambda x_t, v, t, s: x_t - t * v,
        ),
        Mistake(
            "the time step is missing: v is a speed, not a distance.",
            lambda x_t, v, t, s: x_t - v,
        ),
        Mistake(
            "the step is s, the time where you arrive, and not the time in between.",
            lambda x_t, v, t, s: x_t - s * v,
        ),
        Mistake(
            "x_t is scaled, too. On the straight path no signal has to be undone.",
            lambda x_t, v, t, s: x_t * (1 - s) + (s - t) * v,
        ),
        Mistake(
            "the time step is divided by t: a share of the way, where a time is needed.",
            lambda x_t, v, t, s: x_t + (s - t) / t * v,
        ),
    ),
    hints=(
        "Write x_s and x_t out, with x_0 and eps, and subtract.",
        "What is left is a multiple of eps − x_0 = v. Position plus time times velocity.",
        """def flow_step(x_t, v, t, s):
    return x_t + (s - t) * v""",
    ),
)


_Walk = Callable[..., Tensor]


def _levels(n: int) -> list[Level]:
    ts = torch.linspace(0.99, 0.01, n + 1, dtype=torch.float64)
    return [Level((t * math.pi / 2).cos(), (t * math.pi / 2).sin(), t) for t in ts]


def _paths() -> list[Case]:
    mixture = toy.GaussianMixture([0.4, 0.6], [[-1.0], [0.8]], [0.3, 0.2])
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    return [(mixture, x.clone(), _levels(n)) for n in (8, 5)]


def _counted(f: _Walk, denoise: _Walk, x: Tensor, levels: Sequence[Level]) -> Any:
    calls = []

    def counting(*arguments: Any) -> Tensor:
        calls.append(1)
        return denoise(*arguments)

    end = f(counting, x, levels)
    return None if end is None else (end, len(calls))


def _last(steps: Any) -> Tensor:
    *_, end = steps
    return end.x


def _second_order(
    denoise: _Walk,
    x: Tensor,
    levels: Sequence[Level],
    *,
    factor: Callable[[Tensor], Tensor] = lambda r: 1 / (2 * r),
    solve_again: bool = True,
) -> Tensor:
    """2M with another factor of the extrapolation, or with the net's own eps."""
    before = None
    for now, to in pairwise(levels):
        guess = ahead = denoise(x, now)
        if before is not None:
            r = (now.log_snr - before[1].log_snr) / (to.log_snr - now.log_snr)
            ahead = guess + factor(r) * (guess - before[0])
        x = samplers.step(ahead, samplers.eps_from(x, ahead if solve_again else guess, now), to)
        before = guess, now
    return x


def _forgetful(denoise: _Walk, x: Tensor, levels: Sequence[Level]) -> Tensor:
    for _ in levels[2:]:
        denoise(x, levels[0])
    return _last(samplers.dpmpp_2m(denoise, x, levels))


second_order = Check(
    signature="second_order(denoise, x, levels)",
    task="x at the last of `levels`, none of them clean, by DPM-Solver++(2M).",
    oracle=lambda denoise, x, levels: _last(samplers.dpmpp_2m(denoise, x, levels)),
    cases=_paths,
    measure=_counted,
    results=("end point", "number of evaluations"),
    verified="the library's end points, with one evaluation a step.",
    mistakes=(
        Mistake(
            "this is DDIM: the guess is not extrapolated.",
            lambda denoise, x, levels: _last(samplers.ddim(denoise, x, levels)),
        ),
        Mistake(
            "you extrapolate backwards: mind the sign of the difference of guesses.",
            lambda *a: _second_order(*a, factor=lambda r: -1 / (2 * r)),
        ),
        Mistake(
            "eps must be solved for again, from x and the extrapolated x_0. With the network's "
            "own eps no number of steps helps.",
            lambda *a: _second_order(*a, solve_again=False),
        ),
        Mistake(
            "the quotient of the log SNR differences stands on its head.",
            lambda *a: _second_order(*a, factor=lambda r: r / 2),
        ),
        Mistake(
            "the factor 2 is missing: the slope is needed half a step ahead, not a whole one.",
            lambda *a: _second_order(*a, factor=lambda r: 1 / r),
        ),
        Mistake(
            "the steps in log SNR are taken to be equal: divide by 2 and by their quotient.",
            lambda *a: _second_order(*a, factor=lambda r: torch.full_like(r, 0.5)),
        ),
        Mistake(
            "this is Heun's method, which looks twice in each step.",
            lambda denoise, x, levels: _last(samplers.heun(denoise, x, levels)),
        ),
        Mistake(
            "the end is right, but the denoiser is called too often: remember the last guess.",
            _forgetful,
        ),
    ),
    hints=(
        "A DDIM step, with a better guess of x_0: extrapolated from this step's guess and the last "
        "one's.",
        "ahead = guess + (guess − last guess)/(2ρ), with ρ the quotient of this and the last "
        "change of log SNR as in the chapter. Then eps from x and `ahead`, and samplers.step.",
        """def second_order(denoise, x, levels):
    before = None
    for now, to in pairwise(levels):
        guess = ahead = denoise(x, now)
        if before is not None:
            rho = (now.log_snr - before[1].log_snr) / (to.log_snr - now.log_snr)
            ahead = guess + (guess - before[0]) / (2 * rho)
        x = samplers.step(ahead, samplers.eps_from(x, ahead, now), to)
        before = guess, now
    return x""",
    ),
)
