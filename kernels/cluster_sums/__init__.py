"""``cluster_sums``: the sum of the rows of each cluster, the second half of a Lloyd step of ``kmeans``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dp4tl_fast.kernels.dispatch import choose, load, require_matrix

if TYPE_CHECKING:
    import torch


def cluster_sums(
    features: torch.Tensor, index: torch.Tensor, clusters: int, implementation: str = "auto"
) -> torch.Tensor:
    """sums[c] = sum of the rows of ``features`` whose index is c.

    Args:
        features: [rows, depth] float32, float16 or bfloat16, any strides, CPU or CUDA.
        index: int64 [rows] on the same device, each in [0, clusters).
        clusters: number of clusters.
        implementation: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        float64 [clusters, depth] on the device of ``features``. Short runs of rows are summed in float32, those sums in
        float64. The bits are the same for any number of threads, and on every run on one GPU.

    Raises:
        UsageError: shape or dtype. BackendError: the implementation cannot work here.
    """
    require_matrix("features", features)
    return load("cluster_sums", choose(implementation, features.device))(features, index, clusters)
