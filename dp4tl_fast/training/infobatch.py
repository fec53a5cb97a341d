"""InfoBatch (arXiv 2303.04947): skip records that are learned already, at random, and let the others of them count for more.

Each epoch, of the records whose last loss was below the mean each is skipped with probability r; those of them that stay weigh
1 / (1 - r), so that the expected gradient is that of all records. The last epochs read everything, unweighted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.common.philox import philox
from dp4tl_fast.training import ranks
from dp4tl_fast.training.records import ByIndex
from dp4tl_fast.training.supervised import Sums, Supervised, hits

ANNEAL = 0.875  # share of the epochs that skip; the rest, at least the last one, read everything
VIEW = 0xFFFF  # Philox counter that no view of an image has


class InfoBatch(nn.Module):
    """A supervised objective that remembers every record's loss, and chooses each epoch's records by it.

    Args:
        objective: What is trained.
        index: The source's ``index`` field, int64 ``[n]``.
        skip: r above.
        seed: With the epoch and the record, it decides who is skipped.

    The state is in buffers, so that checkpoints carry it; it is the same on every rank.
    """

    losses: torch.Tensor  # float32 [n], of the last time that the record was seen; 1 before
    below: torch.Tensor  # bool [n], whether the loss was below the mean when the running epoch was chosen
    kept: torch.Tensor  # bool [n], the running epoch's records
    epoch: torch.Tensor  # int64 [], the epoch that ``below`` and ``kept`` are of

    def __init__(self, objective: Supervised, index: np.ndarray, skip: float, seed: int) -> None:
        super().__init__()
        self.objective, self.skip, self.seed = objective, skip, seed
        self._records = ByIndex(index, "dynamic=infobatch")
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # records and losses of the parts of a step
        self.register_buffer("losses", torch.ones(len(index)))
        self.register_buffer("below", torch.zeros(len(index), dtype=torch.bool))
        self.register_buffer("kept", torch.zeros(len(index), dtype=torch.bool))
        self.register_buffer("epoch", torch.tensor(-1))

    def choose(self, pool: np.ndarray, epoch: int, epochs: int) -> np.ndarray:
        """The records of ``pool`` (ascending) that ``epoch`` of ``epochs`` reads; again the same for the running epoch."""
        if int(self.epoch) != epoch:
            losses = self.losses.cpu().numpy()[pool]
            low = losses < losses.mean(dtype=np.float64)
            if epoch >= min(ANNEAL * epochs, epochs - 1):
                low[:] = False
            drawn = philox(self.seed, pool, epoch, VIEW, 0)[0] * 2.0**-32
            self._mark(self.below, pool[low])
            self._mark(self.kept, pool[~(low & (drawn < self.skip))])
            self.epoch.fill_(epoch)
        return np.flatnonzero(self.kept.cpu().numpy())

    @staticmethod
    def _mark(mask: torch.Tensor, records: np.ndarray) -> None:
        mask.zero_()
        mask[torch.from_numpy(records).to(mask.device)] = True

    def forward(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, Sums]:
        logits, targets = model(images).float(), self.objective.targets(labels)
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.objective.label_smoothing)
        records = self._records(index).to(losses.device)
        self._seen.append((records, losses.detach()))
        weights = torch.where(self.below[records], 1 / (1 - self.skip), 1.0)
        return (weights * losses).mean(), hits(logits.detach(), targets)

    def after_step(self, model: nn.Module) -> None:
        """Every rank learns the losses of all of the step's records."""
        records, losses = (ranks.all_gather(torch.cat(parts)) for parts in zip(*self._seen, strict=True))
        self.losses[records] = losses
        self._seen.clear()
        self.objective.after_step(model)

    def score(self, logits: torch.Tensor, labels: torch.Tensor) -> Sums:
        return self.objective.score(logits, labels)
