"""The checks of the exercises: every known mistake is named, every right way of writing passes."""

import inspect
import math
import random
from collections.abc import Callable
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diffusion_lib
from diffusion_lib import UserError, checks, noise, samplers
from diffusion_lib.checks import CheckFailed, engine
from diffusion_lib.checks.engine import CHECKS, Check, Mistake

SCHEDULE = noise.linear()
# What a notebook has at hand when a learner writes a function.
NOTEBOOK = {
    "torch": torch, "math": math, "np": np, "F": F, "pairwise": pairwise, "samplers": samplers,
    "schedule": SCHEDULE, "alphas": SCHEDULE.alphas, "alpha_bars": SCHEDULE.alpha_bars,
}  # fmt: skip
MISTAKES = [
    pytest.param(check, mistake, id=f"{name}-{i}")
    for name, check in CHECKS.items()
    for i, mistake in enumerate(check.mistakes)
]
EVERY = pytest.mark.parametrize("name", CHECKS)
# Of these the plain results are compared; the others calculate inside of a net they are given.
PLAIN = [name for name, check in CHECKS.items() if check.measure is engine.call]

Function = Callable[..., object]


def written(name: str, source: str, **namespace: object) -> Function:
    """A function from its source, as in a cell."""
    cell = {**NOTEBOOK, **namespace}
    exec(source, cell)
    return cell[name]


def solution(name: str, **namespace: object) -> Function:
    return written(name, CHECKS[name].hints[2], **namespace)


def refusal(check: Check, f: object) -> CheckFailed:
    with pytest.raises(CheckFailed) as caught:
        check(f)
    return caught.value


def single(value: object) -> object:
    """The same in float32; a table as well as an argument."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().float()
    if isinstance(value, noise.Level):
        return noise.Level(*(single(part) for part in value))
    return value


# --- the wrong answers that are known ---------------------------------------------------------


def test_enough_functions_and_mistakes() -> None:
    assert len(CHECKS) >= 16
    assert all(len(check.mistakes) >= 4 for check in CHECKS.values())
    assert sum(len(check.mistakes) for check in CHECKS.values()) >= 64
    assert all(getattr(checks, name) is check for name, check in CHECKS.items())


@pytest.mark.parametrize(("check", "mistake"), MISTAKES)
def test_a_known_mistake_is_named(check: Check, mistake: Mistake) -> None:
    error = refusal(check, lambda *arguments: mistake.wrong(*arguments))
    assert error.diagnosis == mistake.diagnosis
    assert mistake.diagnosis in str(error)

    def in_float32(*arguments: object) -> object:
        out = mistake.wrong(*arguments)
        return tuple(single(o) for o in out) if isinstance(out, tuple) else single(out)

    if check.name in PLAIN:
        assert refusal(check, in_float32).diagnosis == mistake.diagnosis


@EVERY
def test_no_two_mistakes_give_the_same(name: str) -> None:
    check = CHECKS[name]
    results = range(len(check.results))
    outcomes = [engine._known(check, mistake.wrong) for mistake in check.mistakes]
    for (i, a), (j, b) in combinations(enumerate(outcomes), 2):
        same = all(check._alike(x, y, r) for x, y in zip(a, b, strict=True) for r in results)
        assert not same, f"mistakes {i} and {j}"
    assert len({mistake.diagnosis for mistake in check.mistakes}) == len(check.mistakes)


# --- right answers, differently written -------------------------------------------------------

L = SCHEDULE  # short, for the sources below


def _rows(f: Function) -> Function:
    """Example by example, in a loop."""

    def looped(*arguments: object) -> torch.Tensor:
        n = len(next(a for a in arguments if isinstance(a, torch.Tensor)))

        def row(a: object, i: int) -> object:
            if isinstance(a, noise.Level):
                return noise.Level(*(part[i : i + 1] for part in a))
            return a[i : i + 1] if isinstance(a, torch.Tensor) and a.ndim else a

        return torch.cat([f(*(row(a, i) for a in arguments)) for i in range(n)])

    return looped


def _bars_by_loop(betas):
    out = [1.0]
    for beta in betas.tolist():
        out.append(out[-1] * (1 - beta))
    return out


def _bars_by_logs(betas):
    return F.pad(torch.log1p(-betas).cumsum(0), (1, 0)).exp()


def _between_by_product(bars, s, t):
    a, b2 = 1.0, 0.0
    for i in range(s + 1, t + 1):
        kept = float(bars[i] / bars[i - 1])
        a, b2 = a * kept**0.5, kept * b2 + 1 - kept
    return a, b2**0.5


def _cosine_by_double_angle(T, s):
    def f(t):
        return (1 + math.cos((t / T + s) / (1 + s) * math.pi)) / 2

    return np.array([f(t) / f(0) for t in range(T + 1)])


def _betas_by_loop(log_snr):
    betas, before = [], 1.0
    for value in log_snr:
        now = 1 / (1 + math.exp(-value))
        betas.append(1 - now / before)
        before = now
    return betas


def _kl_by_torch(x0, alpha_bar):
    q = torch.distributions.Normal(alpha_bar.sqrt() * x0, (1 - alpha_bar).sqrt())
    return torch.distributions.kl_divergence(
        q, torch.distributions.Normal(torch.zeros_like(x0), 1.0)
    ).sum((1, 2, 3))


def _posterior_by_precisions(x_t, x0, s, t):
    kept = L.alpha_bars[t] / L.alpha_bars[s]
    by_x_t, by_x0 = kept / (1 - kept), 1 / (1 - L.alpha_bars[s])
    mean = (by_x_t * x_t / kept.sqrt() + by_x0 * L.alpha_bars[s].sqrt() * x0) / (by_x_t + by_x0)
    return [mean.numpy(), float((by_x_t + by_x0) ** -0.5)]


def _kl_of_standard_deviations(m1, v1, m2, v2):
    s1, s2 = v1.sqrt(), v2.sqrt()
    return torch.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


def _v_by_difference(kind, x0, eps, level):
    x_t = level.signal * x0 + level.noise * eps
    return {"eps": eps, "x0": x0, "v": (level.signal * x_t - x0) / level.noise}[kind]


def _x0_by_sum(x_t, eps, level):
    return x_t / level.signal - (level.noise / level.signal) * eps


def _from_mean_by_matrix(x_t, mean, t):
    alpha, now = L.alphas[t], L.alpha_bars[t]
    eps = (x_t - alpha.sqrt() * mean) * (1 - now).sqrt() / (1 - alpha)
    return (x_t - (1 - now).sqrt() * eps) / now.sqrt(), eps


def _cost_by_means(x0, guess, t):
    alpha, before, now = L.alphas[t], L.alpha_bars[t - 1], L.alpha_bars[t]
    weight = before.sqrt() * (1 - alpha) / (1 - now)
    variance = (1 - before) / (1 - now) * (1 - alpha)
    return ((weight * (x0 - guess)) ** 2).sum((1, 2, 3)) / (2 * variance)


def _clock_by_loop(t, dim):
    half = dim // 2
    out = np.zeros((len(t), dim))
    for i, time in enumerate(t.tolist()):
        for k in range(half):
            speed = math.exp(-math.log(10000) * k / half)
            out[i, k], out[i, half + k] = math.cos(time * speed), math.sin(time * speed)
    return out


def _complex_clock(t, dim):
    turns = torch.exp(1j * t[:, None] * 1e4 ** (-torch.arange(0, dim, 2) / dim))
    return torch.cat([turns.real, turns.imag], -1)


def _norm_by_loop(x, groups):
    out = torch.zeros_like(x)
    for i in range(len(x)):
        for c in torch.arange(x.shape[1]).chunk(groups):
            part = x[i, c]
            out[i, c] = (part - part.mean()) / (part.var(correction=0) + 1e-5) ** 0.5
    return out


def _block_by_pieces(x, e, block):
    shift = F.linear(e, block.embedding.weight, block.embedding.bias)
    h = block.norm1(x)
    h = block.conv1(h * torch.sigmoid(h)) + shift.unsqueeze(-1).unsqueeze(-1)
    h = F.silu(block.norm2(h))
    return block.conv2(h) + block.shortcut(x)


def _block_by_picture(x, e, block):
    return torch.cat([block(x[i : i + 1], e[i : i + 1]) for i in range(len(x))])


def _attention_by_loop(q, k, v):
    rows = []
    for query in q:
        scores = torch.stack([(query * key).sum() for key in k]) / len(query) ** 0.5
        weights = scores.exp() / scores.exp().sum()
        rows.append(sum(w * value for w, value in zip(weights, v, strict=True)))
    return rows


def _attention_by_einsum(q, k, v):
    scores = torch.einsum("id,jd->ij", q, k).div(q.shape[-1] ** 0.5)
    return torch.einsum("ij,jd->id", (scores - scores.amax(1, keepdim=True)).softmax(-1), v)


def _loss_by_loop(net, x0, t, eps):
    losses = []
    for x, time, e in zip(x0, t, eps, strict=True):
        ab = L.alpha_bars[time]
        x_t = ab.sqrt() * x + (1 - ab).sqrt() * e
        losses.append(F.mse_loss(net(x_t[None], time[None].float())[0], e))
    return sum(losses) / len(losses)


def _loss_by_mse(net, x0, t, eps):
    ab = L.alpha_bars[t].view(-1, 1, 1, 1)
    return F.mse_loss(net(ab**0.5 * x0 + (1 - ab) ** 0.5 * eps, t), eps).reshape(1)


def _accumulate_by_index(loss_of, batch, size):
    for i in range(0, len(batch), size):
        part = batch[i : i + size]
        loss = loss_of(part)
        (loss / (len(batch) / len(part))).backward()


def _accumulate_in_one_sum(loss_of, batch, size):
    total = 0
    for part in batch.split(size):
        total = total + loss_of(part) * len(part)
    (total / len(batch)).backward()


def _clip_if_longer(parameters, largest):
    length = sum(float(p.grad.pow(2).sum()) for p in parameters) ** 0.5
    if length > largest:
        for p in parameters:
            p.grad = p.grad * largest / length
    return length


def _clip_one_vector(parameters, largest):
    length = torch.cat([p.grad.flatten() for p in parameters]).norm() + 1e-6
    for p in parameters:
        p.grad.mul_(min(1.0, float(largest / length)))


def _ema_in_place(average, weights, n, decay):
    average.lerp_(weights, 1 - min(decay, 1 - (n + 1) ** (-2 / 3)))
    return average


def _ddpm_by_x0(x_t, eps, t, z):
    ab, before = L.alpha_bars[t], L.alpha_bars[t - 1]
    x0 = (x_t - (1 - ab).sqrt() * eps) / ab.sqrt()
    nu2 = (1 - before) / (1 - ab) * L.betas[t]
    x = before.sqrt() * x0 + (1 - before - nu2).clamp(min=0).sqrt() * eps
    return x + nu2.sqrt() * z if t > 1 else x


def _ddim_with_sigma(x_t, x0, t, s, eta, z):
    ab_t, ab_s = L.alpha_bars[t].item(), L.alpha_bars[s].item()
    eps = (x_t - ab_t**0.5 * x0) / (1 - ab_t) ** 0.5
    sigma = eta * ((1 - ab_s) / (1 - ab_t)) ** 0.5 * (1 - ab_t / ab_s) ** 0.5
    return ab_s**0.5 * x0 + (1 - ab_s - sigma**2) ** 0.5 * eps + sigma * z


def _slerp_by_numpy(z0, z1, u):
    z0, z1 = z0.numpy(), z1.numpy()
    angle = math.acos((z0 * z1).sum() / np.sqrt((z0**2).sum() * (z1**2).sum()))
    return (math.sin((1 - u) * angle) * z0 + math.sin(u * angle) * z1) / math.sin(angle)


def _slerp_by_half_angle(z0, z1, u):
    a, b = z0 / z0.norm(), z1 / z1.norm()
    theta = 2 * torch.atan2((a - b).norm(), (a + b).norm())
    return z0 * torch.sin((1 - u) * theta) / torch.sin(theta) + z1 * torch.sin(
        u * theta
    ) / torch.sin(theta)


def _second_order_from_table(denoise, x, levels):
    guesses = []
    for i in range(len(levels) - 1):
        now, to = levels[i], levels[i + 1]
        guesses.append(denoise(x, now))
        d = guesses[-1]
        if i:
            h, last = (0.5 * (b.log_snr - a.log_snr) for a, b in ((now, to), (levels[i - 1], now)))
            r = last / h
            d = (1 + 1 / (2 * r)) * guesses[-1] - 1 / (2 * r) * guesses[-2]
        growth = to.noise / now.noise
        x = growth * x - to.signal * torch.expm1(-0.5 * (to.log_snr - now.log_snr)) * d
    return x


def _frechet_by_svd(a, b):
    a, b = a.numpy(), b.numpy()
    c1, c2 = np.cov(a.T), np.cov(b.T)
    cross = np.linalg.svd(np.linalg.cholesky(c1).T @ np.linalg.cholesky(c2), compute_uv=False)
    apart = a.mean(0) - b.mean(0)
    return apart @ apart + np.trace(c1) + np.trace(c2) - 2 * cross.sum()


def _frechet_by_eigh(a, b):
    def mean_and_cov(x):
        d = x - x.mean(0)
        return x.mean(0), d.T @ d / (len(x) - 1)

    (m1, c1), (m2, c2) = mean_and_cov(a), mean_and_cov(b)
    w, q = torch.linalg.eigh(c1)
    root = q @ torch.diag(w.sqrt()) @ q.T
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    return ((m1 - m2) @ (m1 - m2) + torch.trace(c1 + c2) - 2 * cross).item()


# For each function two more ways to write it, besides those that are made from its solution.
OTHER_WAYS: dict[str, list[Function]] = {
    "forward_sample": [
        _rows(solution("forward_sample")),
        lambda x0, e, a: torch.einsum("b,bchw->bchw", a**0.5, x0)
        + torch.einsum("b,bchw->bchw", (1 - a) ** 0.5, e),
    ],
    "add_noise": [
        lambda x0, t, e: L.alpha_bars[t] ** 0.5 * (x0 + e / L(torch.tensor(t)).snr ** 0.5),
        lambda x0, t, e: math.sqrt(L.alpha_bars[t]) * x0 + math.sqrt(1 - L.alpha_bars[t]) * e,
    ],
    "alpha_bars": [_bars_by_loop, _bars_by_logs],
    "between": [
        _between_by_product,
        lambda bars, s, t: (
            bars[t].sqrt() / bars[s].sqrt(),
            ((1 - bars[t]) - bars[t] / bars[s] * (1 - bars[s])).sqrt(),
        ),
    ],
    "cosine": [
        _cosine_by_double_angle,
        lambda T, s: [
            (math.cos((t / T + s) / (1 + s) * math.pi / 2)
             / math.cos(s / (1 + s) * math.pi / 2)) ** 2
            for t in range(T + 1)
        ],
    ],
    "snr": [lambda a: 1 / (1 / a - 1), lambda a: [float(v) / (1 - float(v)) for v in a]],
    "betas_from_log_snr": [
        _betas_by_loop,
        lambda log: 1 - torch.sigmoid(log) * torch.cat([torch.ones(1), 1 + (-log[:-1]).exp()]),
    ],
    "kl_to_noise": [_rows(solution("kl_to_noise")), _kl_by_torch],
    "posterior": [_posterior_by_precisions, lambda x_t, x0, s, t: (
        samplers.step(
            x0, samplers.eps_from(x_t, x0, L(torch.tensor(t))), L(torch.tensor(s)),
            nu=samplers.posterior_nu(L(torch.tensor(t)), L(torch.tensor(s))),
        ),
        samplers.posterior_nu(L(torch.tensor(t)), L(torch.tensor(s))),
    )],
    "kl_normal": [_kl_of_standard_deviations, _rows(solution("kl_normal"))],
    "target": [_v_by_difference, lambda k, x0, e, at: {
        "eps": lambda: e, "x0": lambda: x0, "v": lambda: at.signal * e - at.noise * x0,
    }[k]()],
    "x0_from": [_x0_by_sum, _rows(solution("x0_from"))],
    "from_mean": [
        _from_mean_by_matrix,
        lambda *a: [part.numpy() for part in solution("from_mean")(*a)],
    ],
    "step_cost": [_cost_by_means, _rows(solution("step_cost"))],
    "min_snr_weight": [
        lambda snr, g: torch.where(snr < g, torch.ones_like(snr), g / snr),
        lambda snr, g: [min(1.0, g / float(s)) for s in snr],
    ],
    "bits_per_dim": [
        lambda nats, dims: nats * math.log2(math.e) / dims,
        lambda nats, dims: [n / dims / 0.6931472 for n in nats.tolist()],
    ],
    "time_embedding": [_clock_by_loop, _complex_clock],
    "group_norm": [_norm_by_loop, lambda x, g: F.group_norm(x, num_groups=g)],
    "residual_block": [_block_by_pieces, _block_by_picture],
    "attention": [_attention_by_loop, _attention_by_einsum],
    "to_float": [
        lambda images: images.double() / 255 * 2 - 1,
        lambda images: (images.float() - 127.5) / 127.5,
        lambda images: np.interp(images.numpy(), (0, 255), (-1, 1)),
    ],
    "simple_loss": [_loss_by_loop, _loss_by_mse],
    "ema_update": [
        _ema_in_place,
        lambda a, w, n, d: w + max(0, min(d, 1 - 1 / (1 + n) ** (2 / 3))) * (a - w),
    ],
    "accumulate": [_accumulate_by_index, _accumulate_in_one_sum],
    "clip": [_clip_if_longer, _clip_one_vector],
    "ddpm_step": [_ddpm_by_x0, lambda x, e, t, z: x / L.alphas[t] ** 0.5 - (
        L.betas[t] / (L.alphas[t] * (1 - L.alpha_bars[t])) ** 0.5
    ) * e + samplers.posterior_nu(L(torch.tensor(t)), L(torch.tensor(t - 1))) * z],
    "ddim_step": [_ddim_with_sigma, _rows(solution("ddim_step"))],
    "trailing": [
        lambda T, n: torch.linspace(T, 0, n + 1, dtype=torch.float64).round().long(),
        lambda T, n: tuple(np.round(np.arange(n, -1, -1) * (T / n)).tolist()),
        lambda T, n: [*noise.linear(T).times(n).tolist(), 0],
    ],
    "guided_eps": [
        lambda c, u, w: (1 - w) * u + w * c,
        lambda c, u, w: c + (w - 1) * (c - u),
        lambda c, u, w: torch.lerp(u, c, w),
    ],
    "slerp": [_slerp_by_half_angle, _slerp_by_numpy],
    "flow_step": [
        lambda x, v, t, s: (1 - s) * (x - t * v) + s * (x + (1 - t) * v),
        lambda x, v, t, s: x - (t - s) * v,
        _rows(solution("flow_step")),
    ],
    "second_order": [
        _second_order_from_table,
        lambda d, x, levels: torch.cat([solution("second_order")(d, x, levels)]).numpy(),
    ],
    "frechet_distance": [_frechet_by_svd, _frechet_by_eigh],
}  # fmt: skip


def test_every_function_has_other_ways() -> None:
    assert OTHER_WAYS.keys() == CHECKS.keys()
    assert all(len(ways) >= 2 for ways in OTHER_WAYS.values())  # with the solution, three


@pytest.mark.parametrize(("name", "f"), [(n, f) for n, ways in OTHER_WAYS.items() for f in ways])
def test_another_way_passes(name: str, f: Function, capsys: pytest.CaptureFixture[str]) -> None:
    CHECKS[name](f)
    assert capsys.readouterr().out == f"{name} is right: {CHECKS[name].verified}\n"


@EVERY
def test_the_solution_and_the_oracle_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    CHECKS[name](solution(name))
    CHECKS[name](CHECKS[name].oracle)
    CHECKS[name](lambda *whatever_they_are_called: solution(name)(*whatever_they_are_called))
    assert capsys.readouterr().out.count("is right") == 3


@pytest.mark.parametrize("name", PLAIN)
def test_float32_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Inputs, tables and results in single precision."""
    check = CHECKS[name]
    tables = {key: single(NOTEBOOK[key]) for key in ("alphas", "alpha_bars")}
    f = solution(name, **tables)

    def in_single(*arguments: object) -> object:
        nets = [a for a in arguments if isinstance(a, nn.Module)]
        try:
            out = f(*(a.float() if isinstance(a, nn.Module) else single(a) for a in arguments))
        finally:
            for net in nets:
                net.double()
        return tuple(single(o) for o in out) if isinstance(out, tuple) else single(out)

    check(in_single)
    assert "is right" in capsys.readouterr().out


@pytest.mark.parametrize("name", PLAIN)
def test_numpy_results_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check = CHECKS[name]

    def array(value: object) -> object:
        return value.detach().numpy() if isinstance(value, torch.Tensor) else value

    def f(*arguments: object) -> object:
        out = solution(name)(*arguments)
        return tuple(array(o) for o in out) if isinstance(out, tuple) else array(out)

    check(f)
    assert "is right" in capsys.readouterr().out


# --- wrong answers that nobody listed ---------------------------------------------------------


def _spoilt(value: object, how: str) -> torch.Tensor:
    x = value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value).double()
    x = x if x.is_floating_point() else x.double()
    if how == "one sign":
        x.view(-1)[int(x.abs().argmax())] *= -1
    elif how == "one place":
        x.view(-1)[int(x.abs().argmax())] *= 1.01
    elif how == "rolled":
        x = x.roll(1, -1)
    elif how == "transposed":
        x = x.transpose(-1, -2)
    else:
        x = x + 0.01 if how == "+0.01" else 1.01 * x
    return x


SPOIL = ("+0.01", "times 1.01", "one sign", "one place")


def _spoil_result(check: Check, how: str, k: int) -> Function:
    def f(*arguments: object) -> object:
        out = check.oracle(*arguments)
        if not isinstance(out, tuple):
            return _spoilt(out, how)
        return tuple(_spoilt(o, how) if i == k else o for i, o in enumerate(out))

    return f


def _spoil_gradients(check: Check, how: str, k: int) -> Function:
    def f(*arguments: object) -> None:
        if check.name == "clip":
            check.oracle(*arguments)
            for p in arguments[0]:
                p.grad = _spoilt(p.grad, how)
        else:
            loss_of, *rest = arguments
            check.oracle(lambda part: _spoilt(loss_of(part), how).double() ** 1.01, *rest)

    return f


def _spoiled_cases() -> list[object]:
    cases = []
    for name, check in CHECKS.items():
        returned = len(check.results) if check.measure is engine.call else 1
        for k in range(returned):
            cases += [pytest.param(check, how, k, id=f"{name}-{k}-{how}") for how in SPOIL]
    return cases


@pytest.mark.parametrize(("check", "how", "k"), _spoiled_cases())
def test_an_unlisted_wrong_answer_is_refused(check: Check, how: str, k: int) -> None:
    of_gradients = check.name in ("clip", "accumulate")
    error = refusal(check, (_spoil_gradients if of_gradients else _spoil_result)(check, how, k))
    known = {mistake.diagnosis for mistake in check.mistakes}
    assert error.diagnosis not in known, "named a mistake that was not made"
    assert "does not depend on" not in error.diagnosis
    assert "yours" in str(error) and "expected" in str(error)


def _rearrangements() -> list[tuple[str, str]]:
    found = []
    for name in PLAIN:
        check = CHECKS[name]
        dimensions = engine._known(check, check.oracle)[0][0].ndim
        found += [(name, "rolled")] * (dimensions > 0) + [(name, "transposed")] * (dimensions > 1)
    return found


@pytest.mark.parametrize(("name", "how"), _rearrangements())
def test_a_rearranged_answer_is_refused(name: str, how: str) -> None:
    refusal(CHECKS[name], _spoil_result(CHECKS[name], how, 0))


# --- what can be wrong with any function ------------------------------------------------------


def right(x0, eps, alpha_bar):
    share = alpha_bar.reshape(-1, 1, 1, 1)
    return share.sqrt() * x0 + (1 - share).sqrt() * eps


def _in_place(x0, eps, alpha_bar):
    out = right(x0, eps, alpha_bar)
    x0 *= 2
    return out


def _own_noise(x0, eps, alpha_bar):
    return right(x0, torch.randn_like(x0), alpha_bar)


def _own_numpy_noise(x0, eps, alpha_bar):
    return right(x0, torch.from_numpy(np.random.randn(*x0.shape)), alpha_bar)  # noqa: NPY002


def _own_python_noise(x0, eps, alpha_bar):
    return right(x0, eps, alpha_bar) + random.random()


_seen: list[int] = []


def _stateful(x0, eps, alpha_bar):
    _seen.append(1)
    return right(x0, eps, alpha_bar) + (len(_seen) > 1)


def _first_call_is_right(x0, eps, alpha_bar):
    _seen.append(1)
    return right(x0, eps, alpha_bar) * (1 if len(_seen) == 1 else 2)


def _no_return(x0, eps, alpha_bar):
    right(x0, eps, alpha_bar)


def _undefined(x0, eps, alpha_bar):
    return x0 * no_such_table  # noqa: F821


def _mismatch(x0, eps, alpha_bar):
    return x0 * alpha_bar[:, None]


@pytest.mark.parametrize(
    ("f", "said"),
    [
        (_no_return, "returns nothing. Is the `return` missing?"),
        (lambda x0, eps, ab: (right(x0, eps, ab), eps), "2 values came back where one value"),
        (lambda x0, eps, ab: right(x0, eps, ab)[:, :1], "has shape (3, 1, 4, 3), it should be"),
        (lambda x0, eps, ab: right(x0, eps, ab).sum(), "has shape (), it should be (3, 3, 4, 3)"),
        (lambda x0, eps, ab: right(x0, eps, ab).int(), "has the dtype int32"),
        (lambda x0, eps, ab: right(x0, eps, ab).bfloat16(), "has the dtype bfloat16"),
        (lambda x0, eps, ab: right(x0, eps, ab) + 0j, "has the dtype complex128"),
        (lambda x0, eps, ab: right(x0, eps, ab).log(), "is NaN in"),
        (lambda x0, eps, ab: right(x0, eps, ab) / 0, "is infinite in"),
        (_in_place, "changes its input `x0` in place"),
        (_own_noise, "draws random numbers of its own"),
        (_own_numpy_noise, "draws random numbers of its own"),
        (_own_python_noise, "draws random numbers of its own"),
        (_stateful, "called again with the same input"),
        (_first_call_is_right, "called again with the same input"),
        (_undefined, "raises NameError in the line `return x0 * no_such_table"),
        (_undefined, "Have the cells above been run?"),
        (_mismatch, "Two shapes don't broadcast"),
        (lambda x0, eps, ab: 1 / 0, "raises ZeroDivisionError"),
        (lambda x0, eps, ab: x0 @ torch.zeros(3, 3), "Make tensors of your own with dtype"),
        (lambda x0, eps, ab: right(x0, 0 * eps, ab), "does not depend on `eps` (parameter 2)"),
        (lambda x0, eps, ab: right(x0, eps, 0 * ab + 0.4), "does not depend on `alpha_bar`"),
        (lambda x0, eps, ab: -right(x0, eps, ab), "has the wrong sign everywhere"),
        (lambda x0, eps, ab: right(x0, eps, ab) + 0.5, "is off by 0.5, everywhere"),
        (lambda x0, eps, ab: right(x0, eps, ab) * 3, "is 3 times what it should be, everywhere"),
        (lambda x0, eps, ab: right(x0, eps, ab).flip(0), "right numbers in reverse order"),
        (lambda x0, eps, ab: right(x0, eps, ab).round(), "is rounded to whole numbers"),
        (lambda x0, eps, ab: right(x0, eps, ab).sin(), "by no mistake that is known here"),
        (lambda x0, eps: x0, "The function is called as forward_sample(x0, eps, alpha_bar)"),
        (torch.zeros(2), "this is a Tensor, not a function"),
    ],
)  # fmt: skip
def test_what_can_be_wrong_with_any_function(f: Function, said: str) -> None:
    _seen.clear()
    assert said in str(refusal(checks.forward_sample, f))


def test_a_missing_and_a_spare_value() -> None:
    error = refusal(checks.between, lambda bars, s, t: (bars[t] / bars[s]).sqrt())
    assert "return the factor a and the factor b" in error.diagnosis
    error = refusal(checks.snr, lambda a: (a, a))
    assert "2 values came back where one value should" in error.diagnosis


def test_a_right_result_that_changes_its_input_is_refused_unless_that_is_the_task() -> None:
    assert "in place" in refusal(checks.snr, lambda a: a.div_(1 - a.clone())).diagnosis
    checks.ema_update(_ema_in_place)
    assert "`weights`" in str(
        refusal(checks.ema_update, lambda a, w, n, d: _ema_in_place(a, w, n, d).add(0 * w.zero_()))
    )


def test_an_error_is_recognised_whichever_way_round() -> None:
    """Shapes that don't fit: the message names them in the order of the operands."""

    def f(x, e, block):
        h = block.conv1(F.silu(block.norm1(x))) + block.embedding(e)[:, :, None, None]
        return block.conv2(F.silu(block.norm2(h))) + x  # the known mistake has x + ...

    assert "use the block's shortcut" in refusal(checks.residual_block, f).diagnosis


def test_transposed() -> None:
    error = refusal(checks.attention, lambda q, k, v: checks.attention.oracle(q, k, v).T)
    assert error.diagnosis.endswith("Transposed?")
    square = SimpleNamespace(x=torch.rand(2, 3, 3))
    assert "transposed" in str(engine._pattern("it", square.x.transpose(1, 2), square.x))


def test_the_message_shows_one_pair_and_never_the_solution() -> None:
    error = refusal(
        checks.ddpm_step, lambda x_t, eps, t, z: checks.ddpm_step.oracle(x_t, eps, t, 2 * z)
    )
    lines = str(error).splitlines()
    assert len(lines) == 3 and lines[0].startswith("ddpm_step: ")
    assert lines[1].lstrip().startswith("For example, the result for t = 2 at [")
    assert lines[1].count("yours") == lines[1].count("expected") == 1
    assert lines[2] == '  Stuck? checks.hint("ddpm_step")'
    for check in CHECKS.values():
        code = [line.strip().removeprefix("return ") for line in check.hints[2].splitlines()]
        for mistake in check.mistakes:
            assert not any(line in mistake.diagnosis for line in code if len(line) > 8)


def test_the_first_wrong_result_decides() -> None:
    """A wrong mean and a wrong deviation: first the mean is named, then the other."""
    posterior = checks.posterior
    both = refusal(posterior, lambda x_t, x0, s, t: tuple(
        v**p for v, p in zip(posterior.oracle(x0, x_t, s, t), (1, 2), strict=True)))  # fmt: skip
    assert both.diagnosis == "the weights of x_0 and x_t are exchanged in the mean."
    second = refusal(posterior, lambda x_t, x0, s, t: tuple(
        v**p for v, p in zip(posterior.oracle(x_t, x0, s, t), (1, 2), strict=True)))  # fmt: skip
    assert second.diagnosis == "this is the variance: take its square root."
    assert "the standard deviation" in str(second)


def test_a_mistake_beside_another_one_is_named_as_far_as_it_goes() -> None:
    def shifted_but_quiet_at_the_end(x_t, eps, t, z):
        return checks.ddpm_step.oracle(x_t, eps, t + 1, (t > 1) * z)

    error = refusal(checks.ddpm_step, shifted_but_quiet_at_the_end)
    assert error.diagnosis.startswith("the index is shifted by one: this is the step from t + 1")
    assert "explains 3 of the 4 trials" in error.diagnosis

    def shifted_once(x_t, eps, t, z):  # one trial proves nothing
        return checks.ddpm_step.oracle(x_t, eps, t + (t == 300), z)

    assert "no mistake that is known" in refusal(checks.ddpm_step, shifted_once).diagnosis

    def half(x_t, eps, t, z):  # right or not known in half of the cases: no name for it
        return checks.ddpm_step.oracle(x_t, eps, t + (t > 2), (t != 999) * z)

    assert "no mistake that is known" in refusal(checks.ddpm_step, half).diagnosis


# --- not written yet, hints, and the rest -----------------------------------------------------


def _documented_stub(x0, eps, alpha_bar):
    """It will be written soon."""
    ...  # noqa: PIE790


def _half_a_stub(x0, eps, alpha_bar):
    signal = ...
    return signal * x0


def _returns_dots(x0, eps, alpha_bar):
    return ...


def _not_implemented(x0, eps, alpha_bar):
    raise NotImplementedError


@pytest.mark.parametrize(
    "f", [_documented_stub, _half_a_stub, _returns_dots, _not_implemented, lambda a, b, c: ...]
)
def test_what_is_not_written_yet_is_told_gently(
    f: Function, capsys: pytest.CaptureFixture[str]
) -> None:
    checks.forward_sample(f)
    said = capsys.readouterr().out
    assert said.startswith("forward_sample: not written yet.") and "is right" not in said


@EVERY
def test_a_stub_of_every_function(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check = CHECKS[name]
    check(written(name, f"def {check.signature}:\n    ...  # return something"))
    check(written(name, f"def {check.signature}:\n    x = ...\n    return x"))
    assert capsys.readouterr().out.count("not written yet") == 2


def test_a_constant_is_not_a_stub() -> None:
    refusal(checks.snr, lambda a: 3)


@EVERY
def test_hints_climb_a_ladder(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_hints_given", {})
    check, said = CHECKS[name], []
    for _ in range(4):
        checks.hint(name)
        said.append(capsys.readouterr().out)
    assert said[0] == f"Hint for {name} (1 of 3):\n{check.hints[0]}\n"
    assert said[1] == f"Bigger hint for {name} (2 of 3):\n{check.hints[1]}\n"
    assert said[2] == f"Solution for {name} (3 of 3):\n{check.hints[2]}\n" == said[3]
    for level in (1, 2, 3):
        checks.hint(name, level=level)
        assert capsys.readouterr().out == said[level - 1]
    assert f"def {check.signature}:" in check.hints[2]
    assert not any("def " in text for text in check.hints[:2])


def test_hints_of_two_functions_are_counted_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_hints_given", {})
    for name in ("snr", "clip", "snr"):
        checks.hint(name)
    checks.hint("clip", level=1)  # asked for by number: not counted
    checks.hint("clip")
    said = capsys.readouterr().out
    assert "(2 of 3)" in said.split("Bigger hint for snr")[1]
    assert said.count("Bigger hint for clip") == 1


def test_a_hint_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="Did you mean 'forward_sample'"):
        checks.hint("forward_sampel")
    with pytest.raises(UserError, match="levels 1, 2 and 3"):
        checks.hint("snr", level=4)


def test_global_randomness_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    python_before = random.getstate()
    for name, check in CHECKS.items():
        check(solution(name))
    refusal(checks.forward_sample, _own_noise)
    refusal(checks.forward_sample, _own_numpy_noise)
    refusal(checks.forward_sample, _own_python_noise)
    assert random.getstate() == python_before
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def test_a_notebook_shows_the_message_and_no_traceback() -> None:
    error = refusal(checks.snr, lambda a: a)
    assert error._render_traceback_() == str(error).splitlines()
    assert isinstance(error, AssertionError)


@EVERY
def test_texts_are_complete(name: str) -> None:
    check = CHECKS[name]
    assert check.task.endswith(".") and check.verified.endswith(".")
    assert check.signature in check.__doc__ and repr(check) == f"checks.{check.signature}"
    arguments = check.cases()[0]
    assert len(arguments) == len(check.parameters)
    inspect.signature(check.oracle).bind(*arguments)
    for mistake in check.mistakes:
        assert mistake.diagnosis.endswith((".", "?")) and len(mistake.diagnosis) < 200
    assert check.hints[0] != check.hints[1]


def test_public() -> None:
    assert diffusion_lib.checks is checks and "checks" in diffusion_lib.__all__
    assert {*CHECKS, "CheckFailed", "hint"} == set(checks.__all__)
    listed = " ".join(checks.__doc__.split())
    assert all(f"`{check.signature}`" in listed for check in CHECKS.values())
