"""``linear_label_counts``: ``label_counts`` of a linear layer's output, which is never stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels.dispatch import require_all_counted, require_matrix, require_nan_policy
from dp4tl_fast.kernels.linear_argmax import linear_argmax

if TYPE_CHECKING:
    import torch


def linear_label_counts(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    group: torch.Tensor | None = None,
    *,
    groups: int | None = None,
    nan: str = "error",
    implementation: str = "auto",
) -> torch.Tensor:
    """How many rows of ``features`` have each class as the argmax of ``features · weightᵀ + bias``.

    Args:
        features: [rows, depth] float32, float16 or bfloat16 penultimate features; may be in host memory with ``weight``
            on a GPU (streamed).
        weight: [classes, depth], rounded to the dtype of ``features``.
        bias: [classes], used in float32.
        group, groups, nan, implementation: as for ``label_counts``.

    Returns:
        int64 counts on the device of ``weight``: [groups, classes] with ``group``, else [classes]. Logits are summed in
        float32 and not rounded to the dtype of ``features``; a layer that rounds has ties that do not occur here.

    Raises:
        UsageError: shape, dtype, group id or NaN. BackendError: the implementation cannot work here.
    """
    require_matrix("weight", weight)
    require_nan_policy(nan)
    offset = weight.new_zeros(len(weight)) if bias is None else bias
    if offset.shape != (len(weight),):
        raise UsageError(f"bias has shape {list(offset.shape)}: expected [{len(weight)}], one per class")
    winners = linear_argmax(features, weight, offset, group, groups, implementation, names=("features", "weight"))
    if nan == "error":
        require_all_counted(winners.counts, winners.index, "features' logits")
    return winners.counts if group is not None else winners.counts[0]
