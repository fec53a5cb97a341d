"""``nearest_centroid``: assign rows to their nearest centroid and count the assignments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp4tl_fast.kernels.dispatch import require_all_counted, require_matrix, require_nan_policy
from dp4tl_fast.kernels.linear_argmax import linear_argmax
from dp4tl_fast.kernels.precision import squared_norms

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class NearestCentroid:
    index: torch.Tensor  # int64 [rows]; -1 for a row with a NaN under nan="skip"
    counts: torch.Tensor | None  # int64 [groups, centroids], or [centroids] without groups
    distances: torch.Tensor | None  # float32 [rows], squared Euclidean


def nearest_centroid(
    features: torch.Tensor,
    centroids: torch.Tensor,
    group: torch.Tensor | None = None,
    return_counts: bool = True,
    return_distances: bool = False,
    *,
    groups: int | None = None,
    nan: str = "error",
    implementation: str = "auto",
) -> NearestCentroid:
    """The nearest centroid of each row in Euclidean distance (feature mapping, Eq. 2 of the paper), and a histogram.

    Args:
        features: [rows, depth] float32, float16 or bfloat16, any strides. May be in host memory with the centroids on a
            GPU: they are then streamed in chunks while earlier ones are processed.
        centroids: [k, depth]; rounded to the dtype of ``features``.
        group: one integer id per row, to count each group separately.
        groups: number of groups; the default is the largest id + 1.
        return_counts, return_distances: what to return besides the index.
        nan: ``"error"`` raises on a row whose distances have a NaN (a NaN, or infinities that cancel), ``"skip"``
            does not count such rows and gives them index -1.
        implementation: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        NearestCentroid on the device of ``centroids``. Products and norms are accumulated in float32 (TF32 only
        as three products, which are as exact); the lowest index wins ties. Distances are max(0, ‖x‖² + ‖c‖² − 2 x · c),
        with an error of about 1e-6 ‖x‖².

    Raises:
        UsageError: shape, dtype, group id or NaN. BackendError: the implementation cannot work here.
    """
    require_matrix("features", features)
    require_matrix("centroids", centroids)
    require_nan_policy(nan)
    offset = squared_norms(centroids.detach().to(features.dtype)).mul_(-0.5)
    winners = linear_argmax(features, centroids, offset, group, groups, implementation, names=("features", "centroids"))
    if nan == "error":
        require_all_counted(winners.counts, winners.index, "features' distances")
    distances = None
    if return_distances:
        distances = (squared_norms(features.detach()).to(centroids.device) - 2 * winners.value).clamp_(min=0)
    counts = winners.counts if group is not None else winners.counts[0]
    return NearestCentroid(winners.index, counts if return_counts else None, distances)
