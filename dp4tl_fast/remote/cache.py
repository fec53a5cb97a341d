"""The folder where files from elsewhere are kept: one folder for each version of an object, shared by processes.

    KEY/NAME.beton     as long as the object, with holes where nothing was fetched yet
    KEY/NAME.info.zip  what lay beside it
    KEY/.object.json   its URL and version; there once all tables are
    KEY/.have          a byte for each record, in file order: 1 once its bytes are there and checked. Mapped by all processes
    KEY/.safe          the same as of the last sync to disk
    KEY/.boot          since when ``.have`` is right: after the machine was restarted it is ``.safe`` again
    KEY/.lock, .use    held while the object is opened, and while it is used

``KEY`` is a hash of URL and version, so that the bytes of two versions never meet.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import re
import shutil
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import UNABLE, suppress_no_locks, user_cache, write_at, write_atomically
from dp4tl_fast.remote.store import Version
from dp4tl_fast.remote.url import Url

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
BOOT = Path("/proc/sys/kernel/random/boot_id")
FORMAT = 1


@dataclass(kw_only=True)
class CacheConfig:
    """Where files behind URLs (s3://, gs://, az://, https://) are kept.

    Args:
        cache_dir: Folder that keeps what is fetched from URLs, for later epochs and runs, preferably on a local disk; the default
            is ~/.cache/dp4tl_fast.
        cache_limit: Maximum size of this folder, e.g. 500GB or 1.5TB. The least recently used files are removed first; files in use
            are never removed. Empty: no limit.
    """

    cache_dir: str = ""
    cache_limit: str = ""

    def __post_init__(self) -> None:
        _bytes_of(self.cache_limit)

    @property
    def cached(self) -> dict[str, str]:
        """Both, as ``Beton`` takes them."""
        return {"cache_dir": self.cache_dir, "cache_limit": self.cache_limit}


@dataclass(frozen=True)
class Cache:
    """The folder, and the most bytes in it (0: no limit)."""

    folder: Path
    limit: int

    @classmethod
    def of(cls, cache_dir: str | Path, cache_limit: str | int) -> Cache:
        """Raises: UsageError, the limit is no size, or the user has no home folder."""
        try:
            folder = Path(cache_dir).expanduser().absolute() if cache_dir else user_cache()
        except (OSError, RuntimeError) as error:
            raise UsageError(f"`cache_dir={cache_dir}`: there is no such folder ({error}). Give another one") from None
        return cls(folder, _bytes_of(cache_limit))

    def entry(self, url: Url, version: Version) -> Entry:
        """The folder of an object's version, in use from now on. Older versions of it that are not go."""
        key = hashlib.sha256(json.dumps([str(url), version.as_dict()]).encode()).hexdigest()[:32]
        with self.errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                folder = self.folder / key
                folder.mkdir(exist_ok=True)
                try:
                    use = os.open(folder / ".use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                except FileNotFoundError:  # removed meanwhile
                    continue
                with suppress_no_locks():
                    fcntl.flock(use, fcntl.LOCK_SH)
                if _is(use, folder / ".use"):  # and was not removed meanwhile
                    break
                os.close(use)
            os.utime(use)
        entry = Entry(self, folder, url, version, use)
        for other in self._others(folder):
            if _described(other).get("url") == str(url):
                _remove(other)
        return entry

    def make_room(self, entry: Entry, needed: int) -> None:
        """Remove what was not used for longest until ``needed`` more bytes of ``entry`` fit.

        Raises:
            UsageError: They do not fit beside what is in use.
        """
        if not self.limit or not needed:
            return
        with self.errors(), _exclusive(self.folder / ".lock"):
            sizes = {folder: _bytes_in(folder) for folder in (entry.folder, *self._others(entry.folder))}
            too_many = sum(sizes.values()) + needed - self.limit
            for folder in sorted(self._others(entry.folder), key=_last_use):
                if too_many <= 0:
                    break
                if _remove(folder):
                    too_many -= sizes[folder]
        if too_many > 0:
            raise UsageError(
                f"`cache_limit={self.limit}`: {entry.url} needs {needed} bytes more, {too_many} too many besides what is in use. "
                "Raise the limit, keep less, or give another `cache_dir`"
            )

    def _others(self, folder: Path) -> list[Path]:
        return [path for path in self.folder.iterdir() if (path / ".use").exists() and path != folder]

    def write(self, fd: int, part: bytes | memoryview, at: int) -> None:
        """To a file in it."""
        with self.errors():
            write_at(fd, part, at)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What cannot be written is told in one line."""
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"`cache_dir={self.folder}`: cannot be written ({error.strerror}). Make room, or give another folder; what was "
                "fetched is kept"
            ) from None


class Entry:
    """The folder of one version of an object, in use by this process until this object is gone.

    Attributes:
        path: The local file.
        opened: All tables are there.
        sidecars: ETags of what lay beside the object, by name.
    """

    def __init__(self, cache: Cache, folder: Path, url: Url, version: Version, use: int) -> None:
        self.cache, self.folder, self.url, self.version = cache, folder, url, version
        weakref.finalize(self, os.close, use)
        self.path = folder / (re.sub(r"[^\w.-]", "_", url.name).lstrip(".")[-200:] or "object")
        self.opened = False
        self.sidecars: dict[str, str] = {}

    @contextlib.contextmanager
    def opening(self) -> Iterator[int]:
        """One process at a time; the others find what it has fetched. Yields a descriptor to write to the local file."""
        with contextlib.ExitStack() as stack:
            with self.cache.errors():
                stack.enter_context(_exclusive(self.folder / ".lock"))
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                stack.callback(os.close, fd)
                if os.fstat(fd).st_size != self.version.size:
                    os.ftruncate(fd, self.version.size)
            before = _described(self.folder)
            now: dict[str, Any] = {"format": FORMAT, "url": str(self.url), "version": self.version.as_dict()}
            now["sidecars"] = before.get("sidecars", {})
            self.opened, self.sidecars = now == before, dict(now["sidecars"])
            yield fd
            if now["sidecars"] != self.sidecars or not self.opened:
                with self.cache.errors():
                    os.fsync(fd)
                    write_atomically(self.folder / ".object.json", json.dumps({**now, "sidecars": self.sidecars}))
            self.opened = True

    def have(self, records: int) -> tuple[int, np.ndarray]:
        """``.have``: its descriptor, for locks, and its bytes, uint8 ``[records]``, which all processes share."""
        with self.cache.errors(), _exclusive(self.folder / ".lock"):
            fd = os.open(self.folder / ".have", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, fd)
            boot = BOOT.read_text().strip() if BOOT.exists() else ""
            known = _read(self.folder / ".boot").decode(errors="replace")
            if os.fstat(fd).st_size != records or known != boot:
                safe = _read(self.folder / ".safe")
                os.ftruncate(fd, records)
                write_at(fd, safe if len(safe) == records else bytes(records), 0)  # written, not left as a hole: mapped
                # pages for which there is no room on the disk would kill the process
                write_atomically(self.folder / ".boot", boot)
            return fd, np.frombuffer(mmap.mmap(fd, records), np.uint8) if records else np.zeros(0, np.uint8)

    def sync(self, fd: int, have: np.ndarray) -> None:
        """Make what is there outlast a power failure."""
        snapshot = have.tobytes()
        with self.cache.errors():
            os.fsync(fd)
            write_atomically(self.folder / ".safe", snapshot)


def _bytes_of(cache_limit: str | int) -> int:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([a-z]*)", str(cache_limit or "0").strip().lower())
    if found is None or found[2] not in UNITS:
        raise UsageError(f"`cache_limit={cache_limit}`: must be a size, as 500GB or 1.5TB")
    return int(float(found[1]) * UNITS[found[2]])


def try_lock(fd: int, start: int, count: int) -> bool:
    """Lock bytes of an open file against other processes, without waiting; a process that ends, however, lets go of them."""
    return _range_lock(fd, fcntl.F_WRLCK, start, count)


def unlock(fd: int, start: int, count: int) -> None:
    _range_lock(fd, fcntl.F_UNLCK, start, count)


def _range_lock(fd: int, kind: int, start: int, count: int) -> bool:
    if not hasattr(fcntl, "F_OFD_SETLK"):  # macOS: two processes may fetch the same there
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqixxxx", kind, os.SEEK_SET, start, count, 0))
    except OSError as error:
        return error.errno in UNABLE  # no locks on this file system: the same
    return True


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of this file, which the system drops when a process dies; without one where there are no locks."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with suppress_no_locks():
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove(folder: Path) -> bool:
    """Remove an entry, unless it is in use (or nobody can tell)."""
    try:
        use = os.open(folder / ".use", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = folder.with_name(f".{folder.name}.{os.getpid()}.gone")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        cli.message(f"note: {folder} is removed from the cache")
        return True
    except OSError:
        return False
    finally:
        os.close(use)


def _is(fd: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def _described(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(folder / ".object.json"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("format") == FORMAT else {}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _bytes_in(folder: Path) -> int:
    """What a folder's files take on the disk: holes take nothing."""
    return sum(512 * path.stat().st_blocks for path in folder.iterdir() if path.is_file())


def _last_use(folder: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return (folder / ".use").stat().st_mtime
    return 0.0
