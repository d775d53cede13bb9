"""Checks for chapter 3, the UNet."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import unet
from .engine import Case, Check, Mistake, awake, fixed_normal


def _clock(t: Tensor, dim: int) -> Tensor:
    return unet.time_embedding(t, dim).double()


def _angles(t: Tensor, dim: int, base: float = 10_000.0, last: int = 0) -> Tensor:
    half = dim // 2
    k = torch.arange(half, dtype=torch.float64)
    return t.double()[:, None] * base ** (-k / (half - last))


def _hands(angles: Tensor) -> Tensor:
    return torch.cat([angles.cos(), angles.sin()], 1)


time_embedding = Check(
    signature="time_embedding(t, dim)",
    task="Sinusoids of the times t, (B,), at dim/2 speeds: cosines first. Shape: (B, dim).",
    oracle=_clock,
    cases=lambda: [(torch.tensor([0, 1, 5, 300, 1000]), 12), (torch.tensor([7.0, 41.0]), 6)],
    atol=1e-3,  # angles up to 1000 in float32
    verified="the library's embedding, at t = 0 and up to 1000.",
    mistakes=(
        Mistake(
            "sines come first. A net trained so works as well, but it can't read the chapter's "
            "code, where cosines come first.",
            lambda t, dim: _clock(t, dim).roll(dim // 2, 1),
        ),
        Mistake(
            "cosines and sines alternate, as in the paper's formula. The chapter's code has all "
            "cosines first; the two must not be mixed.",
            lambda t, dim: _clock(t, dim).reshape(len(t), 2, -1).transpose(1, 2).flatten(1),
        ),
        Mistake(
            "sines and cosines alternate, as in the paper's formula. The chapter's code has all "
            "cosines first; the two must not be mixed.",
            lambda t, dim: _clock(t, dim).reshape(len(t), 2, -1).flip(1).transpose(1, 2).flatten(1),
        ),
        Mistake(
            "your slowest hand is too slow: the exponent is divided by dim/2 − 1, as some programs "
            "do, and not by dim/2.",
            lambda t, dim: _hands(_angles(t, dim, last=1)),
        ),
        Mistake(
            "this is the code of the original DDPM: sines first, and the exponent divided by "
            "dim/2 − 1. It works as well, but the chapter's nets can't read it.",
            lambda t, dim: _hands(_angles(t, dim, last=1)).roll(dim // 2, 1),
        ),
        Mistake(
            "the sign of the exponent is turned: your hands get faster, not slower.",
            lambda t, dim: _hands(_angles(t, dim, base=1e-4)),
        ),
        Mistake(
            "the exponent is divided by dim. There are only dim/2 hands, so your slowest one is "
            "too fast.",
            lambda t, dim: _hands(_angles(t, dim, base=100.0)),
        ),
        Mistake(
            "time is divided by 1000 first. These hands are made for whole steps.",
            lambda t, dim: _hands(_angles(t, dim) / 1000),
        ),
        Mistake(
            "both halves are sines. A sine alone does not tell the two halves of a turn apart.",
            lambda t, dim: _angles(t, dim).sin().repeat(1, 2),
        ),
        Mistake(
            "the hands turn too fast by 2π: speeds are radians a step, not turns.",
            lambda t, dim: _hands(2 * math.pi * _angles(t, dim)),
        ),
    ),
    hints=(
        "h = dim/2 clock hands. Hand k turns by ω_k = 10000^(−k/h) radians a step, for k = 0, "
        "1, ..., h − 1.",
        "Make a table of angles, (B, h), as a column of times by a row of speeds. Then cosines and "
        "sines of it, one behind the other along dimension 1.",
        """def time_embedding(t, dim):
    half = dim // 2
    speeds = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = t.double()[:, None] * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=1)""",
    ),
)


def _features() -> list[Case]:
    x = fixed_normal(2, 12, 3, 5, seed=1) * torch.arange(1.0, 13).double()[:, None, None] + 0.5
    return [(x.clone(), 3), (x.clone(), 4), (1e-3 * x, 3)]


def _normed(x: Tensor, dims: tuple[int, ...], correction: int = 0) -> Tensor:
    variance = x.var(dims, keepdim=True, correction=correction)
    return (x - x.mean(dims, keepdim=True)) / (variance + 1e-5).sqrt()


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x.reshape(len(x), groups, -1)


group_norm = Check(
    signature="group_norm(x, groups)",
    task="Mean 0 and variance 1 in each group of channels of each picture; 1e-5 under the root.",
    oracle=lambda x, groups: F.group_norm(x, groups),
    cases=_features,
    verified="as torch's, also where the variance is tiny.",
    mistakes=(
        Mistake(
            "mean and variance are taken over the batch, too: this is close to BatchNorm. A "
            "picture's result must not depend on its neighbours.",
            lambda x, groups: _normed(_grouped(x, groups), (0, 2)).reshape(x.shape),
        ),
        Mistake(
            "each channel is normalised over the batch: this is BatchNorm.",
            lambda x, groups: _normed(x, (0, 2, 3)),
        ),
        Mistake(
            "all channels are normalised together, as in LayerNorm: the groups are not used.",
            lambda x, groups: _normed(x, (1, 2, 3)),
        ),
        Mistake(
            "each channel is normalised by itself: the groups are not used.",
            lambda x, groups: _normed(x, (2, 3)),
        ),
        Mistake(
            "each place is normalised by itself: mean and variance go over the pixels, too.",
            lambda x, groups: _normed(x.reshape(len(x), groups, -1, *x.shape[2:]), (2,)).reshape(
                x.shape
            ),
        ),
        Mistake(
            "your variance divides by n − 1. Norms divide by n.",
            lambda x, groups: _normed(_grouped(x, groups), (2,), correction=1).reshape(x.shape),
        ),
        Mistake(
            "the mean is not subtracted.",
            lambda x, groups: (
                _grouped(x, groups)
                / (_grouped(x, groups).var(2, keepdim=True, correction=0) + 1e-5).sqrt()
            ).reshape(x.shape),
        ),
        Mistake(
            "you divide by the variance, not by its square root.",
            lambda x, groups: (
                (_grouped(x, groups) - _grouped(x, groups).mean(2, keepdim=True))
                / (_grouped(x, groups).var(2, keepdim=True, correction=0) + 1e-5)
            ).reshape(x.shape),
        ),
        Mistake(
            "the 1e-5 is added to the standard deviation. It belongs under the root.",
            lambda x, groups: (
                (_grouped(x, groups) - _grouped(x, groups).mean(2, keepdim=True))
                / (_grouped(x, groups).std(2, keepdim=True, correction=0) + 1e-5)
            ).reshape(x.shape),
        ),
        Mistake(
            "your groups hold every so-many-th channel. A group is a block of neighbouring ones.",
            lambda x, groups: _normed(
                x.reshape(len(x), -1, groups, *x.shape[2:]), (1, 3, 4)
            ).reshape(x.shape),
        ),
    ),
    hints=(
        "Give x a shape in which one dimension holds exactly the numbers of one group.",
        "x.reshape(B, groups, −1). Mean and variance over the last dimension, divided by n, then "
        "back to the old shape.",
        """def group_norm(x, groups):
    g = x.reshape(len(x), groups, -1)
    mean, variance = g.mean(2, keepdim=True), g.var(2, keepdim=True, correction=0)
    return ((g - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)""",
    ),
)


def _blocks() -> list[Case]:
    config = unet.UNetConfig(channels=(8,), groups=4, time_channels=6)
    cases: list[Case] = []
    for c_out in (12, 8):  # with a shortcut that is a layer, and with one that is not
        with torch.random.fork_rng([]):  # a new layer draws from the global generator
            block = awake(unet.ResidualBlock(8, c_out, config))
        cases.append((fixed_normal(3, 8, 4, 5, seed=2), fixed_normal(3, 6, seed=3), block))
    return cases


def _told(e: Tensor, block: unet.ResidualBlock) -> Tensor:
    return block.embedding(e)[:, :, None, None]


def _first(x: Tensor, block: unet.ResidualBlock) -> Tensor:
    return block.conv1(F.silu(block.norm1(x)))


def _second(h: Tensor, block: unet.ResidualBlock) -> Tensor:
    return block.conv2(F.silu(h))


residual_block = Check(
    signature="residual_block(x, e, block)",
    task="x + f(x, e) with the layers of `block`: norm1, conv1, embedding, norm2, conv2, shortcut.",
    oracle=lambda x, e, block: block(x, e),
    cases=_blocks,
    verified="with equal and with different numbers of channels.",
    mistakes=(
        Mistake(
            "the shortcut is missing: nothing of x itself reaches the output.",
            lambda x, e, b: _second(b.norm2(_first(x, b) + _told(e, b)), b),
        ),
        Mistake(
            "x is added as it is. Where the number of channels changes it doesn't fit: use the "
            "block's shortcut.",
            lambda x, e, b: x + _second(b.norm2(_first(x, b) + _told(e, b)), b),
        ),
        Mistake(
            "the embedding is not used: this block doesn't know the time.",
            lambda x, e, b: b.shortcut(x) + _second(b.norm2(_first(x, b)), b),
        ),
        Mistake(
            "the embedding is added after the second norm; the chapter adds it before.",
            lambda x, e, b: b.shortcut(x) + _second(b.norm2(_first(x, b)) + _told(e, b), b),
        ),
        Mistake(
            "the second norm is missing.",
            lambda x, e, b: b.shortcut(x) + _second(_first(x, b) + _told(e, b), b),
        ),
        Mistake(
            "the first norm is missing.",
            lambda x, e, b: b.shortcut(x) + _second(b.norm2(b.conv1(F.silu(x)) + _told(e, b)), b),
        ),
        Mistake(
            "the first SiLU is missing: without it, norm and convolution are one linear layer.",
            lambda x, e, b: b.shortcut(x) + _second(b.norm2(b.conv1(b.norm1(x)) + _told(e, b)), b),
        ),
        Mistake(
            "the second SiLU is missing.",
            lambda x, e, b: b.shortcut(x) + b.conv2(b.norm2(_first(x, b) + _told(e, b))),
        ),
        Mistake(
            "SiLU comes before the norm; here the norm comes first.",
            lambda x, e, b: (
                b.shortcut(x) + b.conv2(b.norm2(F.silu(b.conv1(b.norm1(F.silu(x))) + _told(e, b))))
            ),
        ),
        Mistake(
            "a SiLU acts on the sum. Then the shortcut no longer lets x through unchanged.",
            lambda x, e, b: F.silu(b(x, e)),
        ),
        Mistake(
            "SiLU is applied to the embedding. The net does that once, before all blocks.",
            lambda x, e, b: b(x, F.silu(e)),
        ),
        Mistake(
            "ReLU stands where SiLU should.",
            lambda x, e, b: (
                b.shortcut(x) + b.conv2(F.relu(b.norm2(b.conv1(F.relu(b.norm1(x))) + _told(e, b))))
            ),
        ),
    ),
    hints=(
        "Twice the same three: norm, SiLU, convolution. In between the block is told the time.",
        "The embedding layer gives one number a channel: give it two dimensions of size 1, and add "
        "it before norm2. At the end add shortcut(x).",
        """def residual_block(x, e, block):
    h = block.conv1(F.silu(block.norm1(x)))
    h = h + block.embedding(e)[:, :, None, None]
    h = block.conv2(F.silu(block.norm2(h)))
    return block.shortcut(x) + h""",
    ),
)


def _places() -> list[Case]:
    return [
        tuple(fixed_normal(3, 7, 4, seed=4)),
        tuple(1.5 * fixed_normal(3, 5, 3, seed=5)),
    ]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.T / q.shape[1] ** 0.5


attention = Check(
    signature="attention(q, k, v)",
    task="One head of attention. q, k and v: (places, d). Shape: as v.",
    oracle=lambda q, k, v: F.scaled_dot_product_attention(q[None], k[None], v[None])[0],
    cases=_places,
    verified="as torch's scaled dot product attention.",
    mistakes=(
        Mistake(
            "the scores are not divided by √d, so the softmax gets too sharp for wide heads.",
            lambda q, k, v: (q @ k.T).softmax(1) @ v,
        ),
        Mistake(
            "the scores are divided by d, not by its square root.",
            lambda q, k, v: (q @ k.T / q.shape[1]).softmax(1) @ v,
        ),
        Mistake(
            "the scores are divided by the root of the number of places. Their size comes from "
            "the d terms of each dot product.",
            lambda q, k, v: (q @ k.T / len(q) ** 0.5).softmax(1) @ v,
        ),
        Mistake(
            "the scores are multiplied by √d instead of divided.",
            lambda q, k, v: (q @ k.T * q.shape[1] ** 0.5).softmax(1) @ v,
        ),
        Mistake(
            "the softmax runs along the wrong dimension: for each query the weights of all keys "
            "must add up to 1.",
            lambda q, k, v: _scores(q, k).softmax(0) @ v,
        ),
        Mistake(
            "the softmax is missing: the weights don't add up to 1.",
            lambda q, k, v: _scores(q, k) @ v,
        ),
        Mistake(
            "the weights are exponentials that nobody divides by their sum.",
            lambda q, k, v: _scores(q, k).exp() @ v,
        ),
        Mistake(
            "queries and keys are exchanged.",
            lambda q, k, v: _scores(k, q).softmax(1) @ v,
        ),
        Mistake(
            "the table of weights is transposed before it meets v.",
            lambda q, k, v: _scores(q, k).softmax(1).T @ v,
        ),
        Mistake(
            "the weights mix the keys. It is the values that are to be mixed.",
            lambda q, k, v: _scores(q, k).softmax(1) @ k,
        ),
    ),
    hints=(
        "Each place asks (its row of q), every place answers (rows of k), and the answers decide "
        "how much of each row of v comes back.",
        "A table of scores q kᵀ, (places, places), divided by the square root of d. Softmax along "
        "each row. Then the table times v.",
        """def attention(q, k, v):
    scores = q @ k.T / math.sqrt(q.shape[1])
    return scores.softmax(dim=1) @ v""",
    ),
)
