"""The one thing that passes from pruning to pretraining: which classes survive, of which source, and why.

A selection is a small JSON file. It carries the source's fingerprint, and opening it against another source fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.fingerprint import difference, says_class_names
from dp4tl_fast.common.checks import distinct_numbers
from dp4tl_fast.common.errors import SelectionError
from dp4tl_fast.common.files import npy_bytes, write_atomically
from dp4tl_fast.selection import validation

SCHEMA, WEIGHTED = 1, 2  # of weighted selections: readers that know only the first refuse them
FIX_WEIGHTED = "Prune again without --sample weighted and --per-class"  # for what takes selections without weights only


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Scored and kept source classes, or single records for sample-level methods.

    Attributes:
        method: How the scores came about.
        parameters: Everything needed to repeat it.
        source: Fingerprint of the source, ``Beton.fingerprint``; earlier versions wrote less of it.
        scores: One per class; higher is kept first. Where single records are kept: the share of the class that survives.
        tie_breaks: Second key for equal scores, one per class; equal again, the lower class id wins.
        kept_classes: Ascending class ids.
        kept_samples: Records of those classes (or the number of ``records``).
        surrogate: Identity of the network, with its ``accuracy`` on its own source.
        targets: Identity of the target files.
        seconds: What the selection cost: ``surrogate`` (its training, where known) and ``scoring``.
        records: Ascending record numbers for sample-level methods; ``None`` means whole classes. Stored beside the JSON.
        weights: Records that every epoch draws of each class, or of each of ``groups``; empty: each epoch reads all that is kept,
            once.
        groups: Where ``weights`` are of other groups than classes: the group of each of ``records``, int64 ``[n]``.
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
    weights: list[int] = field(default_factory=list)
    groups: np.ndarray | None = None
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
        """Select whole classes of ``beton``.

        Args:
            kept: Distinct class ids ``[n]`` in any order.
            scores: Float ``[num_classes]``.
            tie_breaks: Likewise, or none.

        Raises:
            SelectionError: ``kept`` are not such ids, or have no sample.
        """
        kept = distinct_numbers(kept, beton.num_classes, f"{beton.path}: class")
        samples = int(beton.class_counts[kept].sum())
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
        """Select single records of ``beton``. A class counts as kept while one of its records survives.

        Args:
            records: Distinct record numbers ``[n]`` in any order.

        Raises:
            SelectionError: ``records`` are not such numbers, or there is none.
        """
        records = distinct_numbers(records, beton.num_samples, f"{beton.path}: record")
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

    def weighted(self, weights: np.ndarray, groups: np.ndarray | None = None) -> Selection:
        """The same, with ``weights`` ``[groups]``; ``groups`` of each of ``records``, or ``None`` for classes."""
        return replace(self, weights=[int(w) for w in weights], groups=groups, schema=WEIGHTED)

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
        self._unweighted()
        other._unweighted()
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
        self._unweighted()
        if self.records is not None:
            raise SelectionError(
                f"a {self.method} selection keeps single records; it cannot be cut by classes"
            )
        kept = np.unique(kept.astype(np.int64))
        samples = int(beton.class_counts[kept].sum()) if kept.size else 0
        if samples == 0:
            raise SelectionError("the resulting selection would keep no sample")
        return replace(self, kept_classes=kept.tolist(), kept_samples=samples)

    def _unweighted(self) -> None:
        if self.weights:
            raise SelectionError(f"a weighted selection cannot be cut or combined. {FIX_WEIGHTED}")

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

    @property
    def epoch_size(self) -> int:
        """Records of an epoch."""
        return sum(self.weights) or self.kept_samples

    @property
    def budget(self) -> int:
        """Images of the pretraining that it was cut for; 0 where it was not cut for one."""
        return int(self.parameters.get("budget_images", 0))

    @property
    def epochs(self) -> int:
        """Epochs that the budget allows; 0 without one."""
        return max(1, self.budget // self.epoch_size) if self.budget else 0

    def draws(self, beton: Beton) -> tuple[list[np.ndarray], list[int]]:
        """For ``loaders.order.Draws``: the records of each group with a weight, int64 ascending, and how many an epoch draws."""
        records = self.indices(beton)
        of = beton.labels[records] if self.groups is None else self.groups
        drawn = np.flatnonzero(self.weights)
        order = np.argsort(of, kind="stable")
        parts = np.split(records[order], np.searchsorted(of[order], drawn[1:]))
        return parts, [self.weights[g] for g in drawn.tolist()]

    def for_split(self, beton: Beton) -> Selection:
        """The same classes in another split (the paper prunes training *and* validation)."""
        if self.kept_classes and self.kept_classes[-1] >= beton.num_classes:
            raise SelectionError(
                f"the selection keeps class {self.kept_classes[-1]}, but {beton.path} has only {beton.num_classes} classes. "
                "Convert both splits from the same class list"
            )
        samples = len(records_of(beton, self.kept_classes))
        return replace(
            self, source=dict(beton.fingerprint), records=None, kept_samples=samples, weights=[], groups=None, schema=SCHEMA
        )

    def kept_hashes(self) -> dict[str, str]:
        """What is kept, in short, for the settings of a run: of the classes, and of the records where single ones are kept."""
        found = {"selection_classes_sha256": hashlib.sha256(json.dumps(self.kept_classes).encode()).hexdigest()}
        if self.records is not None:
            found["selection_records_sha256"] = hashlib.sha256(self.records.tobytes()).hexdigest()
        if self.weights:
            drawn = json.dumps([found, self.weights]).encode() + (b"" if self.groups is None else self.groups.tobytes())
            found["selection_weights_sha256"] = hashlib.sha256(drawn).hexdigest()
        return found

    @property
    def kept_sha256(self) -> str:
        """The same for two selections that keep the same classes, or the same records, and draw alike from them."""
        return list(self.kept_hashes().values())[-1]

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the JSON file, and ``<path>.indices.npy`` for sample-level selections; both atomically."""
        path = Path(path)
        body = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("records", "groups")}
        if not self.weights:
            del body["weights"]
        if self.records is not None:
            table = self.records if self.groups is None else np.stack([self.records, self.groups])
            data = npy_bytes(table.astype("<i8"))
            body["records_sha256"] = hashlib.sha256(data).hexdigest()
            write_atomically(validation.indices_path(path), data)
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
        version = body.get("schema") if isinstance(body, dict) else None
        if type(version) is not int or version not in (SCHEMA, WEIGHTED):
            raise SelectionError(
                f"{path}: selection schema {version!r}, but only {SCHEMA} and {WEIGHTED} are known. Is it from a newer version?"
            )
        if ("weights" in body) != (version == WEIGHTED):
            raise SelectionError(f"{path}: not a selection of schema {version} (only those of schema {WEIGHTED} have weights)")
        digest = body.pop("records_sha256", None)
        try:
            selection = Selection(**body)
        except TypeError as error:
            raise SelectionError(f"{path}: not a selection of schema {version} ({error})") from None
        problem = validation.problem(selection, single_records=digest is not None)
        if problem:
            raise SelectionError(f"{path}: {problem}")
        if not says_class_names(selection.source):
            from dp4tl_fast.common import cli

            cli.message(f"note: {path} is from an earlier version: class names are not compared")
        return selection if digest is None else validation.with_records(path, digest, selection)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: all but the records and their groups."""
        return {k: v for k, v in asdict(replace(self, records=None, groups=None)).items() if k not in ("records", "groups")}


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
