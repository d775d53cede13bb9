"""Checks for chapter 2, the ELBO and the loss."""

import math

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from .. import likelihood, predict, samplers
from ..noise import Level
from .engine import Case, Check, Mistake, ddpm_schedule, fixed_normal


def _at(t: int) -> Level:
    return ddpm_schedule()(torch.tensor(t))


def _posterior(x_t: Tensor, x0: Tensor, s: int, t: int) -> tuple[Tensor, Tensor]:
    now, to = _at(t), _at(s)
    nu = samplers.posterior_nu(now, to)
    return samplers.step(x0, samplers.eps_from(x_t, x0, now), to, nu=nu), nu


def _std(x_t: Tensor, x0: Tensor, s: int, t: int) -> Tensor:
    return _posterior(x_t, x0, s, t)[1]


def _mean(x_t: Tensor, x0: Tensor, s: int, t: int) -> Tensor:
    return _posterior(x_t, x0, s, t)[0]


def _weights(s: int, t: int) -> tuple[Tensor, Tensor]:
    """What x_0 and x_t are multiplied by in the mean."""
    one, zero = torch.ones(()).double(), torch.zeros(()).double()
    return _mean(zero, one, s, t), _mean(one, zero, s, t)


def _walks() -> list[Case]:
    x_t, x0 = fixed_normal(2, 2, 3, 4, 5, seed=5)
    steps = [(20, 22), (299, 300), (100, 300), (1, 999), (500, 900)]
    return [(x_t.clone(), x0.clone(), s, t) for s, t in steps]


posterior = Check(
    signature="posterior(x_t, x0, s, t)",
    task="Mean and standard deviation of q(x_s | x_t, x_0), s < t, by DDPM's tables.",
    oracle=_posterior,
    cases=_walks,
    results=("mean", "standard deviation"),
    verified="mean and standard deviation, for neighbours and for long steps.",
    mistakes=(
        Mistake(
            "the weights of x_0 and x_t are exchanged in the mean.",
            lambda x_t, x0, s, t: (_mean(x0, x_t, s, t), _std(x_t, x0, s, t)),
        ),
        Mistake(
            "the weight of x_0 in the mean has ᾱ_s where its square root, the signal, belongs.",
            lambda x_t, x0, s, t: (
                _at(s).signal * _weights(s, t)[0] * x0 + _weights(s, t)[1] * x_t,
                _std(x_t, x0, s, t),
            ),
        ),
        Mistake(
            "the weight of x_t in the mean has α, the share of the variance, where its square root "
            "belongs.",
            lambda x_t, x0, s, t: (
                _weights(s, t)[0] * x0 + _at(t).signal / _at(s).signal * _weights(s, t)[1] * x_t,
                _std(x_t, x0, s, t),
            ),
        ),
        Mistake(
            "your mean is that of q(x_s | x_0): what x_t says is not used.",
            lambda x_t, x0, s, t: (_at(s).signal * x0 + 0 * x_t, _std(x_t, x0, s, t)),
        ),
        Mistake(
            "your mean is x_t with the shrinking undone: what x_0 says is not used.",
            lambda x_t, x0, s, t: (_at(s).signal / _at(t).signal * x_t, _std(x_t, x0, s, t)),
        ),
        Mistake(
            "the index is shifted by one: your mean is for the step from t − 1 to s − 1.",
            lambda x_t, x0, s, t: (_mean(x_t, x0, s - 1, t - 1), _std(x_t, x0, s, t)),
        ),
        Mistake(
            "the index is shifted by one: your mean is for the step from t + 1 to s + 1. Does your "
            "table begin with ᾱ_0 = 1?",
            lambda x_t, x0, s, t: (_mean(x_t, x0, s + 1, t + 1), _std(x_t, x0, s, t)),
        ),
        Mistake(
            "your mean has α_t and β_t of a single step. From s to t there are several: what do "
            "they keep together?",
            lambda x_t, x0, s, t: (
                (
                    _at(s).signal * ddpm_schedule().betas[t] * x0
                    + ddpm_schedule().alphas[t].sqrt() * _at(s).noise ** 2 * x_t
                )
                / _at(t).noise ** 2,
                _std(x_t, x0, s, t),
            ),
        ),
        Mistake(
            "this is the variance: take its square root.",
            lambda x_t, x0, s, t: (_mean(x_t, x0, s, t), _std(x_t, x0, s, t) ** 2),
        ),
        Mistake(
            "this is the logarithm of the variance.",
            lambda x_t, x0, s, t: (_mean(x_t, x0, s, t), 2 * _std(x_t, x0, s, t).log()),
        ),
        Mistake(
            "your standard deviation is that of the step forward, the root of β. Given x_0 one "
            "knows more, so it is smaller.",
            lambda x_t, x0, s, t: (
                _mean(x_t, x0, s, t),
                (1 - (_at(t).signal / _at(s).signal) ** 2).sqrt(),
            ),
        ),
        Mistake(
            "your standard deviation is noise_s, that of x_s given x_0 alone. x_t tells more.",
            lambda x_t, x0, s, t: (_mean(x_t, x0, s, t), _at(s).noise),
        ),
        Mistake(
            "your standard deviation has β_t of a single step, but from s to t there are several.",
            lambda x_t, x0, s, t: (
                _mean(x_t, x0, s, t),
                _at(s).noise / _at(t).noise * ddpm_schedule().betas[t].sqrt(),
            ),
        ),
    ),
    hints=(
        "For neighbours the chapter has the formula. Nothing in its derivation used that s and t "
        "are neighbours. What takes the place of α_t, β_t and ᾱ_{t−1}?",
        "The jump from s to t keeps the share ᾱ_t/ᾱ_s and adds 1 − ᾱ_t/ᾱ_s. Put these in place of "
        "α_t and β_t, and ᾱ_s in place of ᾱ_{t−1}. Return the root of the variance.",
        """def posterior(x_t, x0, s, t):
    alpha = alpha_bars[t] / alpha_bars[s]
    at_s, at_t, beta = alpha_bars[s], alpha_bars[t], 1 - alpha
    mean = at_s.sqrt() * beta / (1 - at_t) * x0 + alpha.sqrt() * (1 - at_s) / (1 - at_t) * x_t
    return mean, ((1 - at_s) / (1 - at_t) * beta).sqrt()""",
    ),
)


def _kl(m1: Tensor, v1: Tensor, m2: Tensor, v2: Tensor) -> Tensor:
    return kl_divergence(Normal(m1, v1.sqrt()), Normal(m2, v2.sqrt()))


def _bells() -> list[Case]:
    m1, m2 = fixed_normal(2, 4, seed=6)
    v1, v2 = fixed_normal(2, 4, seed=7).exp()
    return [(m1, v1, m2, v2)]


kl_normal = Check(
    signature="kl_normal(m1, v1, m2, v2)",
    task="KL(N(m1, v1) || N(m2, v2)) in nats, v being variances. Shape: as m1.",
    oracle=_kl,
    cases=_bells,
    verified="equal to torch.distributions, in the right direction.",
    mistakes=(
        Mistake(
            "the divergence is taken the other way round: it is not symmetric.",
            lambda m1, v1, m2, v2: _kl(m2, v2, m1, v1),
        ),
        Mistake("the factor ½ is missing.", lambda m1, v1, m2, v2: 2 * _kl(m1, v1, m2, v2)),
        Mistake(
            "v1 and v2 are variances, and you treat them as standard deviations.",
            lambda m1, v1, m2, v2: _kl(m1, v1**2, m2, v2**2),
        ),
        Mistake(
            "the sign of the logarithm is turned: the quotient stands on its head.",
            lambda m1, v1, m2, v2: _kl(m1, v1, m2, v2) + (v1 / v2).log(),
        ),
        Mistake(
            "the −1 is missing: between equal distributions the divergence must be 0.",
            lambda m1, v1, m2, v2: _kl(m1, v1, m2, v2) + 0.5,
        ),
        Mistake(
            "the distance of the means is not squared.",
            lambda m1, v1, m2, v2: _kl(m1, v1, m2, v2) + 0.5 * ((m1 - m2) - (m1 - m2) ** 2) / v2,
        ),
        Mistake(
            "you divide by the first variance. The second distribution judges: divide by its own.",
            lambda m1, v1, m2, v2: 0.5 * ((v2 / v1).log() - 1 + (v1 + (m1 - m2) ** 2) / v1),
        ),
        Mistake(
            "the variances are left out: this is only the distance of the means.",
            lambda m1, v1, m2, v2: 0.5 * (m1 - m2) ** 2 / v2,
        ),
    ),
    hints=(
        "It is the mean of ln N(x; m1, v1) − ln N(x; m2, v2) for x from the first. Write both "
        "logarithms out.",
        "You need E(x − m1)² = v1 and E(x − m2)² = v1 + (m1 − m2)². The terms are a logarithm of "
        "v2/v1, a −1 and a quotient by v2, all halved.",
        """def kl_normal(m1, v1, m2, v2):
    return 0.5 * ((v2 / v1).log() - 1 + (v1 + (m1 - m2) ** 2) / v2)""",
    ),
)


def _pairs() -> list[Case]:
    x0, eps = fixed_normal(2, 3, 2, 4, 5, seed=8)
    level = ddpm_schedule()(torch.tensor([30, 300, 700])).like(x0)
    return [(kind, x0.clone(), eps.clone(), level) for kind in ("eps", "x0", "v")]


def _target(kind: str, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    return predict.target(kind, x0, eps, level)  # type: ignore[arg-type]


target = Check(
    signature="target(kind, x0, eps, level)",
    task='What the net must put out, as x0, for kind "eps", "x0" or "v", at a `Level`.',
    oracle=_target,
    cases=_pairs,
    verified="the targets of eps, x0 and v.",
    mistakes=(
        Mistake(
            "the sign of v is turned: v points from the picture towards the noise.",
            lambda k, x0, eps, at: _target(k, x0, eps, at) * (-1 if k == "v" else 1),
        ),
        Mistake(
            "the factors of v are exchanged: the picture gets noise_t, the noise gets signal_t.",
            lambda k, x0, eps, at: (
                at.noise * eps - at.signal * x0 if k == "v" else _target(k, x0, eps, at)
            ),
        ),
        Mistake(
            "for v both terms are added. That is nearly x_t: one of the signs must be minus.",
            lambda k, x0, eps, at: (
                at.signal * eps + at.noise * x0 if k == "v" else _target(k, x0, eps, at)
            ),
        ),
        Mistake(
            "this v is eps − x_0, the velocity of flow matching. Ours has factors of the level.",
            lambda k, x0, eps, at: _target("flow" if k == "v" else k, x0, eps, at),
        ),
        Mistake(
            "for v you return x_t itself, which the net is given anyway.",
            lambda k, x0, eps, at: (
                at.signal * x0 + at.noise * eps if k == "v" else _target(k, x0, eps, at)
            ),
        ),
        Mistake(
            "v has the squares of signal and noise as factors: those are shares of the variance.",
            lambda k, x0, eps, at: (
                at.signal**2 * eps - at.noise**2 * x0 if k == "v" else _target(k, x0, eps, at)
            ),
        ),
        Mistake(
            "eps and x0 are exchanged.",
            lambda k, x0, eps, at: _target({"eps": "x0", "x0": "eps"}.get(k, k), x0, eps, at),
        ),
        Mistake(
            "you return eps for every kind.",
            lambda k, x0, eps, at: eps.clone(),
        ),
    ),
    hints=(
        "Two of the three kinds need no calculation. v is made of both, x_0 and eps.",
        "On the circle x_t = signal x_0 + noise eps; v is the direction at a right angle to it, "
        "pointing towards eps.",
        """def target(kind, x0, eps, level):
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    return level.signal * eps - level.noise * x0""",
    ),
)


def _noisy() -> list[Case]:
    x_t, eps = fixed_normal(2, 3, 2, 4, 5, seed=9)
    return [(x_t, eps, ddpm_schedule()(torch.tensor([30, 300, 700])).like(x_t))]


x0_from = Check(
    signature="x0_from(x_t, eps, level)",
    task="The clean part of x_t if its noise is eps, at a `Level`. Shape: as x_t.",
    oracle=samplers.x0_from,
    cases=_noisy,
    verified="noise it again with the same eps, and x_t comes back.",
    mistakes=(
        Mistake(
            "you subtract the noise and don't undo the shrinking of the picture.",
            lambda x_t, eps, at: x_t - at.noise * eps,
        ),
        Mistake(
            "you divide by ᾱ_t. The picture was multiplied by its square root, the signal.",
            lambda x_t, eps, at: (x_t - at.noise * eps) / at.signal**2,
        ),
        Mistake(
            "you subtract 1 − ᾱ_t times eps. In x_t it stands with the square root, the noise.",
            lambda x_t, eps, at: (x_t - at.noise**2 * eps) / at.signal,
        ),
        Mistake(
            "the noise is added once more instead of being subtracted.",
            lambda x_t, eps, at: (x_t + at.noise * eps) / at.signal,
        ),
        Mistake(
            "eps is subtracted without the factor that it has in x_t.",
            lambda x_t, eps, at: (x_t - eps) / at.signal,
        ),
        Mistake(
            "signal and noise are exchanged: that is how eps is found from x_0.",
            lambda x_t, eps, at: (x_t - at.signal * eps) / at.noise,
        ),
        Mistake(
            "you multiply by the signal at the end: that shrinks the picture a second time.",
            lambda x_t, eps, at: (x_t - at.noise * eps) * at.signal,
        ),
        Mistake(
            "only x_t is divided by the signal; the noise must be, too.",
            lambda x_t, eps, at: x_t / at.signal - at.noise * eps,
        ),
    ),
    hints=(
        "Solve x_t = signal x_0 + noise eps for x_0.",
        "First bring the noise to the other side, with its factor. Then divide all of it.",
        """def x0_from(x_t, eps, level):
    return (x_t - level.noise * eps) / level.signal""",
    ),
)


def _means() -> list[Case]:
    x0, eps = fixed_normal(2, 2, 3, 4, 5, seed=10)
    cases: list[Case] = []
    for t in (100, 300, 600):
        x_t = samplers.step(x0, eps, _at(t))
        cases.append((x_t, _mean(x_t, x0, t - 1, t), t))
    return cases


def _from_mean(x_t: Tensor, mean: Tensor, t: int) -> tuple[Tensor, Tensor]:
    of_x0, of_xt = _weights(t - 1, t)
    x0 = (mean - of_xt * x_t) / of_x0
    return x0, samplers.eps_from(x_t, x0, _at(t))


def _eps_too(x_t: Tensor, x0: Tensor, t: int) -> tuple[Tensor, Tensor]:
    return x0, samplers.eps_from(x_t, x0, _at(t))


from_mean = Check(
    signature="from_mean(x_t, mean, t)",
    task="(x_0, eps) from x_t and the mean of q(x_{t-1} | x_t, x_0), by DDPM's tables.",
    oracle=_from_mean,
    cases=_means,
    results=("x_0", "eps"),
    rtol=1e-3,
    atol=1e-3,  # the division by x_0's small weight makes rounding errors large
    verified="x_0 and eps, which together give x_t again.",
    mistakes=(
        Mistake(
            "x_0 and eps come back in the wrong order.",
            lambda x_t, mean, t: _from_mean(x_t, mean, t)[::-1],
        ),
        Mistake(
            "you divide the mean by x_0's weight. x_t's share must be subtracted before.",
            lambda x_t, mean, t: _eps_too(x_t, mean / _weights(t - 1, t)[0], t),
        ),
        Mistake(
            "x_t's share is added to the mean instead of being subtracted.",
            lambda x_t, mean, t: _eps_too(
                x_t, (mean + _weights(t - 1, t)[1] * x_t) / _weights(t - 1, t)[0], t
            ),
        ),
        Mistake(
            "you undo the shrinking of the mean, as if it held no noise.",
            lambda x_t, mean, t: _eps_too(x_t, mean / _at(t - 1).signal, t),
        ),
        Mistake(
            "the index is shifted by one: these are the weights of the step from t + 1 to t.",
            lambda x_t, mean, t: _eps_too(
                x_t, (mean - _weights(t, t + 1)[1] * x_t) / _weights(t, t + 1)[0], t
            ),
        ),
        Mistake(
            "your eps has the wrong sign, or x_0 was added where it should be subtracted.",
            lambda x_t, mean, t: (_from_mean(x_t, mean, t)[0], -_from_mean(x_t, mean, t)[1]),
        ),
        Mistake(
            "your eps is solved from the mean at level t − 1. It is the noise in x_t, at level t.",
            lambda x_t, mean, t: (
                _from_mean(x_t, mean, t)[0],
                samplers.eps_from(mean, _from_mean(x_t, mean, t)[0], _at(t - 1)),
            ),
        ),
    ),
    hints=(
        "The mean is a weighted sum of x_0 and x_t, with known weights. So is x_t, of x_0 and eps.",
        "Solve mean = c_0 x_0 + c_t x_t for x_0, then x_t = signal x_0 + noise eps for eps.",
        """def from_mean(x_t, mean, t):
    beta, before, now = 1 - alphas[t], alpha_bars[t - 1], alpha_bars[t]
    c_0 = before.sqrt() * beta / (1 - now)
    c_t = alphas[t].sqrt() * (1 - before) / (1 - now)
    x0 = (mean - c_t * x_t) / c_0
    return x0, (x_t - now.sqrt() * x0) / (1 - now).sqrt()""",
    ),
)


def _guesses() -> list[Case]:
    x0, wrong = fixed_normal(2, 3, 2, 4, 5, seed=11)
    return [(x0.clone(), x0 + 0.3 * wrong, t) for t in (2, 300, 999)]


def _cost(x0: Tensor, guess: Tensor, t: int) -> Tensor:
    return likelihood.step_kl(x0, guess, _at(t), _at(t - 1))


step_cost = Check(
    signature="step_cost(x0, guess, t)",
    task="L_{t-1} in nats, (N,), if the step from t to t - 1 is made with this guess of x_0.",
    oracle=_cost,
    cases=_guesses,
    rtol=1e-3,  # neighbours' SNRs are close
    atol=1e-7,
    verified="nats for each picture, at t = 2, 300 and 999.",
    mistakes=(
        Mistake("the factor ½ is missing.", lambda x0, g, t: 2 * _cost(x0, g, t)),
        Mistake(
            "your cost is negative: SNR falls with t, so the difference is the other way round.",
            lambda x0, g, t: -_cost(x0, g, t),
        ),
        Mistake(
            "you take the mean over the pixels; nats add up.",
            lambda x0, g, t: _cost(x0, g, t) / x0[0].numel(),
        ),
        Mistake(
            "the pictures are added together, too: return one number for each.",
            lambda x0, g, t: _cost(x0, g, t).sum(),
        ),
        Mistake(
            "the price is the gain in SNR of this step, not the SNR itself.",
            lambda x0, g, t: 0.5 * _at(t).snr * (x0 - g).square().flatten(1).sum(1),
        ),
        Mistake(
            "the index is shifted by one: this is the price of the step from t + 1 to t.",
            lambda x0, g, t: _cost(x0, g, t + 1),
        ),
        Mistake(
            "the error is not squared.",
            lambda x0, g, t: 0.5 * (_at(t - 1).snr - _at(t).snr) * (x0 - g).abs().flatten(1).sum(1),
        ),
        Mistake(
            "this is the price of an error in eps. The guess here is one of x_0.",
            lambda x0, g, t: _cost(x0, g, t) / _at(t).snr,
        ),
    ),
    hints=(
        "With equal variances a step's divergence is a squared error of x_0 times a price.",
        "The price is half of what the step gains in SNR, from t to t − 1. Add up the squares "
        "over all pixels of a picture.",
        """def step_cost(x0, guess, t):
    before, now = (alpha_bars[i] / (1 - alpha_bars[i]) for i in (t - 1, t))
    return 0.5 * (before - now) * (x0 - guess).square().flatten(1).sum(1)""",
    ),
)


def _level_of(snr: Tensor) -> Level:
    return Level((snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt(), snr)


def _ratios() -> list[Case]:
    snr = torch.tensor([0.01, 0.5, 1.0, 4.0, 7.0, 300.0], dtype=torch.float64)
    return [(snr.clone(), 5.0), (snr.clone(), 2.0)]


min_snr_weight = Check(
    signature="min_snr_weight(snr, gamma)",
    task="The min-SNR weight on the squared error of eps. Shape: as snr.",
    oracle=lambda snr, gamma: predict.weight("min_snr", "eps", _level_of(snr), gamma=gamma),
    cases=_ratios,
    verified="for eps: 1 up to SNR = gamma, falling beyond.",
    mistakes=(
        Mistake(
            "this is the weight on the error of x_0. An error of eps is √SNR times as large.",
            lambda snr, gamma: snr.clamp(max=gamma),
        ),
        Mistake(
            "this is the weight for v: it divides by SNR + 1.",
            lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1),
        ),
        Mistake(
            "this is max-SNR: the larger of the two is taken.",
            lambda snr, gamma: snr.clamp(min=gamma) / snr,
        ),
        Mistake(
            "the limit is missing: where SNR is below gamma, the weight is 1.",
            lambda snr, gamma: gamma / snr,
        ),
        Mistake(
            "you divide by gamma where SNR belongs.",
            lambda snr, gamma: snr.clamp(max=gamma) / gamma,
        ),
        Mistake(
            "you divide by the root of SNR. The error is squared, so its factor is, too.",
            lambda snr, gamma: snr.clamp(max=gamma) / snr.sqrt(),
        ),
        Mistake(
            "the weight stands on its head.",
            lambda snr, gamma: snr / snr.clamp(max=gamma),
        ),
    ),
    hints=(
        "The weight min(SNR, γ) is stated for the error of x_0. How much larger is the squared "
        "error of eps?",
        "|Δeps|² = SNR · |Δx_0|². Divide, so that the product stays the same.",
        """def min_snr_weight(snr, gamma):
    return snr.clamp(max=gamma) / snr""",
    ),
)


def _ledger(nats: Tensor, dims: int) -> Tensor:
    zero = torch.zeros_like(nats)
    return likelihood.Ledger(nats, zero[None], zero, dims).bits_per_dim


bits_per_dim = Check(
    signature="bits_per_dim(nats, dims)",
    task="The bound in bits per dimension, from nats per picture. Shape: as nats.",
    oracle=_ledger,
    cases=lambda: [(fixed_normal(4, seed=12).exp() * 100, 256), (torch.ones(2).double(), 3)],
    verified="nats become bits, shared among all numbers of a picture.",
    mistakes=(
        Mistake(
            "these are still nats, per dimension: one bit is ln 2 nats.",
            lambda nats, dims: nats / dims,
        ),
        Mistake(
            "you multiply by ln 2. A bit is less than a nat, so there are more bits than nats.",
            lambda nats, dims: nats * math.log(2) / dims,
        ),
        Mistake(
            "these are the bits of a whole picture: divide by its dimensions.",
            lambda nats, dims: nats / math.log(2),
        ),
        Mistake(
            "you take the logarithm of nats, which are logarithms already: only the unit changes.",
            lambda nats, dims: nats.log2() / dims,
        ),
        Mistake(
            "you divide by 2, where the logarithm of 2 belongs.",
            lambda nats, dims: nats / (2 * dims),
        ),
    ),
    hints=(
        "A nat is −ln p, a bit −log₂ p. How do the two logarithms differ?",
        "log₂ p = ln p / ln 2. Then share the bits among all numbers of a picture.",
        """def bits_per_dim(nats, dims):
    return nats / (dims * math.log(2))""",
    ),
)
