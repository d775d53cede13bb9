"""The denoiser and its training loss."""

import pytest
import torch
from torch import Tensor, nn

from diffusion_lib import UserError
from diffusion_lib.denoiser import Denoiser, drop_labels, training_loss
from diffusion_lib.noise import (
    Schedule,
    cosine,
    edm,
    flow,
    linear,
    rescale_zero_terminal_snr,
)
from diffusion_lib.predict import KINDS, Kind, target, weight
from diffusion_lib.samplers import eps_from

PAIRS: list[tuple[Kind, Schedule]] = [
    (kind, schedule) for kind in KINDS for schedule in (linear(), cosine(), edm())
] + [(kind, flow()) for kind in KINDS if kind != "eps"]


class Oracle(nn.Module):
    """A net that knows the answer: the right output for data that is always `x0`."""

    def __init__(self, kind: Kind, schedule: Schedule, x0: Tensor) -> None:
        super().__init__()
        self.kind, self.schedule, self.x0 = kind, schedule, x0
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.register_parameter("p", nn.Parameter(torch.zeros(())))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.seen.append((x, t))
        if self.kind == "edm":
            level = self.schedule((4 * t.double()).exp()).like(x)
            x = x * (level.noise**2 + (level.signal * 0.5) ** 2).sqrt()
        elif self.schedule.spec["name"] == "flow":
            level = self.schedule(t.double() / 1000).like(x)
        else:
            exact = t.long() if hasattr(self.schedule, "T") else t.double() / 1000
            level = self.schedule(exact).like(x)
        return target(self.kind, self.x0, eps_from(x, self.x0, level), level)


@pytest.mark.parametrize(
    "kind, schedule",
    [(k, s) for k, s in PAIRS if not (k == "edm" and s.spec["name"] != "edm")],
)
def test_a_net_that_knows_the_answer_has_loss_zero(kind: Kind, schedule: Schedule) -> None:
    """Whatever the kind and schedule, what the net is fed tells x and t, and solve gives x_0."""
    x0 = torch.rand(8, 1, 2, 2, dtype=torch.float64)
    denoiser = Denoiser(Oracle(kind, schedule, x0), schedule, kind)
    # inside both ends, where float32 times are exact enough
    t = schedule.times(10)[3:6].repeat(3)[:8]
    loss, per_example, used = training_loss(denoiser, x0, t=t)
    assert loss.item() < 1e-6 and per_example.max() < 1e-6 and torch.equal(used, t)
    level = schedule(t).like(x0)
    x_t = level.signal * x0 + level.noise * torch.randn_like(x0)
    assert torch.allclose(denoiser(x_t, level), x0, atol=1e-3)


def test_edm_net_sees_unit_variance_and_log_sigma() -> None:
    x0 = 0.5 * torch.randn(4000, 1, 2, 2, dtype=torch.float64)
    net = Oracle("edm", edm(), x0)
    for sigma in (0.01, 1.0, 50.0):
        training_loss(Denoiser(net, edm(), "edm"), x0, t=torch.full((4000,), sigma))
        x, t = net.seen[-1]
        assert x.std().item() == pytest.approx(1, rel=0.03)
        assert t[0].item() == pytest.approx(torch.tensor(sigma).log().item() / 4, abs=1e-5)


@pytest.mark.parametrize("name", ["simple", "min_snr", "edm"])
def test_loss_is_the_weighted_mean(name: str) -> None:
    schedule = linear()
    net = nn.Conv2d(1, 1, 1)
    denoiser = Denoiser(_Timeless(net), schedule, "v")
    x0, t = torch.randn(6, 1, 4, 4), torch.tensor([1, 10, 100, 500, 900, 1000])
    loss, per_example, _ = training_loss(denoiser, x0, weight=name, t=t)  # type: ignore[arg-type]
    w = weight(name, "v", schedule(t)).float()  # type: ignore[arg-type]
    assert loss.item() == pytest.approx((w * per_example).mean().item(), rel=1e-5)


def test_the_same_generator_gives_the_same_loss() -> None:
    denoiser = Denoiser(_Timeless(nn.Conv2d(1, 1, 1)), linear())
    x0 = torch.randn(6, 1, 4, 4)
    losses = [
        training_loss(denoiser, x0, generator=torch.Generator().manual_seed(s))[0].item()
        for s in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_dropped_labels() -> None:
    labels = torch.arange(10).repeat(1000)
    dropped = drop_labels(labels, 0.2, torch.Generator().manual_seed(0))
    assert dropped is not None
    assert (dropped == -1).double().mean().item() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(dropped[dropped >= 0], labels[dropped >= 0])
    assert drop_labels(None, 0.5) is None and drop_labels(labels, 0.0) is labels


def test_eps_on_a_schedule_that_ends_in_pure_noise_is_refused() -> None:
    for schedule in (flow(), rescale_zero_terminal_snr(linear())):
        with pytest.raises(UserError, match="Use the prediction kind 'v'"):
            Denoiser(nn.Conv2d(1, 1, 1), schedule, "eps")
        Denoiser(nn.Conv2d(1, 1, 1), schedule, "v")
    with pytest.raises(UserError, match="Unknown prediction kind"):
        Denoiser(nn.Conv2d(1, 1, 1), linear(), "epsilon")  # type: ignore[arg-type]


class _Timeless(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x)
