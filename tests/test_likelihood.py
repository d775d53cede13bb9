"""The variational bound against exact answers; nothing here is trained."""

import math

import pytest
import torch
from torch import Tensor, nn

from diffusion_lib import UserError, digits
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.likelihood import (
    Ledger,
    decoder_nll,
    prior_kl,
    step_kl,
    vlb,
    vlb_weight,
)
from diffusion_lib.noise import DiscreteSchedule, Level, Schedule, cosine, edm, flow, linear
from diffusion_lib.predict import KINDS, target
from diffusion_lib.samplers import eps_from, posterior_nu, step
from diffusion_lib.toy import GaussianMixture, ring

F64 = torch.float64


def normal(dims: int = 1, std: float = 1.0) -> GaussianMixture:
    return GaussianMixture(torch.ones(1), torch.zeros(1, dims), torch.tensor([std]))


def levels_at(schedule: Schedule, *times: float) -> list[Level]:
    return [schedule(torch.tensor(t)) for t in times]


# --- one step -------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule, t, s", [(linear(), 300, 299), (cosine(), 900, 400),
                                            (linear(), 2, 1), (flow(), 0.7, 0.3)])  # fmt: skip
def test_a_step_costs_the_kl_of_its_two_gaussians(schedule: Schedule, t: float, s: float) -> None:
    """[14] The mean of both from the sampler's own step; the KL from torch.distributions."""
    now, to = levels_at(schedule, t, s)
    x0, estimate, x_t = torch.randn(3, 5, 4, dtype=F64)
    nu = posterior_nu(now, to)

    def law(guess: Tensor) -> torch.distributions.Normal:
        mean = step(guess, eps_from(x_t, guess, now), to, nu=nu, z=torch.zeros_like(x_t))
        return torch.distributions.Normal(mean, nu)

    kl = torch.distributions.kl_divergence(law(x0), law(estimate)).sum(1)
    assert torch.allclose(step_kl(x0, estimate, now, to), kl, rtol=1e-7)


def test_the_weight_is_ddpms_for_eps() -> None:
    """[14] DDPM eq. 12: beta^2 / (2 sigma^2 alpha (1 - alpha_bar)), sigma^2 = beta-tilde."""
    schedule = linear()
    t = torch.arange(2, 1001)
    beta, alpha, bar = schedule.betas[t], schedule.alphas[t], schedule.alpha_bars
    sigma2 = (1 - bar[t - 1]) / (1 - bar[t]) * beta
    weight = vlb_weight("eps", schedule(t), schedule(t - 1))
    assert torch.allclose(weight, beta**2 / (2 * sigma2 * alpha * (1 - bar[t])), rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_serves_every_kind(kind: str) -> None:
    """[4, 14] The same cost, whichever output the error is measured in."""
    now, to = levels_at(linear(), 600, 599)
    x0, wrong, x_t = torch.randn(3, 1, 8, dtype=F64)
    right = target(kind, x0, eps_from(x_t, x0, now), now)  # type: ignore[arg-type]
    out = target(kind, wrong, eps_from(x_t, wrong, now), now)  # type: ignore[arg-type]
    cost = vlb_weight(kind, now, to) * (out - right).square().sum()  # type: ignore[arg-type]
    assert cost.item() == pytest.approx(step_kl(x0, wrong, now, to).item(), rel=1e-9)


# --- the sum of the steps -------------------------------------------------------------------


def steps_of_normal_data(schedule: DiscreteSchedule) -> float:
    """The best sum of L_1 ... L_{T-1} for data N(0, 1), per number: the error is 1/(1 + SNR_t)."""
    now, to = (schedule(torch.arange(2 - i, schedule.T + 1 - i)) for i in (0, 1))
    return (vlb_weight("x0", now, to) / (1 + now.snr)).sum().item()


def test_steps_of_normal_data() -> None:
    """[15] 5.07004 nats at T = 1000 (float32 tables give 5.0699)."""
    assert steps_of_normal_data(linear()) == pytest.approx(5.07004, abs=5e-6)


def test_finer_steps_reach_the_mutual_information() -> None:
    """[15] Between fixed ends the sum falls to 1/2 log((1 + SNR_1) / (1 + SNR_T)), like 1/n."""
    first, last = (float(linear()(torch.tensor(t)).log_snr) for t in (1, 1000))
    limit = 0.5 * math.log((1 + math.exp(first)) / (1 + math.exp(last)))
    assert limit == pytest.approx(4.60515, abs=5e-6)
    gaps = []
    for n in (1000, 2000, 4000):
        bars = torch.linspace(first, last, n, dtype=F64).sigmoid()
        betas = 1 - bars / torch.cat([torch.ones(1, dtype=F64), bars[:-1]])
        gaps.append(steps_of_normal_data(DiscreteSchedule(betas, {"name": "test"})) - limit)
    assert 0 < gaps[2] < 0.012
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.01)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("steps", [None, 50])
def test_the_ledger_adds_up_every_step(steps: int | None) -> None:
    """[15] Random x_t, exact denoiser; all 999 steps or 50 of them, within 4 standard errors."""
    data = normal(4)
    x0, _ = data.sample(2000, torch.Generator().manual_seed(0))
    ledger = vlb(data, x0, linear().levels(1000), steps=steps)
    per_dim = ledger.steps.sum(0) / 4
    error = per_dim.std().item() / math.sqrt(len(x0))
    assert error < 0.1
    assert per_dim.mean().item() == pytest.approx(5.07004, abs=4 * error)
    assert ledger.steps.shape == (999 if steps is None else 50, 2000)


# --- the two ends ---------------------------------------------------------------------------


def test_prior_of_unit_variance_data() -> None:
    """[16] 2.018e-5 nats per number, 2.911e-5 bits; mean of x0^2 exactly 1."""
    x0 = torch.tensor([[1.0, -1.0, 1.0, 1.0]], dtype=F64)
    nats = prior_kl(x0, linear()(torch.tensor(1000))).item() / 4
    assert nats == pytest.approx(2.018e-5, abs=5e-9)
    assert nats / math.log(2) == pytest.approx(2.911e-5, abs=5e-9)


@pytest.mark.parametrize("schedule, t", [(linear(), 1000), (linear(), 300), (edm(), 80.0),
                                         (flow(), 1.0)])  # fmt: skip
def test_prior_is_the_kl_to_the_samplers_start(schedule: Schedule, t: float) -> None:
    level = schedule(torch.tensor(t))
    x0 = torch.randn(3, 2, 4, dtype=F64)
    q = torch.distributions.Normal(level.signal * x0, level.noise)
    start = torch.distributions.Normal(torch.zeros_like(x0), (q.scale**2 + level.signal**2).sqrt())
    kl = torch.distributions.kl_divergence(q, start).sum((1, 2))
    assert torch.allclose(prior_kl(x0, level), kl, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("grey_levels", [2, 17, 256])
@pytest.mark.parametrize("variance", [1e-4, 0.3])
def test_the_decoders_bins_sum_to_1(grey_levels: int, variance: float) -> None:
    """[17] For means in the range, at its ends and far outside: the last bins are open."""
    greys = torch.linspace(-1, 1, grey_levels, dtype=F64)[:, None]
    for mean in (-1.7, -1.0, -0.31, 0.0, 0.5608, 1.0, 3.0):
        nll = decoder_nll(greys, torch.full_like(greys, mean), variance, grey_levels)
        assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_a_bin_holds_its_share_of_the_normal() -> None:
    """[17] Two-sided, by the distribution function; then far out, where that is 0 or 1."""
    law = torch.distributions.Normal(torch.tensor(0.1, dtype=F64), 0.2)
    edges = torch.tensor([0.25 - 1 / 16, 0.25 + 1 / 16], dtype=F64)
    mean, grey = torch.tensor([[0.1]], dtype=F64), torch.tensor([[0.25]], dtype=F64)
    share = law.cdf(edges).diff()
    assert decoder_nll(grey, mean, 0.04, 17).item() == pytest.approx(-share.log().item(), rel=1e-9)
    far = decoder_nll(torch.tensor([[0.75], [-0.75]]), torch.tensor([[-0.5], [0.5]]), 1e-4, 17)
    # 118.75 standard deviations to the near edge: -log is z^2 / 2 + log(z sqrt(2 pi)) + o(1)
    z = (1.25 - 1 / 16) / 0.01
    assert far.tolist() == pytest.approx([z**2 / 2 + math.log(z * math.sqrt(2 * math.pi))] * 2)


def test_each_grey_level_of_the_digits_falls_into_its_own_bin() -> None:
    """[17] 17 levels, though stored as bytes: a perfect guess is certain, within rounding."""
    pictures = digits(8, "test")
    assert pictures.levels == 17
    x0 = pictures.floats()
    beta_1 = linear().betas[1]
    assert decoder_nll(x0, x0, beta_1, pictures.levels).max() < 1e-4
    assert decoder_nll(x0, x0, beta_1, 256).min() > 1  # 256 bins would be charged for nothing
    exact = (x0.double() * 8).round() / 8  # the bytes lie up to 0.004 beside the grey levels
    assert torch.equal(decoder_nll(x0, x0, 0.3, 17), decoder_nll(exact, x0, 0.3, 17))
    others = decoder_nll(x0[:1] * 0 + 0.25, x0[:1] * 0 + 0.25 + 2 / 16, beta_1, 17)
    assert others.item() > 64 * 15  # one bin off, 6 standard deviations from its edge


@pytest.mark.parametrize("grey_levels", [None, 17])
def test_the_decoders_variance_is_beta_1_unless_given(grey_levels: int | None) -> None:
    levels = linear().levels(1000)
    x0 = torch.tensor([[-1.0, 0.25, 0.5]], dtype=F64)
    guess = x0 + 0.1
    for variance, expected in ((None, linear().betas[1]), (0.04, 0.04)):
        ledger = vlb(lambda *_: guess, x0, levels, grey_levels=grey_levels, variance=variance,
                     steps=1)  # fmt: skip
        assert torch.allclose(ledger.decoder, decoder_nll(x0, guess, expected, grey_levels))


def test_density_decoder() -> None:
    x0, mean = torch.randn(2, 3, 4, dtype=F64)
    nll = -torch.distributions.Normal(mean, 0.1).log_prob(x0).sum(1)
    assert torch.allclose(decoder_nll(x0, mean, 0.01, None), nll)


# --- the bound ------------------------------------------------------------------------------


def chain_density(data: GaussianMixture, levels: list[Level], grid: Tensor) -> Tensor:
    """The chain's own p(x_0) on a grid in one dimension, by summing out x_T, ..., x_1 in turn."""
    spacing = grid[1] - grid[0]
    p = torch.distributions.Normal(torch.zeros((), dtype=F64), 1.0).log_prob(grid).exp()
    for now, to in zip(levels, levels[1:], strict=False):
        x = grid[:, None]
        estimate = data(x, now)
        nu = posterior_nu(now, to) if to.noise > 0 else now.noise  # the decoder's, beta_1
        mean = step(estimate, eps_from(x, estimate, now), to, nu=posterior_nu(now, to))
        p = spacing * p @ torch.distributions.Normal(mean, nu).log_prob(grid[None]).exp()
    assert abs(p.sum() * spacing - 1) < 1e-5
    return p


def short_chain() -> list[Level]:
    betas = torch.linspace(0.02, 0.4, 25, dtype=F64)
    return DiscreteSchedule(betas, {"name": "test"}).levels(25)


@pytest.mark.parametrize(
    "data",
    [normal(std=0.6), GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.2], [0.7]]),
                                      torch.tensor([0.2, 0.1]))],
    ids=["normal", "mixture"],
)  # fmt: skip
def test_the_bound_holds_at_every_point(data: GaussianMixture) -> None:
    """[18] VLB(x_0) >= -log p(x_0), p the density of the chain itself, which is the data's
    smoothed by the decoder. Where data lie, not by much: the denoiser is exact."""
    levels = short_chain()
    grid = torch.linspace(-6, 6, 1501, dtype=F64)
    exact = -chain_density(data, levels, grid).log()
    for x0 in (-1.2, -0.8, 0.0, 0.6, 1.0):
        ledger = vlb(data, torch.full((4000, 1), x0, dtype=F64), levels)
        bound, error = ledger.nats.mean().item(), ledger.nats.std().item() / math.sqrt(4000)
        at = exact[(grid - x0).abs().argmin()].item()
        assert bound > at - 4 * error
        assert at > 2 or bound < at + 1


@pytest.mark.parametrize("data", [normal(2), ring()], ids=["normal", "ring"])
def test_the_mean_bound_is_above_the_entropy_and_close(data: GaussianMixture) -> None:
    """[18] Over the data's own x_0 the density to compare with is the data's, unsmoothed: no
    model's mean -log p is below the entropy. 4000 steps come closer than 1000."""
    x0, _ = data.sample(8000, torch.Generator().manual_seed(0))
    entropy = -data.log_prob(x0)
    gaps = []
    for T, scale in ((1000, 1.0), (4000, 0.25)):
        levels = linear(T, beta_start=1e-4, beta_end=0.02 * scale).levels(T)
        gap = vlb(data, x0, levels, steps=250).nats - entropy
        error = gap.std().item() / math.sqrt(len(x0))
        assert gap.mean().item() > -4 * error
        gaps.append(gap.mean().item())
    assert gaps[1] < gaps[0] < 1.5


def test_the_bound_on_pictures_is_above_their_entropy() -> None:
    """[17, 18] One of two flat pictures, chosen by a coin: exactly log 2 nats, in 17 levels."""
    x0 = torch.tensor([[-0.5, -0.5], [0.5, 0.5]], dtype=F64).repeat(2000, 1)
    data = GaussianMixture(torch.ones(2), x0[:2], torch.full((2,), 1e-3))
    nats = vlb(data, x0, cosine().levels(1000), grey_levels=17, steps=200).nats
    error = nats.std().item() / math.sqrt(len(x0))
    assert math.log(2) - 4 * error < nats.mean().item() < math.log(2) + 0.1


# --- the function itself --------------------------------------------------------------------


def test_random_steps_are_unbiased() -> None:
    """Averaged over seeds, 3 of 24 steps give what all 24 give, for one x_0 by one."""
    data, levels = ring(), short_chain()
    x0 = data.sample(200, torch.Generator().manual_seed(0))[0]
    every = torch.stack([vlb(data, x0, levels, seed=s).nats.mean() for s in range(100)])
    some = torch.stack([vlb(data, x0, levels, seed=s, steps=3).nats.mean() for s in range(100)])
    error = ((every.var() + some.var()) / 100).sqrt().item()
    assert some.mean().item() == pytest.approx(every.mean().item(), abs=4 * error)
    assert error < 0.03 * every.mean().item()


def test_a_seed_fixes_the_ledger() -> None:
    data, levels = ring(), short_chain()
    x0 = data.sample(5, torch.Generator().manual_seed(0))[0]
    runs = [vlb(data, x0, levels, seed=s, steps=4).nats for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_a_steps_noise_is_not_the_next_steps() -> None:
    """With one noise for all steps the sum would be unbiased and far more random."""
    seen = []

    def spy(x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        seen.append(eps_from(x_t, x0, level))
        return x0

    x0 = torch.zeros(1, 1000, dtype=F64)
    vlb(spy, x0, short_chain())
    correlation = torch.corrcoef(torch.cat(seen)) - torch.eye(25)
    assert correlation.abs().max() < 0.2


def test_bits_per_dim() -> None:
    """A byte told by nobody costs 8 bits: -log(1/256) = 5.545 nats a number."""
    nats = torch.full((2,), 3 * math.log(256), dtype=F64)
    ledger = Ledger(prior=nats / 2, steps=torch.stack([nats / 8] * 2), decoder=nats / 4, dims=3)
    assert torch.allclose(ledger.bits_per_dim, torch.full((2,), 8.0, dtype=F64))


def test_pictures_and_labels_reach_the_net() -> None:
    """The ledger is the true one for a net on pictures: here it answers eps = 0."""

    class Zero(nn.Module):
        seen: list[Tensor | None] = []

        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            self.seen.append(cond)
            return torch.zeros_like(x)

    denoiser = Denoiser(Zero(), linear(), "eps")
    x0, labels = digits(8, "test").floats()[:100], torch.arange(100)
    with pytest.raises(UserError, match="call denoiser.eval"):
        vlb(denoiser, x0, linear().levels(10))
    ledger = vlb(denoiser.eval(), x0, linear().levels(10), labels, grey_levels=17)
    assert all(cond is labels for cond in Zero.seen) and len(Zero.seen) == 10
    t = torch.arange(1000, 100, -100)  # each step costs weight * |eps|^2, of mean 64
    expected = vlb_weight("eps", linear()(t), linear()(t - 100)) * 64
    assert torch.allclose(ledger.steps.mean(1), expected, rtol=4 * math.sqrt(2 / 6400))
    assert ledger.dims == 64 and bool(ledger.nats.isfinite().all())


def test_bad_input() -> None:
    data, levels = ring(), short_chain()
    x0 = torch.zeros(1, 2, dtype=F64)
    for steps in (0, 25):
        with pytest.raises(UserError, match="24 steps besides the decoder's"):
            vlb(data, x0, levels, steps=steps)
    with pytest.raises(UserError, match="has 0 steps"):
        vlb(data, x0, levels[-2:])
    with pytest.raises(UserError, match="must be above 0"):  # fixed-small at t = 1
        vlb(data, x0, levels, variance=posterior_nu(*levels[-2:]) ** 2)
    with pytest.raises(UserError, match="at least 2 grey levels"):
        decoder_nll(x0, x0, 1e-4, 1)
