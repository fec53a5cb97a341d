"""A few random records of every class of a target."""

from __future__ import annotations

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError


def few_shots(beton: Beton, shots: int, seed: int) -> np.ndarray:
    """``shots`` random records of every class, ascending int64.

    Raises:
        UsageError: A class has fewer.
    """
    counts = beton.class_counts
    if (short := (counts > 0) & (counts < shots)).any():
        c = int(short.argmax())
        raise UsageError(f"`shots={shots}`: class {beton.class_names[c]} of {beton.path} has only {int(counts[c])} images")
    keys = np.random.Generator(np.random.Philox(seed)).random(beton.num_samples)
    order = np.lexsort((keys, beton.labels))  # by class, each in random order
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < shots])
