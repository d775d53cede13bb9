"""Prediction kinds and loss weights against closed forms."""

import pytest
import torch

from diffusion_lib import UserError
from diffusion_lib.noise import Level, cosine, edm, flow, linear, quadratic, sigmoid
from diffusion_lib.predict import KINDS, SIGMA_DATA, Kind, determinant, solve, target, weight

# Times inside both ends, where no kind is singular.
INSIDE = {
    "linear": linear()(torch.tensor([1, 10, 400, 900])),
    "quadratic": quadratic()(torch.tensor([1, 10, 400, 900])),
    "cosine": cosine()(torch.tensor([1, 10, 400, 900])),
    "sigmoid": sigmoid()(torch.tensor([1, 10, 400, 900])),
    "flow": flow()(torch.tensor([0.01, 0.2, 0.5, 0.9])),
    "edm": edm()(torch.tensor([0.02, 0.5, 3.0, 70.0])),
}
kinds = pytest.mark.parametrize("kind", KINDS)
levels = pytest.mark.parametrize("level", INSIDE.values(), ids=INSIDE.keys())


def pair(level: Level) -> tuple[Level, torch.Tensor, torch.Tensor, torch.Tensor]:
    x0, eps = torch.randn(2, 4, 7, dtype=torch.float64)
    level = level.like(x0)
    return level, x0, eps, level.signal * x0 + level.noise * eps


@kinds
@levels
def test_solve_undoes_target(kind: Kind, level: Level) -> None:
    """[3] For five kinds on six schedules."""
    level, x0, eps, x_t = pair(level)
    got_x0, got_eps = solve(kind, x_t, target(kind, x0, eps, level), level)
    assert (got_x0 - x0).abs().max() < 1e-9 * (1 + level.noise.max())
    assert (got_eps - eps).abs().max() < 1e-9 * (1 + level.snr.sqrt().max())


@kinds
@levels
def test_any_output_is_consistent_with_x_t(kind: Kind, level: Level) -> None:
    """Whatever the net says, signal x_0 + noise eps is x_t again."""
    level, _, _, x_t = pair(level)
    x0, eps = solve(kind, x_t, torch.randn_like(x_t), level)
    scale = 1 + level.noise.max() + (level.noise * eps).abs().max()
    assert (level.signal * x0 + level.noise * eps - x_t).abs().max() < 1e-10 * scale


@kinds
@levels
def test_error_of_the_output_and_of_x0(kind: Kind, level: Level) -> None:
    """[4] Squared error of the target = (det / noise)^2 times squared error of x_0."""
    level, x0, eps, x_t = pair(level)
    right = target(kind, x0, eps, level)
    wrong = right + torch.randn_like(right)
    guess, _ = solve(kind, x_t, wrong, level)
    ratio = (determinant(kind, level) / level.noise) ** 2
    assert torch.allclose((wrong - right) ** 2, ratio * (guess - x0) ** 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "quadratic", "cosine", "sigmoid"])
def test_min_snr_weights(name: str) -> None:
    """[5] The three forms stated by Hang et al."""
    level = INSIDE[name]
    clipped = level.snr.clamp(max=5.0)
    expected = {"eps": clipped / level.snr, "x0": clipped, "v": clipped / (level.snr + 1)}
    for kind, form in expected.items():
        assert torch.allclose(weight("min_snr", kind, level), form, rtol=1e-10)  # type: ignore[arg-type]


def test_edm_weight() -> None:
    """[6] (sigma^2 + s^2) / (sigma s)^2 on the error of x_0, which makes it 1 on EDM's own net."""
    level, s = INSIDE["edm"], SIGMA_DATA
    expected = (level.noise**2 + s**2) / (level.noise * s) ** 2
    assert torch.allclose(weight("edm", "x0", level), expected, rtol=1e-12)
    assert torch.allclose((determinant("edm", level) / level.noise) ** 2, expected, rtol=1e-12)
    assert torch.allclose(weight("edm", "edm", level), torch.ones(4).double(), rtol=1e-12)


def test_edm_kind_is_karras_preconditioning() -> None:
    """D = c_skip x + c_out F, table 1 of the EDM paper, at signal 1."""
    level, x0, eps, x = pair(INSIDE["edm"])
    s, sigma = SIGMA_DATA, level.noise
    out = torch.randn_like(x)
    c_skip = s**2 / (sigma**2 + s**2)
    c_out = sigma * s / (sigma**2 + s**2).sqrt()
    assert torch.allclose(solve("edm", x, out, level)[0], c_skip * x + c_out * out, rtol=1e-9)


def test_flow_target_is_the_velocity_of_the_path() -> None:
    x0, eps = torch.randn(2, 5, dtype=torch.float64)
    t = torch.full((5,), 0.3, dtype=torch.float64, requires_grad=True)
    level = flow()(t)
    path = level.signal * x0 + level.noise * eps
    (velocity,) = torch.autograd.grad(path.sum(), t)
    assert torch.allclose(target("flow", x0, eps, level), velocity)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="use one of eps"):
        target("noise", torch.zeros(1), torch.zeros(1), INSIDE["flow"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="use one of simple"):
        weight("snr", "eps", INSIDE["flow"])  # type: ignore[arg-type]
