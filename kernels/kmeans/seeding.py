"""Greedy k-means++ seeding (Arthur and Vassilvitskii 2007) on a sample, one block of draws at a time.

k-means++ draws each centroid with probability proportional to D², the squared distance to the nearest centroid so far;
the greedy form draws several and keeps the one that lowers the sum of D² most. One draw at a time would take k passes
over the data. Here the draws of many steps are made at once from the D² at the start of a block, so that their
distances are one matrix product, and each draw is then used with probability (its D² now) / (its D² at the start): this
is rejection sampling, and each draw used has exactly the distribution that its step requires.
"""

from __future__ import annotations

import math

import torch

from dp4tl_fast.kernels.kmeans.shard import Shard
from dp4tl_fast.kernels.precision import exact_float32

SAMPLE_PER_CENTROID = 8  # rows of the sample per centroid
MIN_SAMPLE = 1 << 14  # and its smallest size
TRIALS = 8  # least draws per step; 2 + log(k), the usual number, sometimes misses a cluster when k is small
BLOCK = 128  # draws whose distances are computed together


def seed_centroids(features: torch.Tensor, k: int, generator: torch.Generator, shard: Shard) -> torch.Tensor:
    """k rows of ``features`` [rows, depth] as float32 centroids [k, depth], the same on every process.

    With fewer than k distinct rows in the sample some are drawn repeatedly.
    """
    sample = _sample(features, max(MIN_SAMPLE, SAMPLE_PER_CENTROID * k), generator, shard)
    norms = sample.square().sum(dim=1)
    trials = max(TRIALS, 2 + int(math.log(k)))
    first = int(torch.randint(len(sample), (1,), generator=generator))
    chosen = [first]
    weights = _distances(sample, norms, torch.tensor([first]))[0]
    while len(chosen) < k:
        total = weights.double().cpu().cumsum(0)  # on the CPU: a GPU's cumulative sum may differ from run to run
        draws = min(BLOCK, 2 * trials * (k - len(chosen)))
        spots, keep = torch.rand(2, draws, generator=generator, dtype=torch.float64)
        if not float(total[-1]) > 0:  # every row coincides with a centroid
            chosen += torch.randint(len(sample), (k - len(chosen),), generator=generator).tolist()
            break
        pool = torch.searchsorted(total, spots * total[-1], right=True).clamp(max=len(sample) - 1)
        weights = _use_pool(sample, norms, weights, pool, keep, trials, k, chosen)
    return sample[torch.tensor(chosen, device=sample.device)]


def _use_pool(
    sample: torch.Tensor,
    norms: torch.Tensor,
    weights: torch.Tensor,
    pool: torch.Tensor,
    keep: torch.Tensor,
    trials: int,
    k: int,
    chosen: list[int],
) -> torch.Tensor:
    """Take greedy steps until the drawn rows ``pool`` are used up; append to ``chosen`` and return the new D² [rows].

    The last step of a pool may have fewer trials; a step always has one, so that every pool makes progress.
    """
    distances = _distances(sample, norms, pool)
    on_device = pool.to(sample.device)
    limit = keep * weights[on_device].double().cpu()  # a draw is used while its D² stays above this
    position = 0
    while position < len(pool) and len(chosen) < k:
        fits = (limit < weights[on_device].double().cpu())[position:].nonzero()[:trials, 0] + position
        if len(fits) == 0:
            break
        position = int(fits[-1]) + 1
        options = torch.minimum(weights, distances[fits.to(sample.device)])
        best = int(options.sum(dim=1, dtype=torch.float64).argmin())
        weights = options[best]
        chosen.append(int(pool[fits[best]]))
    return weights


def _distances(sample: torch.Tensor, norms: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Squared distances [rows, sample] from some rows of the sample to all, exactly 0 to themselves."""
    rows = rows.to(sample.device)
    with exact_float32():
        distances = torch.addmm(norms, sample[rows], sample.T, alpha=-2)
    distances.add_(norms[rows, None]).clamp_(min=0)
    distances[torch.arange(len(rows), device=rows.device), rows] = 0
    return distances


def _sample(features: torch.Tensor, size: int, generator: torch.Generator, shard: Shard) -> torch.Tensor:
    """Up to ``size`` rows of all processes without repetition, float32, the same on every process."""
    counts = shard.gather(torch.tensor(len(features), device=features.device)).cpu()
    positions = torch.randperm(int(counts.sum()), generator=generator)[:size].sort().values
    first = int(counts[: shard.rank].sum())
    mine = (positions >= first) & (positions < first + len(features))
    sample = torch.zeros(len(positions), features.shape[1], device=features.device)
    sample[mine.to(features.device)] = features[(positions[mine] - first).to(features.device)].float()
    return shard.sum(sample)
