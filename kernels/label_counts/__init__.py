"""``label_counts``: argmax over classes and a histogram of the winners, in one pass over the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels.dispatch import choose, load, require_groups, require_matrix, require_nan_policy, require_no_nan

if TYPE_CHECKING:
    import torch


def label_counts(
    logits: torch.Tensor,
    num_classes: int,
    group: torch.Tensor | None = None,
    *,
    groups: int | None = None,
    nan: str = "error",
    implementation: str = "auto",
) -> torch.Tensor:
    """How many rows of ``logits`` have each class as their largest entry (label mapping, Eq. 1 of the paper).

    Args:
        logits: [rows, classes] float32, float16 or bfloat16, any strides, CPU or CUDA. Infinities compare as numbers.
        num_classes: number of classes, the columns of ``logits``.
        group: one integer id per row, e.g. the target class or the data set, to count each group separately.
        groups: number of groups; the default is the largest id + 1.
        nan: ``"error"`` raises on a row with a NaN, ``"skip"`` does not count such rows.
        implementation: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        int64 counts, exact, on the device of ``logits``: [groups, classes] with ``group``, else [classes]. Ties go to
        the lowest class.

    Raises:
        UsageError: shape, dtype, group id or NaN. BackendError: the implementation cannot work here.
    """
    require_matrix("logits", logits)
    if logits.shape[1] != num_classes:
        raise UsageError(f"logits have {logits.shape[1]} columns: expected num_classes={num_classes}")
    require_nan_policy(nan)
    chosen = choose(implementation, logits.device)
    logits = logits.detach()
    ids, count = require_groups(group, groups, len(logits), logits.device)
    counts, first_nan = load("label_counts", chosen)(logits, ids, count)
    if nan == "error":
        require_no_nan(first_nan, "logits")
    return counts if group is not None else counts[0]
