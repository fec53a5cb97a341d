"""Supervised pretraining: cross entropy."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

Sums = dict[str, torch.Tensor]


class Supervised(nn.Module):
    """Objective ``(model, images, labels) -> (mean loss, {metric: sum over the batch})``; which samples they are is ignored.

    Args:
        label_smoothing: Share of the target spread over all classes.
        renumber: Class id -> output of the network, int64 ``[num_classes]``, for a head that has only the kept classes.
    """

    renumber: torch.Tensor | None

    def __init__(self, label_smoothing: float = 0.0, renumber: torch.Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("renumber", renumber, persistent=False)  # follows from the selection: not saved

    def forward(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Sums]:
        logits, labels = model(images).float(), self.targets(labels)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), hits(logits.detach(), labels)

    def after_step(self, model: nn.Module) -> None:
        """Called after each optimiser step: nothing to keep up here."""

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Class ids -> outputs of the network."""
        return labels if self.renumber is None else self.renumber[labels]

    def score(self, logits: torch.Tensor, labels: torch.Tensor) -> Sums:
        """Validation counts."""
        return hits(logits, self.targets(labels))


def hits(logits: torch.Tensor, labels: torch.Tensor) -> Sums:
    """Number of images whose label is first, and among the first five."""
    best = logits.topk(min(5, logits.shape[1])).indices
    right = best == labels[:, None]
    return {"top_1": right[:, 0].sum(), "top_5": right.sum()}
