"""An exponential moving average of a network's weights and running statistics."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """``average <- d * average + (1 - d) * network`` after every step, with d rising to ``decay`` over the first steps.

    Attributes:
        model: The averaged network, in eval mode, without gradients.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        mine, theirs = self.model.state_dict(), network.state_dict()  # the tensors themselves: they change in place
        floats = [k for k, v in mine.items() if v.is_floating_point()]
        self._slow, self._fast = [mine[k] for k in floats], [theirs[k] for k in floats]
        self._counts = [(mine[k], theirs[k]) for k in mine.keys() - set(floats)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))  # the first steps' weights are not worth remembering
        torch._foreach_lerp_(self._slow, self._fast, 1 - decay)
        for mine, theirs in self._counts:
            mine.copy_(theirs)
