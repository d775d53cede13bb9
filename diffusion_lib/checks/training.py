"""Checks for chapter 4, training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import data
from ..denoiser import Denoiser
from ..denoiser import training_loss as library_loss
from ..ema import EMA
from .engine import Case, Check, Mistake, ddpm_schedule, fixed_normal


def _bytes() -> list[Case]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 4, 5), generator=generator, dtype=torch.uint8)
    images[0, 0, 0, :4] = torch.tensor([0, 1, 128, 255], dtype=torch.uint8)
    return [(images,)]


to_float = Check(
    signature="to_float(images)",
    task="Bytes 0..255 (uint8) as numbers from -1 to 1. Shape: as images.",
    oracle=data.to_float,
    cases=_bytes,
    verified="0 becomes −1, 255 becomes 1, and all between in proportion.",
    mistakes=(
        Mistake(
            "your pictures lie in [0, 1]. Noise has mean 0, so the data should lie around 0, too: "
            "from −1 to 1.",
            lambda images: images.float() / 255,
        ),
        Mistake(
            "your pictures lie in [−½, ½]: half the signal against the same noise.",
            lambda images: images.float() / 255 - 0.5,
        ),
        Mistake(
            "you divide by 128, so 255 does not become 1, and the way back is not exact.",
            lambda images: images.float() / 128 - 1,
        ),
        Mistake(
            "your pictures lie in [0, 2]: the shift is missing.",
            lambda images: images.float() / 127.5,
        ),
        Mistake(
            "the shift comes before the scaling, in the wrong units: your pictures are far off.",
            lambda images: (images.float() - 1) / 127.5,
        ),
        Mistake(
            "you calculate with bytes, and they wrap around: 200 · 2 is 144. Make floats first.",
            lambda images: (images * 2).float() / 255 - 1,
        ),
        Mistake(
            "the division is a whole-number one, and cuts the grey levels off.",
            lambda images: (images.float() // 127.5) - 1,
        ),
        Mistake(
            "you standardise by this batch's own mean and deviation. Every batch would get "
            "another scale.",
            lambda images: (images.float() - images.float().mean()) / images.float().std(),
        ),
        Mistake(
            "black and white are exchanged.",
            lambda images: 1 - images.float() / 127.5,
        ),
    ),
    hints=(
        "Two points fix a straight line: 0 goes to −1 and 255 goes to 1.",
        "The range 255 becomes the range 2, so the slope is 2/255 = 1/127.5. Convert to float "
        "before you calculate.",
        """def to_float(images):
    return images.float() / 127.5 - 1""",
    ),
)


class _Probe(nn.Module):
    """A small net that answers differently to every picture and every time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        time = torch.as_tensor(t).double().reshape(-1, *[1] * (x.ndim - 1))
        return self.weight * torch.tanh(x) + torch.sin(time / 50) / 2


def _training_batch() -> list[Case]:
    x0, eps = fixed_normal(2, 3, 3, 4, 3, seed=2)
    return [(_Probe(), x0, torch.tensor([3, 250, 700]), eps)]


def _loss_and_gradient(f: Callable[..., Any], net: _Probe, *rest: Any) -> Any:
    loss = f(net, *rest)
    if not isinstance(loss, Tensor):
        return None if loss is None else (loss, 0.0)
    if not loss.requires_grad or loss.numel() != 1:
        return loss, torch.zeros(())
    (slope,) = torch.autograd.grad(loss, net.weight, allow_unused=True)
    return loss, torch.zeros(()) if slope is None else slope


def _loss(net: nn.Module, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    return library_loss(Denoiser(net, ddpm_schedule()), x0, t=t, eps=eps)[0]


def _error(net: nn.Module, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    level = ddpm_schedule()(t).like(x0)
    return net(level.signal * x0 + level.noise * eps, t) - eps


def _error_of_x0(net: nn.Module, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    return _error(net, x0, t, eps) + eps - x0


def _unrooted(net: nn.Module, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    level = ddpm_schedule()(t).like(x0)
    return net(level.signal * x0 + level.noise**2 * eps, t) - eps


def _broadcast(net: nn.Module, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    level = ddpm_schedule()(t)
    return net(level.signal * x0 + level.noise * eps, t) - eps


simple_loss = Check(
    signature="simple_loss(net, x0, t, eps)",
    task="DDPM's simple loss of one batch, (): times t, (B,), and noise eps are given.",
    oracle=_loss,
    cases=_training_batch,
    measure=_loss_and_gradient,
    results=("loss", "gradient"),
    verified="the library's loss, and its gradient reaches the net.",
    mistakes=(
        Mistake(
            "you add up the squares. The simple loss is their mean.",
            lambda net, x0, t, eps: _error(net, x0, t, eps).square().sum(),
        ),
        Mistake(
            "you add up over the pixels and take the mean over the pictures only.",
            lambda net, x0, t, eps: _error(net, x0, t, eps).square().flatten(1).sum(1).mean(),
        ),
        Mistake(
            "one loss a picture comes back: take the mean over the batch as well.",
            lambda net, x0, t, eps: _error(net, x0, t, eps).square().flatten(1).mean(1),
        ),
        Mistake(
            "the net's answer is compared with x_0. This net predicts the noise.",
            lambda net, x0, t, eps: _error_of_x0(net, x0, t, eps).square().mean(),
        ),
        Mistake(
            "the net is shown the clean picture: no noise was added to x_0.",
            lambda net, x0, t, eps: (net(x0, t) - eps).square().mean(),
        ),
        Mistake(
            "the noise is added with the factor 1 − ᾱ_t; you forgot the square root.",
            lambda net, x0, t, eps: _unrooted(net, x0, t, eps).square().mean(),
        ),
        Mistake(
            "the index is shifted by one: x_t has the noise of t − 1, and the net is told t.",
            lambda net, x0, t, eps: (
                _error(lambda x, s: net(x, s + 1), x0, t - 1, eps).square().mean()
            ),
        ),
        Mistake(
            "the index is shifted by one: x_t has the noise of t + 1, and the net is told t.",
            lambda net, x0, t, eps: (
                _error(lambda x, s: net(x, s - 1), x0, t + 1, eps).square().mean()
            ),
        ),
        Mistake(
            "all pictures are noised to the level of the first time.",
            lambda net, x0, t, eps: _error(lambda x, s: net(x, t), x0, t[:1], eps).square().mean(),
        ),
        Mistake(
            "the net is always told the same time: pass t.",
            lambda net, x0, t, eps: (
                _error(lambda x, s: net(x, torch.zeros_like(t)), x0, t, eps).square().mean()
            ),
        ),
        Mistake(
            "the shape of the level broadcasts over the columns: one number a picture must become "
            "(B, 1, 1, 1).",
            lambda net, x0, t, eps: _broadcast(net, x0, t, eps).square().mean(),
        ),
        Mistake(
            "the error is not squared; this is its absolute value.",
            lambda net, x0, t, eps: _error(net, x0, t, eps).abs().mean(),
        ),
        Mistake(
            "this is the root of the mean square. The loss is the mean square itself.",
            lambda net, x0, t, eps: _error(net, x0, t, eps).square().mean().sqrt(),
        ),
        Mistake(
            "the number is right, but no gradient reaches the net: the loss was detached "
            "(`.item()`, `.detach()` or `no_grad`).",
            lambda net, x0, t, eps: _loss(net, x0, t, eps).detach(),
        ),
    ),
    hints=(
        "Mix, ask, compare: make x_t of x0 and eps, let the net guess, and take the mean squared "
        "difference to what it should have said.",
        "level = schedule(t).like(x0) has signal and noise in the right shape. The net is called "
        "as net(x_t, t), and the target is eps.",
        """def simple_loss(net, x0, t, eps):
    level = schedule(t).like(x0)
    x_t = level.signal * x0 + level.noise * eps
    return (net(x_t, t) - eps).square().mean()""",
    ),
)


class _Held(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.clone())


def _averaged(average: Tensor, weights: Tensor, n: int, decay: float) -> Tensor:
    ema = EMA(_Held(average), decay)
    ema.updates = n - 1
    ema.update(_Held(weights))
    return next(ema.model.parameters())


def _pulled(average: Tensor, weights: Tensor, decay: float) -> Tensor:
    return average + (1 - decay) * (weights - average)


def _warm(n: int) -> float:
    return 1 - (1 + n) ** (-2 / 3)


ema_update = Check(
    signature="ema_update(average, weights, n, decay)",
    task="The average after training step n = 1, 2, ...; decay_n = min(decay, 1 − (1+n)^(−2/3)).",
    oracle=_averaged,
    cases=lambda: [
        (*fixed_normal(2, 3, 4, seed=3), n, decay)
        for n, decay in ((1, 0.9999), (20, 0.9999), (5000, 0.99))
    ],
    may_change=(0,),
    verified="in the first step, during the warm-up, and at the full decay.",
    mistakes=(
        Mistake(
            "average and weights are exchanged: you keep what should be let go.",
            lambda a, w, n, decay: _pulled(w, a, min(decay, _warm(n))),
        ),
        Mistake(
            "there is no warm-up: with the full decay from the first step on, the average "
            "remembers the random start.",
            lambda a, w, n, decay: _pulled(a, w, decay),
        ),
        Mistake(
            "the larger of the two decays is taken, so there is no warm-up at first and no limit "
            "later.",
            lambda a, w, n, decay: _pulled(a, w, max(decay, _warm(n))),
        ),
        Mistake(
            "the limit is missing: your decay is the warm-up's for ever.",
            lambda a, w, n, decay: _pulled(a, w, _warm(n)),
        ),
        Mistake(
            "the index is shifted by one: in the first step n is 1, and 1 + n is 2.",
            lambda a, w, n, decay: _pulled(a, w, min(decay, _warm(n - 1))),
        ),
        Mistake(
            "the index is shifted by one: you count a step too many.",
            lambda a, w, n, decay: _pulled(a, w, min(decay, _warm(n + 1))),
        ),
        Mistake(
            "the warm-up lacks its “1 −”: your decay falls with n, and it must rise.",
            lambda a, w, n, decay: _pulled(a, w, min(decay, 1 - _warm(n))),
        ),
        Mistake(
            "your warm-up is (1 + n)/(10 + n), the rule of other programs.",
            lambda a, w, n, decay: _pulled(a, w, min(decay, (1 + n) / (10 + n))),
        ),
        Mistake(
            "the two factors don't add up to 1: the new weights are added with factor 1.",
            lambda a, w, n, decay: min(decay, _warm(n)) * a + w,
        ),
    ),
    hints=(
        "The new average is a weighted mean of the old one and the weights. Which of the two "
        "keeps the decay?",
        "First decay_n, the smaller of two numbers. Then decay_n times the average plus "
        "(1 − decay_n) times the weights.",
        """def ema_update(average, weights, n, decay):
    decay = min(decay, 1 - (1 + n) ** (-2 / 3))
    return decay * average + (1 - decay) * weights""",
    ),
)


def _cuts() -> list[Case]:
    # The loss, which must see fresh weights in each call, is made by `_gradient`.
    return [(None, fixed_normal(n, 3, seed=4), size) for n, size in ((10, 4), (9, 3))]


def _gradient(f: Callable[..., Any], _: None, *rest: Any) -> Any:
    weights = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    sizes = [0]

    def loss_of(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return ((part.double() @ weights).tanh() - 1).square().mean()

    if f(loss_of, *rest) is ...:
        raise NotImplementedError
    slope = torch.zeros(3) if weights.grad is None else weights.grad
    return slope, max(sizes)


def _in_parts(
    loss_of: Callable[[Tensor], Tensor], batch: Tensor, size: int, factor: Callable[..., float]
) -> None:
    for part in batch.split(size):
        (loss_of(part) * factor(part)).backward()


def _last_only(loss_of: Callable[[Tensor], Tensor], batch: Tensor, size: int) -> None:
    loss = [loss_of(part) * len(part) / len(batch) for part in batch.split(size)][-1]
    loss.backward()


accumulate = Check(
    signature="accumulate(loss_of, batch, size)",
    task="Calls backward part by part, so that the whole batch's gradient is left in the net. "
    "`loss_of(part)` is the mean loss of a part; a part has at most `size` pictures.",
    oracle=lambda loss_of, batch, size: _in_parts(
        loss_of, batch, size, lambda part: len(part) / len(batch)
    ),
    cases=_cuts,
    measure=_gradient,
    results=("gradient", "number of pictures in the largest part"),
    verified="equal and unequal parts give the gradient of the whole batch.",
    mistakes=(
        Mistake(
            "the parts' losses are added as they are. Each is a mean already, so the gradient is "
            "too long by the number of parts.",
            lambda loss_of, batch, size: _in_parts(loss_of, batch, size, lambda part: 1.0),
        ),
        Mistake(
            "every part counts alike. The last one is smaller: its pictures count too much.",
            lambda loss_of, batch, size: _in_parts(
                loss_of, batch, size, lambda part: 1 / len(batch.split(size))
            ),
        ),
        Mistake(
            "each loss is divided by the size of its part. `loss_of` gives a mean, so that has "
            "been done.",
            lambda loss_of, batch, size: _in_parts(
                loss_of, batch, size, lambda part: 1 / len(part)
            ),
        ),
        Mistake(
            "each loss is divided by the size of the batch. A part's mean stands for all of its "
            "pictures.",
            lambda loss_of, batch, size: _in_parts(
                loss_of, batch, size, lambda part: 1 / len(batch)
            ),
        ),
        Mistake(
            "pictures are lost: the last, smaller part is never used.",
            lambda loss_of, batch, size: _in_parts(
                loss_of,
                batch[: len(batch) // size * size],
                size,
                lambda part: len(part) / len(batch),
            ),
        ),
        Mistake("backward runs for the last part only.", _last_only),
        Mistake(
            "no gradient arrived. Is `.backward()` called?",
            lambda loss_of, batch, size: [loss_of(part) for part in batch.split(size)],
        ),
        Mistake(
            "the gradient is right, but the whole batch goes through the net at once: that is what "
            "didn't fit.",
            lambda loss_of, batch, size: loss_of(batch).backward(),
        ),
    ),
    hints=(
        "Gradients add up by themselves when backward is called several times. So what must each "
        "part's loss be multiplied by, for the sum to be the mean over the batch?",
        "Each picture must count 1/B. A part's mean has divided by the part's size b. "
        "batch.split(size) cuts, also unevenly.",
        """def accumulate(loss_of, batch, size):
    for part in batch.split(size):
        (loss_of(part) * len(part) / len(batch)).backward()""",
    ),
)


def _gradients() -> list[Case]:
    long = [fixed_normal(3, 2, seed=5), 5 * fixed_normal(4, seed=6)]
    return [(long, 1.0), ([0.01 * g for g in long], 1.0), (long, 3.0)]


def _clipped(f: Callable[..., Any], gradients: list[Tensor], largest: float) -> Any:
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    if f(parameters, largest) is ...:
        raise NotImplementedError
    return torch.cat([p.grad.flatten() for p in parameters])


def _scaled(parameters: list[nn.Parameter], factor: Callable[[Tensor], Tensor | float]) -> None:
    length = torch.stack([p.grad.norm() for p in parameters]).norm()
    for p in parameters:
        p.grad = p.grad * factor(length)


def _each_by_itself(parameters: list[nn.Parameter], largest: float) -> None:
    for p in parameters:
        nn.utils.clip_grad_norm_([p], largest)


def _sum_of_lengths(parameters: list[nn.Parameter], largest: float) -> None:
    length = torch.stack([p.grad.norm() for p in parameters]).sum()
    _scaled(parameters, lambda _: (largest / length).clamp(max=1))


clip = Check(
    signature="clip(parameters, largest)",
    task="Shortens the whole gradient, all `p.grad` taken together, to length `largest` if it is "
    "longer.",
    oracle=nn.utils.clip_grad_norm_,
    cases=_gradients,
    measure=_clipped,
    verified="long gradients get the length asked for, short ones are left alone.",
    mistakes=(
        Mistake(
            "each parameter's gradient is shortened by itself, which turns the direction of the "
            "whole. Take the length of all of them together.",
            _each_by_itself,
        ),
        Mistake(
            "every entry is cut at ±largest, which turns the direction. Scale the whole gradient.",
            lambda parameters, largest: nn.utils.clip_grad_value_(parameters, largest),
        ),
        Mistake(
            "short gradients are made longer: the factor must not be above 1.",
            lambda parameters, largest: _scaled(parameters, lambda length: largest / length),
        ),
        Mistake(
            "you divide by the squared length: its root is missing.",
            lambda parameters, largest: _scaled(
                parameters, lambda length: (largest / length**2).clamp(max=1)
            ),
        ),
        Mistake(
            "the lengths of the parameters are added. Lengths combine by their squares, as in "
            "Pythagoras.",
            _sum_of_lengths,
        ),
        Mistake(
            "only long gradients may be changed, and you change only the short ones.",
            lambda parameters, largest: _scaled(
                parameters, lambda length: (largest / length).clamp(min=1)
            ),
        ),
        Mistake(
            "gradients that are too long are thrown away. They should be shortened.",
            lambda parameters, largest: _scaled(
                parameters, lambda length: (length <= largest).double()
            ),
        ),
        Mistake(
            "the gradients are as before. Do you change `p.grad`, or only a copy?",
            lambda parameters, largest: [0.5 * p.grad for p in parameters],
        ),
    ),
    hints=(
        "All gradients together are one long vector. What is its length, from the lengths of its "
        "pieces?",
        "The length is the root of the sum of all squares. Multiply every p.grad by "
        "largest/length, but never by more than 1.",
        """def clip(parameters, largest):
    length = torch.stack([p.grad.norm() for p in parameters]).norm()
    for p in parameters:
        p.grad *= (largest / length).clamp(max=1)""",
    ),
)
