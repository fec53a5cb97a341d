"""Records that a run leaves out, as they cannot be decoded: counted over all processes, kept by checkpoints, listed in a file."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import TrainingError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.training.ranks import gather_objects

FILE = "bad_records.csv"


@dataclass(kw_only=True)
class BadRecordsConfig:
    """What to do about records that cannot be decoded.

    Args:
        on_bad_record: raise stops at a record that cannot be decoded; skip leaves it out and lists it: training puts another
            image of its batch in its place, a target's image has no vote.
        max_bad: Under skip: stop when more records than this cannot be decoded.
    """

    on_bad_record: str = "raise"
    max_bad: int = 100

    def __post_init__(self) -> None:
        require_one_of("on_bad_record", self.on_bad_record, ("raise", "skip"))
        require(self.max_bad >= 0, "max_bad", self.max_bad, "at least 0")


class BadRecords:
    """Those of one run.

    Args:
        loader: Of this process; says in ``skipped`` what it left out.
        limit: How many there may be.

    Attributes:
        known: Those of all processes so far, as of ``pooled`` or a checkpoint: reason by record.
    """

    def __init__(self, loader: Any, limit: int) -> None:
        self._loader, self._limit = loader, limit
        self.known: dict[int, str] = {}

    def too_many(self) -> bool:
        """As far as this process knows."""
        skipped = self._skipped()
        return len(skipped) > 0 and len(self.known.keys() | {record for record, _ in skipped}) > self._limit

    def _skipped(self) -> list[tuple[int, str]]:
        return getattr(self._loader, "skipped", [])  # features, say, are complete

    def pooled(self) -> dict[int, str]:
        """Those of all processes, the same on each, by record. Called on every rank."""
        for mine in gather_objects(dict(self._skipped())):
            self.known |= mine
        self.known = dict(sorted(self.known.items()))
        return self.known

    def check(self, out: Path) -> None:
        """After ``pooled``, on every rank.

        Raises:
            TrainingError: There are more than ``limit``.
        """
        if len(self.known) > self._limit:
            first = next(iter(self.known.values()))
            raise TrainingError(
                f"{out}: {len(self.known)} records cannot be decoded, more than `max_bad={self._limit}`. {FILE} lists them; "
                f"the first: {first}"
            )

    def write(self, out: Path) -> None:
        """``bad_records.csv``: record, class, its name, the file and why. Nothing where there are none."""
        if not self.known:
            return
        text, beton = io.StringIO(), self._loader.beton
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("record", "class", "class_name", "file", "why"))
        for record, why in self.known.items():
            label = int(beton.labels[record])
            rows.writerow((record, label, beton.class_names[label], beton.path, why))
        write_atomically(out / FILE, text.getvalue())
