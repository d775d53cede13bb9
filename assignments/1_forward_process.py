# %% [markdown]
# # Assignment 1: the forward process and its schedules
#
# It belongs to chapter 1. You write the closed form of the forward process, build a noise schedule
# that Part I only describes, and say in your own words what its numbers mean. **20 points**, about two hours.
#
# How it works:
#
# - Replace each `...` by your code. Do not rename functions, and do not delete cells.
# - Below each function stand tests that you can see. More tests run when it is graded, with
#   other numbers: a function that passes only for the numbers shown will not pass.
# - Before you hand in, restart the kernel and run all cells.
#
# Everywhere, time runs from $0$ (clean) to $T$ (noise), and $\bar\alpha_0 = 1$.

__HEADER__

# %% kind="given" id="imports"
import torch
from diffusion_lib import noise

# %% [markdown]
# ## 1. From betas to alpha bars (3 points)
#
# Write `alpha_bars(betas)`. It gets $\beta_1, \dots, \beta_T$ as a tensor of shape `(T,)` and returns
# $\bar\alpha_0, \dots, \bar\alpha_T$ as a float64 tensor of shape `(T + 1,)`.

# %% kind="answer" id="alpha_bars"
def alpha_bars(betas):
    ### BEGIN SOLUTION
    return torch.cat([torch.ones(1).double(), (1 - betas.double()).cumprod(0)])
    ### END SOLUTION


# %% kind="test" id="alpha_bars-shown" points=1
shown = alpha_bars(torch.tensor([0.1, 0.2, 0.5]))
assert shown.shape == (4,), f"Three betas give four alpha bars; yours have the shape {tuple(shown.shape)}."
assert shown.dtype == torch.float64, "Return float64: a product of a thousand factors loses digits in float32."
assert torch.allclose(shown, torch.tensor([1.0, 0.9, 0.72, 0.36]).double(), atol=1e-6)

# %% kind="test" id="alpha_bars-hidden" points=2
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_betas = torch.rand(200, generator=torch.Generator().manual_seed(__SECRET__)).double() * 0.05
hidden_expected = noise.DiscreteSchedule(hidden_betas, {}).alpha_bars
assert torch.allclose(alpha_bars(hidden_betas), hidden_expected, rtol=1e-9)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. Any step in one jump (4 points)
#
# Write `forward_sample(x0, eps, t, bars)`: the noisy pictures $x_t$. Here `x0` and `eps` are pictures of shape
# `(B, C, H, W)`, `t` holds one time for each picture, shape `(B,)`, and `bars` comes from your first function.
# The result has the data type of `x0`.

# %% kind="answer" id="forward_sample"
def forward_sample(x0, eps, t, bars):
    ### BEGIN SOLUTION
    bar = bars[t].reshape(-1, 1, 1, 1)
    return (bar.sqrt() * x0 + (1 - bar).sqrt() * eps).to(x0.dtype)
    ### END SOLUTION


# %% kind="test" id="forward_sample-shown" points=1
shown_bars = torch.tensor([1.0, 0.64, 0.36]).double()
shown = forward_sample(torch.ones(3, 1, 2, 2), torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 2]), shown_bars)
assert shown.shape == (3, 1, 2, 2) and shown.dtype == torch.float32
assert torch.allclose(shown[:, 0, 0, 0], torch.tensor([1.0, 0.8 + 0.6, 0.6 + 0.8]), atol=1e-6), (
    f"At t = 0, 1, 2 a pixel of 1 with noise of 1 gives 1, 1.4 and 1.4; yours gives {shown[:, 0, 0, 0].tolist()}."
)

# %% kind="test" id="forward_sample-hidden" points=3
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__ + 1)
hidden_x0 = torch.rand(5, 3, 6, 4, generator=hidden_generator) * 2 - 1
hidden_eps = torch.randn(5, 3, 6, 4, generator=hidden_generator)
hidden_t = torch.randint(1, 1001, (5,), generator=hidden_generator)
hidden_level = noise.linear()(hidden_t).like(hidden_x0)
hidden_expected = hidden_level.signal * hidden_x0 + hidden_level.noise * hidden_eps
hidden_before = hidden_x0.clone()
hidden_given = forward_sample(hidden_x0, hidden_eps, hidden_t, noise.linear().alpha_bars)
assert torch.allclose(hidden_given, hidden_expected, atol=1e-5)
assert torch.equal(hidden_x0, hidden_before), "The pictures handed in were changed."
### END HIDDEN TESTS

# %% [markdown]
# ## 3. A schedule of your own making (5 points)
#
# Log-linear SNR: the logarithm of the signal-to-noise ratio falls on a straight line, from `high` at $t = 1$ to `low`
# at $t = T$. Write `log_linear_bars(T, high, low)`, which returns $\bar\alpha_0, \dots, \bar\alpha_T$ in float64.
# You need to solve $\mathrm{SNR} = \bar\alpha / (1 - \bar\alpha)$ for $\bar\alpha$.

# %% kind="answer" id="log_linear_bars"
def log_linear_bars(T, high, low):
    ### BEGIN SOLUTION
    log_snr = torch.linspace(high, low, T, dtype=torch.float64)
    return torch.cat([torch.ones(1).double(), torch.sigmoid(log_snr)])
    ### END SOLUTION


# %% kind="test" id="log_linear_bars-shown" points=2
shown = log_linear_bars(3, 2.0, -2.0)
assert shown.shape == (4,) and shown[0] == 1, "The first entry is t = 0, clean data."
assert abs(float(shown[2]) - 0.5) < 1e-9, "Halfway between 2 and -2 the log-SNR is 0: as much signal as noise."

# %% kind="test" id="log_linear_bars-hidden" points=3
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_high = 6.0 + (__SECRET__ % 100) / 50
hidden_low = -5.0 - (__SECRET__ % 37) / 37
hidden_bars = log_linear_bars(400, hidden_high, hidden_low)
hidden_log_snr = torch.log(hidden_bars[1:] / (1 - hidden_bars[1:]))
assert torch.allclose(hidden_log_snr, torch.linspace(hidden_high, hidden_low, 400).double(), atol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Two numbers of your own (4 points)
#
# Your schedule is linear in beta, with `MY_T` steps from $10^{-4}$ to `MY_BETA_END`. Calculate, with code,
#
# - `my_terminal_signal`: the factor $\sqrt{\bar\alpha_T}$ that is left of the picture at the end (2 points);
# - `my_half_time`: the first time $t$ at which there is more noise than signal, SNR < 1 (2 points).

# %% kind="given" id="my_numbers"
MY_T = mine("T", [150, 200, 250, 300, 400, 500])
MY_BETA_END = mine("beta", [0.015, 0.02, 0.025, 0.03])
print(f"T = {MY_T}, beta from 0.0001 to {MY_BETA_END}")

# %% kind="answer" id="my_answers"
my_terminal_signal = ...
my_half_time = ...
### BEGIN SOLUTION
my_schedule = noise.linear(MY_T, 1e-4, MY_BETA_END)
my_terminal_signal = float(my_schedule.alpha_bars[-1].sqrt())
my_half_time = int((my_schedule.alpha_bars < 0.5).nonzero()[0])
### END SOLUTION

# %% kind="test" id="terminal_signal" points=2
assert 0 < float(my_terminal_signal) < 1, "A share of the picture lies between 0 and 1."
### BEGIN HIDDEN TESTS
hidden_mine = noise.linear(MY_T, 1e-4, MY_BETA_END).alpha_bars
assert abs(float(my_terminal_signal) - float(hidden_mine[-1].sqrt())) < 1e-3
### END HIDDEN TESTS

# %% kind="test" id="half_time" points=2
assert my_half_time == int(my_half_time) and 0 < my_half_time <= MY_T, "A time is a whole number from 1 to T."
### BEGIN HIDDEN TESTS
hidden_mine = noise.linear(MY_T, 1e-4, MY_BETA_END).alpha_bars
assert int(my_half_time) == int((hidden_mine < 0.5).nonzero()[0])
### END HIDDEN TESTS

# %% [markdown]
# ## 5. In your own words (4 points)
#
# With your `MY_T` and `MY_BETA_END` a trained model would be sampled from $x_T \sim \mathcal N(0, 1)$. Your
# `my_terminal_signal` is not 0. What goes wrong with the samples, which property of them suffers most, and what
# would you change? Four to eight sentences; use your number.

# %% [markdown] kind="marked" id="explain_terminal" points=4
# ### BEGIN SOLUTION
# *Rubric.* 1 point: the true $x_T$ still holds a trace of the picture, of size `my_terminal_signal`, which the
# start of sampling lacks. 1 point: what suffers is what the whole picture shares, such as its mean brightness, because it survives noise
# longest. 1 point: samples are drawn towards the average. 1 point: a remedy that works (larger T or last beta,
# rescaling to zero terminal SNR, a cosine schedule), and why.
# ### END SOLUTION
