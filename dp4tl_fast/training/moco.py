"""MoCo v2 (He et al. 2020, Chen et al. 2020): tell the other view of an image from a queue of earlier images.

    loss = - log [ exp(q.k / T) / (exp(q.k / T) + sum over the queue of exp(q.n / T)) ]

Defaults are the paper's (queue 65536, T 0.2, momentum 0.999, 128-d MLP head). Batch norm leaks which keys belong to the
batch; the original shuffles images between GPUs before the key encoder. On one device the key batch is permuted and
encoded in ``bn_groups`` parts, each with its own statistics: the same effect, and nothing to communicate.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.models import FeatureTap, head
from dp4tl_fast.training.supervised import Sums
from dp4tl_fast.training.views import augment


class MoCo(nn.Module):
    """Objective ``(model, (view, view), labels) -> (mean loss, sums)``; labels are not used.

    Holds the projection head (trained with the model), the momentum encoder and the queue. ``top_1`` counts the queries
    whose key beats the whole queue.
    """

    views = 2
    classifies = False
    mean: torch.Tensor
    std: torch.Tensor
    queue: torch.Tensor
    cursor: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        queue: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        dim: int = 128,
        bn_groups: int = 4,
    ) -> None:
        super().__init__()
        width = head(model)[1].in_features
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        self.key_encoder = copy.deepcopy(model).requires_grad_(False)
        self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.momentum, self.temperature, self.bn_groups = momentum, temperature, bn_groups
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    def forward(
        self, model: nn.Module, images: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, Sums]:
        query_view, key_view = (self.recolour(view) for view in images)
        q = embed(model, self.projection, query_view)
        with torch.no_grad():
            self.follow(model)
            k = self.keys(key_view)
        positive = (q * k).sum(1, keepdim=True)  # [batch, 1]
        negative = q @ self.queue.T  # [batch, queue]; a copy of the queue is not needed: it changes after the loss
        logits = torch.cat([positive, negative], 1) / self.temperature
        zero = torch.zeros(len(q), dtype=torch.long, device=q.device)
        loss = F.cross_entropy(logits, zero)
        with torch.no_grad():
            won = (positive > negative.amax(1, keepdim=True)).sum()
        self._pending = k
        return loss, {"top_1": won}

    def recolour(self, images: torch.Tensor) -> torch.Tensor:
        """The colour half of the augmentation, on normalised images."""
        return (augment(images * self.std + self.mean) - self.mean) / self.std

    def keys(self, images: torch.Tensor) -> torch.Tensor:
        """Unit keys of the momentum encoder ``[batch, dim]``, in the order of ``images``."""
        order = torch.randperm(len(images), device=images.device)
        # A part of one image has no batch statistics; small batches use fewer parts.
        parts = images[order].tensor_split(max(1, min(self.bn_groups, len(images) // 2)))
        k = torch.cat([embed(self.key_encoder, self.key_projection, part) for part in parts])
        return k[order.argsort()]

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the batch's keys into the queue; called once the gradient has been taken."""
        k, size = self._pending, len(self.queue)
        rows = (self.cursor + torch.arange(len(k), device=k.device)) % size
        self.queue[rows[-size:]] = k[-size:].to(self.queue.dtype)
        self.cursor.copy_((self.cursor + len(k)) % size)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """key parameters <- momentum * key parameters + (1 - momentum) * query parameters."""
        for theirs, ours in ((self.key_encoder, model), (self.key_projection, self.projection)):
            for slow, fast in zip(theirs.parameters(), ours.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.momentum)


def embed(model: nn.Module, projection: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Unit vectors ``[batch, dim]``, float32."""
    with FeatureTap(model) as tap:
        features = tap(images)[1]
    return F.normalize(projection(features).float(), dim=1)
