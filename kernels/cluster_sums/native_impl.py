"""``cluster_sums`` on the CPU, in C++."""

from __future__ import annotations

import torch

from dp4tl_fast.kernels import _native


def cluster_sums(features: torch.Tensor, index: torch.Tensor, clusters: int) -> torch.Tensor:
    """float64 [clusters, depth]: see ``reference.py``."""
    rows = features if features.stride(1) == 1 else features.contiguous()
    sums = torch.empty(clusters, features.shape[1], dtype=torch.float64)
    _native.cluster_sums(rows, index, sums, torch.get_num_threads())
    return sums
