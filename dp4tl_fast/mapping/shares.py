"""Soft mapping: every class or cluster gets a share of the epoch instead of all or nothing.

    n(g) = N h(g),   h(g) = (1 - a) v(g) / sum v  +  a |g| / sum |g|

for votes v, group sizes |g| and smoothing a: DATL (arXiv 1811.07056) and CRISP (arXiv 2410.03735) weigh source data by its share in
the target. a = 0 follows the votes alone; a = 1 is the source as it is, of which every epoch draws a fresh part (RS2, arXiv
2305.18424).
"""

from __future__ import annotations

import numpy as np

from dp4tl_fast.common.errors import UsageError


def shares(mass: np.ndarray, sizes: np.ndarray, smooth: float) -> np.ndarray:
    """h above, float64 ``[groups]``, of sum 1; a group without records gets nothing.

    Args:
        mass: The votes v; or the sizes of the groups that are kept and 0 for others, for equal shares: every record of theirs
            equally often.
        sizes: Records of every group.

    Raises:
        UsageError: No vote is for a group that has records.
    """
    mass = np.where(sizes > 0, mass, 0).astype(np.float64)
    if mass.sum() == 0 and smooth < 1:
        raise UsageError("`sample=weighted`: no target image voted for anything with records. Use another surrogate, or `smooth=1`")
    return (1 - smooth) * mass / max(mass.sum(), 1) + smooth * sizes / sizes.sum()


def apportion(shares: np.ndarray, total: int, most: int | None = None) -> np.ndarray:
    """Whole numbers in proportion to ``shares``, none above ``most``, of sum ``total`` where that allows it. int64 ``[groups]``.

    What a group may not take goes to the others in proportion to their shares. Rounding is by largest remainder (equal ones:
    the lower id first).
    """
    counts, left, open_ = np.zeros(len(shares), np.int64), total, shares > 0
    while left > 0 and open_.any():
        # Divided first: what is left to shares near zero would overflow as a factor.
        quota = np.where(open_, shares, 0) / shares[open_].sum() * left
        full = open_ & (quota >= most) if most is not None else np.zeros(len(shares), bool)
        if not full.any():
            floor = np.floor(quota + 1e-9).astype(np.int64)
            first = np.argsort(-(quota - floor), kind="stable")[: left - int(floor.sum())]
            counts += floor
            counts[first] += 1
            break
        assert most is not None
        counts[full] = most
        left -= most * int(full.sum())
        open_ &= ~full
    return counts
