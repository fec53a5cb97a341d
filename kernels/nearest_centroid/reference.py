"""The truth of ``nearest_centroid`` in plain torch, in float64."""

from __future__ import annotations

import torch


def nearest_centroid(features: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index [rows] of the centroid with the smallest ‖x − c‖², the lowest among equals, and that distance [rows].

    ‖x − c‖² = ‖x‖² + (‖c‖² − 2 x · c); ‖x‖² is the same for every centroid and decides nothing. A row with a NaN has
    index -1.
    """
    x, c = features.double(), centroids.to(features.dtype).double()
    scores = c.square().sum(dim=1) - 2 * x @ c.T
    best = scores.min(dim=1).values
    index = (scores == best[:, None]).int().argmax(dim=1)
    return torch.where(best.isnan(), -1, index), (x.square().sum(dim=1) + best).clamp(min=0)
