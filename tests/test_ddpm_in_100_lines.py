"""The whole diffusion model on one page: short, correct, and as the page describes it."""

import ast
import importlib.util
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "book" / "ddpm_in_100_lines.py"
PAGE = ROOT / "book" / "ddpm_in_100_lines.md"
PICTURE = ROOT / "book" / "_static" / "ddpm_in_100_lines.png"
RUNNER = ROOT / "benchmarks" / "ddpm_in_100_lines.py"
RESULTS = ROOT / "benchmarks" / "results" / "ddpm_in_100_lines.json"
SOURCE = SCRIPT.read_text(encoding="utf-8")


def load(source: str = SOURCE) -> ModuleType:
    """The script as a module; `source` lets a test put a bug in first."""
    module = ModuleType("ddpm_in_100_lines")
    exec(compile(source, str(SCRIPT), "exec"), module.__dict__)
    return module


def with_bug(line: str, bug: str) -> ModuleType:
    """The script with one place of it changed; the place must still be there."""
    assert SOURCE.count(line) == 1, line
    return load(SOURCE.replace(line, bug))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """A fixed seed, one thread, and the caller's thread count afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ddpm() -> ModuleType:
    return load()


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


# --- the shape of the script ---------------------------------------------------------------------


def test_is_at_most_100_lines_of_at_most_100_characters() -> None:
    lines = SOURCE.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 100


def test_imports_only_what_the_page_says() -> None:
    names = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            names.add(node.module.split(".")[0])
    assert names == {"torch", "sklearn", "matplotlib", "sys"}


def test_importing_it_does_no_work(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("fresh_ddpm", SCRIPT)
    assert spec is not None and spec.loader is not None
    state = torch.get_rng_state()
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert torch.equal(state, torch.get_rng_state())
    assert capsys.readouterr().out == ""


# --- the noise schedule and Algorithm 1 ----------------------------------------------------------


def test_ends_of_the_noise_schedule(ddpm: ModuleType) -> None:
    assert len(ddpm.beta) == len(ddpm.alpha) == len(ddpm.alpha_bar) == ddpm.T + 1 == 1001
    assert ddpm.alpha_bar[0] == 1
    assert ddpm.beta[1].item() == pytest.approx(1e-4)
    assert ddpm.beta[ddpm.T].item() == pytest.approx(0.02)
    assert ddpm.alpha_bar[ddpm.T].item() == pytest.approx(4.0358e-5, rel=1e-4)


class Recorder(nn.Module):
    """Stands in for the net: keeps what it was given, answers with zeros."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, digit: torch.Tensor) -> torch.Tensor:
        self.x, self.t = x, t
        return torch.zeros_like(x)


def standardised_noise(ddpm: ModuleType) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise 40,000 images whose pixels are all 0.5; return t and (x_t - signal x_0) / noise."""
    x0, recorder = torch.full((40_000, 1, 4, 4), 0.5), Recorder()
    loss = ddpm.loss_of(recorder, x0, torch.zeros(40_000, dtype=torch.long))
    assert loss.item() == pytest.approx(1, abs=0.01)  # against an answer of zero: the noise's power
    alpha_bar = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)
    alpha_bar = alpha_bar[recorder.t - 1].view(-1, 1, 1, 1)  # t = 1 is the first factor
    return recorder.t, (recorder.x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


def assert_unit_noise(t: torch.Tensor, noise: torch.Tensor) -> None:
    assert t.min() == 1 and t.max() == 1000  # no step is left out, and 0 is not one
    for low, high in [(1, 10), (11, 100), (101, 500), (501, 1000)]:
        part = noise[(t >= low) & (t <= high)].flatten()
        error = len(part) ** -0.5  # standard error of the mean; that of the variance is √2 times it
        assert abs(part.mean()) < 5 * error
        assert abs(part.var() - 1) < 5 * 2**0.5 * error


def test_noising_has_the_stated_mean_and_variance(ddpm: ModuleType) -> None:
    assert_unit_noise(*standardised_noise(ddpm))


@pytest.mark.parametrize(
    ("line", "bug"),
    [
        ("kept.sqrt() * x0 + (1 - kept).sqrt()", "kept.sqrt() * x0 + (1 - kept)"),
        ("kept = alpha_bar[t]", "kept = alpha_bar[t - 1]"),
        ("torch.randint(1, T + 1,", "torch.randint(1, T,"),
        ("torch.randint(1, T + 1,", "torch.randint(0, T,"),
    ],
)
def test_a_bug_in_the_noising_is_caught(line: str, bug: str) -> None:
    t, noise = standardised_noise(with_bug(line, bug))
    with pytest.raises(AssertionError):
        assert_unit_noise(t, noise)


# --- training ------------------------------------------------------------------------------------


def test_a_short_training_lowers_the_loss_and_the_average_follows(ddpm: ModuleType) -> None:
    net, losses = ddpm.train(40, batch=32)
    assert len(losses) == 40
    assert losses[0] > 0.9  # an untrained net knows nothing of noise of variance 1
    assert sum(losses[-10:]) / 10 < 0.4
    assert not net.training
    assert noise_error(ddpm, net) < 0.4


def test_an_average_without_warm_up_is_caught() -> None:
    """With a constant decay the average is still 82% (0.995**40) its random first weights."""
    buggy = with_bug("decay = min(0.995, step / (step + 10))", "decay = 0.995")
    net, losses = buggy.train(40, batch=32)
    assert sum(losses[-10:]) / 10 < 0.4
    assert noise_error(buggy, net) > 0.6


@torch.no_grad()
def noise_error(ddpm: ModuleType, net: nn.Module) -> float:
    pixels, digit = (torch.tensor(a) for a in load_digits(return_X_y=True))
    return ddpm.loss_of(net, pixels.float().view(-1, 1, 8, 8) / 8 - 1, digit).item()


# --- sampling (Algorithm 2) ----------------------------------------------------------------------


class OneImage(nn.Module):
    """The exact net where the data is a single image with all pixels 0.3: x_t gives eps."""

    def __init__(self, alpha_bar: torch.Tensor) -> None:
        super().__init__()
        self.alpha_bar, self.asked = alpha_bar, []

    def forward(self, x: torch.Tensor, t: torch.Tensor, digit: torch.Tensor) -> torch.Tensor:
        self.asked.append(int(t[0]))
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        return (x - alpha_bar.sqrt() * 0.3) / (1 - alpha_bar).sqrt()


def distance_from_the_only_image(ddpm: ModuleType) -> float:
    """Sample with the exact net. It must end on the image; noise of the last step would remain."""
    net = OneImage(ddpm.alpha_bar)
    x = ddpm.sample(net, torch.arange(4))
    assert x.shape == (4, 1, 8, 8)
    assert net.asked[0] == 1000
    return (x - 0.3).abs().max().item()


def test_sampling_ends_on_the_data_with_no_noise_added(ddpm: ModuleType) -> None:
    assert distance_from_the_only_image(ddpm) < 1e-4


@pytest.mark.parametrize(
    ("line", "bug"),
    [
        # the paper's other choice of variance, without its "z = 0 at t = 1"
        ("sigma = (beta[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])).sqrt()",
         "sigma = beta[t].sqrt()"),
        ("for t in range(T, 0, -1)", "for t in range(T, 1, -1)"),
        ("beta[t] / (1 - alpha_bar[t]).sqrt() * eps", "beta[t] / (1 - alpha_bar[t - 1]) * eps"),
        ("torch.full((len(digit),), t)", "torch.full((len(digit),), t - 1)"),
    ],
)  # fmt: skip
def test_a_bug_in_sampling_is_caught(line: str, bug: str) -> None:
    buggy = with_bug(line, bug)
    try:
        distance = distance_from_the_only_image(buggy)
    except AssertionError:
        return
    assert not distance < 1e-4  # so written because a NaN is a failure too


def test_every_step_is_asked_for_once_noisiest_first(ddpm: ModuleType) -> None:
    net = OneImage(ddpm.alpha_bar)
    ddpm.sample(net, torch.arange(1))
    assert net.asked == list(range(1000, 0, -1))


def test_runs_from_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A few training steps, sampling, the picture: finite samples on the data's scale.

    With 100 noise steps in place of 1000, as the whole chain for 100 images takes 10 seconds."""
    out = tmp_path / "picture.png"
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--steps", "30", "--out", str(out)])
    assert SOURCE.count("T = 1000 ") == 1
    names = {"__name__": "__main__"}
    exec(compile(SOURCE.replace("T = 1000 ", "T = 100 "), str(SCRIPT), "exec"), names)
    plt.close(names["figure"])
    x = names["x"]
    assert x.shape == (100, 1, 8, 8)
    assert torch.isfinite(x).all()
    assert x.quantile(0.02) > -4 and x.quantile(0.98) < 4
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["--step", "3"], ["--steps"], ["--help"]])
def test_a_mistyped_option_stops_it(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *arguments])
    with pytest.raises(ValueError):
        runpy.run_path(str(SCRIPT), run_name="__main__")


# --- the page ------------------------------------------------------------------------------------


def test_the_page_shows_the_script_and_the_picture_it_made() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert re.search(r"{literalinclude} ddpm_in_100_lines\.py\n:language: python\n:linenos:", page)
    assert "_static/ddpm_in_100_lines.png" in page
    assert PICTURE.stat().st_size <= 80_000


def test_the_page_names_only_what_is_in_the_script() -> None:
    """What stands in code font after the listing is in the script, or is an exercise's change."""
    walk = PAGE.read_text(encoding="utf-8").split("## From top to bottom")[1]
    exercises = runpy.run_path(str(RUNNER))["EXERCISES"]
    codes = set(re.findall(r"(?<!`)`([^`]+)`(?!`)", walk))
    assert len(codes) > 15
    others = {after for _, after in exercises.values()} | {"alpha_bar[T]"}
    assert not [code for code in codes if code not in SOURCE and code not in others]
    for before, after in exercises.values():
        assert before in SOURCE
        assert f"`{before}` by `{after}`" in " ".join(walk.split())


def test_the_figures_in_the_page_are_the_measured_ones(results: dict) -> None:
    """Each sentence with a measured figure is built from the results, and must be there."""
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    none, little, raw = (
        results["exercises"][name] for name in ("no_new_noise", "too_little_noise", "no_average")
    )
    torch_version = results["torch"].split("+")[0]
    assert results["threads"] == 1 and raw["final_loss"] == results["final_loss"]
    for sentence in [
        f"default settings and seed {results['seed']}",
        f"Training for {results['steps']} steps",
        f"took {results['seconds']} seconds with torch {torch_version}, using one thread on a "
        f"machine with {results['cores']} cores",
        f"from {results['first_loss']} at the first step to {results['final_loss']}, the mean",
        f"reads {results['judge_accuracy_on_450_held_out']:.1%} of held-out real digits correctly "
        f"read {results['read_as_asked']} of the 100 samples as",
        f"is {results['data']['spread']} in the data and {results['spread']} in the samples",
        f"falls from {results['spread']} to {none['spread']}",
        f"{none['read_as_asked']} of 100 are read as asked. The new noise",
        f"at {little['final_loss']} instead of {results['final_loss']}",
        f"{little['read_as_asked']} of 100 are read as asked. Look",
        f"{raw['read_as_asked']} of 100 are read as asked. A difference of "
        f"{results['read_as_asked'] - raw['read_as_asked']} in 100",
    ]:
        assert sentence in page, sentence


def test_the_remaining_signal_that_exercise_2_quotes(ddpm: ModuleType) -> None:
    less = with_bug("torch.linspace(1e-4, 0.02, T)", "torch.linspace(1e-4, 0.002, T)")
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"`alpha_bar[T]` is {less.alpha_bar[-1]:.2f} instead of {ddpm.alpha_bar[-1]:.5f}" in page
