"""The truth of ``linear_label_counts`` in plain torch, in float64."""

from __future__ import annotations

import torch

from dp4tl_fast.kernels.label_counts.reference import label_counts


def linear_label_counts(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group: torch.Tensor | None, groups: int
) -> tuple[torch.Tensor, int]:
    """``label_counts`` of features · weightᵀ + bias."""
    logits = features.double() @ weight.to(features.dtype).double().T
    return label_counts(logits if bias is None else logits + bias.double(), group, groups)
