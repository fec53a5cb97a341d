"""Forgetting events (arXiv 1812.05159), counted while a network trains: no extra pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from dp4tl_fast.training.records import ByIndex
from dp4tl_fast.training.supervised import Sums, Supervised, hits


class Forgetting(nn.Module):
    """A supervised objective that also notes, for every record, each time it is misclassified after it had been right.

    Args:
        objective: What is trained; its metrics tell nothing of single records, so the logits are looked at here.
        index: The source's ``index`` field, int64 ``[n]``: what loaders call a record by.

    The state is in buffers, so that checkpoints carry it.
    """

    events: torch.Tensor
    right: torch.Tensor
    learned: torch.Tensor

    def __init__(self, objective: Supervised, index: np.ndarray) -> None:
        super().__init__()
        self.objective = objective
        self._records = ByIndex(index, "forgetting")
        self.register_buffer("events", torch.zeros(len(index), dtype=torch.int32))
        self.register_buffer("right", torch.zeros(len(index), dtype=torch.bool))
        self.register_buffer("learned", torch.zeros(len(index), dtype=torch.bool))

    def forward(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, Sums]:
        logits, targets = model(images).float(), self.objective.targets(labels)
        loss = nn.functional.cross_entropy(logits, targets, label_smoothing=self.objective.label_smoothing)
        self.update(self._records(index).to(logits.device), logits.detach().argmax(1) == targets)
        return loss, hits(logits.detach(), targets)

    def update(self, records: torch.Tensor, right: torch.Tensor) -> None:
        """These records (each at most once) were classified right, or not."""
        self.events[records] += (self.right[records] & ~right).int()
        self.right[records] = right
        self.learned[records] |= right

    def after_step(self, model: nn.Module) -> None:
        self.objective.after_step(model)

    def score(self, logits: torch.Tensor, labels: torch.Tensor) -> Sums:
        return self.objective.score(logits, labels)

    def counts(self) -> np.ndarray:
        """Forgetting events of every record, int32 ``[n]``; one more than the most for a record that was never right."""
        counts = self.events.cpu().numpy()
        return np.where(self.learned.cpu().numpy(), counts, counts.max(initial=0) + 1).astype(np.int32)
