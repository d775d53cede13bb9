"""Quizzes: well formed, explained, and with numbers that the library itself would give."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion_lib import (
    NO_CLASS,
    Ledger,
    UserError,
    guidance,
    metrics,
    noise,
    predict,
    quiz,
    samplers,
)
from diffusion_lib.quiz import Option, Question, questions, rich, to_html

CHAPTERS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.mark.parametrize("name", quiz.available())
def test_a_quiz_has_five_to_eight_questions_and_explains_every_answer(name):
    entries = questions(name)
    assert 5 <= len(entries) <= 8
    for question in entries:
        for option in question.options:
            assert len(option.why) > 20, f"{question.text}: {option.answer}"
        if question.tolerance is not None:
            assert question.why, f"{question.text}: what of any other number?"


@pytest.mark.parametrize("name", quiz.available())
def test_no_tex_and_no_markdown_is_left_in_the_html(name):
    page = to_html(questions(name), name)
    body = re.sub(r"(?s)<(script|style|math).*?</\1>", "", page)
    assert "$" not in body
    assert "**" not in body
    assert "`" not in body
    assert "http" not in body


def test_every_chapter_shows_its_own_quiz():
    chapters = {path.stem[3:]: path for path in CHAPTERS.glob("*.ipynb")}
    assert sorted(chapters) == quiz.available()
    for name, path in chapters.items():
        assert rf'"quiz.quiz(\"{name}\")"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", quiz.available())
def test_notebooks_store_the_quiz_as_it_is_now(name):
    (notebook,) = CHAPTERS.glob(f"*_{name}.ipynb")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    stored = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert to_html(questions(name), name) in stored


def test_the_right_option_is_not_always_in_the_same_place():
    places = [
        [o.right for o in q.options].index(True)
        for name in quiz.available()
        for q in questions(name)
        if q.tolerance is None
    ]
    assert max(places.count(k) for k in range(4)) < 0.5 * len(places)


def test_text_is_escaped_and_marked_up():
    assert rich("a < b & `x < y` and *so*") == (
        "a &lt; b &amp; <code>x &lt; y</code> and <em>so</em>"
    )
    assert rich(r"$\bar\alpha_t$").startswith("<math")
    assert rich("$[-1, -a]$").count('form="prefix"') == 2 and "prefix" not in rich("$a - b$")


A, B = Option("one", "because", right=True), Option("two", "because not")


@pytest.mark.parametrize(
    "options", [(A,), (B, B), (A, A), ()], ids=["single", "none right", "two right", "empty"]
)
def test_a_question_needs_exactly_one_right_option_among_several(options):
    with pytest.raises(UserError, match="one of them right"):
        Question("?", options)


def test_numbers_and_texts_are_not_mixed_and_numbers_can_be_told_apart():
    with pytest.raises(UserError, match="mixes"):
        Question("?", (A, B), tolerance=0.1)
    with pytest.raises(UserError, match="told apart"):
        Question("?", (Option(1.0, "", right=True), Option(1.1, "")), tolerance=0.1)


def test_an_unknown_quiz_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match="forward_process"):
        questions("nonsense")


def _heun_calls(steps: int) -> int:
    calls = 0

    def counting(x, level, cond=None):
        nonlocal calls
        calls += 1
        return torch.zeros_like(x)

    list(samplers.heun(counting, torch.ones(1, 1), noise.linear().levels(steps)))
    return calls


def _guided(with_label: float, without: float, scale: float) -> float:
    def answer(x, level, cond=None):
        return torch.where(cond == NO_CLASS, without, with_label)

    return float(guidance.cfg(answer, scale)(torch.zeros(1), LEVEL, torch.tensor([3])))


def _noisy_pixel(alpha_bar: float, x0: float, eps: float) -> float:
    level = noise.DiscreteSchedule(torch.tensor([1 - alpha_bar]), {})(torch.tensor(1))
    return float(level.signal * x0 + level.noise * eps)


def _loss_of_answering_0(kind: predict.Kind, alpha_bar: float, variance: float) -> float:
    level = noise.Level(torch.tensor(alpha_bar).sqrt(), torch.tensor(1 - alpha_bar).sqrt(), ZERO)
    of_x0, of_eps = predict.coefficients(kind, level)
    return float(of_x0**2 * variance + of_eps**2)


def _best_eps_loss(alpha_bars: torch.Tensor, std: float = 1.0) -> float:
    """Mean over t of the best loss for normal data."""
    snr = alpha_bars[1:] / (1 - alpha_bars[1:]) * std**2
    return float((snr / (1 + snr)).mean())


LEVEL = noise.linear()(torch.tensor(300))
ZERO = torch.zeros(1)
ONE = torch.eye(1, dtype=torch.float64)
# (quiz, which of its numeric questions) -> the answer, by the library.
NUMBERS = {
    ("quickstart", 0): lambda: _noisy_pixel(0.64, -0.5, 1.0),
    ("forward_process", 0): lambda: LEVEL.signal * 0.5608 + LEVEL.noise * 0.5,
    ("elbo_and_loss", 0): lambda: Ledger(ZERO, 2 * torch.ones(1, 1), ZERO, dims=1).bits_per_dim,
    ("elbo_and_loss", 1): lambda: kl_divergence(Normal(0.0, 1.0), Normal(3.0, 1.0)),
    ("unet", 0): lambda: sum(p.numel() for p in torch.nn.Conv2d(48, 64, 3).parameters()),
    ("training", 0): lambda: 128 / 4,
    ("training", 1): lambda: -1 / math.log(0.999),
    ("sampling", 0): lambda: _heun_calls(20),
    ("sampling", 1): lambda: _guided(0.6, 0.4, 2.0),
    ("tuning", 0): lambda: metrics.frechet_gaussian(torch.zeros(1), ONE, torch.ones(1), 9 * ONE),
    ("spot_the_bug", 0): lambda: _loss_of_answering_0("v", 0.2, 0.25),
    ("spot_the_bug", 1): lambda: noise.DiscreteSchedule(
        torch.full((500,), 0.01)[::10], {}
    ).alpha_bars[-1],
}


def test_every_numeric_answer_is_computed_here():
    asked = {
        (name, i)
        for name in quiz.available()
        for i, _ in enumerate(q for q in questions(name) if q.tolerance is not None)
    }
    assert asked == set(NUMBERS)


@pytest.mark.parametrize(("name", "index"), NUMBERS)
def test_a_numeric_answer_is_what_the_library_gives(name, index):
    question = [q for q in questions(name) if q.tolerance is not None][index]
    (given,) = [o.answer for o in question.options if o.right]
    assert float(NUMBERS[name, index]()) == pytest.approx(given, abs=question.tolerance / 2)


def test_levels_along_the_wrong_side_pass_the_tests_that_the_quiz_says_they_pass():
    generator = torch.Generator().manual_seed(0)
    alpha_bars = noise.linear().alpha_bars
    signal, level_of_noise = alpha_bars.sqrt(), (1 - alpha_bars).sqrt()

    def noised(x0, t, eps):
        return signal[t] * x0 + level_of_noise[t] * eps

    t = torch.randint(1, 1001, (16,), generator=generator)
    x0, eps = torch.randn(2, 16, 1, 16, 16, generator=generator, dtype=torch.float64)
    many = torch.randn(2, 500, 1, 16, 16, generator=generator, dtype=torch.float64)
    assert float(noised(many[0], t, many[1]).var()) == pytest.approx(1, abs=0.02)
    assert not torch.allclose(noised(x0[:1], t[:1], eps[:1])[0], noised(x0, t, eps)[0])
    with pytest.raises(RuntimeError, match="size of tensor"):
        noised(torch.cat([x0, x0]), torch.cat([t, t]), torch.cat([eps, eps]))


def test_the_other_figures_of_the_quiz_on_bugs():
    alpha_bars, betas = noise.linear().alpha_bars, noise.linear().betas
    for a in (0.1, 0.2, 0.7):  # which root is missing, the variance does not tell
        assert a + (1 - a) ** 2 == pytest.approx(a**2 + (1 - a))
    one_missing, both_missing = 0.2 + 0.8**2, 0.2**2 + 0.8**2
    assert [one_missing, both_missing] == pytest.approx([0.84, 0.68])
    assert _best_eps_loss(alpha_bars) == pytest.approx(0.28, abs=0.005)
    assert _best_eps_loss(noise.linear(beta_end=0.2).alpha_bars) == pytest.approx(0.09, abs=0.005)
    assert _best_eps_loss(alpha_bars, std=127.5) == pytest.approx(0.95, abs=0.005)
    summed = 1 - betas.cumsum(0)
    assert (float(summed[100]), float(alpha_bars[100])) == pytest.approx((0.891, 0.897), abs=5e-4)
    assert int((summed < 0).nonzero()[0]) == 313


def test_a_full_stop_stays_with_its_formula():
    page = rich(r"It is $\ln p$. So, $x$ or `a$b`")
    assert re.search(r"nowrap.><math.*?</math>\.</span> So, <math", page)
    assert '<mi>ln</mi><mspace width="0.17em"/><mi>p</mi>' in page
    assert page.endswith("<code>a$b</code>")
