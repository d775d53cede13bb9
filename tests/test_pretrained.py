"""Shipped models: whole, small, documented, and good."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from diffusion_lib import (
    UserError,
    load_denoiser,
    load_pretrained,
    metrics,
    pretrained,
    save_denoiser,
)
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


# MNIST's was trained on a CPU, for 27 rounds of its data.
BARS = {"digits16": Bar(), "digits8": Bar(), "mnist": Bar(1000, 0.93, 4, 1.15, 0.85)}
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
    for section in ("Data", "Licence", "Recipe", "Figures"):
        assert re.search(rf"^## {section}", pretrained.card(name), re.M)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/checkpoints.py"""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import checkpoints

    return checkpoints


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_made_from_the_stored_figures(name: str, script: ModuleType) -> None:
    """Every word and number, as `python benchmarks/checkpoints.py NAME --card` would write them."""
    assert pretrained.card(name) == script.card(name, pretrained.folder(), script.RESULTS)


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_a_card(name: str, script: ModuleType) -> None:
    """Read from the card, without the template that made it."""
    text = " ".join(pretrained.card(name).split())
    result = json.loads((script.RESULTS / f"{name}.json").read_text())
    one, two, training = result["report"], result["guided_2"], result["training"]
    compare = result["compare"]
    assert one["n"] == compare["draws"] * compare["held_out"] + compare["extra"]

    def said(pattern: str) -> tuple[str, ...]:
        found = re.findall(pattern, text)
        assert len(found) == 1, pattern
        return found[0] if isinstance(found[0], tuple) else (found[0],)

    def rounded(places: int, *values: float) -> tuple[str, ...]:
        return tuple(f"{value:.{places}f}" for value in values)

    number = r"(-?[\d.,]*\d)"
    recipe = RECIPES[name].train
    steps, batch, rate = said(rf"`: {number} steps of {number} pictures, AdamW at {number} with")
    assert (steps, int(batch), float(rate)) == (
        f"{recipe.steps:,}", recipe.batch_size, recipe.learning_rate
    )  # fmt: skip
    fast = " --fast" if training.get("precision") == "bf16" else ""
    assert said(r"`(python [^`]+)`") == (f"python benchmarks/checkpoints.py {name}{fast}",)
    assert said(rf"Took {number} minutes") == (f"{training['seconds'] / 60:.0f}",)
    model = load_pretrained(name)
    size = sum(p.numel() for p in model.net.parameters())
    assert said(rf"{number} parameters") == (f"{size:,}",)
    assert said(r"Measured on ([\d-]+) with") == (result["machine"]["date"],)
    assert said(rf"with {number} DDIM steps") == (str(compare["steps"]),)
    assert said(rf"with accuracy {number}\.") == (f"{one['judge_accuracy']:.4f}",)
    assert said(
        rf"class accuracy \({number} samples\) \| {number} \({number} to {number}\) \| {number} \|"
    ) == (
        str(one["n"]),
        *rounded(4, one["accuracy"], *one["accuracy_interval"], two["accuracy"]),
    )
    assert said(
        rf"distance, {number} to \d+, [^|]*\| {number} \({number} to {number}\) \| {number} \|"
    ) == (
        str(compare["held_out"]),
        *rounded(2, one["frechet"], *one["frechet_interval"], two["frechet"]),
    )
    two_columns, pairs = rf"\| {number} \| {number} \|", rf"\| {number}, {number} \|"
    floor = rf"floor, real against real \| {number} ± {number} \| the same \|"
    for pattern, told in (
        (rf"{floor} \| kernel", rounded(2, one["floor"], one["floor_std"])),
        (
            rf"kernel distance, mean over classes {two_columns}",
            rounded(0, one["kernel"], two["kernel"]),
        ),
        (rf"{floor} \| precision", rounded(0, one["kernel_floor"], one["kernel_floor_std"])),
        (
            rf"precision, recall of \d+ {pairs} {number}, {number} \|",
            rounded(3, one["precision"], one["recall"], two["precision"], two["recall"]),
        ),
        (
            rf"the same, real against real {pairs}",
            rounded(3, one["real_precision"], one["real_recall"]),
        ),
        (
            rf"samples / held-out {two_columns}",
            rounded(3, one["nearest_ratio"], two["nearest_ratio"]),
        ),
    ):
        assert said(pattern) == told


def test_weights_without_a_card_are_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is written when a model was measured."""
    shutil.copy(pretrained.folder() / "digits8.safetensors", tmp_path / "new.safetensors")
    monkeypatch.setattr(pretrained, "folder", lambda: tmp_path)
    assert pretrained.available() == []
    with pytest.raises(UserError, match="There is no model 'new'"):
        load_pretrained("new")
    (tmp_path / "new.md").write_text("# new")
    assert pretrained.available() == ["new"]


def test_every_judge_named_is_shipped() -> None:
    """And no other: what has no judge says so, see test_metrics.test_data_without_a_judge."""
    there = {p.stem.removeprefix("judge_") for p in pretrained.folder().glob("judge_*.safetensors")}
    assert there == set(JUDGES.values())


def test_cifar10_in_small(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path of benchmarks/checkpoints.py on a JPEG copy, with nothing shipped."""
    for split, n in (("train", 7), ("test", 2)):
        for k, pixels in enumerate(torch.randint(0, 256, (10 * n, 32, 32, 3), dtype=torch.uint8)):
            file = tmp_path / split / f"kind{k % 10}" / f"{k}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(file)
    shipped = sorted(p.name for p in pretrained.folder().iterdir())
    monkeypatch.chdir(tmp_path)
    for name in ("judge_cifar10", "cifar10"):
        line = [name, "--try", "--device", "cpu", "--folder", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["checkpoints.py", *line])
        script.main()
    assert sorted(p.name for p in pretrained.folder().iterdir()) == shipped
    result = json.loads((tmp_path / "runs/try/cifar10.json").read_text())
    assert result["training"]["copy"] == "jpeg" and result["training"]["steps"] == 3
    text = (tmp_path / "runs/try/cifar10.md").read_text()
    words = " ".join(text.split())
    assert "32 x 32 colour pixels" in words and "read from a JPEG copy" in words
    assert "checkpoints.py cifar10 --try --folder FOLDER`: 3 steps of 8 pictures" in words
    assert "precision, recall" in words and "digits" not in words
    file = tmp_path / "runs/try/cifar10.safetensors"
    # Not "cifar10": no figure compares it with the original unasked.
    assert load_denoiser(file).data == "cifar10_jpeg" and file.stat().st_size <= 16_000_000

    monkeypatch.setattr(sys, "argv", ["checkpoints.py", "cifar10", "--try", "--card"])
    (tmp_path / "runs/try/cifar10.md").unlink()
    script.main()
    assert (tmp_path / "runs/try/cifar10.md").read_text() == text

    # On a GPU the card names it.
    result["training"] |= {"device": "GPU X", "precision": "bf16", "copy": None}
    (tmp_path / "runs/try/cifar10.json").write_text(json.dumps(result))
    words = " ".join(script.card("cifar10", file.parent, file.parent).split())
    assert "in bfloat16. Took 0 minutes on one GPU X." in words and "JPEG" not in words


def test_bad_requests_of_the_script(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["checkpoints.py", "cifar10"])
    with pytest.raises(UserError, match="needs a GPU, and there is none here"):
        script.main()
    monkeypatch.setattr(sys, "argv", ["checkpoints.py", "cifar10", "--card"])
    with pytest.raises(UserError, match="was not measured yet"):
        script.main()
    with pytest.raises(UserError, match="no judge 'cifar10'. There are: digits, mnist"):
        metrics.load_judge("cifar10")


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
