"""What needs no training of the network: its features, and a vote of their neighbours (kNN)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.inference import passes
from dp4tl_fast.loaders.base import BaseLoader
from dp4tl_fast.loaders.contract import Batch
from dp4tl_fast.runs.bad_records import Known
from dp4tl_fast.training import models

KNN_ROWS = 1024  # test features compared at a time: bounds the memory of the similarities


@dataclass(frozen=True, slots=True)
class Result:
    """One seed's accuracy on the test set.

    Attributes:
        last: Top-1 after the last epoch.
        best: After the best epoch: of the validation set where there is one, else of the test set, which flatters.
        predicted: Classes after the last epoch, int64 ``[n]``, on the CPU; -1 where a record cannot be decoded.
        ema: Top-1 of the averaged weights after the last epoch, if they were asked for.
        bad: Records that this seed could not decode.
    """

    last: float
    best: float
    predicted: torch.Tensor
    ema: float | None = None
    bad: Known = field(default_factory=dict)


def features(model: nn.Module, loader: BaseLoader[Batch], prepare: Any, watch: Any = iter) -> torch.Tensor:
    """Penultimate features, float32 ``[n, d]`` in eval mode, each image once; on the CPU, on every rank; see ``passes.rows``.

    A linear probe freezes the backbone in eval mode and does not augment, so that an epoch over cached features equals
    an epoch over the images.
    """
    model.eval()
    with models.FeatureTap(model) as tap:
        nothing = torch.zeros(0, models.head(model)[1].in_features)
        return passes.rows(lambda images: tap(images)[1], loader, prepare, lambda rows: rows, watch, nothing)


def knn_probe(
    train_set: tuple[torch.Tensor, torch.Tensor],
    test_set: tuple[torch.Tensor, torch.Tensor],
    num_classes: int,
    *,
    neighbours: int,
    temperature: float,
) -> Result:
    """Vote of the nearest training features by cosine, each weighing exp(similarity / temperature) (Wu et al. 2018).

    Features ``[n, d]`` and labels ``[n]``. Nothing is trained or drawn: no classifier's settings blur what the features are
    worth, which is why self-supervised pretraining is watched with it.
    """
    x, y = F.normalize(train_set[0], dim=1), train_set[1]
    predicted = []
    for rows in F.normalize(test_set[0], dim=1).split(KNN_ROWS):
        similarity, nearest = (rows @ x.T).topk(min(neighbours, len(x)), dim=1)
        votes = torch.zeros(len(rows), num_classes, device=rows.device)
        votes.scatter_add_(1, y[nearest], (similarity / temperature).exp())
        predicted.append(votes.argmax(1))
    found = torch.cat(predicted)
    accuracy = float((found == test_set[1]).float().mean())
    return Result(accuracy, accuracy, found.cpu())
