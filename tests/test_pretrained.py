"""Shipped models: whole, small, documented, and good."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from diffusion_lib import UserError, load_denoiser, load_pretrained, pretrained, save_denoiser
from diffusion_lib.data import digits
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.metrics import JUDGES, accuracy, load_judge
from diffusion_lib.noise import cosine
from diffusion_lib.recipes import RECIPES
from diffusion_lib.samplers import sample
from diffusion_lib.unet import UNet, UNetConfig


class Bar(NamedTuple):
    """What a shipped model must reach: see `metrics.Report`; `quick` is for 100 samples."""

    n: int = 2000
    accuracy: float = 0.97
    ratio: float = 1.4
    nearest: float = 1.15
    quick: float = 0.93


# MNIST's was trained on a CPU, for sixteen rounds of its data.
BARS = {"digits16": Bar(), "digits8": Bar(), "mnist": Bar(1000, 0.92, 5, 1.15, 0.85)}
NAMES = sorted(BARS)


def test_the_shipped_models_and_their_sizes() -> None:
    assert pretrained.available() == NAMES
    sizes = {n: (pretrained.folder() / f"{n}.safetensors").stat().st_size for n in NAMES}
    assert sizes["digits8"] + sizes["digits16"] <= 3_000_000 and sizes["digits16"] <= 2_000_000
    assert all(size <= 4_000_000 for size in sizes.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_what_its_recipe_says(name: str) -> None:
    model = load_pretrained(name)
    config = model.net.config
    assert isinstance(config, UNetConfig)
    assert config.channels == RECIPES[name].net.channels
    side = {"digits8": 8, "digits16": 16, "mnist": 32}[name]
    assert (model.classes, model.image_shape) == (10, (1, side, side))
    assert model.schedule.spec["name"] == "linear" and model.kind == "eps"
    assert not model.training and next(model.parameters()).dtype == torch.float32
    # Only what the in-page runtime has: added conditioning and one head.
    assert (config.conditioning, config.heads) == ("add", 1)
    assert all(width % 8 == 0 for width in config.channels)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_draws_digits(name: str) -> None:
    """A quick look; the full figures are measured by benchmarks/checkpoints.py."""
    model = load_pretrained(name)
    labels = torch.arange(100) % 10
    assert model.image_shape is not None
    x = sample(model, (100, *model.image_shape), model.schedule.levels(20), cond=labels, seed=3)
    assert accuracy(load_judge(JUDGES[name]), x.clamp(-1, 1), labels) >= BARS[name].quick


@pytest.mark.parametrize("name", NAMES)
def test_the_measured_figures_meet_the_bars(name: str) -> None:
    """On the figures that benchmarks/checkpoints.py measured and wrote."""
    file = Path(__file__).parents[1] / "benchmarks" / "results" / f"{name}.json"
    report = json.loads(file.read_text())["report"]
    bar = BARS[name]
    assert report["n"] >= bar.n and report["accuracy"] >= bar.accuracy
    assert report["frechet"] <= bar.ratio * report["floor"]
    assert 0.9 <= report["nearest_ratio"] <= bar.nearest
    card = pretrained.card(name)
    for figure in (f"{report['accuracy']:.4f}", f"{report['frechet']:.2f}"):
        assert figure in card, f"the card of {name} does not state {figure}"
    for section in ("Data", "Licence", "Recipe", "Figures"):
        assert re.search(rf"^## {section}", card, re.M)


def test_a_round_trip_through_a_file(tmp_path: Path) -> None:
    net = UNet(UNetConfig(channels=(8, 16), attention=(1,), time_channels=16, classes=3))
    torch.nn.init.normal_(net.last.weight)
    made = Denoiser(net, cosine(50), "v", classes=3, image_shape=(1, 8, 8), data="digits8")
    save_denoiser(made, tmp_path / "m.safetensors")
    got = load_denoiser(tmp_path / "m.safetensors")
    x, level, labels = torch.randn(2, 1, 8, 8), cosine(50)(torch.tensor(20)), torch.tensor([0, 2])
    # Layouts differ (channels_last), and with them the rounding.
    assert torch.allclose(got(x, level, labels), made(x, level, labels), atol=1e-4)
    assert (got.kind, got.classes, got.image_shape, got.data) == ("v", 3, (1, 8, 8), "digits8")
    save_denoiser(made, tmp_path / "h.safetensors", dtype=torch.float16)
    assert (tmp_path / "h.safetensors").stat().st_size < 0.6 * (
        tmp_path / "m.safetensors"
    ).stat().st_size


def test_bad_files(tmp_path: Path) -> None:
    """[41]"""
    with pytest.raises(UserError, match="There are: digits16, digits8"):
        load_pretrained("cifar")
    with pytest.raises(UserError, match="There is no model file"):
        load_denoiser(tmp_path / "m.safetensors")
    whole = (pretrained.folder() / "digits8.safetensors").read_bytes()
    for contents in (b"", b"hello", whole[:1000], whole[:-1000]):
        (tmp_path / "m.safetensors").write_bytes(contents)
        with pytest.raises(UserError, match="not a whole model file"):
            load_denoiser(tmp_path / "m.safetensors")


def test_the_digits_the_judge_was_trained_on_are_the_training_part() -> None:
    judge, train = load_judge(), digits(8)
    assert train.labels is not None
    assert accuracy(judge, train.floats(), train.labels) > 0.995
