"""Recipes: nets of the promised sizes, for the data they name."""

import pytest
import torch

from diffusion_lib import data
from diffusion_lib.data import ImageSet
from diffusion_lib.recipes import RECIPES

SHAPES = {"digits8": (1, 8), "digits16": (1, 16), "mnist": (1, 32), "cifar10": (3, 32),
          "celeba": (3, 64)}  # fmt: skip
# The paper's net was 35.7 million; a half-precision file takes two bytes a parameter.
LARGEST = {"mnist": 2_000_000, "cifar10": 8_000_000, "ddpm_cifar10": 35_746_307}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_fits_its_data(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.data in data.DATASETS
    channels, side = SHAPES[recipe.data]
    images = torch.zeros(10, channels, side, side, dtype=torch.uint8)
    labelled = recipe.data != "celeba"
    names = tuple("0123456789") if labelled else ()
    pictures = ImageSet(recipe.data, images, torch.arange(10) if labelled else None, names)
    denoiser = recipe.denoiser(pictures)
    assert denoiser.classes == (10 if labelled and name != "ddpm_cifar10" else None)
    assert sum(p.numel() for p in denoiser.net.parameters()) <= LARGEST.get(name, 40_000_000)
    with torch.inference_mode():
        level = denoiser.schedule(torch.tensor(500))
        assert denoiser(torch.zeros(1, channels, side, side), level).shape[1:] == images.shape[1:]


def test_the_papers_recipe() -> None:
    """Ho et al. 2020, appendix B: batch 128, rate 2e-4, EMA 0.9999, dropout 0.1, mirrored."""
    recipe = RECIPES["ddpm_cifar10"]
    config = recipe.train
    assert (config.steps, config.batch_size, config.learning_rate) == (800_000, 128, 2e-4)
    assert (config.ema_decay, recipe.net.dropout, config.flip) == (0.9999, 0.1, True)
    assert (config.decay, config.weight_decay, config.warmup) == ("none", 0.0, 5000)
    assert not recipe.labelled and recipe.kind == "eps"
