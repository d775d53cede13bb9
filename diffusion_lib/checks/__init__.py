"""Checks that name the mistake: for the functions that a learner writes in the exercises.

Write a function, then pass it to the check of its name:

    checks.forward_sample(my_function)

A right function gets one line that says what was verified. A wrong one raises `CheckFailed`,
whose message names the mistake and shows one pair of numbers, yours and the expected one. Any
right way of writing it passes: loops or not, float32 or float64, a tensor or a NumPy array;
arguments are passed by position, so their names are free. A function that is not written yet
(`...`) is told so, and nothing is raised. `hint(name)` helps: first a little, then more, the third
time with the solution.

Where a function takes a time t, its tables are those of DDPM's linear schedule, T = 1000, with
t = 0 for clean data: `noise.linear().alpha_bars`. The checks, by chapter:

1. forward process: `forward_sample(x0, eps, alpha_bar)`, `add_noise(x0, t, eps)`,
   `alpha_bars(betas)`, `between(alpha_bars, s, t)`, `cosine(T, s)`, `snr(alpha_bar)`,
   `betas_from_log_snr(log_snr)`, `kl_to_noise(x0, alpha_bar)`
2. ELBO and loss: `posterior(x_t, x0, s, t)`, `kl_normal(m1, v1, m2, v2)`,
   `target(kind, x0, eps, level)`, `x0_from(x_t, eps, level)`, `from_mean(x_t, mean, t)`,
   `step_cost(x0, guess, t)`, `min_snr_weight(snr, gamma)`, `bits_per_dim(nats, dims)`
3. UNet: `time_embedding(t, dim)`, `group_norm(x, groups)`, `residual_block(x, e, block)`,
   `attention(q, k, v)`
4. training: `to_float(images)`, `simple_loss(net, x0, t, eps)`,
   `ema_update(average, weights, n, decay)`, `accumulate(loss_of, batch, size)`,
   `clip(parameters, largest)`
5. sampling: `ddpm_step(x_t, eps, t, z)`, `ddim_step(x_t, x0, t, s, eta, z)`, `trailing(T, n)`,
   `guided_eps(eps_c, eps_u, w)`, `slerp(z0, z1, u)`, `flow_step(x_t, v, t, s)`,
   `second_order(denoise, x, levels)`
6. measuring: `frechet_distance(a, b)`

`help(checks.snr)` says what a function must return.
"""

from .elbo import (
    bits_per_dim,
    from_mean,
    kl_normal,
    min_snr_weight,
    posterior,
    step_cost,
    target,
    x0_from,
)
from .engine import CheckFailed, hint
from .evaluation import frechet_distance
from .forward import (
    add_noise,
    alpha_bars,
    betas_from_log_snr,
    between,
    cosine,
    forward_sample,
    kl_to_noise,
    snr,
)
from .network import attention, group_norm, residual_block, time_embedding
from .sampling import (
    ddim_step,
    ddpm_step,
    flow_step,
    guided_eps,
    second_order,
    slerp,
    trailing,
)
from .training import accumulate, clip, ema_update, simple_loss, to_float

__all__ = [
    "CheckFailed", "accumulate", "add_noise", "alpha_bars", "attention", "betas_from_log_snr",
    "between", "bits_per_dim", "clip", "cosine", "ddim_step", "ddpm_step", "ema_update",
    "flow_step", "forward_sample", "frechet_distance", "from_mean", "group_norm", "guided_eps",
    "hint", "kl_normal", "kl_to_noise", "min_snr_weight", "posterior", "residual_block",
    "second_order", "simple_loss", "slerp", "snr", "step_cost", "target", "time_embedding",
    "to_float", "trailing", "x0_from",
]  # fmt: skip
