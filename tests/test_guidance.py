"""Guidance against the closed form for Gaussians of equal variance."""

import pytest
import torch

from diffusion_lib import UserError
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import cfg, clip
from diffusion_lib.noise import cosine, linear
from diffusion_lib.samplers import ddim, sample, start
from diffusion_lib.toy import GaussianMixture
from diffusion_lib.unet import UNet, UNetConfig

MIXTURE = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [2.0]]), torch.tensor([0.5, 0.5]))
LEVEL = linear()(torch.tensor(400))


def test_scale_1_is_conditional_and_0_unconditional() -> None:
    """[27] And a level per example goes through as well."""
    x, labels = torch.randn(6, 1, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    per_example = linear()(torch.full((6,), 400)).like(x)
    for level in (LEVEL, per_example):
        one, zero = (cfg(MIXTURE, w)(x, level, labels) for w in (1.0, 0.0))
        assert torch.allclose(one, MIXTURE(x, LEVEL, labels))
        assert torch.allclose(zero, MIXTURE(x, LEVEL))


@pytest.mark.parametrize("w", [0.0, 1.0, 1.7, 3.0])
def test_guided_gaussians_of_equal_variance(w: float) -> None:
    """[27] p_u^(1-w) p_c^w of N(mu_u, s^2) and N(mu_c, s^2) is N(w mu_c + (1 - w) mu_u, s^2).

    Guidance mixes the two denoisers linearly, so its samples have exactly that mean.
    """
    s, mu_c, mu_u = 0.5, 2.0, -1.0

    def gaussian(mean: float) -> GaussianMixture:
        return GaussianMixture(torch.ones(1), torch.tensor([[mean]]), torch.tensor([s]))

    def either(x, level, cond=None):  # type: ignore[no-untyped-def]
        conditional, unconditional = gaussian(mu_c)(x, level), gaussian(mu_u)(x, level)
        return torch.where((cond >= 0)[:, None], conditional, unconditional)

    levels = cosine().levels(400)
    n = 4000
    x = start((n, 1), levels[0], torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean()
    *_, end = ddim(cfg(either, w), x, levels, cond=torch.ones(n, dtype=torch.long))
    assert end.x.mean().item() == pytest.approx(w * mu_c + (1 - w) * mu_u, abs=0.02)
    assert end.x.std().item() == pytest.approx(s, rel=0.05)


def test_guidance_needs_labels() -> None:
    with pytest.raises(UserError, match="pass labels"):
        cfg(MIXTURE, 2.0)(torch.zeros(1, 1), LEVEL)


def test_clip_keeps_estimates_in_range() -> None:
    x = torch.linspace(-9, 9, 7, dtype=torch.float64)[:, None]
    assert MIXTURE(x, LEVEL).abs().max() > 1
    assert clip(MIXTURE)(x, LEVEL).abs().max() == 1


def test_changed_denoisers_keep_what_sample_needs() -> None:
    net = UNet(UNetConfig(channels=(8, 8), time_channels=8, classes=3))
    denoiser = Denoiser(net, linear(), classes=3, image_shape=(1, 4, 4))
    both = clip(cfg(denoiser, 2.0))
    assert both.schedule is denoiser.schedule and both.classes == 3  # type: ignore[attr-defined]
    assert both.image_shape == (1, 4, 4)  # type: ignore[attr-defined]
    assert sample(both, (2, 1, 4, 4), linear().levels(2), cond=[0, 2]).shape == (2, 1, 4, 4)
    with pytest.raises(UserError, match="Label 3 is out of range"):
        sample(both, (2, 1, 4, 4), linear().levels(2), cond=[0, 3])
