"""One conversion from a source to a .beton file: written chunk by chunk, resumable, with its sidecars.

Beside ``x.beton`` it leaves ``x.info.zip`` (class names, checksums, what was converted and how, what is not stored byte
for byte and why). While it runs there are ``.x.beton.partial`` and ``.x.beton.journal``.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dp4tl_fast.beton.reader import Beton
from dp4tl_fast.beton.sidecars import AuditRow, Contents, info
from dp4tl_fast.beton.writer import BetonWriter
from dp4tl_fast.common.errors import BetonError, UsageError
from dp4tl_fast.common.files import partial_path
from dp4tl_fast.conversion.images import ImageRule
from dp4tl_fast.conversion.journal import Frame, Journal, journal_path, payloads_are_intact
from dp4tl_fast.conversion.listing import left_out
from dp4tl_fast.conversion.pipeline import converted
from dp4tl_fast.sources.base import Source

SYNC_BYTES = 32 << 20  # synced in the background each time so much was written; kill -9 costs only the chunks in flight


@dataclass(kw_only=True)
class Conversion:
    """Convert the samples ``order`` (listing positions, int64 ``[n]``) of ``source`` to ``out``.

    Attributes:
        identity: All that the bytes of the output depend on. A journal with another identity is not resumed.
        must_resume: Refuse to discard the progress of another conversion to the same file.
        progress: Called with (samples, source bytes) after every chunk.
        resumed: Samples that an interrupted run had finished.
    """

    source: Source
    order: np.ndarray
    rule: ImageRule
    out: Path
    identity: dict[str, Any]
    workers: int
    skip: bool
    must_resume: bool
    progress: Callable[[int, int], None]
    resumed: int = 0
    _checksums: list[np.ndarray] = field(default_factory=list)
    _changed: Counter[str] = field(default_factory=Counter)  # images not stored byte for byte, by reason
    _skipped: int = 0
    _done: int = 0
    _restored: bool = False  # whether it is known what an interrupted run had finished

    def run(self) -> dict[str, Any]:
        """Convert what is not yet done, and put the file in place.

        Raises:
            SourceError: A bad image; finished chunks are kept for a later run.
            BetonError: The disk is full, or another process writes the same file.
            UsageError: It must resume, but what is there is the start of another conversion.
        """
        journal = Journal(journal_path(self.out))
        if self.must_resume and journal.is_of_another(self.identity):
            raise UsageError(
                f"{self.out}: the unfinished file was made from other input or flags. "
                "Give the same ones again, or drop `resume` to start over"
            )
        with BetonWriter(self.out, len(self.order), resume=True) as writer:
            try:
                self._restore(writer, journal)
                self._convert(writer, journal)
                return self._finish(writer, journal)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise BetonError(
                    f"{self.out}: {error.strerror} after {self._done} of {len(self.order)} images. "
                    "Free some space and run the same command again: it continues from there"
                ) from None
            finally:
                journal.close()
                if self._done or not self._restored:
                    writer.release()  # for the next run; else the writer removes the empty file
                else:
                    journal.remove()

    def _restore(self, writer: BetonWriter, journal: Journal) -> None:
        """Take over what an interrupted run of this conversion has finished."""
        frames = journal.frames(self.identity)
        if frames is None:
            self._restored = True
            journal.start(self.identity)  # first: another conversion's journal must not outlive its payloads
            writer.drop_the_rest()
            return
        intact = 0
        synced = min(max((frame.synced for frame in frames), default=0), os.fstat(writer.fd).st_size)
        for frame in journal.frames(self.identity) or ():
            if not self._trusted(writer, frame, synced):
                break
            writer.restore(frame.rows, frame.sizes)
            self._count(frame)
            intact += 1
        journal.go_on(intact)
        writer.drop_the_rest()
        self._restored = True
        self.resumed = self._done
        self.progress(self._done, 0)

    @staticmethod
    def _trusted(writer: BetonWriter, frame: Frame, synced: int) -> bool:
        end = int(frame.rows["f0"]["data_ptr"][-1] + frame.sizes[-1]) if len(frame.rows) else 0
        return end <= synced or payloads_are_intact(writer.fd, frame)

    def _convert(self, writer: BetonWriter, journal: Journal) -> None:
        rest = self.order[self._done :]
        with BackgroundSync(writer) as syncer:
            for chunk in converted(self.source, rest, self.rule, workers=self.workers, skip=self.skip):
                audit = [(i, k if k < 0 else writer.count + k, what) for i, k, what in chunk.notes]
                mode, width, height = (chunk.column(name) for name in ("mode", "width", "height"))
                payloads = [record.payload for record in chunk.records]
                rows = writer.append_many(payloads, mode, width, height, self.source.labels[chunk.index], chunk.index)
                sizes = writer.sizes[writer.count - len(rows) : writer.count]
                frame = Frame(len(chunk.positions), syncer.position(), rows, sizes, chunk.checksums, audit)
                journal.append(frame)
                self._count(frame)
                self.progress(len(chunk.positions), int(self.source.sizes[chunk.positions].sum()))

    def _count(self, frame: Frame) -> None:
        self._done += frame.consumed
        self._checksums.append(frame.checksums)
        for _, record, what in frame.audit:
            if record < 0:
                self._skipped += 1
            else:
                self._changed[re.sub(r" from \d+x\d+| \(.*\)", "", what)] += 1

    def _finish(self, writer: BetonWriter, journal: Journal) -> dict[str, Any]:
        journal.close()
        if writer.count == 0 and "shard" not in self.identity:
            self._done = 0  # nothing to go on from
            raise nothing_stored(self.out, len(self.order))
        classes = self.source.class_names
        summary = {
            "samples": writer.count,
            "classes": len(classes),
            "listed": len(self.order),
            "byte_for_byte": len(self.order) - self._changed.total() - self._skipped,
            "changed": dict(sorted(self._changed.items())),
            "skipped": self._skipped,
            "left_out": left_out(self.source),
        }
        made = info(self.identity, summary)
        audit = self._audit(journal)
        writer.close(Contents(class_names=classes, checksums=self._checksums, info=made, audit=audit))
        journal.remove()
        return summary

    def _audit(self, journal: Journal) -> Iterator[AuditRow]:
        """The audit table: what was passed over when the source was listed, then images, streamed from the journal."""
        for name, why in self.source.left_out:
            yield "", "", name, f"left out: {why}"
        for frame in journal.frames(self.identity) or ():
            for i, record, what in frame.audit:
                yield i, record if record >= 0 else "", self.source.name(i), what


class BackgroundSync:
    """Syncs payloads to the disk while others are being converted, so that little is left to sync at the end."""

    def __init__(self, writer: BetonWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dp4tl-sync")
        self._synced = 0
        self._running: Future[int] | None = None

    def position(self) -> int:
        """Up to where payloads are on the disk. Starts another sync when enough has been written since the last."""
        if self._running is not None and self._running.done():
            self._synced, self._running = self._running.result(), None
        if self._running is None and self._writer.position - self._synced >= SYNC_BYTES:
            self._running = self._pool.submit(self._writer.sync)
        return self._synced

    def __enter__(self) -> BackgroundSync:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Wait for a sync in flight. Its error is raised here: the kernel reports it once, and no later sync does again."""
        self._pool.shutdown()
        if kind is None and self._running is not None:
            self._running.result()


def nothing_stored(out: Path, images: int) -> BetonError:
    return BetonError(f"{out}: none of {images} images could be stored. Nothing is written")


def finished(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of ``out`` when it is the complete result of this very conversion, else ``None``."""
    if not out.exists() or partial_path(out).exists():
        return None
    try:
        made = Beton(out).sidecar.info()
    except BetonError:
        return None
    if made is None or made["identity"] != json.loads(json.dumps(identity)):
        return None
    return {key: value for key, value in made.items() if key not in ("format", "identity")}


def check_space(out: Path, needed: int, taken: int = 0) -> None:
    """Refuse to start what cannot fit.

    Args:
        taken: Bytes that other files of an unfinished ``out`` take.

    Raises:
        BetonError: Less than ``needed`` bytes are free where ``out`` goes, counting what an unfinished ``out`` takes: it is
            gone on with, or makes room.
    """
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free + taken
    with suppress(FileNotFoundError):
        free += partial_path(out).stat().st_blocks * 512
    if free < needed:
        raise BetonError(
            f"{out}: about {needed / 1e9:.1f} GB are needed, but {folder} has {free / 1e9:.1f} GB free. "
            "Choose another place, or make the images smaller (`max_side`)"
        )

