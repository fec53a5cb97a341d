"""The methods that the paper compares with. ``random_classes`` is the control that every claim must beat.

Class-level methods return one score per class, sample-level methods one score per source record; the highest are kept
first. ``x`` are source features ``[n, d]``, ``y`` their labels ``[n]``; ``t`` and ``ty`` are the target's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from dp4tl_fast.common.checks import class_id
from dp4tl_fast.mapping.feature_mapping import Groups, class_means

# -- classes ----------------------------------------------------------------------------------------------------------


def random_classes(num_classes: int, seed: int) -> np.ndarray:
    """A seeded random permutation as scores, float64 ``[num_classes]``."""
    return np.random.default_rng(seed).permutation(num_classes).astype(np.float64)


def handpicked(picked: Iterable[str], names: Sequence[str]) -> np.ndarray:
    """1 for the classes listed by name or id (see ``class_id``), 0 for the others. float64 ``[classes]``."""
    scores = np.zeros(len(names))
    scores[[class_id(item, names) for item in picked]] = 1
    return scores


def filtered_groups(x: torch.Tensor, y: torch.Tensor, num_classes: int, share: float = 0.2) -> Groups:
    """Classes as groups for ffmm: each centroid is the mean of the middle ``share`` of the class by ``moderate``."""
    middle_first = np.lexsort((-moderate(x, y, num_classes), y.cpu().numpy()))
    sizes = torch.bincount(y, minlength=num_classes).tolist()
    rows = torch.from_numpy(middle_first).to(y.device).split(sizes)
    middle = torch.cat([r[: math.ceil(share * len(r))] for r in rows])
    return Groups("classes", class_means(x[middle], y[middle], num_classes), y)


def cmt(
    x: torch.Tensor, y: torch.Tensor, num_classes: int, t: torch.Tensor, ty: torch.Tensor, median: bool = False
) -> np.ndarray:
    """Minus the mean distance from a source class's centroid to those of the target classes. float64 ``[num_classes]``.

    A centroid is the mean, or the element-wise median. Source classes without records get the worst score; target
    classes without records do not count.
    """
    centre = class_medians if median else class_means
    there, target_there = (torch.bincount(labels) > 0 for labels in (y, ty))
    source, target = centre(x, y, len(there))[there], centre(t, ty, len(target_there))[target_there]
    distance = torch.cdist(source.double(), target.double()).mean(1)
    scores = torch.full((num_classes,), -float(distance.max()), dtype=torch.float64)
    scores[: len(there)][there.cpu()] = -distance.cpu()
    return scores.numpy()


# -- samples ----------------------------------------------------------------------------------------------------------


def random_samples(n: int, seed: int) -> np.ndarray:
    """A seeded random permutation as scores, float64 ``[n]``."""
    return np.random.default_rng(seed).permutation(n).astype(np.float64)


def moderate(x: torch.Tensor, y: torch.Tensor, num_classes: int) -> np.ndarray:
    """Moderate coreset: the middle of each class, by distance to the class's element-wise median feature. float64 ``[n]``.

    The score falls from 1 in the middle of a class's ranking towards 0 at both ends, so that a cut keeps the same middle
    band of every class.
    """
    distance = own_distance(x, y, class_medians(x, y, num_classes))
    order = np.lexsort((np.arange(len(distance)), distance, y.cpu().numpy()))
    sizes = np.bincount(y.cpu().numpy(), minlength=num_classes)
    own = y.cpu().numpy()[order]
    rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[own]
    scores = np.empty(len(order))
    scores[order] = 1 - np.abs(2 * rank + 1 - sizes[own]) / sizes[own]
    return scores


def prototypes(x: torch.Tensor, y: torch.Tensor, num_classes: int) -> np.ndarray:
    """Distance to the mean of the record's class; atypical records are kept first, as for large data sets (arXiv 2206.14486)."""
    return own_distance(x, y, class_means(x, y, num_classes))


def ssl_prototypes(x: torch.Tensor, clusters: Groups) -> np.ndarray:
    """Distance to the centroid of the record's K-means cluster; atypical records are kept first (arXiv 2206.14486)."""
    return own_distance(x, clusters.index, clusters.centroids)


def el2n(logits: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """EL2N (arXiv 2107.07075): |softmax f(x) - onehot(y)|, float64 ``[n]``. Hard records are kept first."""
    error = logits.float().softmax(1)
    error[torch.arange(len(y), device=y.device), y] -= 1
    return error.double().norm(dim=1).cpu().numpy()


# -- shared -----------------------------------------------------------------------------------------------------------


def class_medians(x: torch.Tensor, y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Element-wise median of each class (the mean of the middle two for an even number). float32 ``[num_classes, d]``."""
    medians = torch.zeros(num_classes, x.shape[1], device=x.device)
    order, sizes = y.argsort(stable=True), torch.bincount(y, minlength=num_classes).tolist()
    for c, rows in enumerate(order.split(sizes)):
        if len(rows):
            ascending = x[rows].float().sort(dim=0).values
            medians[c] = (ascending[(len(rows) - 1) // 2] + ascending[len(rows) // 2]) / 2
    return medians


def own_distance(x: torch.Tensor, group: torch.Tensor, centres: torch.Tensor) -> np.ndarray:
    """|x_i - centre of i's group| from the differences, which do not cancel as ‖x‖² - 2 x · c + ‖c‖² does. float64 ``[n]``."""
    parts = [
        (xs.double() - centres[g].double()).norm(dim=1)
        for xs, g in zip(x.split(1 << 14), group.split(1 << 14), strict=True)
    ]
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)
