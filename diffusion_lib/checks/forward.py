"""Checks for chapter 1, the forward process."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import likelihood, noise, samplers
from .engine import Case, Check, Mistake, ddpm_schedule, fixed_normal


def _each(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _at(alpha_bar: Tensor) -> noise.Level:
    return noise.Level(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), alpha_bar)


def _batches() -> list[Case]:
    # As many pictures as channels and columns: a factor on the wrong dimension raises nothing.
    x0, eps = fixed_normal(2, 3, 3, 4, 3, seed=1)
    return [(x0, eps, torch.tensor([0.95, 0.4, 0.1], dtype=torch.float64))]


def _mixed(x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a * x0 + b * eps


# Wrong factors of signal and noise, by what is to be said of them ...
_FACTORS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "your noise is scaled by 1 − ᾱ_t; you forgot the square root.": (
        lambda share: (share.sqrt(), 1 - share)
    ),
    "your signal is scaled by ᾱ_t; you forgot the square root.": (
        lambda share: (share, (1 - share).sqrt())
    ),
    "both of your factors lack the square root: ᾱ_t and 1 − ᾱ_t are shares of a variance.": (
        lambda share: (share, 1 - share)
    ),
    "signal and noise are exchanged: the picture got the factor of the noise.": (
        lambda share: ((1 - share).sqrt(), share.sqrt())
    ),
    "your noise is not scaled at all, so x_t gets too loud.": (
        lambda share: (share.sqrt(), torch.ones(()))
    ),
    "your picture is not shrunk: noise is piled on top, and the variance grows.": (
        lambda share: (torch.ones(()), (1 - share).sqrt())
    ),
    "your noise is subtracted: the distribution stays, but eps is not the noise in x_t.": (
        lambda share: (share.sqrt(), -(1 - share).sqrt())
    ),
}
# ... and wrong shapes of alpha_bar. Who makes one of each at once is told of both.
_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "the shape of alpha_bar broadcasts over the columns: (B,) lines up with the width, not the "
    "pictures.": lambda ab: ab,
    "the shape of alpha_bar broadcasts over the channels: it needs one more dimension of size "
    "1.": lambda ab: ab[:, None, None],
    "all pictures got the level of the first one.": lambda ab: ab[0],
}


def _forward_mistakes() -> Iterator[Mistake]:
    def right(share: Tensor) -> tuple[Tensor, Tensor]:
        return share.sqrt(), (1 - share).sqrt()

    for factors_said, factors in {"": right, **_FACTORS}.items():
        for shape_said, shape in {"": _each, **_SHAPES}.items():
            said = " And ".join(text for text in (factors_said, shape_said) if text)
            if said:
                yield Mistake(
                    said,
                    lambda x0, eps, ab, factors=factors, shape=shape: _mixed(
                        x0, eps, *factors(shape(ab))
                    ),
                )


forward_sample = Check(
    signature="forward_sample(x0, eps, alpha_bar)",
    task="The noisy x_t of a batch (B, C, H, W), with one alpha_bar for each picture, (B,).",
    oracle=lambda x0, eps, ab: samplers.step(x0, eps, _at(ab).like(x0)),
    cases=_batches,
    verified="each picture is noised at its own level, with the right factors.",
    mistakes=tuple(_forward_mistakes()),
    hints=(
        "ᾱ_t is the share of the variance that is signal, and 1 − ᾱ_t the share that is noise. "
        "What must a variable be multiplied by to get this variance?",
        "alpha_bar has one number a picture. Give it the shape (B, 1, 1, 1) first. Then x_t is a "
        "sum of two products, and the squares of the two factors add up to 1.",
        """def forward_sample(x0, eps, alpha_bar):
    share = alpha_bar.reshape(-1, 1, 1, 1)
    return share.sqrt() * x0 + (1 - share).sqrt() * eps""",
    ),
)


def _one_time(x0: Tensor, t: int, eps: Tensor) -> Tensor:
    return samplers.step(x0, eps, ddpm_schedule()(torch.tensor(t)))


def _share(t: int) -> Tensor:
    return ddpm_schedule().alpha_bars[t]


add_noise = Check(
    signature="add_noise(x0, t, eps)",
    task="The noisy x_t at one time t, 1 to 1000, by the table `alpha_bars` of DDPM's schedule.",
    oracle=_one_time,
    cases=lambda: [
        (fixed_normal(2, 3, 4, 5, seed=1), t, fixed_normal(2, 3, 4, 5, seed=2))
        for t in (1, 2, 300, 999)
    ],
    verified="at t = 1, 2, 300 and 999 of DDPM's linear schedule.",
    mistakes=(
        Mistake(
            "your noise is scaled by 1 − ᾱ_t; you forgot the square root.",
            lambda x0, t, eps: _mixed(x0, eps, _share(t).sqrt(), 1 - _share(t)),
        ),
        Mistake(
            "your signal is scaled by ᾱ_t; you forgot the square root.",
            lambda x0, t, eps: _mixed(x0, eps, _share(t), (1 - _share(t)).sqrt()),
        ),
        Mistake(
            "the index is shifted by one: you add the noise of t − 1, so there is none at t = 1.",
            lambda x0, t, eps: _one_time(x0, t - 1, eps),
        ),
        Mistake(
            "the index is shifted by one: you add the noise of t + 1. Does your table begin with "
            "ᾱ_0 = 1?",
            lambda x0, t, eps: _one_time(x0, t + 1, eps),
        ),
        Mistake(
            "you use α_t, what one step keeps, where ᾱ_t belongs, what all steps keep together.",
            lambda x0, t, eps: _mixed(
                x0, eps, ddpm_schedule().alphas[t].sqrt(), ddpm_schedule().betas[t].sqrt()
            ),
        ),
        Mistake(
            "signal and noise are exchanged: the picture got the factor of the noise.",
            lambda x0, t, eps: _one_time(eps, t, x0),
        ),
    ),
    hints=(
        "One jump replaces t steps. Which table holds what t steps keep of the variance?",
        "The picture is multiplied by the root of alpha_bars[t]. The squares of both factors add "
        "up to 1.",
        """def add_noise(x0, t, eps):
    return alpha_bars[t].sqrt() * x0 + (1 - alpha_bars[t]).sqrt() * eps""",
    ),
)


def _rows_of_betas() -> list[Case]:
    return [
        (torch.linspace(1e-4, 0.02, 50, dtype=torch.float64),),
        (0.3 * fixed_normal(7, seed=3).sigmoid(),),
    ]


def _with_first(value: float, rest: Tensor) -> Tensor:
    return torch.cat([rest.new_full((1,), value), rest])


alpha_bars = Check(
    signature="alpha_bars(betas)",
    task="The table ᾱ_0, ᾱ_1, ..., ᾱ_T, (T + 1,), from beta_1, ..., beta_T, (T,).",
    oracle=lambda betas: noise.DiscreteSchedule(betas, {}).alpha_bars,
    cases=_rows_of_betas,
    verified="T + 1 values, from ᾱ_0 = 1 on, each the product of all alphas before.",
    mistakes=(
        Mistake(
            "the index is shifted by one: ᾱ_0 = 1, for clean data, is missing in front.",
            lambda betas: (1 - betas).cumprod(0),
        ),
        Mistake(
            "ᾱ_0 = 1 stands in front, but ᾱ_T at the end is lost.",
            lambda betas: _with_first(1, (1 - betas).cumprod(0)[:-1]),
        ),
        Mistake(
            "the first value must be 1: clean data are all signal.",
            lambda betas: _with_first(0, (1 - betas).cumprod(0)),
        ),
        Mistake(
            "these are the alphas, what each single step keeps. The bar means all steps so far.",
            lambda betas: _with_first(1, 1 - betas),
        ),
        Mistake(
            "you subtract the betas one after another. Each step keeps a share of what is left, "
            "so shares are multiplied.",
            lambda betas: _with_first(1, 1 - betas.cumsum(0)),
        ),
        Mistake(
            "you multiply the betas themselves: those are the shares that are lost.",
            lambda betas: _with_first(1, betas.cumprod(0)),
        ),
        Mistake(
            "this is the signal, the root of ᾱ_t.",
            lambda betas: _with_first(1, (1 - betas).cumprod(0)).sqrt(),
        ),
        Mistake(
            "this is 1 − ᾱ_t, the share of the noise.",
            lambda betas: _with_first(0, 1 - (1 - betas).cumprod(0)),
        ),
    ),
    hints=(
        "Step t keeps the share 1 − beta_t of the variance. What do two steps keep together?",
        "A cumulative product of 1 − beta, with one number in front, for clean data.",
        """def alpha_bars(betas):
    return torch.cat([torch.ones_like(betas[:1]), 1 - betas]).cumprod(0)""",
    ),
)


def _jumps() -> list[Case]:
    table = ddpm_schedule().alpha_bars.clone()
    return [(table, s, t) for s, t in [(0, 300), (300, 500), (300, 301), (998, 999)]]


def _between(bars: Tensor, s: int, t: int) -> tuple[Tensor, Tensor]:
    kept = ddpm_schedule().alphas[s + 1 : t + 1].prod()
    return kept.sqrt(), (1 - kept).sqrt()


between = Check(
    signature="between(alpha_bars, s, t)",
    task="The factors a and b of the jump from x_s to a later x_t = a x_s + b eps.",
    oracle=_between,
    cases=_jumps,
    results=("factor a", "factor b"),
    verified="jumps from any s to any t, neighbours too.",
    mistakes=(
        Mistake(
            "your a is a share of the variance: its square root is missing.",
            lambda bars, s, t: (bars[t] / bars[s], _between(bars, s, t)[1]),
        ),
        Mistake(
            "your a is for the jump from clean data, not from x_s.",
            lambda bars, s, t: (bars[t].sqrt(), _between(bars, s, t)[1]),
        ),
        Mistake(
            "your a is the wrong way round: it makes the picture larger.",
            lambda bars, s, t: ((bars[s] / bars[t]).sqrt(), _between(bars, s, t)[1]),
        ),
        Mistake(
            "your a is a difference. Steps multiply what is left, so a is a quotient.",
            lambda bars, s, t: (bars[s].sqrt() - bars[t].sqrt(), _between(bars, s, t)[1]),
        ),
        Mistake(
            "your b is a variance: its square root is missing.",
            lambda bars, s, t: (_between(bars, s, t)[0], 1 - bars[t] / bars[s]),
        ),
        Mistake(
            "your b is all the noise at t. A part of that was in x_s already.",
            lambda bars, s, t: (_between(bars, s, t)[0], (1 - bars[t]).sqrt()),
        ),
        Mistake(
            "your b forgets that the noise in x_s is shrunk on the way, so a² + b² is not 1.",
            lambda bars, s, t: (_between(bars, s, t)[0], (bars[s] - bars[t]).sqrt()),
        ),
    ),
    hints=(
        "The steps from s + 1 to t are a chain of their own, which starts at x_s.",
        "They keep the share α_{s+1} ⋯ α_t. Which quotient of two entries of the table is that?",
        """def between(alpha_bars, s, t):
    kept = alpha_bars[t] / alpha_bars[s]
    return kept.sqrt(), (1 - kept).sqrt()""",
    ),
)


def _angles(T: int, s: float) -> Tensor:
    u = torch.arange(T + 1, dtype=torch.float64) / T
    return (u + s) / (1 + s) * math.pi / 2


def _over_first(f: Tensor) -> Tensor:
    return f / f[0]


cosine = Check(
    signature="cosine(T, s)",
    task="ᾱ_0, ..., ᾱ_T, (T + 1,), of the cosine schedule, before any beta is clipped.",
    oracle=lambda T, s: noise.cosine(T, s, beta_max=1.0).alpha_bars,
    cases=lambda: [(12, 0.008), (5, 0.05)],
    verified="T + 1 values from exactly 1 down to 0, with the start moved by s.",
    mistakes=(
        Mistake(
            "the square is missing: the cosine is the signal, and ᾱ_t is the signal squared.",
            lambda T, s: _over_first(_angles(T, s).cos()),
        ),
        Mistake(
            "you divide by the last value of the curve, cos(π/2), instead of the first.",
            lambda T, s: _angles(T, s).cos() ** 2 / _angles(T, s)[-1].cos() ** 2,
        ),
        Mistake(
            "cos(t/T·π/2)/cos(π/2) is in circulation, but it divides by what should be 0. The "
            "curve is divided by its first value, and it is a square.",
            lambda T, s: _angles(T, 0).cos() / math.cos(math.pi / 2),
        ),
        Mistake(
            "ᾱ_0 is not 1: the curve is not divided by its first value.",
            lambda T, s: _angles(T, s).cos() ** 2,
        ),
        Mistake(
            "s is not used: your walk starts at the angle 0.",
            lambda T, s: _angles(T, 0).cos() ** 2,
        ),
        Mistake(
            "your angle goes beyond π/2 at the end: t/T + s is not divided by 1 + s.",
            lambda T, s: _over_first((_angles(T, s) * (1 + s)).cos() ** 2),
        ),
        Mistake(
            "your angle goes to π, half a circle; the schedule is a quarter of one.",
            lambda T, s: _over_first((2 * _angles(T, s)).cos() ** 2),
        ),
        Mistake(
            "there are T + 1 times, 0 to T; the last one, T, is missing.",
            lambda T, s: _over_first(_angles(T, s).cos() ** 2)[:-1],
        ),
        Mistake(
            "these are the betas, not ᾱ_t.",
            lambda T, s: noise.cosine(T, s, beta_max=1.0).betas[1:],
        ),
    ),
    hints=(
        "(signal, noise) walks along a quarter of a circle at constant speed. What is the angle at "
        "time t, and which power of its cosine is ᾱ_t?",
        "The angle is (t/T + s)/(1 + s)·π/2 for t = 0, 1, ..., T. ᾱ_0 must be 1.",
        """def cosine(T, s):
    t = torch.arange(T + 1, dtype=torch.float64)
    f = ((t / T + s) / (1 + s) * math.pi / 2).cos() ** 2
    return f / f[0]""",
    ),
)


snr = Check(
    signature="snr(alpha_bar)",
    task="The signal-to-noise ratio of a variance-preserving schedule. Shape: as alpha_bar.",
    oracle=lambda ab: _at(ab).snr,
    cases=lambda: [(torch.tensor([0.98, 0.75, 0.5, 0.2, 0.03], dtype=torch.float64),)],
    verified="from nearly clean to nearly pure noise.",
    mistakes=(
        Mistake(
            "this is signal divided by noise. The ratio is one of variances: square it.",
            lambda ab: (ab / (1 - ab)).sqrt(),
        ),
        Mistake(
            "this is the noise-to-signal ratio: the fraction stands on its head.",
            lambda ab: (1 - ab) / ab,
        ),
        Mistake("this is the logarithm of the ratio.", lambda ab: (ab / (1 - ab)).log()),
        Mistake("this is the ratio in decibels.", lambda ab: 10 * (ab / (1 - ab)).log10()),
        Mistake(
            "you divide by noise and not by its variance: there is a root too many below.",
            lambda ab: ab / (1 - ab).sqrt(),
        ),
        Mistake(
            "you divide by 1 + ᾱ_t; the variance of the noise is 1 − ᾱ_t.",
            lambda ab: ab / (1 + ab),
        ),
        Mistake(
            "you square once too often: ᾱ_t is a variance already.",
            lambda ab: (ab / (1 - ab)) ** 2,
        ),
    ),
    hints=(
        "What is the variance of each of the two terms of x_t, for data of variance 1?",
        "ᾱ_t is the signal's share of the variance. The noise has the rest.",
        """def snr(alpha_bar):
    return alpha_bar / (1 - alpha_bar)""",
    ),
)


def _quotients(shares: Tensor) -> Tensor:
    return 1 - shares[1:] / shares[:-1]


betas_from_log_snr = Check(
    signature="betas_from_log_snr(log_snr)",
    task="beta_1, ..., beta_T of the schedule that has this log SNR at t = 1, ..., T.",
    # log alpha_bar is logsigmoid(log SNR), and 1 - exp(d) is -expm1(d).
    oracle=lambda log: -torch.expm1(_with_first(0, torch.nn.functional.logsigmoid(log)).diff()),
    cases=lambda: [
        (torch.linspace(6, -6, 30, dtype=torch.float64),),
        (torch.tensor([3.0, 2.5, 0.1, -1.0, -4.0], dtype=torch.float64),),
    ],
    verified="the schedule made of your betas has the log SNR asked for.",
    mistakes=(
        Mistake(
            "one beta too few: the first quotient needs ᾱ_0 = 1 in front of the table.",
            lambda log: _quotients(log.sigmoid()),
        ),
        Mistake(
            "your first beta is 0, as if t = 1 were clean: ᾱ_0 is 1, not ᾱ_1.",
            lambda log: _with_first(0, _quotients(log.sigmoid())),
        ),
        Mistake(
            "ᾱ_t is not the SNR: SNR can be above 1. Solve SNR = ᾱ/(1 − ᾱ) for ᾱ.",
            lambda log: _quotients(_with_first(1, log.exp())),
        ),
        Mistake(
            "the sign of log SNR is turned: noise and signal are exchanged.",
            lambda log: _quotients(_with_first(1, (-log).sigmoid())),
        ),
        Mistake(
            "you halve log SNR, as for a ratio of standard deviations. It is one of variances.",
            lambda log: _quotients(_with_first(1, (log / 2).sigmoid())),
        ),
        Mistake(
            "this is 1 − ᾱ_t, all the noise at t. beta_t is what step t alone adds.",
            lambda log: 1 - log.sigmoid(),
        ),
        Mistake(
            "these are the alphas; beta_t = 1 − α_t.",
            lambda log: 1 - _quotients(_with_first(1, log.sigmoid())),
        ),
    ),
    hints=(
        "Two steps: from log SNR to ᾱ_t, then from the table of ᾱ_t to the betas.",
        "ᾱ_t = SNR/(1 + SNR), which is the logistic function of log SNR. Then "
        "beta_t = 1 − ᾱ_t/ᾱ_{t−1}, and ᾱ_0 = 1.",
        """def betas_from_log_snr(log_snr):
    alpha_bars = torch.cat([torch.ones_like(log_snr[:1]), log_snr.sigmoid()])
    return 1 - alpha_bars[1:] / alpha_bars[:-1]""",
    ),
)


def _kl_per_pixel(x0: Tensor, ab: float) -> Tensor:
    return 0.5 * (ab * (x0**2 - 1) - math.log(1 - ab))


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


kl_to_noise = Check(
    signature="kl_to_noise(x0, alpha_bar)",
    task="KL(q(x_t | x_0) || N(0, I)) in nats, (N,), for pictures x0, (N, C, H, W).",
    oracle=lambda x0, ab: likelihood.prior_kl(x0, _at(torch.as_tensor(ab))),
    cases=lambda: [
        (fixed_normal(3, 2, 4, 5, seed=4), torch.tensor(ab, dtype=torch.float64))
        for ab in (0.9, 0.3, 0.01)
    ],
    verified="one number of nats for each picture, equal to the library's.",
    mistakes=(
        Mistake(
            "the factor ½ is missing.",
            lambda x0, ab: 2 * _sum(_kl_per_pixel(x0, ab)),
        ),
        Mistake(
            "you take the mean over the pixels. Pixels are independent: their divergences add up.",
            lambda x0, ab: _kl_per_pixel(x0, ab).flatten(1).mean(1),
        ),
        Mistake(
            "the pictures are added together, too: return one number for each.",
            lambda x0, ab: _kl_per_pixel(x0, ab).sum(),
        ),
        Mistake(
            "this is in bits: the natural logarithm gives nats.",
            lambda x0, ab: _sum(_kl_per_pixel(x0, ab)) / math.log(2),
        ),
        Mistake(
            "the sign of the logarithm is turned.",
            lambda x0, ab: _sum(0.5 * (ab * (x0**2 - 1) + math.log(1 - ab))),
        ),
        Mistake(
            "the variance of x_t given x_0 is 1 − ᾱ_t, and the standard deviation is its root: "
            "your formula has the standard deviation in place of the variance.",
            lambda x0, ab: _sum(0.5 * (ab * x0**2 + (1 - ab) ** 0.5 - 1 - 0.5 * math.log(1 - ab))),
        ),
        Mistake(
            "this is KL(N(0, I) || q), the divergence the other way round.",
            lambda x0, ab: _sum(0.5 * ((1 + ab * x0**2) / (1 - ab) - 1 + math.log(1 - ab))),
        ),
    ),
    hints=(
        "q(x_t | x_0) is normal with mean √ᾱ_t x_0 and variance 1 − ᾱ_t, for each pixel. Use the "
        "KL divergence of two normal distributions.",
        "KL(N(μ, σ²) || N(0, 1)) = ½(μ² + σ² − 1 − ln σ²). Insert, then add up all pixels of a "
        "picture.",
        """def kl_to_noise(x0, alpha_bar):
    per_pixel = alpha_bar * (x0**2 - 1) - torch.log1p(-alpha_bar)
    return 0.5 * per_pixel.flatten(1).sum(1)""",
    ),
)
