"""Arrays that are computed once and kept in memory-mapped files for the next method, ratio or process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import commit, partial_path, suppress_no_locks, write_atomically
from dp4tl_fast.training.ranks import rank, world_size


@dataclass(frozen=True)
class Stored:
    array: np.ndarray  # mapped copy-on-write: the file never changes
    saved: float  # seconds that another run spent on it; 0 if it was computed now


Waiting = Callable[[], AbstractContextManager[None]]  # entered while another run computes the same: no cost of this one


def shared(
    path: Path | None,
    shape: tuple[int, ...],
    dtype: np.dtype,
    compute: Callable[[np.ndarray], None],
    waiting: Waiting = nullcontext,
) -> Stored:
    """``cached`` for all processes of torchrun together, each of which returns the whole array.

    ``compute`` fills this process's part of an array of zeros; the parts are added. The first process keeps the file.
    """
    if world_size() == 1:
        return cached(path, shape, dtype, compute, waiting=waiting)
    found = _open(path, shape, dtype) if path is not None and rank() == 0 else None
    hit = torch.tensor([0.0 if found is None else 1.0, 0.0 if found is None else found.saved], dtype=torch.float64)
    dist.broadcast(hit, 0)
    array = np.zeros(shape, dtype) if found is None else np.array(found.array)
    start = time.perf_counter()
    if not hit[0]:
        compute(array)
    dist.all_reduce(torch.from_numpy(array))
    if not hit[0] and rank() == 0 and path is not None:
        cached(path, shape, dtype, lambda out: np.copyto(out, array), start)
    return Stored(array, float(hit[1]))


def cached(
    path: Path | None,
    shape: tuple[int, ...],
    dtype: np.dtype,
    compute: Callable[[np.ndarray], None],
    start: float | None = None,
    waiting: Waiting = nullcontext,
) -> Stored:
    """An array that is computed once: ``compute`` fills it, unless ``path`` already holds it.

    What it cost is counted from ``start`` (of ``time.perf_counter``), where computing began before, and without the wait.

    The file is written under a temporary name, synced and renamed, so that one that is there is complete. Processes that
    want the same array at the same time wait for the first (the kernel drops the lock of one that dies); on a file system without
    locks each computes it. A file that is not such an array (a damaged disk) is computed again. A folder that may only be read is
    read; what it lacks is computed and not kept.
    """
    if path is None:
        return _unkept(shape, dtype, compute)
    found = _open(path, shape, dtype)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_file(path.with_suffix(".lock"))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        cli.message(f"note: {path.parent} is read-only ({error.strerror}): {path.name} is computed but not kept")
        return _unkept(shape, dtype, compute)
    with _locked(lock, waiting) as alone:
        start = time.perf_counter() if start is None else start
        found = _open(path, shape, dtype)
        if found is not None:
            return found
        partial = partial_path(path if alone else path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}"))
        try:
            mapped = _allocate(partial, shape, dtype)
            compute(mapped)
            mapped.flush()
        except PermissionError:
            cli.message(f"note: {path.parent} is read-only: {path.name} is computed but not kept")
            return _unkept(shape, dtype, compute)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        del mapped
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        try:
            write_atomically(_seconds_path(path), json.dumps({"seconds": time.perf_counter() - start}))
            commit(partial, path)
        except PermissionError:  # another user's, in a folder where only its owner may replace a file
            array = np.load(partial, mmap_mode="c", allow_pickle=False)  # stays while it is mapped
            for left in (partial, partial_path(_seconds_path(path))):
                left.unlink(missing_ok=True)
            cli.message(f"note: {path} belongs to another user and cannot be replaced: it is computed but not kept")
            return Stored(array, 0.0)
        found = _open(path, shape, dtype)
        assert found is not None  # it was just written under the lock
        return Stored(found.array, 0.0)


def _unkept(shape: tuple[int, ...], dtype: np.dtype, compute: Callable[[np.ndarray], None]) -> Stored:
    array: np.ndarray = np.empty(shape, dtype)
    compute(array)
    return Stored(array, 0.0)


def _allocate(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A new mapped array whose bytes are there: a full disk is an error here, and not a killed process later on."""
    try:
        mapped = np.lib.format.open_memmap(path, "w+", dtype, shape)
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except PermissionError:
        raise
    except OSError as error:
        size = int(np.prod(shape)) * dtype.itemsize / 1e6
        raise UsageError(
            f"`cache={path.parent}`: cannot hold {size:,.1f} MB ({error.strerror}). Give another folder, or none"
        ) from None
    return mapped


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Stored | None:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        seconds = float(json.loads(_seconds_path(path).read_text())["seconds"])
    except FileNotFoundError:
        return None
    except PermissionError:
        cli.message(f"note: {path} belongs to another user and cannot be read")
        return None
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        cli.message(f"{path}: damaged ({error}); computing it again")
        return None
    if array.shape != shape or array.dtype != dtype:
        cli.message(f"{path}: holds {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}; computing it again")
        return None
    return Stored(array, seconds)


def _seconds_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _lock_file(path: Path) -> int:
    """The lock's file, which stays, empty, for the next; another user's may be locked, too, and not written."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)


@contextmanager
def _locked(fd: int, waiting: Waiting) -> Iterator[bool]:
    """Hold an exclusive lock on this file, and close it. Yields whether there is such a thing on this file system."""
    alone = False
    try:
        with suppress_no_locks():
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with waiting():
                    fcntl.flock(fd, fcntl.LOCK_EX)
            alone = True
        yield alone
    finally:
        os.close(fd)
