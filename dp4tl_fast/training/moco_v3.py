"""MoCo v3 (Chen, Xie & He 2021): both views predict the other's key; the negatives are the other keys of the global batch.

    loss = 2T * [ CE(q1 . k2 / T) + CE(q2 . k1 / T) ],    q = predictor(projection(network(x))),  k of the momentum encoder

No queue. The encoder's momentum rises from its start to 1 on a half cosine over the whole run. With accumulated gradients
the negatives are those of a part of the batch.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.training import ranks
from dp4tl_fast.training.moco import embed, follow
from dp4tl_fast.training.supervised import Sums


class MoCoV3(nn.Module):
    """Objective ``(network, (view, view), labels, index) -> (mean loss, sums)``; labels and index are not used.

    ``top_1`` counts the first view's queries that find their key among all keys of the global batch.

    Args:
        network: Without its classifier: images -> features ``[batch, width]``.
        total_steps: Of the run, for the momentum's schedule.
        layers: Of the projection: 3 for a ViT, 2 for a ResNet in the paper.
    """


    def __init__(
        self,
        network: nn.Module,
        width: int,
        *,
        total_steps: int,
        momentum: float = 0.99,
        temperature: float = 0.2,
        layers: int = 3,
        hidden: int = 4096,
        dim: int = 256,
    ) -> None:
        super().__init__()
        self.projection = mlp(layers, width, hidden, dim)
        self.predictor = mlp(2, dim, hidden, dim)
        self.key_encoder = copy.deepcopy(network).requires_grad_(False)
        self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.base_momentum, self.temperature, self.total_steps = momentum, temperature, total_steps
        self.steps = 0

    def forward(
        self,
        network: nn.Module,
        images: tuple[torch.Tensor, torch.Tensor],
        labels: torch.Tensor,
        index: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Sums]:
        head = nn.Sequential(self.projection, self.predictor)
        q1, q2 = (embed(network, head, x) for x in images)
        with torch.no_grad():
            k1, k2 = (ranks.all_gather(embed(self.key_encoder, self.key_projection, x)) for x in images)
        mine = ranks.rank() * len(q1) + torch.arange(len(q1), device=q1.device)
        first, second = q1 @ k2.T / self.temperature, q2 @ k1.T / self.temperature  # [batch, global batch]
        loss = 2 * self.temperature * (F.cross_entropy(first, mine) + F.cross_entropy(second, mine))
        return loss, {"top_1": (first.detach().argmax(1) == mine).sum()}

    @property
    def momentum(self) -> float:
        """Of the update after the current step."""
        left = 0.5 * (1 + math.cos(math.pi * self.steps / self.total_steps))
        return 1 - left * (1 - self.base_momentum)

    def after_step(self, network: nn.Module) -> None:
        """Let the key encoder follow."""
        follow(self.key_encoder, network, self.momentum)
        follow(self.key_projection, self.projection, self.momentum)
        self.steps += 1

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def mlp(layers: int, width: int, hidden: int, dim: int) -> nn.Sequential:
    """Linear layers without biases, each followed by batch norm, and all but the last by ReLU; the last norm is not affine."""
    sizes = [width] + [hidden] * (layers - 1) + [dim]
    modules: list[nn.Module] = []
    for i in range(layers):
        last = i == layers - 1
        modules += [nn.Linear(sizes[i], sizes[i + 1], bias=False), nn.BatchNorm1d(sizes[i + 1], affine=not last)]
        modules += [] if last else [nn.ReLU()]
    return nn.Sequential(*modules)
