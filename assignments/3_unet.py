# %% [markdown]
# # Assignment 3: the UNet
#
# It belongs to chapter 3. You write the parts that a UNet is made of, count what one of them holds, and say what breaks if a part
# is exchanged for a plausible other one. **20 points**, about three hours.
#
# How it works:
#
# - Replace each `...` by your code. Do not rename functions, and do not delete cells.
# - Below each function stand tests that you can see. More tests run when it is graded, with
#   other numbers: a function that passes only for the numbers shown will not pass.
# - No question needs the answer of another one: a mistake costs its own points only.
# - Before you hand in, restart the kernel and run all cells.
#
# Pictures have the shape `(B, C, H, W)`: batch, channels, height, width.

__HEADER__

# %% kind="given" id="imports"
import math
import torch
import torch.nn.functional as F
from torch import nn
from diffusion_lib import unet

# %% [markdown]
# ## 1. The clock (4 points)
#
# Write `time_embedding(t, dim)`: `dim / 2` cosines, then as many sines, of the times `t` of shape `(B,)` (whole numbers or not), at the speeds
# $\omega_k = 10000^{-k/h}$ for $k = 0, \dots, h - 1$, with $h$ = `dim / 2`. The result has the shape `(B, dim)`.

# %% kind="answer" id="time_embedding"
def time_embedding(t, dim):
    ### BEGIN SOLUTION
    half = dim // 2
    speeds = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = t.double()[:, None] * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()
    ### END SOLUTION


# %% kind="test" id="time_embedding-shown" points=1
shown = time_embedding(torch.tensor([0, 1, 50]), 12)
assert shown.shape == (3, 12), f"Three times and dim = 12 give the shape (3, 12); yours is {tuple(shown.shape)}."
assert torch.allclose(shown[0].double(), torch.tensor([1.0] * 6 + [0.0] * 6).double()), (
    f"At t = 0 the cosines are 1 and the sines 0, cosines first; yours is {shown[0].tolist()}."
)
assert torch.allclose(shown.double().square().sum(1), torch.full((3,), 6.0).double(), atol=1e-4), (
    "cos^2 + sin^2 = 1 for each speed: the squares of each row add up to dim / 2."
)
assert abs(float(shown[1, 0]) - math.cos(1)) < 1e-5, "The fastest speed is 1 radian a step."

# %% kind="test" id="time_embedding-hidden" points=3
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_t = torch.rand(20, generator=torch.Generator().manual_seed(__SECRET__)) * 1000
for hidden_dim in (32, 96, 2 * (20 + __SECRET__ % 40)):
    hidden_expected = unet.time_embedding(hidden_t, hidden_dim)
    assert torch.allclose(time_embedding(hidden_t, hidden_dim).float(), hidden_expected, atol=1e-3)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. Attention (3 points)
#
# Write `attention(q, k, v)` without `scaled_dot_product_attention`. `q` has the shape `(B, N, d)`, `k` and `v` have the shape `(B, M, d)`: there are `B` pictures with `N` queries, `M`
# keys and `M` values each. The result has the shape `(B, N, d)`.

# %% kind="answer" id="attention"
def attention(q, k, v):
    ### BEGIN SOLUTION
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    return scores.softmax(dim=2) @ v
    ### END SOLUTION


# %% kind="test" id="attention-shown" points=1
shown_v = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]]])
shown = attention(torch.zeros(1, 2, 2), torch.ones(1, 3, 2), shown_v)
assert shown.shape == (1, 2, 2), f"Two queries get two answers; yours has the shape {tuple(shown.shape)}."
assert torch.allclose(shown, torch.tensor([3.0, 2.0]).expand(1, 2, 2)), (
    f"Where all keys are alike, the answer is the mean of the values, (3, 2); yours is {shown[0, 0].tolist()}."
)
shown = attention(torch.tensor([[[0.0, 90.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]), shown_v)
assert torch.allclose(shown[0, 0], shown_v[0, 1]), (
    f"A query that agrees with the second key far more than with the others gets the second value, (3, 0); yours gets {shown[0, 0].tolist()}."
)

# %% kind="test" id="attention-hidden" points=2
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__ + 1)
for hidden_n, hidden_m, hidden_d in ((5, 5, 16), (7, 3, 4), (3, 9, 6 + __SECRET__ % 20)):
    hidden_q = torch.randn(2, hidden_n, hidden_d, generator=hidden_generator)
    hidden_k, hidden_v = torch.randn(2, 2, hidden_m, hidden_d, generator=hidden_generator)
    hidden_expected = F.scaled_dot_product_attention(hidden_q, hidden_k, hidden_v)
    assert torch.allclose(attention(hidden_q, hidden_k, hidden_v), hidden_expected, atol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. Normalise, then scale and shift (3 points)
#
# Write `norm_scale_shift(h, scale, shift, groups)` without PyTorch's own normalisations. First normalise each group of channels of each picture, with $10^{-5}$ added to the
# variance under the root. Then multiply each channel by `1 + scale` and add `shift`. `h` has the shape `(B, C, H, W)`; `scale` and `shift` come from
# the time and have the shape `(B, C)`.

# %% kind="answer" id="norm_scale_shift"
def norm_scale_shift(h, scale, shift, groups):
    ### BEGIN SOLUTION
    g = h.reshape(len(h), groups, -1)
    mean, variance = g.mean(2, keepdim=True), g.var(2, keepdim=True, correction=0)
    normal = ((g - mean) / (variance + 1e-5).sqrt()).reshape(h.shape)
    return normal * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    ### END SOLUTION


# %% kind="test" id="norm_scale_shift-shown" points=1
shown_h = torch.arange(64.0).reshape(1, 4, 4, 4)
shown_zero = torch.zeros(1, 4)
shown = norm_scale_shift(shown_h, shown_zero, shown_zero, 2)
assert shown.shape == shown_h.shape, f"The shape stays as it is; yours becomes {tuple(shown.shape)}."
assert torch.allclose(shown.reshape(2, 32).mean(1), torch.zeros(2), atol=1e-5), "Each group has the mean 0 after normalising."
assert abs(float(shown.std())) > 0.1, (
    "At scale = 0 and shift = 0 the normalised features come out as they are: the factor is 1 + scale, not scale."
)
shown = norm_scale_shift(shown_h, shown_zero, shown_zero + torch.arange(4.0), 2)
assert torch.allclose(shown.mean((0, 2, 3))[2:].sum() - shown.mean((0, 2, 3))[:2].sum(), torch.tensor(4.0), atol=1e-4), (
    "Each channel gets its own shift, and after the normalisation, which would take it out again."
)

# %% kind="test" id="norm_scale_shift-hidden" points=2
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__ + 2)
hidden_h = 2 + 3 * torch.randn(3, 12, 3, 2, generator=hidden_generator)
hidden_h[0] *= 5  # pictures that differ in contrast
hidden_scale, hidden_shift = torch.randn(2, 3, 12, generator=hidden_generator)
for hidden_groups in (1, 3, 4, 12):
    hidden_expected = F.group_norm(hidden_h, hidden_groups)
    hidden_expected = hidden_expected * (1 + hidden_scale[:, :, None, None]) + hidden_shift[:, :, None, None]
    hidden_given = norm_scale_shift(hidden_h, hidden_scale, hidden_shift, hidden_groups)
    assert torch.allclose(hidden_given, hidden_expected, atol=1e-4), f"{hidden_groups} groups"
### END HIDDEN TESTS

# %% [markdown]
# ## 4. A head that says nothing at first (3 points)
#
# Write `make_head(channels, image_channels)`: the end of a UNet as one `nn.Module`, from features `(B, channels, H, W)` to a picture `(B, image_channels, H, W)`. It has a group normalisation
# with 8 groups, a SiLU and a 3 × 3 convolution. A fresh head puts out exactly 0, and yet it can learn from its very first step.

# %% kind="answer" id="make_head"
def make_head(channels, image_channels):
    ### BEGIN SOLUTION
    last = nn.Conv2d(channels, image_channels, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), last)
    ### END SOLUTION


# %% kind="test" id="make_head-shown" points=1
shown_head = make_head(16, 3)
shown = shown_head(torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0)))
assert shown.shape == (2, 3, 6, 6), f"Features (2, 16, 6, 6) become a picture (2, 3, 6, 6); yours has the shape {tuple(shown.shape)}."
assert not shown.any(), (
    f"A fresh head puts out exactly 0; the largest number of yours is {float(shown.abs().max()):.4f}. A convolution has weights and a bias."
)

# %% kind="test" id="make_head-hidden" points=2
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
torch.manual_seed(__SECRET__)
hidden_head = make_head(24, 2)
hidden_x, hidden_eps = torch.randn(4, 24, 5, 5), torch.randn(4, 2, 5, 5)
hidden_losses = []
hidden_optimizer = torch.optim.SGD(hidden_head.parameters(), lr=0.05)
for hidden_step in range(3):
    hidden_loss = (hidden_head(hidden_x) - hidden_eps).square().mean()
    hidden_optimizer.zero_grad()
    hidden_loss.backward()
    if hidden_step == 0:
        hidden_moving = [p.ndim for p in hidden_head.parameters() if p.grad is not None and p.grad.any()]
        assert 4 in hidden_moving, "The convolution's weights have no gradient in the first step."
    hidden_optimizer.step()
    hidden_losses.append(float(hidden_loss.detach()))
assert hidden_losses[0] > hidden_losses[1] > hidden_losses[2], f"It does not learn: losses {hidden_losses}."
hidden_reference = sum(p.numel() for p in nn.Conv2d(24, 2, 3).parameters()) + 2 * 24
assert sum(p.numel() for p in hidden_head.parameters()) == hidden_reference, "Not the layers asked for."
assert torch.allclose(hidden_head(hidden_x), hidden_head(3 * hidden_x + 1), atol=1e-3), "It does not normalise."
### END HIDDEN TESTS

# %% [markdown]
# ## 5. Counting (3 points)
#
# Your residual block takes `MY_IN` channels to `MY_OUT` channels, is told the time by a vector of `MY_WIDTH` numbers, and takes it in by scale and shift. It is built as in chapter 3 and in the library:
# group norm, 3 × 3 convolution, the linear layer for scale and shift, group norm, 3 × 3 convolution, and a 1 × 1 convolution as shortcut. All convolutions and the linear
# layer have a bias, and each group norm has two numbers a channel. Calculate, with code,
#
# - `my_parameters`: how many numbers your block learns (2 points);
# - `my_side`: the smallest side, among 4, 8, 16, 32, ..., of a square picture at which self-attention at `MY_OUT` channels costs more
#   operations than a residual block from `MY_OUT` to `MY_OUT` channels. Count as chapter 3 does: $8c^2N + 4N^2c$ against $36c^2N$ for $N$ places (1 point).

# %% kind="given" id="my_numbers"
MY_IN = mine("in", [24, 40, 56, 72])
MY_OUT = mine("out", [16, 32, 48, 64, 96, 128, 192])
MY_WIDTH = mine("width", [80, 112, 144, 208])
print(f"a block from {MY_IN} to {MY_OUT} channels, told the time by {MY_WIDTH} numbers")

# %% kind="answer" id="my_answers"
my_parameters = ...
my_side = ...
### BEGIN SOLUTION
my_parameters = (
    2 * MY_IN  # norm
    + 9 * MY_IN * MY_OUT + MY_OUT  # convolution
    + MY_WIDTH * 2 * MY_OUT + 2 * MY_OUT  # scale and shift
    + 2 * MY_OUT  # norm
    + 9 * MY_OUT * MY_OUT + MY_OUT  # convolution
    + MY_IN * MY_OUT + MY_OUT  # shortcut
)
my_side = next(side for side in (4, 8, 16, 32, 64) if side**2 > 7 * MY_OUT)
### END SOLUTION

# %% kind="test" id="my_parameters" points=2
assert my_parameters == int(my_parameters) and my_parameters > 9 * MY_OUT**2, (
    "A whole number, and more than the second convolution's weights alone."
)
### BEGIN HIDDEN TESTS
hidden_config = unet.UNetConfig(groups=8, time_channels=MY_WIDTH, conditioning="scale_shift")
hidden_block = unet.ResidualBlock(MY_IN, MY_OUT, hidden_config)
assert int(my_parameters) == sum(p.numel() for p in hidden_block.parameters())
### END HIDDEN TESTS

# %% kind="test" id="my_side" points=1
assert my_side in (4, 8, 16, 32, 64, 128), "One of 4, 8, 16, ..."
### BEGIN HIDDEN TESTS
hidden_costs = {
    side: (8 * MY_OUT**2 * side**2 + 4 * side**4 * MY_OUT, 36 * MY_OUT**2 * side**2) for side in (4, 8, 16, 32, 64, 128)
}
assert my_side == min(side for side, (hidden_a, hidden_b) in hidden_costs.items() if hidden_a > hidden_b)
### END HIDDEN TESTS

# %% [markdown]
# ## 6. In your own words (4 points)
#
# A colleague "simplifies" your block in two ways. The time is now *added* to the features just before a group norm with 8 groups: `MY_OUT` numbers, one a channel. And somebody proposes
# BatchNorm instead. How many of the `MY_OUT` numbers make a difference to the result, and why? What does your scale and shift do better? What goes
# wrong with BatchNorm in a *diffusion* model, in training and in sampling? And how would the first printed loss have told the colleague that the head was not
# zero at first? Five to ten sentences; use your numbers.

# %% [markdown] kind="marked" id="explain_parts" points=4
# ### BEGIN SOLUTION
# *Rubric.* 1 point: the norm takes out each group's mean, so 8 of the `MY_OUT` numbers are lost and `MY_OUT - 8` get through (differences within a group). 1 point: scale and shift act after the norm, which can
# take nothing out again. 1 point: a batch holds pictures at many noise levels; BatchNorm's statistics mix them, so a picture's result depends on its neighbours, and in sampling, where all pictures are at one
# level, the statistics (kept or of the batch) are others than in training. 1 point: with a zero head the first loss is the variance of $\varepsilon$, 1, whatever the data; a first loss clearly above 1 says that the head (or the
# noise's scale) is not as it should be.
# ### END SOLUTION
