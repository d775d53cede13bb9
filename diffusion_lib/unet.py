"""The network: a UNet that sees a noisy picture and its time, and puts out one of equal shape.

The architecture of DDPM (Ho et al. 2020, appendix B): residual blocks with group normalisation,
self-attention at chosen resolutions, and skips that carry every stage of the way down over to the
way up.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a `UNet`.

    Attributes:
        image_channels: channels of the pictures, 1 for grey, 3 for colour.
        channels: width of each level, from full resolution down; each further level halves it.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: levels with self-attention after each block (0 is full resolution).
        middle_attention: self-attention between the two middle blocks.
        heads: attention heads.
        groups: groups of each group normalisation; must divide every width.
        time_channels: width of the time (and class) embedding fed to every block.
        conditioning: how a block takes the embedding in: "add" it to the features, or
            "scale_shift" the normalised features by it (Dhariwal & Nichol 2021, section 3).
        dropout: probability of dropping a feature, inside each block.
        classes: number of classes; None for a net without labels.
    """

    image_channels: int = 1
    channels: tuple[int, ...] = (32, 64, 64)
    blocks: int = 1
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    heads: int = 1
    groups: int = 8
    time_channels: int = 128
    conditioning: Literal["add", "scale_shift"] = "add"
    dropout: float = 0.0
    classes: int | None = None

    def __post_init__(self) -> None:
        # A configuration read from JSON has lists where tuples belong.
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "attention", tuple(self.attention))
        for width in self.channels:
            if width % self.groups or width % self.heads:
                raise UserError(
                    f"A level of {width} channels can't be split into {self.groups} groups and "
                    f"{self.heads} heads: choose widths that both numbers divide."
                )

    @property
    def factor(self) -> int:
        """Height and width of a picture must be multiples of this."""
        return 2 ** (len(self.channels) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint; `UNetConfig(**d)` reads them."""
        return asdict(self)


def time_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of t at dim/2 frequencies, from 1 down to about 1/max_period radians per step.

    Cosines first, then sines (Vaswani et al. 2017, section 3.5, in the arrangement that most
    diffusion code uses).

    Args:
        t: times, (B,).
        dim: an even number.

    Returns:
        (B, dim), float32.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that puts out 0 at first, so that the block around it starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """x + convolutions(x, embedding): (B, c_in, H, W), (B, time_channels) -> (B, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, config: UNetConfig) -> None:
        super().__init__()
        self.scale_shift = config.conditioning == "scale_shift"
        self.norm1 = nn.GroupNorm(config.groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.embedding = nn.Linear(config.time_channels, 2 * c_out if self.scale_shift else c_out)
        self.norm2 = nn.GroupNorm(config.groups, c_out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = _zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        e = self.embedding(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Every pixel looks at every other one: multi-head self-attention, (B, C, H, W) -> same."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.GroupNorm(config.groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # (B, heads, pixels, channels per head)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(-1, -2).reshape(b, c, h, w))


class Stage(nn.Module):
    """A residual block, and attention where the level has it."""

    def __init__(self, c_in: int, c_out: int, config: UNetConfig, attend: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(c_in, c_out, config)
        self.attention = Attention(c_out, config) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """net(x, t, cond) -> out; x and out are (B, C, H, W), t is (B,), cond is (B,) or None.

    At first it puts out exactly 0, so the first eps loss is 1 (the variance of eps).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks = config.channels, config.blocks
        deepest = len(widths) - 1

        self.time = nn.Sequential(
            nn.Linear(widths[0], config.time_channels),
            nn.SiLU(),
            nn.Linear(config.time_channels, config.time_channels),
        )
        # Row 0 is the null class, row k + 1 is class k: so the label -1 means "no class".
        if config.classes is not None:
            self.class_embedding = nn.Embedding(config.classes + 1, config.time_channels)

        self.first = nn.Conv2d(config.image_channels, widths[0], 3, padding=1)
        carried = [widths[0]]  # widths of the skips, last in, first out
        c = widths[0]
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        for level, width in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(Stage(c, width, config, level in config.attention))
                c = width
                carried.append(c)
            self.down.append(stages)
            if level < deepest:
                self.shrink.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                carried.append(c)

        self.middle1 = Stage(c, c, config, config.middle_attention)
        self.middle2 = Stage(c, c, config, False)

        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(Stage(c + carried.pop(), width, config, level in config.attention))
                c = width
            self.up.append(stages)
            if level > 0:
                self.grow.append(nn.Conv2d(c, c, 3, padding=1))

        self.last_norm = nn.GroupNorm(config.groups, c)
        self.last = _zeroed(nn.Conv2d(c, config.image_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """
        Raises:
            UserError: height or width is not a multiple of `config.factor`.
        """
        factor = self.config.factor
        if x.shape[-2] % factor or x.shape[-1] % factor:
            raise UserError(
                f"Pictures of {x.shape[-2]} x {x.shape[-1]} don't fit this UNet: it halves them "
                f"{len(self.config.channels) - 1} times, so height and width must be multiples "
                f"of {factor}. Resize or pad them, or use fewer levels."
            )
        embedding = F.silu(self._embed(t, cond))

        h = self.first(x)
        skips = [h]
        for level, stages in enumerate(self.down):
            for stage in stages:
                h = stage(h, embedding)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
                skips.append(h)

        h = self.middle2(self.middle1(h, embedding), embedding)

        for level, stages in enumerate(self.up):
            for stage in stages:
                h = stage(torch.cat([h, skips.pop()], 1), embedding)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))

        return self.last(F.silu(self.last_norm(h)))

    def _embed(self, t: Tensor, cond: Tensor | None) -> Tensor:
        """The time's embedding, plus the class's where the net has classes. (B, time_channels)."""
        sinusoids = time_embedding(t, self.config.channels[0])
        embedding = self.time(sinusoids.to(self.first.weight.dtype))
        if self.config.classes is None:
            return embedding
        row = torch.zeros_like(t, dtype=torch.long) if cond is None else cond + 1
        return embedding + self.class_embedding(row)
