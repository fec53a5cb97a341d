"""Which records of a target are trained on: a few of every class, or all but those held out."""

from __future__ import annotations

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError

HOLD_OUT = 1  # its draws are not those of few_shots


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


def hold_out(beton: Beton, records: np.ndarray | None, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation records of ``records`` (``None``: all), ascending int64: ``share`` of every class, at least one.

    Raises:
        UsageError: A class would have no record left to train on.
    """
    pool = np.arange(beton.num_samples) if records is None else records
    labels = beton.labels[pool]
    counts = np.bincount(labels, minlength=beton.num_classes)
    held = np.where(counts > 0, np.maximum(1, np.round(share * counts)), 0).astype(np.int64)
    if (short := (counts > 0) & (held >= counts)).any():
        c = int(short.argmax())
        raise UsageError(
            f"`val_share={share}`: leaves nothing to train on of class {beton.class_names[c]} of {beton.path}, "
            f"which has {int(counts[c])} images. Give a validation file (`val`) instead"
        )
    keys = np.random.Generator(np.random.Philox(key=np.array([seed, HOLD_OUT], np.uint64))).random(len(pool))
    order = np.lexsort((keys, labels))  # by class, each in random order
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = place < np.repeat(held, counts)
    return np.sort(pool[order[~chosen]]), np.sort(pool[order[chosen]])
