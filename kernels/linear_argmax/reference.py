"""The truth of ``linear_argmax`` in plain torch, in float64."""

from __future__ import annotations

import torch


def linear_argmax(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row of x [rows, depth] the index [rows] and value [rows] of the largest x · w[k] + offset[k].

    The lowest k wins ties. A row with a NaN score has index -1 and value NaN.
    """
    scores = x.double() @ w.double().T + offset.double()
    value, index = scores.max(dim=1)
    index = (scores == value[:, None]).int().argmax(dim=1)  # max() does not promise the first of equals
    return torch.where(value.isnan(), -1, index), value.float()
