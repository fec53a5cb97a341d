"""``nearest_centroid``: assign rows to their nearest centroid and count the assignments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp4tl_fast.kernels.dispatch import require_matrix, require_nan_policy, require_no_nan
from dp4tl_fast.kernels.linear_argmax import linear_argmax

if TYPE_CHECKING:
    import torch

NORM_ROWS = 1 << 14  # rows squared at a time: bounds the extra memory of ‖x‖²


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
    """The centroid nearest to each row in Euclidean distance (feature mapping, Eq. 2 of the paper), and a histogram.

    Args:
        features: [rows, depth] float32, float16 or bfloat16, any strides. May be in host memory with the centroids on a
            GPU: it is then streamed in chunks, copies overlapping the work.
        centroids: [k, depth]; rounded to the dtype of ``features``.
        group: one integer id a row, to count each group apart; ``groups``: their number, else the largest id + 1.
        return_counts, return_distances: what to return besides the index.
        nan: ``"error"`` raises on a row whose distances have a NaN (a NaN, or infinities that cancel), ``"skip"``
            leaves such rows out of the counts and gives them index -1.
        implementation: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        NearestCentroid on the device of ``centroids``. Products and norms accumulate in float32 (never TF32 unless
        split in three); the lowest index wins ties. Distances are ‖x‖² + ‖c‖² − 2 x · c, not below 0: relative to ‖x‖²
        exact to about 1e-6.

    Raises:
        UsageError: shape, dtype, group id or NaN. BackendError: the implementation cannot work here.
    """
    require_matrix("features", features)
    require_matrix("centroids", centroids)
    require_nan_policy(nan)
    half_norms = squared_norms(centroids.detach().to(features.dtype)) / 2
    winners = linear_argmax(
        features, centroids, -half_norms, group, groups, implementation, names=("features", "centroids")
    )
    if nan == "error":
        bad = winners.index < 0
        require_no_nan(int(bad.int().argmax()) if bool(bad.any()) else -1, "features' distances")
    distances = None
    if return_distances:
        distances = (squared_norms(features.detach()).to(centroids.device) - 2 * winners.value).clamp_(min=0)
    counts = winners.counts if group is not None else winners.counts[0]
    return NearestCentroid(winners.index, counts if return_counts else None, distances)


def squared_norms(x: torch.Tensor) -> torch.Tensor:
    """‖x‖² of each row in float32, whatever the dtype: in float16 it would overflow above 65504."""
    import torch

    norms = torch.empty(len(x), device=x.device)
    for start in range(0, len(x), NORM_ROWS):
        norms[start : start + NORM_ROWS] = x[start : start + NORM_ROWS].float().square().sum(dim=1)
    return norms
