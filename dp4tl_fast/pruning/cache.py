"""Arrays that are computed once and kept in memory-mapped files for the next method, ratio or process."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import commit, partial_path, write_atomically
from dp4tl_fast.training.ranks import rank, world_size


@dataclass(frozen=True)
class Stored:
    array: np.ndarray  # mapped copy-on-write: the file never changes
    saved: float  # seconds that an earlier run spent on it; 0 if it was computed now


def shared(path: Path | None, shape: tuple[int, ...], dtype: np.dtype, compute: Callable[[np.ndarray], None]) -> Stored:
    """``cached`` for all processes of torchrun together, each of which returns the whole array.

    ``compute`` fills this process's part of an array of zeros; the parts are added. The first process keeps the file.
    """
    if world_size() == 1:
        return cached(path, shape, dtype, compute)
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
    path: Path | None, shape: tuple[int, ...], dtype: np.dtype, compute: Callable[[np.ndarray], None], start: float | None = None
) -> Stored:
    """An array that is computed once: ``compute`` fills it, unless ``path`` already holds it.

    What it cost is counted from ``start`` (of ``time.perf_counter``), where computing began before.

    The file is written under a temporary name, synced and renamed, so that one that is there is complete. Processes that
    want the same array at the same time wait for the first (the kernel drops the lock of one that dies). A file that is
    not such an array (a damaged disk) is computed again.
    """
    if path is None:
        array: np.ndarray = np.empty(shape, dtype)
        compute(array)
        return Stored(array, 0.0)
    start = time.perf_counter() if start is None else start
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        found = _open(path, shape, dtype)
        if found is not None:
            return found
        partial = partial_path(path)
        try:
            mapped = _allocate(partial, shape, dtype)
            compute(mapped)
            mapped.flush()
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        del mapped
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        write_atomically(_seconds_path(path), json.dumps({"seconds": time.perf_counter() - start}))
        commit(partial, path)
        found = _open(path, shape, dtype)
        assert found is not None  # it was just written under the lock
        return Stored(found.array, 0.0)


def _allocate(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A new mapped array whose bytes are there: a full disk is an error here, and not a killed process later on."""
    try:
        mapped = np.lib.format.open_memmap(path, "w+", dtype, shape)
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
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
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        cli.message(f"{path}: damaged ({error}); computing it again")
        return None
    if array.shape != shape or array.dtype != dtype:
        cli.message(f"{path}: holds {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}; computing it again")
        return None
    return Stored(array, seconds)


def _seconds_path(path: Path) -> Path:
    return path.with_suffix(".json")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on this file; it stays, empty, for the next."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
