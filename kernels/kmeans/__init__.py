"""``kmeans``: Lloyd's algorithm on ``linear_argmax`` (assignment) and ``cluster_sums`` (update)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels.cluster_sums import cluster_sums
from dp4tl_fast.kernels.dispatch import choose, require_matrix
from dp4tl_fast.kernels.linear_argmax import Winners, linear_argmax
from dp4tl_fast.kernels.precision import squared_norms

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.kernels.kmeans.shard import Shard

Progress = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class KMeans:
    centroids: torch.Tensor  # float32 [k, depth], the same on every process
    index: torch.Tensor  # int64 [rows]: the centroid of each row of this process, lowest among equals
    counts: torch.Tensor  # int64 [k]: rows of each centroid, over all processes
    inertia: float  # sum of squared distances of the rows to their centroids, over all processes
    history: list[float]  # inertia after each assignment; never rises


def kmeans(
    features: torch.Tensor,
    k: int,
    seed: int,
    *,
    centroids: torch.Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    distributed: bool = False,
    progress: Progress | None = None,
    implementation: str = "auto",
) -> KMeans:
    """Cluster rows by greedy k-means++ seeding and Lloyd's algorithm (the pseudo-classes of feature mapping).

    Args:
        features: [rows, depth] float32, float16 or bfloat16; with ``distributed``, the rows of this process. The native
            implementation reads them a few thousand at a time and never copies them whole: they may be a memory-mapped
            file that is larger than memory.
        k: number of clusters, at most that of rows (of all processes).
        seed: the same seed gives the same bits on the same device, whatever the number of threads.
        centroids: [k, depth] to start from, instead of k-means++ seeding.
        max_iterations: largest number of assignments.
        tolerance: stop when an iteration lowers the inertia by at most this fraction.
        distributed: every process of the default group (torchrun) holds a shard and calls this; sums are all-reduced.
        progress: called with (iteration, inertia) after each assignment.
        implementation: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    A cluster that loses all rows restarts at the row that is farthest from its centroid. Assignments use the centroids
    rounded to the dtype of ``features``.

    Raises:
        UsageError: bad arguments, or a row that is not finite. BackendError: the implementation cannot work here.
    """
    import torch

    from dp4tl_fast.kernels.kmeans.seeding import seed_centroids
    from dp4tl_fast.kernels.kmeans.shard import Shard

    require_matrix("features", features)
    chosen = choose(implementation, features.device)
    shard = Shard(distributed)
    features = features.detach()
    total = int(shard.sum(torch.tensor(len(features), device=features.device)))
    if not 1 <= k <= total:
        raise UsageError(f"k={k} clusters of {total} rows: k must be from 1 to the number of rows")
    norms = _norms(features)
    if centroids is None:
        generator = torch.Generator().manual_seed(seed)
        centroids = seed_centroids(features, k, generator, shard)
    elif centroids.shape != (k, features.shape[1]):
        raise UsageError(f"centroids have shape {list(centroids.shape)}: expected [{k}, {features.shape[1]}]")
    centroids = centroids.to(features.device, torch.float32)
    history: list[float] = []
    best: KMeans | None = None
    for iteration in range(max(1, max_iterations)):
        winners = _assign(features, centroids, chosen)
        inertia = float(shard.sum(norms.sum(dtype=torch.float64) - 2 * winners.value.sum(dtype=torch.float64)))
        inertia = max(inertia, 0.0)  # rounding of the norms
        if best is not None and inertia > best.inertia:  # a rise is rounding, too: keep the previous step
            break
        history.append(inertia)
        if progress is not None:
            progress(iteration, inertia)
        counts = shard.sum(winners.counts[0].clone())
        stop = best is not None and best.inertia - inertia <= tolerance * best.inertia
        best = KMeans(centroids, winners.index, counts, inertia, history)
        if stop or iteration + 1 == max_iterations:
            break
        sums = shard.sum(cluster_sums(features, winners.index, k, chosen))
        counts = _restart_empty(features, norms - 2 * winners.value, winners.index, sums, counts.clone(), shard)
        means = (sums / counts.clamp(min=1)[:, None]).float()
        centroids = torch.where(counts[:, None] > 0, means, centroids)
    assert best is not None  # the first assignment always sets it
    return best


def _norms(features: torch.Tensor) -> torch.Tensor:
    """‖x‖² [rows], all of them finite."""
    norms = squared_norms(features)
    bad = ~norms.isfinite()
    if bool(bad.any()):
        row = int(bad.int().argmax())
        raise UsageError(f"row {row} of features has a NaN, an infinity or a norm beyond float32: fix or remove it")
    return norms


def _assign(features: torch.Tensor, centroids: torch.Tensor, implementation: str) -> Winners:
    half_norms = squared_norms(centroids.to(features.dtype)) / 2
    return linear_argmax(features, centroids, -half_norms, None, None, implementation, ("features", "centroids"))


def _restart_empty(
    features: torch.Tensor,
    distances: torch.Tensor,
    index: torch.Tensor,
    sums: torch.Tensor,
    counts: torch.Tensor,
    shard: Shard,
) -> torch.Tensor:
    """Move to each empty cluster the farthest row that is left, of a cluster that keeps other rows. Changes ``sums``.

    Returns the new counts. Ties go to the lowest process and row. A cluster for which no row is left stays empty.
    """
    import torch

    empty = (counts == 0).nonzero()[:, 0].tolist()
    if not empty:
        return counts
    # Candidates: the farthest rows of every process, [ranks, empty], padded with distance 0, which is never taken.
    far = torch.zeros(len(empty), dtype=torch.float64, device=features.device)
    owner = torch.zeros(len(empty), dtype=torch.int64, device=features.device)
    rows = torch.zeros(len(empty), features.shape[1], device=features.device)
    free = torch.where(counts[index] > 1, distances, 0)
    order = free.argsort(descending=True, stable=True)[: len(empty)]
    far[: len(order)], owner[: len(order)] = free[order].double(), index[order]
    rows[: len(order)] = features[order].float()
    far, owner, rows = (shard.gather(part).flatten(0, 1) for part in (far, owner, rows))
    for candidate in far.argsort(descending=True, stable=True).tolist():
        donor = int(owner[candidate])
        if not empty or not far[candidate] > 0:
            break
        if counts[donor] < 2:
            continue
        row, cluster = rows[candidate].double(), empty.pop(0)
        sums[donor] -= row
        counts[donor] -= 1
        sums[cluster] = row
        counts[cluster] = 1
    return counts
