"""The optimisers that a run can be given, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIMIZERS = ("sgd", "adamw", "adam")


def make_optimizer(
    parameters: Iterable[nn.Parameter], name: str, lr: float, weight_decay: float, *, decay_all: bool = False
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, AdamW or Adam over the parameters that are trained.

    Args:
        decay_all: Decay every parameter alike; else biases and normalisation (parameters of one dimension) are not decayed.
    """
    import torch

    trained = [p for p in parameters if p.requires_grad]
    decayed = [p for p in trained if decay_all or p.ndim > 1]
    plain = [p for p in trained if not (decay_all or p.ndim > 1)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)
        # torch takes uninitialised memory for the momentum, and leaves it so if loss scaling skips the very first step.
        for p in trained:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name](groups, lr=lr, fused=True)
