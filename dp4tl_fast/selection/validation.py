"""Nothing in a selection's files is trusted: what is wrong with their values."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton.fingerprint import FIRST, KEYS
from dp4tl_fast.common.errors import SelectionError

if TYPE_CHECKING:
    from dp4tl_fast.selection.portable import Selection

MOST_REPEATS = 1000  # an epoch may draw at most so many times the source's samples


def problem(selection: Selection, single_records: bool) -> str:
    """What is wrong with values that came from a file, or nothing. ``single_records``: there is a list of records, too."""
    classes, source = selection.kept_classes, selection.source
    if not isinstance(source, dict) or not set(FIRST) <= set(source) <= set(KEYS):
        return "its source fingerprint must have samples, classes and labels_sha256"
    if not _ints([source["samples"], source["classes"]]):
        return "its source fingerprint's counts must be whole numbers"
    if not _ints(classes) or classes != sorted(set(classes)) or not classes:
        return "kept_classes must be a non-empty ascending list of class ids"
    if classes[0] < 0 or classes[-1] >= source["classes"]:
        return f"keeps class {classes[-1]}, but its source has {source['classes']} classes"
    for name in ("scores", "tie_breaks"):
        values = getattr(selection, name)
        if not isinstance(values, list) or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
            return f"{name} must be a list of finite numbers"
        if len(values) != source["classes"] and (name == "scores" or values):
            return f"has {len(values)} {name} for {source['classes']} classes"
    if not isinstance(selection.seconds, dict) or not all(type(v) in (int, float) for v in selection.seconds.values()):
        return "seconds must map names to numbers"
    if not _ints([selection.kept_samples]) or not 0 < selection.kept_samples <= source["samples"]:
        return f"kept_samples = {selection.kept_samples!r} must be from 1 to the source's {source['samples']}"
    budget = selection.parameters.get("budget_images", 0) if isinstance(selection.parameters, dict) else None
    if not _ints([budget]) or budget < 0:
        return "parameters must be a table, and its budget_images a whole number"
    return _weights_problem(selection, single_records) if selection.weights or selection.schema != 1 else ""


def _weights_problem(selection: Selection, single_records: bool) -> str:
    weights, samples = selection.weights, selection.source["samples"]
    if not _ints(weights) or not weights or min(weights) < 0 or not 0 < sum(weights) <= MOST_REPEATS * samples:
        return f"weights must be whole numbers from 0 whose sum is from 1 to {MOST_REPEATS} times the source's {samples} samples"
    if not single_records and [c for c, w in enumerate(weights) if w] != selection.kept_classes:
        return "weights must be above 0 for the kept classes, and for no others"
    return ""


def indices_path(path: Path) -> Path:
    """Where the records of a selection of single records are."""
    return path.with_name(path.name + ".indices.npy")


def with_records(path: Path, digest: str, selection: Selection) -> Selection:
    """With the records of the file beside it, and their groups where it has weights."""
    side = indices_path(path)
    try:
        data = side.read_bytes()
    except OSError as error:
        raise SelectionError(f"{side}: the selection's record list cannot be read ({error}). Copy both files") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise SelectionError(f"{side}: does not belong to {path} (its hash differs). Prune again")
    try:
        table = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise SelectionError(f"{side}: not an array of record numbers ({error})") from None
    groups, records = None, table
    if selection.weights and table.ndim == 2 and len(table) == 2:
        records, groups = table
        drawn = np.flatnonzero(selection.weights)
        if table.dtype != np.int64 or not np.array_equal(np.unique(groups), drawn):
            raise SelectionError(f"{side}: its groups are not those that {path} has weights for. Prune again")
    elif selection.weights:
        raise SelectionError(f"{side}: must hold record numbers and their groups, because {path} has weights. Prune again")
    ascending = records.dtype == np.int64 and records.ndim == 1 and bool((np.diff(records) > 0).all())
    if (
        not ascending
        or len(records) != selection.kept_samples
        or records[0] < 0
        or records[-1] >= selection.source["samples"]
    ):
        raise SelectionError(f"{side}: must hold {selection.kept_samples} ascending record numbers of the source")
    return replace(selection, records=records, groups=groups)


def _ints(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int for v in values)
