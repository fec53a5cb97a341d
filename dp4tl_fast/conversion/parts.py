"""Parts that several machines make for one process: shards in a folder beside OUT, which goes away once they are joined.

``.x.beton.parts`` holds the shards of ``x.beton`` and what they are shards of. It must lie where all machines see it.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.common.lock import LOCK, Owner
from dp4tl_fast.conversion.shards import shard_path

# A part is small: little is lost with its machine, and all machines end at about the same time. Their number depends on the source
# alone, so that a run goes on with the parts of an earlier one on any cluster.
PART_IMAGES, PART_BYTES, MOST_PARTS = 5000, 1 << 30, 512
WHOLE = "conversion.json"


@dataclass(frozen=True, slots=True)
class Parts:
    """The folder of parts.

    Attributes:
        out: The file that they are joined to.
        count: Number of parts.
        mark: A file with a name that was never there before: a machine that finds it sees the folder. Once it has gone, no more
            parts are made.
    """

    out: Path
    count: int
    mark: Path

    def path(self, part: int) -> Path:
        return shard_path(self.mark.with_name(self.out.name), part, self.count)

    def bytes(self) -> int:
        """What is there takes on the disk."""
        return sum(path.stat().st_blocks * 512 for path in self.mark.parent.iterdir())

    def remove(self) -> None:
        _clear(self.mark.parent)


def folder_of(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.parts")


def count_of(sizes: np.ndarray) -> int:
    """How many parts a source is converted in. ``sizes``: bytes of its images, int64 ``[n]``."""
    return min(MOST_PARTS, max(1, -(-len(sizes) // PART_IMAGES), -(-int(sizes.sum()) // PART_BYTES)))


@contextmanager
def open_parts(out: Path, identity: dict[str, Any], count: int, must_resume: bool) -> Iterator[Parts]:
    """The folder, owned by this process: with the parts of an interrupted run of this conversion, or empty.

    Raises:
        UsageError: Another process owns it; or it must resume, but what is there belongs to another conversion.
    """
    folder = folder_of(out)
    with Owner(folder, "conversion"):
        record, whole = folder / WHOLE, json.dumps({"identity": identity, "parts": count}, sort_keys=True).encode()
        if not record.exists() or record.read_bytes() != whole:
            if must_resume and record.exists():
                raise UsageError(
                    f"{folder}: these parts were made from other input or flags. "
                    "Give the same ones again, or drop `resume` to start over"
                )
            _clear(folder)
            write_atomically(record, whole)
        parts = Parts(out, count, folder / f".seen-{secrets.token_hex(8)}")
        try:
            parts.mark.touch()
            yield parts
        finally:
            for mark in folder.glob(".seen-*"):  # those of killed runs, too
                mark.unlink(missing_ok=True)
            if {path.name for path in folder.iterdir()} <= {LOCK, WHOLE}:
                record.unlink(missing_ok=True)  # nothing was made: the folder goes, too
    with suppress(OSError):  # there is something to go on with
        folder.rmdir()


def _clear(folder: Path) -> None:
    """Remove all but the owner's lock, and what cannot be removed: NFS keeps files that a process has still open."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            with suppress(OSError):
                path.unlink()
