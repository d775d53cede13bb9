"""The network's promises: sizes, the zero start, attention, layouts, labels."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffusion_lib import UserError
from diffusion_lib.denoiser import Denoiser, training_loss
from diffusion_lib.noise import linear
from diffusion_lib.recipes import DDPM_CIFAR10, RECIPES
from diffusion_lib.unet import Attention, ResidualBlock, UNet, UNetConfig, time_embedding

SMALL = UNetConfig(channels=(8, 16), attention=(1,), time_channels=16, classes=4)


def awake(net: torch.nn.Module) -> torch.nn.Module:
    """Give the zero-initialised layers weights, so that a net's output says something."""
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return net.eval()


def test_ddpm_cifar10_has_the_papers_size() -> None:
    net = UNet(DDPM_CIFAR10)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307


def test_first_output_is_zero_and_first_eps_loss_one() -> None:
    """[34]"""
    net = UNet(SMALL)
    x0 = torch.rand(512, 1, 8, 8) * 2 - 1
    loss, per_example, _ = training_loss(Denoiser(net, linear(), classes=4), x0)
    assert not net(x0, torch.ones(512)).any()
    assert loss.item() == pytest.approx(1, abs=4 * math.sqrt(2 / x0.numel()))
    assert per_example.shape == (512,)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_the_written_out_formula(heads: int) -> None:
    """[35] softmax(q k^T / sqrt(d)) v, head by head."""
    config = UNetConfig(channels=(16,), heads=heads)
    block = awake(Attention(16, config)).double()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    qkv = F.conv2d(block.norm(x), block.qkv.weight, block.qkv.bias).flatten(2)
    d = 16 // heads
    mixed = []
    for h in range(heads):
        q, k, v = (qkv[:, i * 16 + h * d : i * 16 + (h + 1) * d] for i in range(3))
        attention = (q.transpose(1, 2) @ k / math.sqrt(d)).softmax(-1)
        mixed.append(v @ attention.transpose(1, 2))
    expected = x + F.conv2d(torch.cat(mixed, 1).reshape(x.shape), block.out.weight, block.out.bias)
    assert torch.allclose(block(x), expected, atol=1e-12)


@pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
def test_residual_block_is_the_written_out_formula(conditioning: str) -> None:
    config = UNetConfig(channels=(8,), time_channels=6, conditioning=conditioning)  # type: ignore[arg-type]
    block = awake(ResidualBlock(8, 16, config)).double()
    x, embedding = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 6).double()
    h = block.conv1(F.silu(block.norm1(x)))
    e = block.embedding(embedding)[:, :, None, None]
    if conditioning == "add":
        h = block.norm2(h + e)
    else:
        h = block.norm2(h) * (1 + e[:, :16]) + e[:, 16:]
    expected = F.conv2d(x, block.shortcut.weight, block.shortcut.bias) + block.conv2(F.silu(h))
    assert torch.allclose(block(x, embedding), expected)


@pytest.mark.parametrize("config", [SMALL, RECIPES["digits16"].net])
def test_channels_last_changes_nothing(config: UNetConfig) -> None:
    """[35]"""
    net = awake(UNet(config)).double()
    x, t = torch.randn(3, 1, 16, 16).double(), torch.tensor([1.0, 500.0, 1000.0])
    plain = net(x, t)
    net = net.to(memory_format=torch.channels_last)
    assert torch.allclose(net(x.to(memory_format=torch.channels_last), t), plain, atol=1e-10)


def test_time_embedding_is_sines_and_cosines() -> None:
    e = time_embedding(torch.tensor([0.0, 3.0, 1000.0]), 8)
    assert e.shape == (3, 8)
    for i, t in enumerate([0.0, 3.0, 1000.0]):
        for k in range(4):
            angle = t * 10_000 ** (-k / 4)
            assert e[i, k].item() == pytest.approx(math.cos(angle), abs=1e-4)
            assert e[i, 4 + k].item() == pytest.approx(math.sin(angle), abs=1e-4)


def test_time_and_class_reach_the_output() -> None:
    net = awake(UNet(SMALL))
    x = torch.randn(1, 1, 8, 8)
    out = {
        (t, y): net(x, torch.tensor([float(t)]), torch.tensor([y]))
        for t in (1, 900)
        for y in (-1, 0, 3)
    }
    values = list(out.values())
    for i, a in enumerate(values):
        assert all(not torch.allclose(a, b, atol=1e-4) for b in values[i + 1 :])
    assert torch.equal(net(x, torch.tensor([1.0])), out[1, -1])  # no labels: the null class


def test_pictures_that_do_not_fit() -> None:
    """[41] The message names the multiple."""
    net = UNet(UNetConfig(channels=(8, 8, 8), time_channels=8))
    with pytest.raises(UserError, match="multiples of 4"):
        net(torch.zeros(1, 1, 10, 12), torch.zeros(1))
    assert net(torch.zeros(1, 1, 8, 12), torch.zeros(1)).shape == (1, 1, 8, 12)


def test_widths_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="12 channels"):
        UNetConfig(channels=(8, 12))
    with pytest.raises(UserError, match="3 heads"):
        UNetConfig(channels=(8, 16), heads=3)
