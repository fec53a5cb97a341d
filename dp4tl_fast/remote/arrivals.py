"""Records of a file elsewhere, as they come: fetched in the order in which they will be read, each once per machine."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import BackendError, RecordError
from dp4tl_fast.common.machine import cores
from dp4tl_fast.remote.arriving import Arriving, local
from dp4tl_fast.remote.background import ending
from dp4tl_fast.remote.cache import try_lock, unlock

if TYPE_CHECKING:
    from dp4tl_fast.remote.file import RemoteFile

Run = tuple[int, int]  # places of records that lie one after another in the file, first and last + 1
Piece = tuple[Run, bool, "_Job"]  # one request; whether it is a long stretch that nothing waits for yet; whose it is

CONNECTIONS = min(32, 8 * cores())  # requests at a time; one of cloud storage brings 30 to 100 MB/s, a core handles a GB/s in all
IN_BULK = CONNECTIONS // 4  # of them fetch long stretches, even while batches that come soon need single records
PIECE = 8 << 20  # bytes of a request
AHEAD = 32 << 20  # bytes of the batches that are next, whose records are asked for first
TOLD = 1 << 24  # bytes from which on a fetch is told of
SYNC = 1 << 30  # bytes after which what is there is made to outlast a power failure
LOOK_S = 0.05  # how often a process that waits looks what the others have fetched


class Arrivals:
    """Which records of a file are there, and the transfer of those that are not.

    Records are known by their place in the file here, as in ``Entry.have``: a process that dies, or fetches beside this one, has
    marked exactly what is there. What one process is fetching is locked for the others.

    Args:
        file: Opened.
        starts, sizes: Of every record, in bytes: int64 ``[n]``.
        checksums: CRC-32 of every record, uint32 ``[n]``, or ``None``.
    """

    def __init__(self, file: RemoteFile, starts: np.ndarray, sizes: np.ndarray, checksums: np.ndarray | None) -> None:
        self.file = file
        self._fd = file.descriptor()
        self._record = np.argsort(starts, kind="stable")  # at each place
        self._place: np.ndarray = np.empty_like(self._record)
        self._place[self._record] = np.arange(len(starts))
        self._starts = starts[self._record]
        self._stops = self._starts + sizes[self._record]
        self._checksums = None if checksums is None else checksums[self._record]
        self._lock_fd, self.have = file.entry.have(len(starts))
        self.have[self._stops == self._starts] = 1
        self._changed = threading.Condition()  # guards all below
        self._claimed = np.zeros(len(starts), bool)  # by this process
        self._told = self._claimed.copy()  # of which it was said that they are fetched
        self._jobs: list[_Job] = []
        self._awaited: list[int] = []  # the first of the places that each waiter still lacks
        self._running = self._in_bulk = 0  # requests
        self._unsynced, self._syncing = 0, False

    def places(self, records: np.ndarray) -> np.ndarray:
        return self._place[records]

    def arriving(self, batches: Sequence[np.ndarray], others: np.ndarray | None = None) -> Arriving:
        """Fetch the records of these batches, in this order, and meanwhile ``others``, in the order of the file.

        Raises:
            UsageError: They do not fit into the cache.
        """
        wanted = [places for batch in (*batches, *([] if others is None else [others])) if len(places := self.places(batch))]
        missing: np.ndarray = np.zeros(len(self.have), bool)
        for places in wanted:
            missing[places] = True
        missing &= self.have == 0
        if not missing.any():
            return local
        sizes = self._stops - self._starts
        self.file.entry.cache.make_room(self.file.entry, int(sizes[missing].sum()))
        new = int(sizes[missing & ~self._told].sum())
        self._told |= missing
        if new >= TOLD and os.environ.get("LOCAL_RANK", "0") == "0":
            cli.message(f"{self.file.url}: fetching {new / 1e6:,.0f} MB into {self.file.entry.folder}")
        later: np.ndarray = np.zeros(0, np.int64) if others is None else self.places(others)
        job = _Job(self, batches, later)
        with self._changed:
            self._jobs.append(job)
        self.go_on()
        return job

    def go_on(self) -> None:
        """Have as many requests running as there is work for."""
        self.file.background.check()
        with self._changed:
            for job in self._jobs:
                job.try_again()
            while self._running < CONNECTIONS and (piece := self._next()):
                self._running += 1
                self.file.background.start(self._work, piece)

    def _work(self, piece: Piece | None) -> None:
        while piece:
            (first, stop), bulk, job = piece
            try:
                self._fetch(first, stop)
                self._sync(int(self._stops[stop - 1] - self._starts[first]))
            except Exception as error:
                job.failure = error  # others who want these records ask for them themselves
                self.end(job)
            with self._changed:
                self._claimed[first:stop] = False
                self._in_bulk -= bulk
                unlock(self._lock_fd, first, stop - first)
                self._changed.notify_all()
                piece = self._next()
                self._running -= piece is None

    def _next(self) -> Piece | None:
        """What to fetch next, locked."""
        with self._changed:
            if ending():
                return None
            late = [job for job in self._jobs if job.has_begun]
            order = [(job, False) for job in self._jobs] + [(job, True) for job in late]
            if self._in_bulk < IN_BULK:
                order = [(job, True) for job in late] + order
            for job, bulk in order:
                if not bulk:
                    job.look_ahead()
                run = self._take(job.bulk if bulk else job.soon, job.elsewhere_bulk if bulk else job.elsewhere)
                if run:
                    self._in_bulk += bulk
                    return run, bulk, job
        return None

    def _take(self, runs: deque[Run], elsewhere: list[Run]) -> Run | None:
        while runs:
            first, end = runs.popleft()
            missing = self.have[first:end] == 0
            free = missing & ~self._claimed[first:end]
            begin = int(free.argmax()) if free.any() else len(free)
            if missing[:begin].any():  # this process is fetching it, which may fail
                elsewhere.append((first, first + begin))
            if begin == len(free):
                continue
            first += begin
            stop = first + int(np.argmin(np.append(free[begin:], False)))
            fit = int(np.searchsorted(self._stops[first:stop], self._starts[first] + PIECE, side="right"))
            stop = min(stop, first + max(fit, 1))
            if stop < end:
                runs.appendleft((stop, end))
            if not try_lock(self._lock_fd, first, stop - first):
                elsewhere.append((first, stop))
            elif self.have[first:stop].any():  # another process had just fetched it
                unlock(self._lock_fd, first, stop - first)
                runs.appendleft((first, stop))
            else:
                self._claimed[first:stop] = True
                return first, stop
        return None

    def _fetch(self, first: int, stop: int) -> None:
        """Fetch the records at these places, and mark each when it is there."""
        failed = -1
        while first < stop:
            at, crc = int(self._starts[first]), 0
            for part in self.file.store.read(self.file.entry.version, at, int(self._stops[stop - 1])):
                first, crc, right = self._keep(first, stop, part, at, crc)
                at += len(part)
                if not right:
                    break
            if first < stop and first == failed:  # a wrong checksum: once is the network's fault, twice the file's
                record = f"{self.file.url}: record {int(self._record[first])}"
                raise RecordError(f"{record} does not match its checksum: the file is damaged. Upload it again")
            failed = first

    def _keep(self, first: int, stop: int, part: memoryview, at: int, crc: int) -> tuple[int, int, bool]:
        """Write ``part``, the bytes from ``at`` on, and mark the records that end in it.

        Returns:
            The place of the first record that is not there yet, the CRC-32 of what there is of it, and whether all was right.
        """
        self.file.entry.cache.write(self._fd, part, at)
        begun, checksums, before = 0, self._checksums, first
        while first < stop and self._stops[first] <= at + len(part):
            end = int(self._stops[first]) - at
            if checksums is not None and zlib.crc32(part[begun:end], crc) != checksums[first]:
                return first, 0, False
            self.have[first] = 1
            first, begun, crc = first + 1, end, 0
        if any(before <= place < first for place in tuple(self._awaited)):  # who waits for one looks after he has said so
            with self._changed:
                self._changed.notify_all()
        return first, zlib.crc32(part[begun:], crc) if checksums is not None else 0, True

    def _sync(self, written: int) -> None:
        """Now and then, and after the last request of many."""
        with self._changed:
            self._unsynced += written
            if self._syncing or self._unsynced < (SYNC if self._running > 1 else PIECE):
                return
            self._unsynced, self._syncing = 0, True
        try:
            self.file.entry.sync(self._fd, self.have)
        finally:
            self._syncing = False

    def wait(self, job: _Job, places: np.ndarray) -> None:
        """Return once the records at these places are there."""
        asked, missing = time.monotonic(), places
        while True:
            with self._changed:
                missing = missing[self.have[missing] == 0]
                if not len(missing):
                    return
                if job.failure is not None:
                    raise job.failure
                if job.closed:
                    raise BackendError(f"{self.file.url}: the loader was closed while it waited for records")
                first = int(missing[0])
                self._awaited.append(first)
                if not self.have[first]:
                    self._changed.wait(LOOK_S)
                self._awaited.remove(first)
            if time.monotonic() - asked >= LOOK_S:  # others may have ended, or fetched some of it
                asked = time.monotonic()
                self.go_on()

    def end(self, job: _Job) -> None:
        with self._changed:
            job.closed = True
            if job in self._jobs:
                self._jobs.remove(job)
            self._changed.notify_all()

    def runs(self, places: np.ndarray) -> list[Run]:
        """Places that are not there yet, as stretches of the file; no stretch is longer than ``PIECE`` and its last record."""
        places = np.unique(places)
        places = places[self.have[places] == 0]
        if not len(places):
            return []
        starts, stops = self._starts[places], self._stops[places]
        new = (np.diff(places, prepend=-2) != 1) | (starts != np.concatenate([[-1], stops[:-1]]))
        first = np.flatnonzero(new)
        ends = np.append(first[1:], len(places))
        return list(zip(places[first].tolist(), (places[ends - 1] + 1).tolist(), strict=True))

    def bytes_of(self, places: np.ndarray) -> int:
        return int((self._stops[places] - self._starts[places]).sum())


class _Job(Arriving):
    """What one reader wants: batches, in order, and then all else that it will."""

    complete = False

    def __init__(self, arrivals: Arrivals, batches: Sequence[np.ndarray], others: np.ndarray) -> None:
        self._arrivals, self._batches = arrivals, batches
        self.closed = False
        self.failure: Exception | None = None
        self._queued, self._position = 0, 0  # batches that were asked for; that were there when they were waited for
        self._bytes = [0]  # of the batches before each that was asked for
        self.soon: deque[Run] = deque()
        self.bulk: deque[Run] = deque(arrivals.runs(others))
        self.elsewhere: list[Run] = []  # what another job, or process, is fetching
        self.elsewhere_bulk: list[Run] = []
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # the processes of a machine begin at different places
        self.bulk.rotate(-(len(self.bulk) * int(os.environ.get("LOCAL_RANK", "0")) // max(1, ranks)))

    @property
    def has_begun(self) -> bool:
        """The first batch is there, or there is none."""
        return self._position > 0 or not self._batches or self.there(0)

    def look_ahead(self) -> None:
        """Ask for batches until those that are next have ``AHEAD`` bytes."""
        while self._queued < len(self._batches):
            if self._queued > self._position + 1 and self._bytes[self._queued] - self._bytes[self._position] >= AHEAD:
                return
            places = self._arrivals.places(self._batches[self._queued])
            self.soon.extend(self._arrivals.runs(places))
            self._bytes.append(self._bytes[-1] + self._arrivals.bytes_of(places))
            self._queued += 1

    def try_again(self) -> None:
        """What others were fetching: it is there by now, or they may have failed."""
        self.soon.extendleft(reversed(self.elsewhere))
        self.bulk.extend(self.elsewhere_bulk)
        self.elsewhere, self.elsewhere_bulk = [], []

    def there(self, i: int) -> bool:
        return bool(self._arrivals.have[self._arrivals.places(self._batches[i])].all())

    def wait(self, i: int) -> None:
        self._arrivals.wait(self, self._arrivals.places(self._batches[i]))
        self._position = max(self._position, i + 1)
        if self.bulk or self._queued < len(self._batches):
            self._arrivals.go_on()

    def close(self) -> None:
        self._arrivals.end(self)
