"""The moving average of the weights against its closed form."""

import pytest
import torch
from torch import nn

from diffusion_lib.ema import EMA


def test_average_of_a_constant_from_zero() -> None:
    """[30] p (1 - beta^n)."""
    net = nn.Linear(3, 2).double()
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    ema = EMA(net, decay=0.9, warmup_power=None)
    nn.init.constant_(net.weight, 5.0)
    for n in range(1, 30):
        ema.update(net)
        assert ema.model.weight.flatten().tolist() == pytest.approx([5 * (1 - 0.9**n)] * 6)


def test_foreach_equals_the_loop() -> None:
    """[30] All weights at once or one by one."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    ema = EMA(net, decay=0.99)
    by_hand = [p.detach().clone() for p in net.parameters()]
    for n in range(1, 20):
        for p in net.parameters():
            p.data.add_(torch.randn_like(p))
        ema.update(net)
        beta = min(0.99, 1 - (1 + n) ** (-2 / 3))
        by_hand = [
            beta * a + (1 - beta) * p.detach()
            for a, p in zip(by_hand, net.parameters(), strict=True)
        ]
    for a, p in zip(by_hand, ema.model.parameters(), strict=True):
        assert torch.allclose(a, p, atol=1e-12)


def test_warm_up_reaches_0999_after_31_600_steps() -> None:
    """[30] 1 - (1 + n)^(-2/3) = 0.999 at n = 1000^1.5 - 1."""
    ema = EMA(nn.Linear(1, 1), decay=1.0)
    ema.updates = 31_500
    assert ema.decay < 0.999
    ema.updates = 31_700
    assert ema.decay > 0.999


def test_buffers_are_copied_not_averaged() -> None:
    net = nn.BatchNorm1d(2)
    ema = EMA(net)
    net(torch.randn(50, 2) + 7)
    ema.update(net)
    assert torch.equal(ema.model.running_mean, net.running_mean)
    assert ema.model.num_batches_tracked == 1


def test_the_average_stands_apart_from_the_net() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    ema = EMA(net)
    assert not ema.model.training and net.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    state = ema.state_dict()
    other = EMA(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    other.load_state_dict(state)
    assert torch.equal(other.model[0].weight, ema.model[0].weight)
