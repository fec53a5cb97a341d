"""The truth of ``linear_argmax`` in plain torch, in float64."""

from __future__ import annotations

import torch

from dp4tl_fast.kernels.dispatch import histogram


def linear_argmax(
    x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, group: torch.Tensor | None, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest x · w[k] + offset[k] of each row of x; the lowest k wins ties.

    Args:
        x: [rows, depth], and w: [columns, depth], of one dtype: float32, float16 or bfloat16.
        offset: float32 [columns].
        group: int64 [rows] in [0, groups), or ``None`` for a single group.

    Returns:
        index int64 [rows] and value float32 [rows]: -1 and NaN for a row with a NaN score. counts int64 [groups, columns]
        of the indices, without those rows.
    """
    x = x.to(w.device)
    scores = x.double() @ w.double().T + offset.double()
    value, index = scores.max(dim=1)
    index = (scores == value[:, None]).int().argmax(dim=1)  # max() does not guarantee the first of equals
    index = torch.where(value.isnan(), -1, index)
    return index, value.float(), histogram(index, group, groups, len(w))
