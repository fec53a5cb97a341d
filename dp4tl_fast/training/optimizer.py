"""The optimisers that a run can be given, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIMIZERS = ("sgd", "adamw", "adam")


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    name: str,
    lr: float,
    weight_decay: float,
    *,
    decay_all: bool = False,
    scales: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, AdamW or Adam over the parameters that are trained.

    Args:
        decay_all: Decay every parameter alike; else biases and normalisation (parameters of one dimension) are not decayed.
        scales: What to multiply the learning rate of a parameter with (the groups' ``scale``); all alike without it.
    """
    import torch

    trained = [p for p in parameters if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for scale in dict.fromkeys((scales[p] for p in trained) if scales else [1.0]):
        mine = [p for p in trained if not scales or scales[p] == scale]
        for members, decay in (
            ([p for p in mine if decay_all or p.ndim > 1], weight_decay),
            ([p for p in mine if not (decay_all or p.ndim > 1)], 0.0),
        ):
            if members:
                groups.append({"params": members, "weight_decay": decay, "scale": scale})
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)
        # torch takes uninitialised memory for the momentum, and leaves it so if loss scaling skips the very first step.
        for p in trained:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name](groups, lr=lr, fused=True)
