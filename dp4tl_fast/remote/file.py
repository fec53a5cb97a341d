"""A file behind a URL, opened: a local file as long as it, of which nothing may be read before it was fetched."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dp4tl_fast.common.files import partial_path
from dp4tl_fast.remote.arrivals import CONNECTIONS, PIECE
from dp4tl_fast.remote.background import Background
from dp4tl_fast.remote.cache import Cache
from dp4tl_fast.remote.store import FIRST, Store
from dp4tl_fast.remote.url import Url


class RemoteFile:
    """The version of the object that is there now, in the cache.

    Raises:
        BetonError: It cannot be read; the message says why.
        UsageError: obstore is not installed, or the cache cannot be written.
    """

    def __init__(self, url: Url, cache_dir: str | Path, cache_limit: str | int) -> None:
        self.url = url
        cache = Cache.of(cache_dir, cache_limit)
        self.store = Store(url)
        self.background = Background(CONNECTIONS)
        version, self._first = self.background.run(self.store.first)
        self.entry = cache.entry(url, version)
        self._fd = -1  # while it is opened

    @property
    def path(self) -> Path:
        """The local file."""
        return self.entry.path

    def descriptor(self) -> int:
        """To write to the local file; closed with this object."""
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        weakref.finalize(self, os.close, fd)
        return fd

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Within, ``bring`` fetches tables, for one process on the machine; the others find them there."""
        with self.entry.opening() as self._fd:
            if not self.entry.opened:
                self.entry.cache.write(self._fd, self._first, 0)
            yield

    def bring(self, start: int, stop: int) -> None:
        """Have these bytes of the local file, of a table, before they are read."""
        start = max(start, min(FIRST, stop))
        if self.entry.opened or start >= stop:
            return
        pieces = [(at, min(at + PIECE, stop)) for at in range(start, stop, PIECE)]
        requests = [self.background.start(self._bring, *piece) for piece in pieces]
        try:
            for request in requests:
                request.result()
        finally:
            for request in requests:
                request.cancel()

    def _bring(self, at: int, stop: int) -> None:
        for part in self.store.read(self.entry.version, at, stop):
            self.entry.cache.write(self._fd, part, at)
            at += len(part)

    def bring_sidecars(self, files: Mapping[str, Path]) -> None:
        """Have what lies beside the object now, by name, in these local files. Where there is the first, it is all."""
        known, found = self.entry.sidecars, {}
        for name, to in files.items():
            partial = partial_path(to)
            with self.entry.cache.errors():
                etag = self.background.run(self.store.beside, name, known.get(name, "") if to.exists() else "", partial)
                if etag is None:
                    to.unlink(missing_ok=True)
                    continue
                if partial.exists():
                    partial.replace(to)
            found[name] = etag
            if len(found) == 1 and name == next(iter(files)):
                break
        self.entry.sidecars = found
