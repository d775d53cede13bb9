# %% [markdown]
# # Assignment 5: a project
#
# It belongs to chapters 5 and 6. You choose one of two tracks, build a method, check it where the answer is known, measure it where it is not,
# and write a report. **20 points**, about six hours.
#
# | `TRACK` | what you build |
# |---|---|
# | `"sampler"` | a deterministic sampler of second order: twice as many steps, a quarter of the error |
# | `"guidance"` | guidance other than the plain formula: in an interval of noise levels only, rescaled, with a scale that depends on the level, ... |
#
# How it works:
#
# - Replace each `...` by your code. Do not rename functions, and do not delete cells. Of the other track's function nothing is asked.
# - The tests ask for properties that any right method of your track has, whichever you choose. Some you can see; the
#   others run when it is graded, with other numbers.
# - Ideas of chapter 5 and of papers are welcome; name your sources. A copy of a function of the library is not a project.
# - Before you hand in, restart the kernel and run all cells.
#
# Levels are the library's: `level.signal`, `level.noise`, `level.log_snr`, `level.t`, with clean data at noise 0. A denoiser is called as `denoise(x, level, cond)` and estimates $x_0$; label
# $-1$ means "no class".

__HEADER__

# %% kind="given" id="imports"
import math
from itertools import pairwise

import torch
from diffusion_lib import data, metrics, noise, pretrained, samplers, toy
from diffusion_lib.noise import Level

schedule = noise.linear()


class Counted:
    """A denoiser that counts how many times it was called, and with how many pictures in all."""

    def __init__(self, denoise):
        self.denoise, self.calls, self.pictures = denoise, 0, 0

    def __call__(self, x_t, level, cond=None):
        self.calls, self.pictures = self.calls + 1, self.pictures + len(x_t)
        return self.denoise(x_t, level, cond)


def even_levels(n, top=-6.0, bottom=6.0):
    """n + 1 noisy levels, evenly spaced in log SNR. (`level.t` is no time of a schedule here.)"""
    line = torch.linspace(top, bottom, n + 1, dtype=torch.float64)
    return [Level(v.sigmoid().sqrt(), (-v).sigmoid().sqrt(), -v) for v in line]


def two_classes(mean, std):
    """A denoiser of pictures (B, 1, 4, 4), exact: class 0 lies around `mean`, class 1 around -`mean`. mean: (16,)."""
    mixture = toy.GaussianMixture([0.5, 0.5], torch.stack([mean, -mean]), [std, std])

    def denoise(x_t, level, cond=None):
        return mixture(x_t.flatten(1), level, cond).reshape(x_t.shape)

    return denoise


# %% [markdown]
# ## 1. Two rulers (2 points, both tracks)
#
# A method is checked where the answer is known. Calculate, with code:
#
# - `my_end`: data $\mathcal N($`MY_MEAN`$,$ `MY_STD`$^2)$, and a number that stands at `MY_X` at time `MY_TIME` of DDPM's linear schedule (`schedule`). Where does the probability flow, DDIM with
#   infinitely many steps, take it to at $t = 0$? (1 point)
# - `my_guided_mean`: data $\mathcal N(0, $`MY_STD`$^2)$, of which the class is $\mathcal N($`MY_MEAN`$,$ `MY_STD`$^2)$. Around which mean do samples with plain guidance of scale `MY_W` lie? (1 point)

# %% kind="given" id="my_numbers"
MY_MEAN = mine("mean", [-1.2, -0.9, -0.7, 0.6, 0.8, 1.1])
MY_STD = mine("std", [0.3, 0.4, 0.6, 0.7])
MY_X = mine("x", [-1.5, -1.0, 1.0, 1.5])
MY_TIME = mine("time", [300, 400, 500, 600])
MY_W = mine("w", [1.5, 2.5, 3.0, 4.0])
print(f"mean {MY_MEAN}, standard deviation {MY_STD}; x = {MY_X} at t = {MY_TIME}; w = {MY_W}")

# %% kind="answer" id="my_answers"
my_end = ...
my_guided_mean = ...
### BEGIN SOLUTION
my_level = schedule(torch.tensor(MY_TIME))
my_width = (my_level.signal**2 * MY_STD**2 + my_level.noise**2).sqrt()
my_end = float(MY_MEAN + MY_STD / my_width * (MY_X - my_level.signal * MY_MEAN))
my_guided_mean = MY_W * MY_MEAN
### END SOLUTION

# %% kind="test" id="my_end" points=1
assert abs(float(my_end)) < 10, "It ends within a few standard deviations of the mean."
### BEGIN HIDDEN TESTS
hidden_bell = toy.GaussianMixture([1.0], [[MY_MEAN]], [MY_STD])
hidden_way = [schedule(torch.tensor(t)) for t in range(MY_TIME, -1, -1)]
*_, hidden_last = samplers.heun(hidden_bell, torch.tensor([[float(MY_X)]]).double(), hidden_way)
assert abs(float(my_end) - float(hidden_last.x)) < 5e-3
### END HIDDEN TESTS

# %% kind="test" id="my_guided_mean" points=1
assert abs(float(my_guided_mean)) < 10, "A few times the mean of the class, at most."
### BEGIN HIDDEN TESTS
assert abs(float(my_guided_mean) - MY_W * MY_MEAN) < 1e-3
### END HIDDEN TESTS

# %% [markdown]
# ## 2. Your track

# %% kind="answer" id="track"
# "sampler" or "guidance"
TRACK = (
    ### BEGIN SOLUTION
    "sampler"
    ### END SOLUTION
)

# %% [markdown]
# **If your track is the sampler:** write `my_sampler(denoise, x, levels)`. It walks `x` of any shape down the list `levels` and returns `x` at the last one. The last level may be clean data (`noise` 0), and
# the number of steps is `len(levels) - 1`. Nothing random is added. It may call `denoise(x, level)` up to three times a step.

# %% kind="answer" id="my_sampler"
def my_sampler(denoise, x, levels):
    ### BEGIN SOLUTION
    # Adams and Bashforth's two-step method for d(x / signal) = eps d(noise / signal): one
    # evaluation a step, the slope extrapolated to the middle of the step.
    before = None
    for now, to in pairwise(levels):
        sigma, goal = now.noise / now.signal, to.noise / to.signal
        eps = slope = samplers.eps_from(x, denoise(x, now), now)
        if before is not None:
            slope = eps + (goal - sigma) / (sigma - before[1]) / 2 * (eps - before[0])
        x = to.signal * (x / now.signal + (goal - sigma) * slope)
        before = eps, sigma
    return x
    ### END SOLUTION


# %% [markdown]
# **If your track is guidance:** write `my_guidance(denoise, w)`. It returns a function of `(x_t, level, cond)` that estimates $x_0$, as `diffusion_lib.guidance.cfg` does. At $w = 1$ it must be the plain conditional denoiser; larger $w$ must pull
# towards the class; and each picture must be treated by itself, whatever else is in the batch. `level` holds one number for the whole batch, as samplers hand it over. It may show the denoiser each picture up to two times.

# %% kind="answer" id="my_guidance"
def my_guidance(denoise, w):
    ### BEGIN SOLUTION
    # Guidance in an interval (Kynkäänniemi et al. 2024): where a class is being decided.
    def guided(x_t, level, cond):
        conditional = denoise(x_t, level, cond)
        if not -5 < float(level.log_snr) < 3:
            return conditional
        without = denoise(x_t, level, torch.full_like(cond, -1))
        return without + w * (conditional - without)

    return guided
    ### END SOLUTION


# %% [markdown]
# ### It runs (1 point)

# %% kind="test" id="runs" points=1
assert TRACK in ("sampler", "guidance"), 'Choose a track: TRACK = "sampler" or TRACK = "guidance".'
shown_generator = torch.Generator().manual_seed(0)
if TRACK == "sampler":
    shown_x = torch.randn(5, 2, generator=shown_generator).double()
    shown_before = shown_x.clone()
    shown = my_sampler(toy.ring(), shown_x, schedule.levels(20))
    assert shown.shape == shown_x.shape, f"Samples keep their shape, (5, 2); yours have {tuple(shown.shape)}."
    assert torch.equal(shown_x, shown_before), "The starting noise that was handed in must not be changed."
    assert shown.isfinite().all(), "The last level is clean data, with noise 0: something divides by it."
else:
    shown_x = torch.randn(5, 1, 4, 4, generator=shown_generator).double()
    shown_before = shown_x.clone()
    shown_guided = my_guidance(two_classes(torch.ones(16), 0.5), 2.0)
    for shown_t in (1000, 500, 1):
        shown = shown_guided(shown_x, schedule(torch.tensor(shown_t)), torch.tensor([0, 1, 0, 1, 0]))
        assert shown.shape == shown_x.shape, f"Estimates keep the shape (5, 1, 4, 4); yours have {tuple(shown.shape)}."
        assert shown.isfinite().all(), f"Not a finite number at t = {shown_t}."
    assert torch.equal(shown_x, shown_before), "The pictures that were handed in must not be changed."

# %% [markdown]
# ### A known answer (3 points)
#
# *Sampler:* on one Gaussian it comes close to the exact end of the curve. *Guidance:* at $w = 1$ it is the conditional denoiser, at every noise level.

# %% kind="test" id="known" points=3
# More tests run here when it is graded.
assert TRACK in ("sampler", "guidance"), 'Choose a track: TRACK = "sampler" or TRACK = "guidance".'
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__)
hidden_mean, hidden_std = 0.5 + (__SECRET__ % 11) / 20, 0.3 + (__SECRET__ % 7) / 20


def hidden_error(hidden_n):
    """Largest error on one Gaussian, from five starts, with n steps."""
    hidden_bell = Counted(toy.GaussianMixture([1.0], [[hidden_mean]], [hidden_std]))
    hidden_levels = even_levels(hidden_n, -4.0, 4.0)
    hidden_x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    hidden_top, hidden_bottom = hidden_levels[0], hidden_levels[-1]
    hidden_v = [lv.signal**2 * hidden_std**2 + lv.noise**2 for lv in (hidden_top, hidden_bottom)]
    hidden_end = hidden_bottom.signal * hidden_mean + (hidden_v[1] / hidden_v[0]).sqrt() * (
        hidden_x - hidden_top.signal * hidden_mean
    )
    hidden_given = my_sampler(hidden_bell, hidden_x.clone(), hidden_levels)
    assert hidden_bell.calls <= 3 * hidden_n, "More than three evaluations a step."
    return float((hidden_given - hidden_end).abs().max())


if TRACK == "sampler":
    assert hidden_error(200) < 0.03, f"On one Gaussian 200 steps end {hidden_error(200):.3f} off."
else:
    hidden_denoise = two_classes(torch.randn(16, generator=hidden_generator), 0.6)
    hidden_x = torch.randn(6, 1, 4, 4, generator=hidden_generator).double()
    hidden_cond = torch.tensor([0, 1, 1, 0, 1, 0])
    for hidden_t in (1000, 900, 700, 500, 300, 100, 20, 1):
        hidden_level = schedule(torch.tensor(hidden_t))
        hidden_given = my_guidance(hidden_denoise, 1.0)(hidden_x.clone(), hidden_level, hidden_cond)
        hidden_expected = hidden_denoise(hidden_x, hidden_level, hidden_cond)
        assert torch.allclose(hidden_given, hidden_expected, atol=1e-5), f"w = 1, t = {hidden_t}"
### END HIDDEN TESTS

# %% [markdown]
# ### A property (3 points)
#
# *Sampler:* second order. With four times the steps, the error on one Gaussian falls by more than $4^{1.5} = 8$. *Guidance:* where the class makes no difference to the denoiser, guidance makes none,
# at any scale; and a picture's estimate does not depend on its neighbours.

# %% kind="test" id="property" points=3
# More tests run here when it is graded.
assert TRACK in ("sampler", "guidance"), 'Choose a track: TRACK = "sampler" or TRACK = "guidance".'
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__ + 1)
hidden_mean, hidden_std = -0.4 - (__SECRET__ % 9) / 20, 0.35 + (__SECRET__ % 5) / 20
if TRACK == "sampler":
    hidden_x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    hidden_bell = toy.GaussianMixture([1.0], [[hidden_mean]], [hidden_std])
    hidden_errors = []
    for hidden_n in (40, 160):
        hidden_levels = even_levels(hidden_n, -4.0, 4.0)
        hidden_v = [lv.signal**2 * hidden_std**2 + lv.noise**2 for lv in (hidden_levels[0], hidden_levels[-1])]
        hidden_end = hidden_levels[-1].signal * hidden_mean + (hidden_v[1] / hidden_v[0]).sqrt() * (
            hidden_x - hidden_levels[0].signal * hidden_mean
        )
        hidden_given = my_sampler(hidden_bell, hidden_x.clone(), hidden_levels)
        hidden_errors.append(float((hidden_given - hidden_end).abs().max()))
    # An error that is down to rounding has no order left to measure.
    hidden_order = math.log(hidden_errors[0] / max(hidden_errors[1], 1e-12)) / math.log(4)
    assert hidden_order > 1.5 or hidden_errors[0] < 1e-9, f"Order {hidden_order:.2f}."
else:
    hidden_denoise = Counted(two_classes(torch.randn(16, generator=hidden_generator), 0.6))
    hidden_x = torch.randn(6, 1, 4, 4, generator=hidden_generator).double()
    hidden_x[0] *= 3
    hidden_cond = torch.tensor([0, 1, 1, 0, 1, 0])
    for hidden_t in (950, 600, 300, 50):
        hidden_level = schedule(torch.tensor(hidden_t))
        for hidden_w in (0.5, 2.0, 6.0):
            hidden_blind = my_guidance(lambda x, level, cond=None: hidden_denoise(x, level), hidden_w)
            hidden_given = hidden_blind(hidden_x.clone(), hidden_level, hidden_cond)
            hidden_expected = hidden_denoise(hidden_x, hidden_level)
            assert torch.allclose(hidden_given, hidden_expected, atol=1e-4), f"w = {hidden_w}, t = {hidden_t}"
        hidden_denoise.pictures = 0
        hidden_all = my_guidance(hidden_denoise, 4.0)(hidden_x.clone(), hidden_level, hidden_cond)
        assert hidden_denoise.pictures <= 12, "More than two evaluations a picture."
        hidden_one = my_guidance(hidden_denoise, 4.0)(hidden_x[1:2].clone(), hidden_level, hidden_cond[1:2])
        assert torch.allclose(hidden_all[1:2], hidden_one, atol=1e-5), "It depends on the neighbours."
### END HIDDEN TESTS

# %% [markdown]
# ### It is worth its price (3 points)
#
# *Sampler:* on data with eight clusters, all the way to clean data, its error is at most 0.7 times that of DDIM with as many evaluations as yours uses. *Guidance:* samples drawn with $w = 3$ belong more clearly
# to their class than samples with $w = 1$ from the same noise, for each class.

# %% kind="test" id="worth" points=3
# More tests run here when it is graded.
assert TRACK in ("sampler", "guidance"), 'Choose a track: TRACK = "sampler" or TRACK = "guidance".'
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__ + 2)
if TRACK == "sampler":
    hidden_clean = Level(torch.ones(()).double(), torch.zeros(()).double(), torch.zeros(()).double())
    hidden_ring = Counted(toy.ring(8, 1.0 + (__SECRET__ % 5) / 10, 0.25))
    hidden_x = torch.randn(200, 2, generator=hidden_generator).double()
    *_, hidden_exact = samplers.heun(hidden_ring.denoise, hidden_x, [*even_levels(1000), hidden_clean])
    hidden_ours = my_sampler(hidden_ring, hidden_x.clone(), [*even_levels(30), hidden_clean])
    *_, hidden_ddim = samplers.ddim(hidden_ring.denoise, hidden_x, [*even_levels(hidden_ring.calls - 1), hidden_clean])
    hidden_a, hidden_b = ((v - hidden_exact.x).norm(dim=1).median() for v in (hidden_ours, hidden_ddim.x))
    # Measured on seven courses: Heun 0.23, DPM-Solver++(2M) 0.08, midpoint up to 0.34, DDIM 1.
    assert hidden_a < 0.7 * hidden_b, f"Error {hidden_a:.4f}; DDIM, with {hidden_ring.calls} evaluations, {hidden_b:.4f}."
else:
    hidden_mean = torch.randn(16, generator=hidden_generator).double()
    hidden_mean *= 0.7 / hidden_mean.norm()
    hidden_denoise = two_classes(hidden_mean, 0.5)
    hidden_x = torch.randn(400, 1, 4, 4, generator=hidden_generator).double()
    hidden_cond = torch.arange(400) % 2
    hidden_odds = []
    for hidden_w in (1.0, 3.0):
        hidden_guided = my_guidance(hidden_denoise, hidden_w)
        *_, hidden_last = samplers.ddim(hidden_guided, hidden_x, schedule.levels(25), cond=hidden_cond)
        # The log odds of a class grow along the line between the two means.
        hidden_odds.append(hidden_last.x.flatten(1) @ hidden_mean * (1 - 2 * hidden_cond) * 2 / 0.5**2)
    hidden_gain = hidden_odds[1] - hidden_odds[0]
    # Measured on seven courses: plain guidance 2.8, in an interval 2.1, fully rescaled 0.96 at least.
    for hidden_class in (0, 1):
        hidden_mine = hidden_gain[hidden_cond == hidden_class].mean()
        assert hidden_mine > 0.3, f"Class {hidden_class}: the log odds grow by {hidden_mine:.2f}."
### END HIDDEN TESTS

# %% [markdown]
# ## 3. Your experiment
#
# Ask **one** question that an experiment can answer, such as: *from how many evaluations on does my sampler draw better digits than DDIM?* or *does the interval keep the variety that plain guidance loses?* The shipped
# models (`pretrained.load_pretrained("digits8")`) and `metrics.evaluate` are there, and so are the toys above, where everything is exact. Put your code here. Let it run for less than a minute, and keep the results of longer runs as
# numbers in the text.

# %% kind="answer" id="experiment"
### BEGIN SOLUTION
def drawn_with(walk, steps, seed):
    """Squared Fréchet distance of 200 digits to held-out ones."""
    model, real = pretrained.load_pretrained("digits8"), data.digits(8, split="test").floats()
    x = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    labels, judge = torch.arange(200) % 10, metrics.load_judge()
    with torch.inference_mode():
        drawn = walk(lambda x, level: model(x, level, labels), x, schedule.levels(steps)).clamp(-1, 1)
    return metrics.frechet_distance(*(metrics.judge_features(judge, v) for v in (drawn, real)))


def ddim(denoise, x, levels):
    *_, end = samplers.ddim(lambda x, level, cond: denoise(x, level), x, levels)
    return end.x


for name, walk in (("DDIM", ddim), ("mine", my_sampler)):
    distances = torch.tensor([drawn_with(walk, 8, seed) for seed in (0, 1)])
    print(f"8 evaluations, {name}: {distances.mean():.1f} ± {distances.std():.1f}")
### END SOLUTION

# %% [markdown]
# ## 4. Your report (8 points)
#
# One to two pages, in your own words: the question; the method, exactly enough that a reader could redo it; the evidence, with a baseline, a floor and the spread over repeats; what did not work and what you did not measure; your
# sources. Say in one sentence how the rulers of part 1 helped to trust the method.

# %% [markdown] kind="marked" id="report" points=8
# ### BEGIN SOLUTION
# *Rubric*, as on the page *Teaching with this book*. Half of the points of a line for what stands under "half".
#
# | | points | full | half | none |
# |---|---|---|---|---|
# | question | 1 | one clear question that an experiment can answer | a topic | none |
# | method | 2 | what was changed is one thing, stated exactly, and checked against a known answer | stated, not checked | cannot be repeated |
# | evidence | 2 | figures with repeats or intervals, beside a baseline and a floor | figures without spread | one picture |
# | honesty | 2 | says what did not work and what was not measured | silent about limits | claims more than was shown |
# | writing | 1 | a reader could redo it from the text | needs the code | needs the author |
# ### END SOLUTION
