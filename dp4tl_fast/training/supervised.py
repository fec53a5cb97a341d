"""Supervised pretraining: cross entropy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

Sums = dict[str, torch.Tensor]


def supervised(
    label_smoothing: float = 0.0,
) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Sums]]:
    """Objective ``(model, images, labels) -> (mean loss, {metric: sum over the batch})``."""

    def objective(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Sums]:
        logits = model(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return loss, hits(logits.detach(), labels)

    return objective


def hits(logits: torch.Tensor, labels: torch.Tensor) -> Sums:
    """Number of images whose label is first, and among the first five."""
    best = logits.topk(min(5, logits.shape[1])).indices
    right = best == labels[:, None]
    return {"top_1": right[:, 0].sum(), "top_5": right.sum()}
