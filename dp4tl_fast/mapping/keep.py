"""How much to keep. The unit is what a method scores: classes, clusters or single records."""

from __future__ import annotations

import math

import numpy as np

from dp4tl_fast.common.errors import UsageError

AUTO_SHARE, CONFIDENCE, RESAMPLES = 0.9, 0.95, 200


def num_kept(keep: str, num_units: int, unit: str = "classes") -> int:
    """Units to keep under a plain rule.

    Args:
        keep: A fraction of the units (``0.4``; ``1.0`` keeps all; rounded up, so that no fraction keeps none), or a
            whole number of them (``400``). ``1`` is one unit.
        num_units: Units of the source.
        unit: Their name, for messages.

    Raises:
        UsageError: Not a number, or out of range.
    """
    try:
        value = float(keep)
    except ValueError:
        value = math.nan
    if keep.strip().isdigit():
        if not 1 <= int(keep) <= num_units:
            raise UsageError(f"--keep {keep}: a number of {unit} goes from 1 to the source's {num_units} that have records")
        return int(keep)
    if not 0 < value <= 1:
        raise UsageError(
            f"--keep {keep}: give a fraction above 0 and at most 1.0, a whole number of {unit}, samples:FRACTION, "
            "budget:FRACTION, auto or auto:FRACTION"
        )
    return max(1, math.ceil(value * num_units - 1e-9))


def check(keep: str) -> None:
    """Raise UsageError for what can be no rule of ``cut``, before anything expensive is done."""
    rule, colon, value = keep.partition(":")
    if rule in ("samples", "budget") or (rule == "auto" and colon):
        _fraction(keep, value)
    elif rule != "auto" and keep.strip().isdigit() and int(keep) == 0:
        raise UsageError("--keep 0: would keep nothing. Give a whole number from 1, or a fraction above 0")
    elif rule != "auto":
        num_kept(keep, 2**63)


def cut(
    keep: str, order: np.ndarray, sizes: np.ndarray, votes: np.ndarray | None, unit: str = "classes", seed: int = 0
) -> int:
    """How many of ``order`` (unit ids, the best first; those without records are not in it) to keep.

    Args:
        keep: As for ``num_kept``; or ``samples:F``, the fewest units with at least the fraction F of all records;
            ``budget:F``, the most units with at most that fraction (an epoch costs what its records cost); ``auto`` or
            ``auto:F``, see ``auto_cut``.
        sizes: Records of every unit, int64 ``[units]``.
        votes: Target images that chose each unit, int64 ``[units]``; ``None`` for methods without votes.

    Raises:
        UsageError: The rule is malformed, cannot be kept, or needs votes.
    """
    rule, colon, value = keep.partition(":")
    if rule == "auto":
        if votes is None:
            raise UsageError("--keep auto: this method has no votes to decide by. Give a fraction or a number")
        return auto_cut(order, votes, _fraction(keep, value) if colon else AUTO_SHARE, seed)
    if rule in ("samples", "budget"):
        limit = _fraction(keep, value) * sizes.sum()
        total = np.cumsum(sizes[order])
        if rule == "samples":
            return min(int((total < limit - 1e-9).sum()) + 1, len(order))
        count = int((total <= limit + 1e-9).sum())
        if count == 0:
            raise UsageError(
                f"--keep {keep}: keeps nothing, for the first of the {unit} alone has {total[0]} of {sizes.sum()} records"
            )
        return count
    return num_kept(keep, len(order), unit)


def auto_cut(order: np.ndarray, votes: np.ndarray, share: float, seed: int = 0) -> int:
    """Units that carry ``share`` of the votes, whatever target images happened to be drawn.

    The target set is a sample. The bootstrap draws as many votes again from the observed distribution (``RESAMPLES``
    times), ranks the units by the draw, and asks how many of the first ones are needed to carry ``share`` of the
    *observed* votes: a draw that ranks the tail wrongly needs more. The answer is the ``CONFIDENCE`` quantile over the
    draws, so that in that proportion of draws the kept units would have been enough. A target that is spread over many
    classes keeps many, and so does a small one, whose ranking is uncertain.
    """
    ranked = votes[order]  # draws are ranked stably: equal votes keep the order of the scores
    n = int(ranked.sum())
    if n == 0:
        raise UsageError("--keep auto: no target image voted for what has records. Give a fraction or a number")
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(n, ranked / n, size=RESAMPLES)
    needed = []
    for draw in draws:
        carried = np.cumsum(ranked[np.argsort(-draw, kind="stable")])
        needed.append(int((carried < share * n - 1e-9).sum()) + 1)
    return int(np.quantile(needed, CONFIDENCE, method="higher"))


def _fraction(keep: str, value: str) -> float:
    try:
        fraction = float(value)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise UsageError(f"--keep {keep}: the part after the colon must be a fraction above 0 and at most 1")
    return fraction
