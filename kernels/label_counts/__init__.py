"""``label_counts``: argmax over classes and a histogram of the winners, in one pass over the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels.dispatch import (
    choose,
    require_groups,
    require_matrix,
    require_nan_policy,
    require_no_nan,
)

if TYPE_CHECKING:
    import torch

# Rows copied at a time when the logits are not contiguous row by row.
CHUNK_ELEMENTS = 1 << 22


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
        num_classes: classes, the number of columns of ``logits``.
        group: one integer id a row, e.g. the target class or the target data set, to count each apart.
        groups: number of groups; without it the largest id + 1.
        nan: ``"error"`` raises on a row with a NaN, ``"skip"`` leaves such rows out.
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
    counts, first_nan = _implementation(chosen)(logits, ids, count)
    if nan == "error":
        require_no_nan(first_nan, "logits")
    return counts if group is not None else counts[0]


def _implementation(chosen: str):
    if chosen == "native":
        return _native
    if chosen == "triton":
        from dp4tl_fast.kernels.label_counts.triton_impl import label_counts as triton

        return triton
    from dp4tl_fast.kernels.label_counts.reference import label_counts as reference

    return reference


def _native(
    logits: torch.Tensor, group: torch.Tensor | None, groups: int, isa: str = "auto"
) -> tuple[torch.Tensor, int]:
    import torch

    from dp4tl_fast.kernels import _native as core

    rows, classes = logits.shape
    counts = torch.zeros(groups, classes, dtype=torch.int64)
    step = rows if logits.stride(1) == 1 else CHUNK_ELEMENTS // classes
    step = max(step, 1)
    first_nan = -1
    for start in range(0, rows, step):
        chunk = logits[start : start + step]
        if chunk.stride(1) != 1:
            chunk = chunk.contiguous()
        ids = None if group is None else group[start : start + len(chunk)]
        row = core.label_counts(chunk, ids, counts, torch.get_num_threads(), isa)
        if first_nan < 0 <= row:
            first_nan = start + row
    return counts, first_nan
