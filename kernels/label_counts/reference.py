"""The truth of ``label_counts`` in plain torch."""

from __future__ import annotations

import torch

from dp4tl_fast.kernels.dispatch import histogram


def label_counts(
    logits: torch.Tensor, group: torch.Tensor | None, groups: int
) -> tuple[torch.Tensor, int]:
    """counts [groups, classes] of the rows' argmax (the lowest class among equals), and the first row with a NaN or -1.

    Rows with a NaN are not counted.
    """
    nan = logits.isnan().any(dim=1)
    index = torch.where(nan, -1, logits.argmax(dim=1))
    first_nan = int(nan.nonzero()[0]) if bool(nan.any()) else -1
    return histogram(index, group, groups, logits.shape[1]), first_nan
