"""Feature mapping (FM), which needs no labels: arXiv 2310.08782, section 3.

    s(k) = | { t in target training set : argmin_j |g(t) - m_j|^2 = k } |

for the features g of a surrogate and the mean m_k of each source group: a group is a class, or a K-means cluster where
there are no labels. Whole groups are kept or dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels import kmeans, nearest_centroid

CHUNK = 1 << 16  # rows that are held in float64 at a time


@dataclass(frozen=True)
class Groups:
    """The source in groups: float32 ``centroids`` m ``[k, d]``, and int64 ``index`` ``[n]``, the group of each record."""

    kind: str
    centroids: torch.Tensor
    index: torch.Tensor

    @property
    def sizes(self) -> torch.Tensor:
        """Records per group, int64 ``[k]``."""
        return torch.bincount(self.index, minlength=len(self.centroids))


@dataclass(frozen=True)
class FeatureMapping:
    """``votes`` s(k): int64 ``[k]``. ``distance``: float64 ``[k]``, mean squared distance of the target to each centroid.

    Most groups get no vote. The paper leaves their order undefined; here the smaller mean distance ranks equal votes.
    """

    votes: np.ndarray
    distance: np.ndarray


def class_means(x: torch.Tensor, y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """m_c = mean of the features ``x`` ``[n, d]`` whose label ``y`` ``[n]`` is c: float32 ``[num_classes, d]``.

    Summed in float64. A class without records has the mean 0 and must not get votes (``Groups.sizes``).
    """
    sums = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, device=x.device)
    for xs, ys in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        sums.index_add_(0, ys, xs.double())
    return (sums / torch.bincount(y, minlength=num_classes).clamp(min=1)[:, None]).float()


def class_groups(x: torch.Tensor, y: torch.Tensor, num_classes: int) -> Groups:
    """The classes as groups, for supervised pretraining."""
    return Groups("classes", class_means(x, y, num_classes), y)


def kmeans_groups(x: torch.Tensor, k: int, seed: int, distributed: bool = False) -> Groups:
    """K-means clusters as groups, for self-supervised pretraining. ``distributed``: ``x`` is this process's part."""
    if k < 1 or (k > len(x) and not distributed):
        raise UsageError(f"`clusters={k}`: must be from 1 to the source's {len(x)} records")
    clusters = kmeans(x, k, seed, distributed=distributed)
    return Groups("kmeans", clusters.centroids, clusters.index)


def nearest_groups(x: torch.Tensor, centroids: torch.Tensor) -> Groups:
    """The clusters of an earlier run as groups: each record joins the nearest of their centroids."""
    if centroids.shape[1] != x.shape[1]:
        raise UsageError(f"`groups`: centroids of {centroids.shape[1]} features, but the surrogate has {x.shape[1]}")
    return Groups("kmeans", centroids, nearest_centroid(x, centroids, return_counts=False).index)


def feature_mapping(t: torch.Tensor, groups: Groups) -> FeatureMapping:
    """Count how many target features ``t`` ``[m, d]`` are nearest to each group's centroid."""
    votes = _votes(t, groups)
    # mean_t |t - m|^2 = mean_t |t|^2 - 2 (mean_t t) . m + |m|^2
    there = groups.sizes > 0
    m = groups.centroids[there].double()
    t_mean, t_norm = t.mean(0, dtype=torch.float64), t.double().square().sum(1).mean()
    near = t_norm - 2 * (m @ t_mean) + m.square().sum(1)
    distance = torch.full((len(votes),), float(near.max()), dtype=torch.float64, device=t.device)
    distance[there] = near
    return FeatureMapping(votes.cpu().numpy(), distance.cpu().numpy())


def votes_by_target_class(t: torch.Tensor, ty: torch.Tensor, groups: Groups) -> np.ndarray:
    """The votes s(k) of each target class separately, to report what a selection keeps of them.

    ``t`` are target features ``[m, d]``, ``ty`` their labels, int64 ``[m]``. int64 ``[target classes, k]``.
    """
    return _votes(t, groups, ty).cpu().numpy()


def _votes(t: torch.Tensor, groups: Groups, ty: torch.Tensor | None = None) -> torch.Tensor:
    """int64 ``[k]``, or ``[target classes, k]`` with labels; a group without records gets none."""
    there = groups.sizes > 0
    counts = nearest_centroid(t, groups.centroids[there], ty).counts
    assert counts is not None  # returned by default
    votes = counts.new_zeros(*counts.shape[:-1], len(there))
    votes[..., there] = counts
    return votes
