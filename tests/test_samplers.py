"""Samplers against exact answers; nothing here is trained."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_lib import UserError
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import clip
from diffusion_lib.noise import Level, cosine, edm, flow, linear, rescale_zero_terminal_snr
from diffusion_lib.samplers import (
    Sampler,
    ddim,
    ddpm,
    dpmpp_2m,
    eps_from,
    heun,
    invert,
    posterior_nu,
    sample,
    start,
    step,
)
from diffusion_lib.toy import GaussianMixture
from diffusion_lib.unet import UNet, UNetConfig

F64 = torch.float64


def levels_at(schedule, *times: float) -> list[Level]:  # type: ignore[no-untyped-def]
    return [schedule(torch.tensor(t)) for t in times]


def last(steps) -> Tensor:  # type: ignore[no-untyped-def]
    return [s.x for s in steps][-1]


# --- one step -------------------------------------------------------------------------------


@pytest.mark.parametrize("t, s", [(1000, 999), (500, 499), (2, 1), (800, 300)])
def test_eta_1_is_the_ddpm_posterior(t: int, s: int) -> None:
    """[7] Mean and variance of q(x_s | x_t, x_0), DDPM eq. 7, for neighbours and for jumps."""
    schedule = linear()
    now, to = levels_at(schedule, t, s)
    ab_t, ab_s = schedule.alpha_bars[t], schedule.alpha_bars[s]
    alpha, beta = ab_t / ab_s, 1 - ab_t / ab_s  # of the jump; alpha_t and beta_t for neighbours
    x0, x_t = torch.randn(2, 6, dtype=F64)
    mean = ab_s.sqrt() * beta / (1 - ab_t) * x0 + alpha.sqrt() * (1 - ab_s) / (1 - ab_t) * x_t
    got = step(x0, eps_from(x_t, x0, now), to, nu=posterior_nu(now, to), z=torch.zeros_like(x0))
    assert (got - mean).abs().max() < 1e-12
    variance = (1 - ab_s) / (1 - ab_t) * beta
    assert posterior_nu(now, to).item() ** 2 == pytest.approx(variance.item(), rel=1e-9)


@pytest.mark.parametrize("t", [2, 10, 500, 1000])
def test_posterior_precision_is_the_sum_of_precisions(t: int) -> None:
    """[8] Likelihood alpha_t / beta_t plus prior 1 / (1 - alpha_bar_{t-1})."""
    schedule = linear()
    now, to = levels_at(schedule, t, t - 1)
    precision = schedule.alphas[t] / schedule.betas[t] + 1 / (1 - schedule.alpha_bars[t - 1])
    assert (posterior_nu(now, to) ** -2).item() == pytest.approx(precision.item(), rel=1e-8)


def test_posterior_by_bayes_on_a_grid() -> None:
    """[8] q(x_s | x_t, x_0) from q(x_t | x_s) q(x_s | x_0), summed numerically."""
    schedule = linear()
    t, x0, x_t = 300, 0.7, -0.4
    now, to = levels_at(schedule, t, t - 1)
    grid = torch.linspace(-6, 6, 240_001, dtype=F64)
    log_p = -((x_t - schedule.alphas[t].sqrt() * grid) ** 2) / (2 * schedule.betas[t])
    log_p = log_p - (grid - to.signal * x0) ** 2 / (2 * to.noise**2)
    p = log_p.softmax(0)
    mean = (p * grid).sum()
    std = (p * (grid - mean) ** 2).sum().sqrt()
    x0, x_t = torch.tensor([x0], dtype=F64), torch.tensor([x_t], dtype=F64)
    got = step(x0, eps_from(x_t, x0, now), to, nu=posterior_nu(now, to), z=torch.zeros(1))
    assert got.item() == pytest.approx(mean.item(), abs=1e-8)
    assert posterior_nu(now, to).item() == pytest.approx(std.item(), rel=1e-6)


def test_fixed_large_has_variance_beta_and_the_small_mean() -> None:
    """[9] DDPM's other choice of variance; the mean stays."""
    schedule = linear()
    x = torch.randn(200_000, dtype=F64)
    x0 = torch.zeros_like(x)
    for t in (2, 500, 1000):
        now, to = levels_at(schedule, t, t - 1)
        steps = [
            last(ddpm(lambda *_: x0, x, [now, to], variance=v, generator=torch.Generator()))
            for v in ("small", "large")
        ]
        mean = step(x0, eps_from(x, x0, now), to, nu=posterior_nu(now, to), z=x0)
        small, large = ((s - mean).var().item() for s in steps)
        assert large == pytest.approx(schedule.betas[t].item(), rel=0.02)
        assert small == pytest.approx(posterior_nu(now, to).item() ** 2, rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_any_eta_keeps_the_marginal(eta: float) -> None:
    """[10] With the true x_0: mean signal x_0 and variance exactly noise^2."""
    now, to = levels_at(cosine(), 700, 350)
    nu = eta * posterior_nu(now, to)
    one, zero = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
    assert step(one, zero, to, nu=nu, z=zero).item() == pytest.approx(to.signal.item())
    by_eps = step(zero, one, to, nu=nu, z=zero) ** 2
    by_z = step(zero, zero, to, nu=nu, z=one) ** 2
    assert (by_eps + by_z).item() == pytest.approx(to.noise.item() ** 2, rel=1e-12)


def test_two_ancestral_steps_are_one_large_one_in_law() -> None:
    """[11] For a fixed true x_0. Step x' = p x + nu z: compare slope and variance."""

    def slope_and_variance(now: Level, to: Level) -> tuple[Tensor, Tensor]:
        nu = posterior_nu(now, to)
        return (to.noise**2 - nu**2).sqrt() / now.noise, nu**2

    t, m, s = levels_at(linear(), 900, 600, 200)
    (p1, v1), (p2, v2) = slope_and_variance(t, m), slope_and_variance(m, s)
    p, v = slope_and_variance(t, s)
    assert (p1 * p2).item() == pytest.approx(p.item(), rel=1e-10)
    assert (p2**2 * v1 + v2).item() == pytest.approx(v.item(), rel=1e-10)


def test_ddim_on_the_straight_path_is_euler() -> None:
    """[12] x + (s - t) v with v = eps - x_0."""
    t, s = 0.8, 0.55
    now, to = levels_at(flow(), t, s)
    x0, eps = torch.randn(2, 6, dtype=F64)
    x = now.signal * x0 + now.noise * eps
    got = last(ddim(lambda *_: x0, x, [now, to]))
    assert (got - (x + (s - t) * (eps - x0))).abs().max() < 1e-7  # t is float32 above


def test_eta_1_on_the_exploding_path_is_sigma_up() -> None:
    """[13] k-diffusion's ancestral step: sigma_up^2 = s^2 (t^2 - s^2) / t^2."""
    now, to = levels_at(edm(), 7.0, 2.5)
    up = math.sqrt(2.5**2 * (7.0**2 - 2.5**2) / 7.0**2)
    assert posterior_nu(now, to).item() == pytest.approx(up, rel=1e-12)
    down = (to.noise**2 - posterior_nu(now, to) ** 2).sqrt()
    assert down.item() == pytest.approx(2.5**2 / 7.0, rel=1e-10)


@pytest.mark.parametrize("t, s", [(2, 1), (500, 499), (900, 100)])
def test_kl_between_posteriors_is_a_difference_of_snr(t: int, s: int) -> None:
    """[14] KL(q(x_s|x_t,x_0) || q(x_s|x_t,x_0 hat)) = (SNR_s - SNR_t) |x_0 - x_0 hat|^2 / 2."""
    now, to = levels_at(linear(), t, s)
    nu = posterior_nu(now, to)
    x_t, x0, guess = torch.randn(3, 9, dtype=F64)
    means = [step(v, eps_from(x_t, v, now), to, nu=nu, z=torch.zeros(9)) for v in (x0, guess)]
    kl = ((means[0] - means[1]) ** 2).sum() / (2 * nu**2)
    expected = 0.5 * (to.snr - now.snr) * ((x0 - guess) ** 2).sum()
    assert kl.item() == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_nothing_random_is_added_into_clean_data(variance: str) -> None:
    x0 = torch.full((5,), 0.25, dtype=F64)
    levels = levels_at(linear(), 1, 0)
    got = last(ddpm(lambda *_: x0, torch.randn(5, dtype=F64), levels, variance=variance))  # type: ignore[arg-type]
    assert torch.equal(got, x0)
    z = torch.randn(5)
    assert torch.equal(step(x0, x0, levels[-1], nu=0.0, noise_scale=1.0, z=z), x0)


# --- whole walks ----------------------------------------------------------------------------

MEAN, STD = 0.6, 0.4
ONE_GAUSSIAN = GaussianMixture(torch.ones(1), torch.tensor([[MEAN]]), torch.tensor([STD]))


def even_levels(n: int) -> list[Level]:
    """n even steps on the plain cosine path, from t = 0.99 to 0.01: inside both ends."""
    half = math.pi / 2

    def level(t: float) -> Level:
        tt = torch.tensor(t, dtype=F64)
        return Level((half * tt).cos(), (half * tt).sin(), tt)

    return [level(0.99 - 0.98 * i / n) for i in range(n + 1)]


def error_on_one_gaussian(sampler: Sampler, n: int) -> float:
    """Largest distance to the exact flow of a Gaussian."""
    levels = even_levels(n)
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    v_t, v_s = ((lv.signal * STD) ** 2 + lv.noise**2 for lv in (levels[0], levels[-1]))
    exact = levels[-1].signal * MEAN + (v_s / v_t).sqrt() * (x - levels[0].signal * MEAN)
    return (last(sampler(ONE_GAUSSIAN, x, levels)) - exact).abs().max().item()


@pytest.mark.parametrize("sampler, order", [(ddim, 1.0), (heun, 2.0), (dpmpp_2m, 2.0)])
def test_order_of_convergence(sampler: Sampler, order: float) -> None:
    """[20] Four times the steps, 4^order times less error, against the exact map."""
    errors = [error_on_one_gaussian(sampler, n) for n in (100, 400)]
    slope = math.log(errors[0] / errors[1]) / math.log(4)
    assert slope == pytest.approx(order, abs=0.1)


MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[-1.0, 0.5], [1.0, -0.25]]),
    torch.tensor([0.2, 0.3]),
)


@pytest.mark.parametrize("sampler", [ddim, ddpm], ids=["eta 0", "eta 1"])
def test_samples_of_a_mixture(sampler: Sampler, generator: torch.Generator) -> None:
    """[21] Mean, covariance and mode weight, within 4 standard errors, 200 steps, 40k samples."""
    n = 40_000
    schedule = cosine()
    levels = schedule.levels(200)
    x = start((n, 2), levels[0], generator, dtype=F64)
    x = last(sampler(MIXTURE, x, levels, generator=generator))
    real, _ = MIXTURE.sample(400_000, generator)
    error_of_mean = real.std(0) / math.sqrt(n)
    assert ((x.mean(0) - real.mean(0)).abs() < 4 * error_of_mean + 0.003).all()
    assert (x.T.cov() - real.T.cov()).abs().max() < 4 * 1.1e-2 / 2
    weight = (x[:, 0] < 0).double().mean()
    assert abs(weight - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)


def test_inversion_round_trip_is_first_order() -> None:
    """[24] Up and down again on a fixed stretch: four times the steps, a quarter of the error.

    (On one Gaussian: near the borders between modes a mixture's round trip has no clean order.)
    """

    def error(n: int) -> float:
        levels = even_levels(n)
        x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
        # The clean level at the end is never visited; `invert` starts at the one above it.
        up = last(invert(ONE_GAUSSIAN, x, [*levels, cosine().levels(1)[-1]]))
        return (last(ddim(ONE_GAUSSIAN, up, levels)) - x).abs().max().item()

    coarse, fine = error(100), error(400)
    assert math.log(coarse / fine) / math.log(4) == pytest.approx(1, abs=0.1)
    assert fine < 0.03


def test_inversion_visits_every_level_but_clean_data() -> None:
    steps = invert(MIXTURE, torch.zeros(1, 2, dtype=F64), linear().levels(4))
    assert [int(s.level.t) for s in steps] == [500, 750, 1000]


@pytest.mark.parametrize("sampler", [dpmpp_2m, heun])
@pytest.mark.parametrize(
    "levels",
    [flow().levels(6), rescale_zero_terminal_snr(linear()).levels(6), linear().levels(6)],
    ids=["flow", "zero terminal SNR", "linear"],
)
def test_second_order_samplers_survive_the_ends(sampler: Sampler, levels: list[Level]) -> None:
    """[25] signal = 0 at the top, noise = 0 at the bottom: finite all the way."""
    x = torch.randn(10, 2, dtype=F64)
    for now in sampler(MIXTURE, x, levels):
        assert now.x.isfinite().all()
    assert (now.x.abs() < 4).all()


@pytest.mark.parametrize(
    "sampler, levels, expected",
    [
        (ddim, linear().levels(10), 10),
        (ddpm, linear().levels(10), 10),
        (dpmpp_2m, linear().levels(10), 10),
        (heun, linear().levels(10), 19),
        (heun, flow().levels(10), 18),
    ],
)
def test_function_evaluations(sampler: Sampler, levels: list[Level], expected: int) -> None:
    """[26] N; 2N - 1 for Heun, one fewer from signal = 0."""
    calls = 0

    def counting(x: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return MIXTURE(x, level, cond)

    steps = list(sampler(counting, torch.randn(3, 2, dtype=F64), levels))
    assert calls == expected and len(steps) == 10


def test_ddpm_and_ddim_with_eta_1_are_one_sampler() -> None:
    levels = linear().levels(20)
    x = torch.randn(8, 2, dtype=F64)
    a, b = (
        last(s(MIXTURE, x, levels, generator=torch.Generator().manual_seed(5)))
        for s in (ddpm, partial(ddim, eta=1.0))
    )
    assert torch.equal(a, b)


# --- sample ---------------------------------------------------------------------------------


def test_a_seed_fixes_the_picture() -> None:
    levels = linear().levels(5)
    draw: Callable[[int], Tensor] = lambda seed: sample(  # noqa: E731
        MIXTURE, (16, 2), levels, sampler=ddpm, seed=seed
    )
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_start_has_the_variance_of_the_top_level() -> None:
    g = torch.Generator().manual_seed(0)
    assert start((100_000,), linear().levels(1)[0], g).std().item() == pytest.approx(1, rel=0.01)
    assert start((100_000,), edm().levels(1)[0], g).std().item() == pytest.approx(80, rel=0.01)


def test_noise_is_drawn_in_float32_from_a_cpu_generator() -> None:
    """So that the page's own torch.randn, and any device, can repeat it."""
    g = torch.Generator().manual_seed(7)
    expected = torch.randn(2, 16, generator=torch.Generator().manual_seed(7))
    got = start((2, 16), linear().levels(1)[0], g, dtype=F64)
    assert torch.allclose(got, expected.double(), atol=1e-7)


def test_dropout_is_off_while_sampling_and_on_again_after() -> None:
    net = UNet(UNetConfig(channels=(8, 8), time_channels=8, dropout=0.5, classes=2))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    for denoiser in (Denoiser(net, linear(), classes=2), clip(Denoiser(net, linear(), classes=2))):
        a, b = (sample(denoiser, (2, 1, 4, 4), linear().levels(3), seed=1) for _ in range(2))
        assert torch.equal(a, b) and net.training


def test_bad_requests() -> None:
    """[41] Labels out of range and of the wrong number; eta outside 0 to 1."""
    levels = linear().levels(2)
    with pytest.raises(UserError, match="Label 2 is out of range"):
        sample(MIXTURE, (3, 2), levels, cond=[0, 1, 2])
    with pytest.raises(UserError, match="Label -2"):
        sample(MIXTURE, (1, 2), levels, cond=[-2])
    with pytest.raises(UserError, match="3 samples need 3 labels"):
        sample(MIXTURE, (3, 2), levels, cond=[0])
    with pytest.raises(UserError, match="eta must lie between"):
        sample(MIXTURE, (3, 2), levels, sampler=partial(ddim, eta=1.5))
