"""How many classes to keep."""

from __future__ import annotations

import math

from dp4tl_fast.errors import UsageError


def num_kept(keep: str, num_classes: int) -> int:
    """Classes to keep under a rule.

    Args:
        keep: A fraction of the classes (``0.4``; ``1.0`` keeps all; rounded up, so that no fraction keeps none), or a
            whole number of classes (``400``). ``1`` is one class.
        num_classes: Classes of the source.

    Raises:
        UsageError: Not a number, or out of range.
    """
    try:
        value = float(keep)
    except ValueError:
        value = math.nan
    if keep.strip().isdigit():
        if not 1 <= int(keep) <= num_classes:
            raise UsageError(f"--keep {keep}: a number of classes goes from 1 to the source's {num_classes}")
        return int(keep)
    if not 0 < value <= 1:
        raise UsageError(f"--keep {keep}: give a fraction above 0 and at most 1.0, or a whole number of classes")
    return max(1, math.ceil(value * num_classes - 1e-9))
