"""Records that a run leaves out, as they cannot be decoded: counted over all processes, kept by checkpoints, listed in a file."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dp4tl_fast.common import cli
from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import TrainingError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.training.ranks import gather_objects, rank

FILE = "bad_records.csv"
NAMED = 10  # in a message
COLUMNS = ("record", "class", "class_name", "file", "why")
Known: TypeAlias = "dict[tuple[str, int], tuple[int, int, str, str, str]]"  # COLUMNS by what the file serves as, and record


@dataclass(kw_only=True)
class BadRecordsConfig:
    """What to do about records that cannot be decoded.

    Args:
        on_bad_record: What to do with a record that cannot be decoded: raise stops the run; skip leaves it out and lists it. With
            skip, training replaces it with another image of its batch, accuracy is computed on the other images, and a target
            image gets no vote.
        max_bad: With --on-bad-record skip: stop if more than this many records cannot be decoded.
    """

    on_bad_record: str = "raise"
    max_bad: int = 100

    def __post_init__(self) -> None:
        require_one_of("on_bad_record", self.on_bad_record, ("raise", "skip"))
        require(self.max_bad >= 0, "max_bad", self.max_bad, "at least 0")


class BadRecords:
    """Those of one run, in all files that it reads.

    Args:
        limit: How many there may be.
        loader: Of this process, of what is trained on; says in ``skipped`` what it left out.

    Attributes:
        known: Those of all processes so far, as of ``pooled`` or a checkpoint.
    """

    def __init__(self, limit: int, loader: Any = None) -> None:
        self._loader, self._limit = loader, limit
        self._mine: Known = {}
        self.known: Known = {}

    def note(self, part: str, loader: Any) -> None:
        """Take over what a loader has left out. ``part``: what its file serves as: train, val, test."""
        beton = loader.beton
        for record, why in getattr(loader, "skipped", []):  # features, say, are complete
            label = int(beton.labels[record])
            self._mine[part, record] = (record, label, beton.class_names[label], str(beton.path), why)

    def _noted(self) -> Known:
        if self._loader is not None:
            self.note("train", self._loader)
        return self._mine

    def too_many(self) -> bool:
        """As far as this process knows."""
        return len(self.known.keys() | self._noted().keys()) > self._limit

    def pooled(self) -> Known:
        """Those of all processes, the same on each. Called on every rank."""
        for mine in gather_objects(self._noted()):
            self.add(mine)
        return self.known

    def add(self, others: Known) -> None:
        """Know of these, too."""
        self.known = dict(sorted((self.known | others).items()))

    def of(self, part: str, records: np.ndarray) -> np.ndarray:
        """Which of these ``[n]`` records are among them: bool ``[n]``."""
        return np.isin(records, [record for known, record in self.known if known == part])

    def check(self, where: Path | str) -> None:
        """After ``pooled``, on every rank.

        Raises:
            TrainingError: There are more than ``limit``.
        """
        if len(self.known) > self._limit:
            first = next(iter(self.known.values()))[-1]
            listed = f"{FILE} lists them; " if (Path(where) / FILE).exists() else ""
            raise TrainingError(
                f"{where}: {len(self.known)} records cannot be decoded, more than `max_bad={self._limit}`. {listed}the first: "
                f"{first}"
            )

    def write(self, out: Path) -> None:
        """``bad_records.csv``: record, class, its name, the file and why. None where there are none."""
        if not self.known:
            (out / FILE).unlink(missing_ok=True)
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *self.known.values()])
        write_atomically(out / FILE, text.getvalue())

    def tell(self) -> None:
        """Name them, the first of many, where there are any."""
        if self.known and rank() == 0:
            named = [f"{path}: {record} (class {label}, {name!r})" for record, label, name, path, _ in self.known.values()]
            more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
            cli.message(f"note: {len(named)} records cannot be decoded and are left out: {', '.join(named[:NAMED])}{more}")
