"""Accuracy by class and by group, from what runs predicted for the test records."""

from __future__ import annotations

import csv
import math
from typing import Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError


def by_key(right: np.ndarray, keys: np.ndarray, n: int) -> np.ndarray:
    """Accuracy over the records of each key.

    Args:
        right: bool ``[runs, records]``.
        keys: int64 ``[records]`` in ``0 .. n - 1``.

    Returns:
        float64 ``[runs, n]``, NaN for a key without records.
    """
    sizes = np.bincount(keys, minlength=n)
    hits = np.stack([np.bincount(keys, weights=run, minlength=n) for run in right])
    return np.divide(hits, sizes, out=np.full_like(hits, np.nan), where=sizes > 0)


def read_groups(path: str, beton: Beton) -> tuple[list[str], np.ndarray]:
    """A group for every record, as Waterbirds has them (its four: bird x background).

    The CSV has the columns ``index`` (the record's ``index`` field: its place in the source that was converted) and
    ``group`` (any text). Rows of other indices are left out, so that one table may serve several splits.

    Returns:
        The groups' names in sorted order, and int64 ``[records]``.

    Raises:
        UsageError: The table cannot be read, or has no single row for a record.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"index", "group"} <= set(reader.fieldnames or ()):
                raise UsageError(f"`groups={path}`: needs the columns index and group; it has {reader.fieldnames}")
            table: dict[int, str] = {}
            for at, row in enumerate(reader):
                if not (row["index"] or "").strip().isdecimal() or row["group"] is None:
                    raise UsageError(f"`groups={path}`: row {at} has the index {row['index']!r}, not a number")
                if table.setdefault(int(row["index"]), row["group"]) != row["group"]:
                    raise UsageError(f"`groups={path}`: row {at} names index {row['index']} again, with another group")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"`groups={path}`: cannot be read as a table ({error})") from None
    missing = [i for i in beton.index.tolist() if i not in table]
    if missing:
        raise UsageError(
            f"`groups={path}`: {len(missing)} of {beton.num_samples} records of {beton.path} are missing, the first has "
            f"index {missing[0]}"
        )
    names = sorted({table[i] for i in beton.index.tolist()})
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[table[i]] for i in beton.index.tolist()], np.int64)


def summary(predicted: np.ndarray, beton: Beton, groups: tuple[list[str], np.ndarray] | None) -> dict[str, Any]:
    """What the last epochs' predictions, int64 ``[runs, records]`` (-1: of a record that cannot be decoded), say beyond the mean;
    means over runs.

    Returns:
        ``per_class``: accuracy by class name. With groups: ``per_group``, and ``worst_group_mean`` and ``worst_group_std``
        of each run's lowest group.
    """
    read = (predicted >= 0).all(0)
    right, labels = (predicted == beton.labels)[:, read], beton.labels[read]
    classes = by_key(right, labels, beton.num_classes).mean(0)
    present = np.flatnonzero(np.bincount(labels, minlength=beton.num_classes))
    result: dict[str, Any] = {"per_class": {beton.class_names[c]: float(classes[c]) for c in present.tolist()}}
    if groups is not None:
        names, keys = groups
        accuracy = by_key(right, keys[read], len(names))
        worst = np.nanmin(accuracy, axis=1)
        means = zip(names, accuracy.mean(0).tolist(), strict=True)
        result["per_group"] = {name: mean for name, mean in means if not math.isnan(mean)}
        result["worst_group_mean"] = float(worst.mean())
        result["worst_group_std"] = float(worst.std(ddof=1)) if len(worst) > 1 else 0.0
    return result
