"""The oracle itself, checked by autograd and by counting."""

import pytest
import torch

from diffusion_lib import UserError
from diffusion_lib.noise import Level, cosine, edm, flow, linear
from diffusion_lib.toy import GaussianMixture, ring

MIXTURE = GaussianMixture(
    torch.tensor([1.0, 2.0, 1.0]),
    torch.tensor([[-1.0, 0.5], [1.0, -0.25], [0.0, 2.0]]),
    torch.tensor([0.2, 0.3, 0.5]),
)
LEVELS = [linear()(torch.tensor(300)), cosine()(torch.tensor(700)), flow()(torch.tensor(0.4)),
          edm()(torch.tensor(2.0))]  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
def test_tweedie(level: Level) -> None:
    """[19] x_0 hat = (x + noise^2 grad log p_t) / signal, the gradient by autograd."""
    x = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(MIXTURE.log_prob(x, level).sum(), x)
    by_tweedie = (x + level.noise**2 * score) / level.signal
    assert (MIXTURE(x, level) - by_tweedie).abs().max() < 1e-10
    assert (MIXTURE.score(x, level) - score).abs().max() < 1e-10


def test_density_sums_to_one() -> None:
    axis = torch.linspace(-5, 6, 400, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    for level in (None, LEVELS[0]):
        total = MIXTURE.log_prob(x, level).exp().sum() * (axis[1] - axis[0]) ** 2
        assert total.item() == pytest.approx(1, abs=1e-4)


def test_samples_have_the_stated_moments(generator: torch.Generator) -> None:
    x, which = MIXTURE.sample(200_000, generator)
    assert (which.bincount() / len(x)).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.005)
    for k in range(3):
        part = x[which == k]
        assert part.mean(0).tolist() == pytest.approx(MIXTURE.means[k].tolist(), abs=0.01)
        assert part.std(0).tolist() == pytest.approx([MIXTURE.stds[k].item()] * 2, rel=0.01)


def test_denoiser_is_the_conditional_mean(generator: torch.Generator) -> None:
    """Among noised samples that land in one small cell, x_0 averages to what the formula says."""
    level = LEVELS[0]
    x0, _ = MIXTURE.sample(2_000_000, generator)
    x_t = level.signal * x0 + level.noise * torch.randn(
        x0.shape, generator=generator, dtype=torch.float64
    )
    here = ((x_t - torch.tensor([0.3, 0.4])).abs() < 0.05).all(1)
    average, spread = x0[here].mean(0), x0[here].std(0) / here.sum().sqrt()
    assert here.sum() > 1000
    assert ((MIXTURE(x_t[here], level).mean(0) - average).abs() < 4 * spread).all()


def test_levels_per_example_and_labels() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    batched = linear()(torch.tensor([1, 200, 500, 1000])).like(x)
    together = MIXTURE(x, batched)
    for i, t in enumerate([1, 200, 500, 1000]):
        assert torch.allclose(together[i], MIXTURE(x[i : i + 1], linear()(torch.tensor(t)))[0])
    level = LEVELS[0]
    one = GaussianMixture(torch.ones(1), MIXTURE.means[2:], MIXTURE.stds[2:])
    labels = torch.tensor([2, 2, -1, 2])
    got = MIXTURE(x, level, labels)
    assert torch.allclose(got[[0, 1, 3]], one(x, level)[[0, 1, 3]])
    assert torch.allclose(got[2], MIXTURE(x, level)[2])


def test_ring() -> None:
    assert torch.allclose(ring(5, radius=2.0).means.norm(dim=1), torch.full((5,), 2.0).double())


def test_bad_mixtures() -> None:
    with pytest.raises(UserError, match="shape"):
        GaussianMixture(torch.ones(2), torch.zeros(3, 2), torch.ones(2))
    with pytest.raises(UserError, match="positive"):
        GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.zeros(1))
