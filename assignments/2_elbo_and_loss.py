# %% [markdown]
# # Assignment 2: the ELBO and the loss
#
# It belongs to chapter 2. You write the step back that somebody would take who knows the picture, the cost of not
# knowing it, and the conversions between what a network may be asked for. At the end you add up a bill of your own.
# **20 points**, about three hours.
#
# How it works:
#
# - Replace each `...` by your code. Do not rename functions, and do not delete cells.
# - Below each function stand tests that you can see. More tests run when it is graded, with
#   other numbers: a function that passes only for the numbers shown will not pass.
# - No question needs the answer of another one: a mistake costs its own points only.
# - Before you hand in, restart the kernel and run all cells.
#
# Everywhere, time runs from $0$ (clean) to $T$ (noise). A row of alpha bars holds $\bar\alpha_0, \dots, \bar\alpha_T$, with
# $\bar\alpha_0 = 1$, as `noise.linear().alpha_bars` does. Logarithms are natural, and costs are counted in nats.

__HEADER__

# %% kind="given" id="imports"
import torch
from diffusion_lib import likelihood, noise, predict, samplers

# %% [markdown]
# ## 1. The step back, if the picture is known (4 points)
#
# Write `posterior(x_t, x0, t, bars)`: mean and **variance** of $q(x_{t-1} \mid x_t, x_0)$. `x_t` and `x0` are pictures of
# one shape, `t` is a whole number from 1 to $T$, and `bars` are the alpha bars in float64. The mean has the shape of `x0`; the variance
# is a tensor with one number.
#
# Mind the index: `bars[t]` is $\bar\alpha_t$, and $\alpha_t = \bar\alpha_t / \bar\alpha_{t-1}$.

# %% kind="answer" id="posterior"
def posterior(x_t, x0, t, bars):
    ### BEGIN SOLUTION
    before, now = bars[t - 1], bars[t]
    alpha = now / before
    beta = 1 - alpha
    mean = before.sqrt() * beta / (1 - now) * x0 + alpha.sqrt() * (1 - before) / (1 - now) * x_t
    return mean, (1 - before) / (1 - now) * beta
    ### END SOLUTION


# %% kind="test" id="posterior-shown" points=1
shown_bars = torch.tensor([1.0, 0.64, 0.16]).double()
shown_x = torch.ones(2, 1, 3, 3).double()
shown_mean, shown_variance = posterior(2 * shown_x, -shown_x, 1, shown_bars)
assert shown_mean.shape == shown_x.shape, f"The mean is a picture; yours has the shape {tuple(shown_mean.shape)}."
assert torch.allclose(shown_mean, -shown_x), (
    "At t = 1 the step back leads to the picture itself: where x0 = -1 the mean is -1. Yours is "
    f"{float(shown_mean.mean()):.4f}. Is an index shifted by one?"
)
assert abs(float(shown_variance)) < 1e-9, (
    f"At t = 1 nothing is left open once the picture is known: the variance is 0. Yours is {float(shown_variance):.4f}. "
    "The variance of the step back is smaller than that of the step forth, beta."
)
shown_mean, shown_variance = posterior(shown_x, shown_x, 2, shown_bars)
assert torch.allclose(shown_mean, 13 / 14 * shown_x), (
    f"With bars 1, 0.64, 0.16 and x_2 = x_0 = 1 the mean is 13/14 = 0.9286; yours is {float(shown_mean.mean()):.4f}."
)

# %% kind="test" id="posterior-hidden" points=3
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__)
hidden_x_t, hidden_x0 = torch.randn(2, 3, 2, 5, 4, generator=hidden_generator).double()
hidden_schedule = noise.linear(700, 2e-4, 0.01 + (__SECRET__ % 17) / 1000)
for hidden_t in (2, 100 + __SECRET__ % 300, 700):
    hidden_now, hidden_to = hidden_schedule(torch.tensor(hidden_t)), hidden_schedule(torch.tensor(hidden_t - 1))
    hidden_mean, hidden_variance = posterior(hidden_x_t, hidden_x0, hidden_t, hidden_schedule.alpha_bars)
    hidden_nu = samplers.posterior_nu(hidden_now, hidden_to)
    hidden_eps = samplers.eps_from(hidden_x_t, hidden_x0, hidden_now)
    hidden_expected = samplers.step(hidden_x0, hidden_eps, hidden_to, nu=hidden_nu)
    assert torch.allclose(hidden_mean.double(), hidden_expected, rtol=1e-5, atol=1e-6), f"mean at t = {hidden_t}"
    assert abs(float(hidden_variance) / float(hidden_nu**2) - 1) < 1e-5, f"variance at t = {hidden_t}"
### END HIDDEN TESTS

# %% [markdown]
# ## 2. How far apart are two normal distributions? (3 points)
#
# Write `kl_normal(m1, v1, m2, v2)`: $\mathrm{KL}\big(\mathcal N(m_1, v_1)\,\|\,\mathcal N(m_2, v_2)\big)$ in nats, for numbers, so without any sum.
# `v1` and `v2` are variances. All four are tensors of one shape, and so is the result.

# %% kind="answer" id="kl_normal"
def kl_normal(m1, v1, m2, v2):
    ### BEGIN SOLUTION
    return 0.5 * ((v2 / v1).log() - 1 + (v1 + (m1 - m2) ** 2) / v2)
    ### END SOLUTION


# %% kind="test" id="kl_normal-shown" points=1
shown_zero, shown_one = torch.zeros(1).double(), torch.ones(1).double()
shown = kl_normal(shown_one, 3 * shown_one, shown_one, 3 * shown_one)
assert abs(float(shown)) < 1e-9, f"A distribution is at the distance 0 from itself; yours says {float(shown):.4f}."
shown = kl_normal(shown_zero, shown_one, 2 * shown_one, shown_one)
assert abs(float(shown) - 2) < 1e-6, (
    f"At variance 1, means that differ by 2 are 2 nats apart: half the squared difference. Yours says {float(shown):.4f}."
)

# %% kind="test" id="kl_normal-hidden" points=2
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
from torch.distributions import Normal, kl_divergence

hidden_generator = torch.Generator().manual_seed(__SECRET__ + 1)
hidden_m = torch.randn(2, 4, 7, generator=hidden_generator).double()
hidden_v = torch.rand(2, 4, 7, generator=hidden_generator).double() * 3 + 0.2
hidden_expected = kl_divergence(Normal(hidden_m[0], hidden_v[0].sqrt()), Normal(hidden_m[1], hidden_v[1].sqrt()))
assert torch.allclose(kl_normal(hidden_m[0], hidden_v[0], hidden_m[1], hidden_v[1]), hidden_expected, rtol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. One answer, three questions (4 points)
#
# A network may be asked for the noise (`"eps"`), for the picture (`"x0"`), or for
# $v = \sqrt{\bar\alpha_t}\,\varepsilon - \sqrt{1-\bar\alpha_t}\,x_0$ (`"v"`). Together with $x_t$, each answer determines both the picture and the noise.
# Write `both(kind, x_t, out, bar)`: the pair $(\hat x_0, \hat\varepsilon)$ for the network's output `out`. `bar` is
# $\bar\alpha_t$, a tensor with one number strictly between 0 and 1.

# %% kind="answer" id="both"
def both(kind, x_t, out, bar):
    ### BEGIN SOLUTION
    signal, sigma = bar.sqrt(), (1 - bar).sqrt()
    if kind == "eps":
        return (x_t - sigma * out) / signal, out
    if kind == "x0":
        return out, (x_t - signal * out) / sigma
    return signal * x_t - sigma * out, sigma * x_t + signal * out
    ### END SOLUTION


# %% kind="test" id="both-shown" points=1
shown_bar = torch.tensor(0.64, dtype=torch.float64)
shown_x0, shown_eps = torch.ones(1, 1, 2, 2).double(), torch.zeros(1, 1, 2, 2).double()
shown_x_t = 0.8 * shown_x0 + 0.6 * shown_eps
for shown_kind, shown_out in [("eps", shown_eps), ("x0", shown_x0), ("v", 0.8 * shown_eps - 0.6 * shown_x0)]:
    shown = both(shown_kind, shown_x_t, shown_out, shown_bar)
    assert len(shown) == 2, "Return two pictures: x0, then eps."
    assert torch.allclose(shown[0], shown_x0, atol=1e-6) and torch.allclose(shown[1], shown_eps, atol=1e-6), (
        f"{shown_kind}: a picture of ones without any noise should come back as x0 = 1, eps = 0; yours gives "
        f"x0 = {float(shown[0].mean()):.3f}, eps = {float(shown[1].mean()):.3f}."
    )

# %% kind="test" id="both-hidden" points=3
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__ + 2)
hidden_x_t, hidden_out = torch.randn(2, 3, 1, 4, 5, generator=hidden_generator).double()
hidden_schedule = noise.cosine(300)
for hidden_kind in ("eps", "x0", "v"):
    for hidden_t in torch.randint(5, 295, (3,), generator=hidden_generator):
        hidden_given = both(hidden_kind, hidden_x_t, hidden_out, hidden_schedule.alpha_bars[hidden_t])
        hidden_expected = predict.solve(hidden_kind, hidden_x_t, hidden_out, hidden_schedule(hidden_t))
        for hidden_a, hidden_b in zip(hidden_given, hidden_expected, strict=True):
            assert torch.allclose(hidden_a, hidden_b, rtol=1e-5, atol=1e-6), f"{hidden_kind} at t = {int(hidden_t)}"
### END HIDDEN TESTS

# %% [markdown]
# ## 4. What a step costs (3 points)
#
# Write `step_cost(x0, guess, t, bars)`: the cost $L_{t-1}$ in nats that each picture pays in the step from $t$ to $t-1$, if the posterior
# is taken with `guess` in the place of `x0` and both variances are $\tilde\beta_t$. `x0` and `guess` have the shape `(B, C, H, W)`, `t` is one whole number from 2 on, and the
# result has the shape `(B,)`. The form with $\mathrm{SNR} = \bar\alpha/(1-\bar\alpha)$ is the shortest.

# %% kind="answer" id="step_cost"
def step_cost(x0, guess, t, bars):
    ### BEGIN SOLUTION
    snr = bars[1:] / (1 - bars[1:])  # from t = 1 on
    return 0.5 * (snr[t - 2] - snr[t - 1]) * (x0 - guess).double().square().flatten(1).sum(1)
    ### END SOLUTION


# %% kind="test" id="step_cost-shown" points=1
shown_bars = torch.tensor([1.0, 0.8, 0.5, 0.2]).double()
shown_x0 = torch.ones(3, 1, 1, 1).double()
shown_guess = shown_x0 - torch.tensor([0.0, 1.0, 2.0]).double().reshape(3, 1, 1, 1)
shown = step_cost(shown_x0, shown_guess, 2, shown_bars)
assert shown.shape == (3,), f"One cost for each of the three pictures; yours has the shape {tuple(shown.shape)}."
assert shown[0] == 0, "Who knows the picture pays nothing."
assert torch.allclose(shown, torch.tensor([0.0, 1.5, 6.0]).double()), (
    "The SNR goes from 4 at t = 1 to 1 at t = 2. A guess that is wrong by 1 pays half the difference, 1.5, and one "
    f"wrong by 2 pays 6. Yours pay {shown.tolist()}."
)

# %% kind="test" id="step_cost-hidden" points=2
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__ + 3)
hidden_x0, hidden_guess = torch.randn(2, 4, 3, 5, 6, generator=hidden_generator).double()
hidden_schedule = noise.linear(500, 1e-4, 0.03)
for hidden_t in (2, 50 + __SECRET__ % 400, 500):
    hidden_now, hidden_to = hidden_schedule(torch.tensor(hidden_t)), hidden_schedule(torch.tensor(hidden_t - 1))
    hidden_expected = likelihood.step_kl(hidden_x0, hidden_guess, hidden_now, hidden_to)
    hidden_given = step_cost(hidden_x0, hidden_guess, hidden_t, hidden_schedule.alpha_bars)
    assert torch.allclose(hidden_given, hidden_expected, rtol=1e-5), f"t = {hidden_t}"
### END HIDDEN TESTS

# %% [markdown]
# ## 5. A bill of your own (2 points)
#
# Your data are numbers, $x_0 \sim \mathcal N(0, 1)$, and your schedule is linear in beta, with `MY_T` steps from $10^{-4}$ to
# `MY_BETA_END`. The best guess of $x_0$ from $x_t$ leaves the mean squared error $1/(1+\mathrm{SNR}_t)$. Calculate, with code,
#
# - `my_steps`: the mean cost of all steps together, $\sum_{t=2}^T L_{t-1}$, in nats (1 point);
# - `my_limit`: what this sum comes to if the way from $\mathrm{SNR}_1$ to $\mathrm{SNR}_T$ is cut into ever finer steps (1 point).

# %% kind="given" id="my_numbers"
MY_T = mine("T", [60, 80, 100, 120, 160, 200])
MY_BETA_END = mine("beta", [0.015, 0.02, 0.025, 0.03])
print(f"T = {MY_T}, beta from 0.0001 to {MY_BETA_END}")

# %% kind="answer" id="my_answers"
my_steps = ...
my_limit = ...
### BEGIN SOLUTION
my_bars = noise.linear(MY_T, 1e-4, MY_BETA_END).alpha_bars[1:]
my_snr = my_bars / (1 - my_bars)
my_steps = float((0.5 * (my_snr[:-1] - my_snr[1:]) / (1 + my_snr[1:])).sum())
my_limit = float(0.5 * torch.log((1 + my_snr[0]) / (1 + my_snr[-1])))
### END SOLUTION

# %% kind="test" id="my_steps" points=1
assert 0 < float(my_steps) < 100, "A sum of divergences is positive, and this one is a few nats."
### BEGIN HIDDEN TESTS
hidden_snr = noise.linear(MY_T, 1e-4, MY_BETA_END)(torch.arange(1, MY_T + 1)).snr
hidden_sum = float((0.5 * (hidden_snr[:-1] - hidden_snr[1:]) / (1 + hidden_snr[1:])).sum())
assert abs(float(my_steps) - hidden_sum) < 1e-3
### END HIDDEN TESTS

# %% kind="test" id="my_limit" points=1
assert 0 < float(my_limit) < 100, "An integral of positive costs is positive, and this one is a few nats."
### BEGIN HIDDEN TESTS
hidden_snr = noise.linear(MY_T, 1e-4, MY_BETA_END)(torch.arange(1, MY_T + 1)).snr
hidden_integral = 0.5 * float(((1 + hidden_snr[0]) / (1 + hidden_snr[-1])).log())
assert abs(float(my_limit) - hidden_integral) < 1e-3
### END HIDDEN TESTS

# %% [markdown]
# ## 6. In your own words (4 points)
#
# The denoiser behind your two numbers is perfect, and still `my_steps` is above `my_limit`. By how much, and where do these nats
# go? Then: DDPM trains with the plain mean of $|\varepsilon - \hat\varepsilon|^2$ over all $t$, not with the bound. Which steps does it make
# less of than the bound does, and when would that make no difference to the trained network? Five to ten sentences; use your numbers.

# %% [markdown] kind="marked" id="explain_bill" points=4
# ### BEGIN SOLUTION
# *Rubric.* 1 point: each step's cost is a rectangle in the SNR, as high as the error at the *noisier* end of the step, and the true error falls along the step. So
# the sum is too high by `my_steps - my_limit`. 1 point: more steps between the same two ends close this gap (evenly in log SNR it needs fewer of them); a better network
# does not. 1 point: in the bound the squared error of $\varepsilon$ has the factor $\frac12(\mathrm{SNR}_{t-1}-\mathrm{SNR}_t)/\mathrm{SNR}_t$, in DDPM's loss the factor 1; so the steps with
# little noise, at small $t$, count for less than in the bound. 1 point: a network that could be right everywhere would come out the same, because each step's best answer is the
# conditional mean, whatever its positive weight; the weights decide only where a network that can't be right everywhere is wrong.
# ### END SOLUTION
