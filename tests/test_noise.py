"""Noise schedules against closed forms (numbers in brackets: the list of expected answers)."""

import math

import pytest
import torch

from diffusion_lib import UserError, noise
from diffusion_lib.noise import (
    DiscreteSchedule,
    cosine,
    edm,
    flow,
    linear,
    make_schedule,
    quadratic,
    rescale_zero_terminal_snr,
    sigmoid,
)

DISCRETE = [linear(), quadratic(), cosine(), sigmoid(), rescale_zero_terminal_snr(linear())]
ALL = [*DISCRETE, flow(), edm()]
IDS = [s.spec["name"] for s in ALL]


def test_linear_endpoint() -> None:
    """[1] The figures of the DDPM schedule."""
    schedule = linear()
    assert schedule.alpha_bars[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert schedule(torch.tensor(1000)).signal.item() == pytest.approx(0.0063528, rel=1e-4)


@pytest.mark.parametrize("schedule", DISCRETE, ids=IDS[: len(DISCRETE)])
def test_variance_recursion(schedule: DiscreteSchedule) -> None:
    """[2] Running the chain's variance v <- (1 - beta) v + beta from 0 gives 1 - alpha_bar."""
    v = torch.zeros((), dtype=torch.float64)
    for t in range(1, schedule.T + 1):
        v = (1 - schedule.betas[t]) * v + schedule.betas[t]
        assert abs(v - (1 - schedule.alpha_bars[t])) < 1e-12


@pytest.mark.parametrize("schedule", DISCRETE, ids=IDS[: len(DISCRETE)])
def test_discrete_schedules_start_clean_and_only_get_noisier(schedule: DiscreteSchedule) -> None:
    assert schedule.alpha_bars[0] == 1 and schedule.betas[0] == 0
    assert len(schedule.alpha_bars) == schedule.T + 1 == 1001
    assert (schedule.alpha_bars.diff() < 0).all()
    level = schedule(torch.arange(1001))
    assert torch.allclose(level.signal**2 + level.noise**2, torch.ones(1001).double(), atol=1e-12)
    assert level.signal.dtype == torch.float64


@pytest.mark.parametrize("T", [10, 1000])
def test_cosine_follows_its_formula(T: int) -> None:
    t = torch.arange(T + 1).double()
    f = torch.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2
    expected = f / f[0]
    got = cosine(T).alpha_bars
    assert torch.allclose(got[:-1], expected[:-1], atol=1e-12)
    assert cosine(T).betas[-1] == 0.999  # the one beta that had to be cut


def test_quadratic_has_evenly_spaced_roots() -> None:
    roots = quadratic().betas[1:].sqrt()
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(999), atol=1e-12)
    assert quadratic().betas[[1, -1]].tolist() == pytest.approx([1e-4, 0.02])


def test_sigmoid_is_half_way_down_in_the_middle() -> None:
    assert sigmoid().alpha_bars[500].item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("schedule", [linear(), linear(200), cosine()])
def test_rescaling_reaches_zero_and_keeps_the_first_level(schedule: DiscreteSchedule) -> None:
    rescaled = rescale_zero_terminal_snr(schedule)
    assert rescaled.alpha_bars[-1] == 0
    assert rescaled.alpha_bars[1].item() == pytest.approx(schedule.alpha_bars[1].item(), rel=1e-12)
    before, after = schedule.alpha_bars.sqrt()[1:], rescaled.alpha_bars.sqrt()[1:]
    slope = (after[0] - after[-1]) / (before[0] - before[-1])
    assert torch.allclose(after - after[-1], slope * (before - before[-1]), atol=1e-12)


def test_tables_are_float64_where_float32_fails() -> None:
    """In float32, 1 - alpha_bar_1 keeps four digits, and SNR_1 is off by more than 1."""
    betas = linear().betas[1:]
    exact = 1 / betas[0] - 1
    assert abs(linear()(torch.tensor(1)).snr - exact) < 1e-6
    in_float32 = (1 - betas.float()).cumprod(0)[0]
    assert abs(in_float32 / (1 - in_float32) - exact) > 1


def test_flow_and_edm_levels() -> None:
    t = torch.tensor([0.0, 0.25, 1.0])
    assert flow()(t).signal.tolist() == [1, 0.75, 0] and flow()(t).noise.tolist() == [0, 0.25, 1]
    assert edm()(t).signal.tolist() == [1, 1, 1] and edm()(t).noise.tolist() == [0, 0.25, 1]


def test_edm_linspace_grid_is_equation_5_of_karras() -> None:
    n, rho = 18, 7
    i = torch.arange(n).double()
    sigma = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    grid = torch.stack([level.noise for level in edm().levels(n, "linspace")])
    assert torch.allclose(grid[:-1], sigma, rtol=1e-12) and grid[-1] == 0


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("n", [1, 2, 7, 50])
@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_grids_walk_down_to_clean_data(schedule: noise.Schedule, n: int, spacing: str) -> None:
    levels = schedule.levels(n, spacing)  # type: ignore[arg-type]
    assert len(levels) == n + 1
    assert levels[-1].noise == 0 and levels[-1].signal == 1
    noises = torch.stack([level.noise / level.signal for level in levels])
    assert (noises.diff() < 0).all()


def test_spacings_of_the_discrete_grid() -> None:
    def times(n: int, spacing: str) -> list[int]:
        return [int(level.t) for level in linear().levels(n, spacing)]  # type: ignore[arg-type]

    assert times(4, "trailing") == [1000, 750, 500, 250, 0]
    assert times(4, "leading") == [751, 501, 251, 1, 0]
    assert times(4, "linspace") == [1000, 667, 334, 1, 0]
    for spacing in ("trailing", "leading", "linspace"):
        assert times(1000, spacing) == list(range(1000, -1, -1))


def test_random_times_cover_every_level_but_clean_data(generator: torch.Generator) -> None:
    t = linear(10).random_times(2000, generator)
    assert sorted(t.unique().tolist()) == list(range(1, 11))
    for schedule in (flow(), edm()):
        assert (schedule(schedule.random_times(2000, generator)).noise > 0).all()


def test_levels_broadcast_against_pictures() -> None:
    x = torch.zeros(3, 1, 4, 4)
    level = linear()(torch.tensor([1, 2, 3])).like(x)
    assert level.signal.shape == (3, 1, 1, 1) and level.signal.dtype == torch.float32
    assert level.t.dtype == torch.int64
    assert linear()(torch.tensor(5)).like(x).signal.shape == ()


def test_snr_and_log_snr_agree() -> None:
    level = cosine()(torch.arange(1, 1001))
    assert torch.allclose(level.snr.log(), level.log_snr, atol=1e-10)


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_a_spec_builds_the_same_schedule(schedule: noise.Schedule) -> None:
    again = make_schedule(schedule.spec)
    t = schedule.times(9)
    assert torch.equal(again(t).signal, schedule(t).signal)
    assert torch.equal(again(t).noise, schedule(t).noise)


def test_bad_requests_say_what_to_do() -> None:
    """[41] More steps than there are noise levels, and other slips."""
    with pytest.raises(UserError, match="at most 1000 steps"):
        linear().levels(1001)
    with pytest.raises(UserError, match="at least 1 step"):
        linear().levels(0)
    with pytest.raises(UserError, match="'trailing'"):
        linear().levels(10, "even")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="use one of linear"):
        make_schedule({"name": "cubic"})
    with pytest.raises(UserError, match="between 0 and 1"):
        DiscreteSchedule(torch.tensor([0.1, 1.5]), {})
