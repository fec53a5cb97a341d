"""The order of records in a file, and how well it mixes labels."""

from __future__ import annotations

import math

import numpy as np

from dp4tl_fast.common.checks import require, require_one_of

LAYOUTS = ("class", "shuffled")


def check_layout(layout: str) -> None:
    require_one_of("layout", layout, LAYOUTS)


def record_order(labels: np.ndarray, layout: str, seed: int, index: np.ndarray | None = None) -> np.ndarray:
    """The permutation (int64 ``[n]``) that brings samples into the order of a layout.

    ``class``: classes in id order, each in random order; ``shuffled``: all in random order. The random key of a sample
    depends on the seed and its ``index`` (default: its position) alone, so a relayout gives what a conversion gives.
    Philox's raw output is the key: it is the same in every version of NumPy.
    """
    check_layout(layout)
    require(0 <= seed < 2**63, "seed", seed, "from 0 to 2^63 - 1")
    n = len(labels)
    if index is None or n == 0:
        keys = np.random.Philox(key=seed).random_raw(n)
    else:
        keys = np.random.Philox(key=seed).random_raw(int(index.max()) + 1)[index]
    return np.lexsort((keys, labels)) if layout == "class" else np.argsort(keys, kind="stable")


def label_mixing(labels: np.ndarray, window: int = 256) -> dict[str, float]:
    """Distinct classes among ``window`` consecutive records, on average, and what a uniform shuffle would give."""
    n = len(labels)
    window = min(window, n)
    if window == 0:
        return {"window": 0, "distinct_classes": 0.0, "distinct_classes_if_shuffled": 0.0}
    rows = np.sort(labels[: n // window * window].reshape(-1, window), axis=1)  # [windows, window]
    distinct = 1 + (np.diff(rows, axis=1) != 0).sum(axis=1)
    # A class of k records is missing from a window with the hypergeometric probability C(n - k, w) / C(n, w).
    counts = np.bincount(labels)
    log_all = math.lgamma(n + 1) - math.lgamma(n - window + 1)
    expected = 0.0
    for k, classes in zip(*np.unique(counts[counts > 0], return_counts=True), strict=True):
        left = n - int(k)
        missing = 0.0
        if left >= window:
            missing = math.exp(math.lgamma(left + 1) - math.lgamma(left - window + 1) - log_all)
        expected += int(classes) * (1 - missing)
    return {
        "window": window,
        "distinct_classes": float(distinct.mean()),
        "distinct_classes_if_shuffled": expected,
    }
