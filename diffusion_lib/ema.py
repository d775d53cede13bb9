"""Exponential moving average of a network's weights: what is sampled from and shipped."""

import copy
from typing import Any

import torch
from torch import nn


class EMA:
    """average <- average + (1 - decay_n) (weights - average), after the n-th training step.

    With a warm-up the decay grows with n, decay_n = min(decay, 1 - (1 + n)^-power), so that the
    average forgets the random weights of the start. With power 2/3 it reaches 0.999 after 31.6
    thousand steps.

    Attributes:
        model: a copy of the network with the averaged weights, in eval mode.
        updates: how many updates it has seen.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, warmup_power: float | None = 2 / 3
    ) -> None:
        """
        Args:
            model: the network in training; it is copied.
            decay: the largest decay, from 0 to 1.
            warmup_power: see above; None for the same decay from the first step on.
        """
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.max_decay, self.warmup_power = decay, warmup_power
        self.updates = 0

    @property
    def decay(self) -> float:
        """The decay that the latest update used."""
        if self.warmup_power is None:
            return self.max_decay
        return min(self.max_decay, 1 - (1 + self.updates) ** -self.warmup_power)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights of `model`. Buffers are copied, not averaged."""
        self.updates += 1
        ours, theirs = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        for mine, other in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(other)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
