"""The truth of ``cluster_sums`` in plain torch, in float64."""

from __future__ import annotations

import torch


def cluster_sums(features: torch.Tensor, index: torch.Tensor, clusters: int) -> torch.Tensor:
    """sums[c] = sum of the rows whose index is c: float64 [clusters, depth]."""
    sums = torch.zeros(clusters, features.shape[1], dtype=torch.float64, device=features.device)
    return sums.index_add_(0, index, features.double())
