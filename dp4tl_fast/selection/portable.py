"""The one thing that passes from pruning to pretraining: which classes survive, of which source, and why.

A selection is a small JSON file. It carries the source's fingerprint, and opening it against another source fails.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.fingerprint import FIRST, KEYS, difference, says_class_names
from dp4tl_fast.common.errors import SelectionError
from dp4tl_fast.common.files import npy_bytes, write_atomically

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Scored and kept source classes, or single records for sample-level methods.

    Attributes:
        method, parameters: How the scores came about; parameters hold everything needed to repeat it.
        source: Fingerprint of the source, ``Beton.fingerprint``; earlier versions wrote less of it.
        scores: One per class; higher is kept first. Where single records are kept: the share of the class that survives.
        tie_breaks: Second key for equal scores, one per class; equal again, the lower class id wins.
        kept_classes: Ascending class ids.
        kept_samples: Records of those classes (or the number of ``records``).
        surrogate, targets: Identity of the network, with its ``accuracy`` on its own source, and of the target files.
        seconds: What the selection cost: ``surrogate`` (its training, where known) and ``scoring``.
        records: Ascending record numbers for sample-level methods; ``None`` means whole classes. Stored beside the JSON.
    """

    method: str
    source: dict[str, Any]
    scores: list[float]
    kept_classes: list[int]
    kept_samples: int
    tie_breaks: list[float] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    surrogate: dict[str, Any] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    records: np.ndarray | None = None
    schema: int = SCHEMA

    # -- making -------------------------------------------------------------------------------------------------------

    @staticmethod
    def of_classes(
        beton: Beton,
        kept: np.ndarray,
        *,
        method: str,
        scores: np.ndarray,
        tie_breaks: np.ndarray | None = None,
        **more: Any,
    ) -> Selection:
        """Select whole classes of ``beton``. ``scores`` and ``tie_breaks`` are ``[num_classes]``."""
        kept = np.unique(np.asarray(kept, np.int64))
        samples = int(beton.class_counts[kept].sum()) if kept.size else 0
        if samples == 0:
            raise SelectionError(f"the selection keeps no sample of {beton.path}. Keep more classes")
        return Selection(
            method=method,
            source=dict(beton.fingerprint),
            scores=[float(s) for s in scores],
            tie_breaks=[] if tie_breaks is None else [float(t) for t in tie_breaks],
            kept_classes=kept.tolist(),
            kept_samples=samples,
            **more,
        )

    @staticmethod
    def of_records(beton: Beton, records: np.ndarray, *, method: str, **more: Any) -> Selection:
        """Select single records of ``beton``. A class counts as kept while one of its records survives."""
        records = np.unique(np.asarray(records, np.int64))
        if records.size == 0:
            raise SelectionError(f"the selection keeps no sample of {beton.path}. Keep more")
        survivors = np.bincount(beton.labels[records], minlength=beton.num_classes)
        return Selection(
            method=method,
            source=dict(beton.fingerprint),
            scores=(survivors / np.maximum(beton.class_counts, 1)).tolist(),
            kept_classes=np.flatnonzero(survivors).tolist(),
            kept_samples=len(records),
            records=records,
            **more,
        )

    def ranking(self) -> np.ndarray:
        """All class ids, the first to keep first. int64 ``[num_classes]``."""
        return rank(np.array(self.scores), np.array(self.tie_breaks) if self.tie_breaks else None)

    def top(self, k: int, beton: Beton) -> Selection:
        """The same scores, cut at ``k`` classes."""
        if not 1 <= k <= len(self.scores):
            raise SelectionError(f"cannot keep {k} classes: the source has {len(self.scores)}")
        return self._keep(self.ranking()[:k], beton)

    def union(self, other: Selection, beton: Beton) -> Selection:
        """What either keeps. Of two class selections, scores and method stay this one's."""
        return self._combine(other, beton, np.union1d)

    def intersect(self, other: Selection, beton: Beton) -> Selection:
        """What both keep. Of two class selections, scores and method stay this one's."""
        return self._combine(other, beton, np.intersect1d)

    def _combine(self, other: Selection, beton: Beton, operation: Callable[..., np.ndarray]) -> Selection:
        other._same_source(self)
        seconds = _together(self, other)
        if self.records is None and other.records is None:
            return replace(self._keep(operation(self.kept_classes, other.kept_classes), beton), seconds=seconds)
        records = operation(self.indices(beton), other.indices(beton))
        if records.size == 0:
            raise SelectionError("the resulting selection would keep no sample")
        methods = {operation.__name__.removesuffix("1d"): [self.method, other.method]}
        return Selection.of_records(beton, records, method=self.method, parameters=methods, seconds=seconds)

    def _keep(self, kept: np.ndarray, beton: Beton) -> Selection:
        self.check(beton)
        if self.records is not None:
            raise SelectionError(
                f"a {self.method} selection keeps single records; it cannot be cut by classes"
            )
        kept = np.unique(kept.astype(np.int64))
        samples = int(beton.class_counts[kept].sum()) if kept.size else 0
        if samples == 0:
            raise SelectionError("the resulting selection would keep no sample")
        return replace(self, kept_classes=kept.tolist(), kept_samples=samples)

    def _same_source(self, other: Selection) -> Selection:
        if not same_source(self, other):
            raise SelectionError(f"the two selections are of different sources: {self.source} and {other.source}")
        return self

    # -- using --------------------------------------------------------------------------------------------------------

    def check(self, beton: Beton) -> None:
        """Raise ``SelectionError`` unless this selection was made for ``beton``."""
        if different := difference(self.source, beton.fingerprint):
            raise SelectionError(
                f"this selection was made for another source: {beton.path} has {different}. Prune again with `source={beton.path}`"
            )

    def indices(self, beton: Beton) -> np.ndarray:
        """Surviving record numbers of ``beton``, ascending int64."""
        self.check(beton)
        return self.records if self.records is not None else records_of(beton, self.kept_classes)

    def for_split(self, beton: Beton) -> Selection:
        """The same classes in another split (the paper prunes training *and* validation)."""
        if self.kept_classes and self.kept_classes[-1] >= beton.num_classes:
            raise SelectionError(
                f"the selection keeps class {self.kept_classes[-1]}, but {beton.path} has only {beton.num_classes} classes. "
                "Convert both splits from the same class list"
            )
        samples = len(records_of(beton, self.kept_classes))
        return replace(self, source=dict(beton.fingerprint), records=None, kept_samples=samples)

    def kept_hashes(self) -> dict[str, str]:
        """What is kept, in short, for the settings of a run: of the classes, and of the records where single ones are kept."""
        found = {"selection_classes_sha256": hashlib.sha256(json.dumps(self.kept_classes).encode()).hexdigest()}
        if self.records is not None:
            found["selection_records_sha256"] = hashlib.sha256(self.records.tobytes()).hexdigest()
        return found

    @property
    def kept_sha256(self) -> str:
        """The same for two selections that keep the same classes, or the same records."""
        return list(self.kept_hashes().values())[-1]

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the JSON file, and ``<path>.indices.npy`` for sample-level selections; both atomically."""
        path = Path(path)
        body = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "records"}
        if self.records is not None:
            data = npy_bytes(self.records.astype("<i8"))
            body["records_sha256"] = hashlib.sha256(data).hexdigest()
            write_atomically(_indices_path(path), data)
        write_atomically(path, json.dumps(body, indent=1, allow_nan=False) + "\n")

    @staticmethod
    def load(path: str | Path) -> Selection:
        """Read and validate a selection; nothing in the file is trusted.

        Raises:
            SelectionError: Missing, malformed, of an unknown schema, or its side file does not belong to it.
        """
        path = Path(path)
        try:
            body = json.loads(path.read_text())
        except FileNotFoundError:
            raise SelectionError(
                f"{path}: no such selection. Make one with `dp4tl-fast prune ... --out {path}`"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise SelectionError(f"{path}: not a selection file ({error})") from None
        if not isinstance(body, dict) or body.get("schema") != SCHEMA:
            version = body.get("schema") if isinstance(body, dict) else None
            raise SelectionError(f"{path}: selection schema {version!r}, but only {SCHEMA} is known")
        digest = body.pop("records_sha256", None)
        try:
            selection = Selection(**body)
        except TypeError as error:
            raise SelectionError(f"{path}: not a selection of schema {SCHEMA} ({error})") from None
        problem = selection._problem()
        if problem:
            raise SelectionError(f"{path}: {problem}")
        if not says_class_names(selection.source):
            from dp4tl_fast.common import cli

            missing = "it does not say which class names it is for, and they are not compared"
            cli.message(f"note: {path} is of an earlier version: {missing}")
        return selection if digest is None else replace(selection, records=_load_records(path, digest, selection))

    def _problem(self) -> str:
        """What is wrong with values that came from a file, or nothing."""
        classes, source = self.kept_classes, self.source
        if not isinstance(source, dict) or not set(FIRST) <= set(source) <= set(KEYS):
            return "its source fingerprint must have samples, classes and labels_sha256"
        if not _ints([source["samples"], source["classes"]]):
            return "its source fingerprint's counts must be whole numbers"
        if not _ints(classes) or classes != sorted(set(classes)) or not classes:
            return "kept_classes must be a non-empty ascending list of class ids"
        if classes[0] < 0 or classes[-1] >= source["classes"]:
            return f"keeps class {classes[-1]}, but its source has {source['classes']} classes"
        for name in ("scores", "tie_breaks"):
            values = getattr(self, name)
            if not isinstance(values, list) or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
                return f"{name} must be a list of finite numbers"
            if len(values) != source["classes"] and (name == "scores" or values):
                return f"has {len(values)} {name} for {source['classes']} classes"
        if not isinstance(self.seconds, dict) or not all(type(v) in (int, float) for v in self.seconds.values()):
            return "seconds must map names to numbers"
        if not _ints([self.kept_samples]) or not 0 < self.kept_samples <= source["samples"]:
            return f"kept_samples = {self.kept_samples!r} must be from 1 to the source's {source['samples']}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: all but the records."""
        return {k: v for k, v in asdict(replace(self, records=None)).items() if k != "records"}


def same_source(a: Selection, b: Selection) -> bool:
    """Whether two selections are of one source, as far as they tell."""
    return not difference(a.source, b.source)


def _together(a: Selection, b: Selection) -> dict[str, float]:
    """What two selections cost: the training of a surrogate that both used only once."""
    total = {stage: a.seconds.get(stage, 0.0) + b.seconds.get(stage, 0.0) for stage in a.seconds | b.seconds}
    weights = a.surrogate.get("weights_sha256")
    if weights and weights == b.surrogate.get("weights_sha256") and "surrogate" in total:
        total["surrogate"] = max(s.seconds.get("surrogate", 0.0) for s in (a, b))
    return total


def rank(scores: np.ndarray, tie_breaks: np.ndarray | None = None) -> np.ndarray:
    """Class ids by descending score, then descending tie-break, then ascending id. int64 ``[num_classes]``."""
    ids = np.arange(len(scores))
    return np.lexsort((ids, -(np.zeros(len(scores)) if tie_breaks is None else tie_breaks), -scores))


def records_of(beton: Beton, classes: list[int]) -> np.ndarray:
    """Record numbers of these classes, ascending int64."""
    if beton.layout == "class":  # each class is one range: no look at the other records
        stops = beton.class_stops
        starts = stops - beton.class_counts
        ranges = [np.arange(starts[c], stops[c]) for c in sorted(set(classes))]
        return np.concatenate([np.zeros(0, np.int64), *ranges])
    wanted = np.zeros(beton.num_classes, bool)
    wanted[classes] = True
    return np.flatnonzero(wanted[beton.labels])


def _indices_path(path: Path) -> Path:
    return path.with_name(path.name + ".indices.npy")


def _load_records(path: Path, digest: str, selection: Selection) -> np.ndarray:
    side = _indices_path(path)
    try:
        data = side.read_bytes()
    except OSError as error:
        raise SelectionError(f"{side}: the selection's record list cannot be read ({error}). Copy both files") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise SelectionError(f"{side}: does not belong to {path} (its hash differs). Prune again")
    try:
        records = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise SelectionError(f"{side}: not an array of record numbers ({error})") from None
    ascending = records.dtype == np.int64 and records.ndim == 1 and bool((np.diff(records) > 0).all())
    if (
        not ascending
        or len(records) != selection.kept_samples
        or records[0] < 0
        or records[-1] >= selection.source["samples"]
    ):
        raise SelectionError(f"{side}: must hold {selection.kept_samples} ascending record numbers of the source")
    return records


def _ints(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int for v in values)
