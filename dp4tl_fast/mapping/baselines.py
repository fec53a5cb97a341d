"""What the paper compares with. ``random_classes`` is the one every claim must beat."""

from __future__ import annotations

import numpy as np


def random_classes(num_classes: int, seed: int) -> np.ndarray:
    """Scores in seeded random order, float64 ``[num_classes]``."""
    return np.random.default_rng(seed).permutation(num_classes).astype(np.float64)
