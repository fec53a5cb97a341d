"""MoCo v2 (He et al. 2020, Chen et al. 2020): tell the other view of an image from a queue of earlier images.

    loss = - log [ exp(q.k / T) / (exp(q.k / T) + sum over the queue of exp(q.n / T)) ]

Defaults are the paper's (queue 65536, T 0.2, momentum 0.999, 128-d MLP head). Batch norm leaks which keys belong to the
batch; the original shuffles images between GPUs before the key encoder. Here every rank permutes its own key images and
encodes them in parts, each with its own statistics, which are never those of the queries: the same effect, and no image is
sent to another rank. The keys of all ranks enter every rank's queue in the order of the global batch.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.training import ranks
from dp4tl_fast.training.supervised import Sums


class MoCo(nn.Module):
    """Objective ``(network, (view, view), labels, index) -> (mean loss, sums)``; labels and index are not used.

    Holds the projection head (trained with the network), the momentum encoder and the queue. ``top_1`` counts the queries
    whose key beats the whole queue.

    Args:
        network: Without its classifier: images -> features ``[batch, width]``.
        bn_groups: Parts of the global key batch that are normalised apart; at least 2 on a rank.
    """

    queue: torch.Tensor
    cursor: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        width: int,
        *,
        queue: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        dim: int = 128,
        bn_groups: int = 4,
    ) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        self.key_encoder = copy.deepcopy(network).requires_grad_(False)
        self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.momentum, self.temperature = momentum, temperature
        self.bn_groups = max(2, bn_groups // ranks.world_size())
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))
        self._pending: list[torch.Tensor] = []  # keys of this step's parts

    def forward(
        self,
        network: nn.Module,
        images: tuple[torch.Tensor, torch.Tensor],
        labels: torch.Tensor,
        index: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Sums]:
        q = embed(network, self.projection, images[0])
        with torch.no_grad():
            k = self.keys(images[1])
        self._pending.append(k)
        positive = (q * k).sum(1, keepdim=True)  # [batch, 1]
        negative = q @ self.queue.T  # [batch, queue]; a copy of the queue is not needed: it changes after the loss
        logits = torch.cat([positive, negative], 1) / self.temperature
        zero = torch.zeros(len(q), dtype=torch.long, device=q.device)
        loss = F.cross_entropy(logits, zero)
        with torch.no_grad():
            won = (positive > negative.amax(1, keepdim=True)).sum()
        return loss, {"top_1": won}

    def keys(self, images: torch.Tensor) -> torch.Tensor:
        """Unit keys of the momentum encoder ``[batch, dim]``, in the order of ``images``."""
        order = torch.randperm(len(images), device=images.device)
        # A part of one image has no batch statistics; small batches use fewer parts.
        parts = images[order].tensor_split(max(1, min(self.bn_groups, len(images) // 2)))
        k = torch.cat([embed(self.key_encoder, self.key_projection, part) for part in parts])
        return k[order.argsort()]

    @torch.no_grad()
    def after_step(self, network: nn.Module) -> None:
        """Let the key encoder follow, and put the step's keys into the queue: the loss saw the queue before them."""
        follow(self.key_encoder, network, self.momentum)
        follow(self.key_projection, self.projection, self.momentum)
        k, size = ranks.all_gather(torch.cat(self._pending)), len(self.queue)
        self._pending.clear()
        rows = (self.cursor + torch.arange(len(k), device=k.device)) % size
        self.queue[rows[-size:]] = k[-size:].to(self.queue.dtype)
        self.cursor.copy_((self.cursor + len(k)) % size)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow parameters <- momentum * slow + (1 - momentum) * fast."""
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)


def embed(network: nn.Module, projection: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Unit vectors ``[batch, dim]``, float32."""
    return F.normalize(projection(network(images).flatten(1)).float(), dim=1)
