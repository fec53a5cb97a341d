"""Scores that something else computed (influence by subset models, say), from a CSV or Parquet table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError

KEYS = {"class": "classes", "record": "samples", "index": "samples"}  # column -> unit of the scores


def read_scores(path: str, beton: Beton) -> tuple[str, np.ndarray]:
    """A score for every class, or for every record.

    The table has a column ``score`` and one of ``class`` (name or id), ``record`` (number in the file) or ``index`` (the
    sample's ``index`` field, which survives another layout). Every class with records, or every record, must be there
    exactly once.

    Returns:
        ``classes`` or ``samples``, and float64 ``[units]``; a class without records gets the lowest score.

    Raises:
        UsageError: The table is unreadable, incomplete, has repeated or unknown keys, or a score that is not finite.
    """
    columns = _read(Path(path))
    keys = [k for k in KEYS if k in columns]
    if len(keys) != 1 or "score" not in columns:
        raise UsageError(f"`scores={path}`: needs a column score and one of {', '.join(KEYS)}; it has {', '.join(columns)}")
    key = keys[0]
    scores = np.array([_number(path, row, v) for row, v in enumerate(columns["score"])])
    if key == "class":
        ids = _class_ids(path, columns[key], beton)
        wanted, size = np.flatnonzero(beton.class_counts), beton.num_classes
    else:
        ids = np.array([int(_number(path, row, v)) for row, v in enumerate(columns[key])], np.int64)
        wanted, size = np.arange(beton.num_samples), beton.num_samples
        if key == "index":
            by_index = np.argsort(beton.index, kind="stable")
            at = np.searchsorted(beton.index[by_index], ids).clip(max=size - 1)
            ids = np.where(beton.index[by_index][at] == ids, by_index[at], -1)
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
        row = int(((ids < 0) | (ids >= size)).argmax())
        raise UsageError(f"`scores={path}`: row {row} names {key} {columns[key][row]}, which {beton.path} does not have")
    times = np.bincount(ids, minlength=size)
    if times.max(initial=0) > 1 or (times[wanted] == 0).any():
        raise UsageError(
            f"`scores={path}`: every {key} must be there exactly once, but {int((times > 1).sum())} are repeated and "
            f"{int((times[wanted] == 0).sum())} of {len(wanted)} are missing"
        )
    values = np.full(size, scores.min(initial=0))
    values[ids] = scores
    return KEYS[key], values


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        if path.suffix == ".parquet":
            try:
                import pyarrow.parquet as parquet
            except ImportError:
                raise UsageError("`scores`: Parquet needs pyarrow: pip install 'dp4tl_fast[parquet]'") from None
            return parquet.read_table(path).to_pydict()
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise UsageError(f"`scores={path}`: cannot be read as a table ({error})") from None
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise UsageError(f"`scores={path}`: row {number} has {len(row)} fields, the header {len(header)}")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _number(path: str, row: int, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise UsageError(f"`scores={path}`: row {row} has {value!r} where a finite number is needed")
    return number


def _class_ids(path: str, values: list[Any], beton: Beton) -> np.ndarray:
    names = {name: i for i, name in enumerate(beton.class_names)}
    ids = [names.get(str(v), int(v) if str(v).isdecimal() else -1) for v in values]
    return np.array(ids, np.int64)
