"""The truth of ``label_counts`` in plain torch."""

from __future__ import annotations

import torch

from dp4tl_fast.kernels.dispatch import histogram


def label_counts(
    logits: torch.Tensor, group: torch.Tensor | None, groups: int
) -> tuple[torch.Tensor, int]:
    """How many rows of each group have each class as their argmax, the lowest class among equals.

    Args:
        logits: [rows, classes] float32, float16 or bfloat16.
        group: int64 [rows] in [0, groups), or ``None`` for a single group.

    Returns:
        counts int64 [groups, classes], in which rows with a NaN do not count, and the first such row, or -1.
    """
    nan = logits.isnan().any(dim=1)
    index = torch.where(nan, -1, logits.argmax(dim=1))
    first_nan = int(nan.nonzero()[0]) if bool(nan.any()) else -1
    return histogram(index, group, groups, logits.shape[1]), first_nan
