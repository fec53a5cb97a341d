"""Feature mapping (FM), which needs no labels: arXiv 2310.08782, section 3.

    s(k) = | { t in target training set : argmin_j |g(t) - m_j|^2 = k } |

for features g of a surrogate and group means m_k of the source: a group is a class, or a K-means cluster where there are
no labels. The unit that is kept or dropped is the whole group.
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
    """The source in groups: float32 ``centroids`` ``[k, d]`` and int64 ``index`` ``[n]``, the group of every record."""

    kind: str
    centroids: torch.Tensor
    index: torch.Tensor

    @property
    def sizes(self) -> torch.Tensor:
        """Records of each group, int64 ``[k]``."""
        return torch.bincount(self.index, minlength=len(self.centroids))


@dataclass(frozen=True)
class FeatureMapping:
    """``votes``: int64 ``[k]``. ``distance``: float64 ``[k]``, mean squared distance of the target to each centroid.

    Most groups get no vote. The paper leaves their order undefined; here the smaller mean distance ranks equal votes.
    """

    votes: np.ndarray
    distance: np.ndarray


def class_means(x: torch.Tensor, y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """m_c = mean of the features ``x`` ``[n, d]`` whose label ``y`` ``[n]`` is c: float32 ``[num_classes, d]``.

    Summed in float64. A class without records has the mean 0 and must not be voted for (``Groups.sizes``).
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
    """Clusters of an earlier run used again: every record joins the nearest of their centroids."""
    if centroids.shape[1] != x.shape[1]:
        raise UsageError(f"`groups`: centroids of {centroids.shape[1]} features, but the surrogate has {x.shape[1]}")
    return Groups("kmeans", centroids, nearest_centroid(x, centroids, return_counts=False).index)


def feature_mapping(t: torch.Tensor, groups: Groups) -> FeatureMapping:
    """Count how many target features ``t`` ``[m, d]`` are nearest to each group's centroid."""
    there = groups.sizes > 0
    m = groups.centroids[there]
    counts = nearest_centroid(t, m).counts
    assert counts is not None  # asked for by default
    votes = torch.zeros(len(there), dtype=torch.int64, device=t.device)
    votes[there] = counts
    # mean_t |t - m|^2 = mean_t |t|^2 - 2 (mean_t t) . m + |m|^2
    t_mean, t_norm = t.mean(0, dtype=torch.float64), t.double().square().sum(1).mean()
    near = t_norm - 2 * (m.double() @ t_mean) + m.double().square().sum(1)
    distance = torch.full((len(votes),), float(near.max()), dtype=torch.float64, device=t.device)
    distance[there] = near
    return FeatureMapping(votes.cpu().numpy(), distance.cpu().numpy())
