"""Write ``.beton`` files: payloads in order, pages filled one after the other, tables last, then sync and rename.

The bytes are a function of the records, their order and ``capacity`` alone: not of how they were batched or by whom.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton.checksum import crc32
from dp4tl_fast.beton.sidecars import Contents, put_in_place, sidecar, stamp, write_partial
from dp4tl_fast.common.errors import BetonError, InUseError, UsageError
from dp4tl_fast.common.files import commit, naming, partial_path, suppress_no_locks, through_links, write_at
from dp4tl_fast.common.lock import Owner

FIELDS = (("image", fmt.TYPE_RGB), ("label", fmt.TYPE_INT), ("index", fmt.TYPE_INT))
ROW = fmt.metadata_dtype([type_id for _, type_id in FIELDS])
WRITEV_BUFFERS = 1024  # Linux's limit for one call


class BetonWriter:
    """Append records to ``OUT.beton``; the file appears under its name only when it is complete.

    Args:
        path: Final path. Written as ``.<name>.partial`` beside it, renamed by ``close``; removed on an error.
        capacity: Upper bound on the number of records: the space reserved for the metadata table.
        page_size: Bytes, a power of two. It doubles when a record needs more: a record that straddles no small page
            straddles no larger one, so what is written stays valid.
        resume: Leave what an interrupted writer wrote, for ``restore``.

    Use it as a context manager.
    """

    def __init__(
        self, path: str | Path, capacity: int, page_size: int = fmt.DEFAULT_PAGE_SIZE, *, resume: bool = False
    ) -> None:
        self.path = through_links(Path(path))
        self.partial = partial_path(self.path)
        if page_size & (page_size - 1) or not fmt.MIN_PAGE_SIZE <= page_size <= fmt.MAX_PAGE_SIZE:
            rule = f"a power of two from {fmt.MIN_PAGE_SIZE} to {fmt.MAX_PAGE_SIZE}"
            raise BetonError(f"page size {page_size} is not {rule}")
        self.page_size = page_size
        self.metadata = np.zeros(capacity, ROW)
        self.sizes = np.zeros(capacity, np.int64)
        self.count = 0
        self._table_start = 24 + fmt.FIELD.itemsize * len(FIELDS)
        self.position = fmt.round_up(self._table_start + self.metadata.nbytes, page_size)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._owner: Owner | None = None
        self.fd, locked = self._open()
        if not locked:
            self._own()
        if not resume:
            os.ftruncate(self.fd, 0)

    def _open(self) -> tuple[int, bool]:
        """The partial file, and whether it is locked, as the file system has locks. What another process renamed or removed
        between opening and locking is not it."""
        for _ in range(100):
            fd, ours, locked = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), False, False
            try:
                with naming(self.partial), suppress_no_locks():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with its process, however that ends
                    locked = True
                with suppress(FileNotFoundError):
                    ours = os.path.samestat(os.fstat(fd), self.partial.stat())
            except BlockingIOError:
                break
            finally:
                if not ours:
                    os.close(fd)
            if ours:
                return fd, locked
        raise InUseError(f"{self.path}: another process is writing it. Wait for it, or stop it")

    def _own(self) -> None:
        """Say in a file beside it who writes: in place of ``flock``."""
        owner = Owner(self.path, "writing", self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._owner = owner.__enter__()
        except UsageError as error:
            self.release()
            raise InUseError(str(error)) from None

    def append(self, payload: bytes | memoryview, mode: int, width: int, height: int, label: int, index: int) -> int:
        """Write one record and return its number. ``mode`` is ``format.MODE_JPEG`` or ``MODE_RAW`` (RGB rows)."""
        self.append_many([payload], *(np.array([v]) for v in (mode, width, height, label, index)))
        return self.count - 1

    def append_many(
        self,
        payloads: Sequence[bytes | memoryview],
        mode: np.ndarray,
        width: np.ndarray,
        height: np.ndarray,
        label: np.ndarray,
        index: np.ndarray,
    ) -> np.ndarray:
        """Write records in order; the arrays are integers ``[n]``. Returns their rows of the metadata table.

        Raises:
            BetonError: An image is 0 or more than 65,535 pixels on a side, a raw payload has the wrong size, or the
                capacity is exceeded. Nothing of these records is written then.
        """
        n = len(payloads)
        sizes = np.fromiter(map(len, payloads), np.int64, n)
        self._check(n, sizes, mode, width, height)
        pointers, buffers = self._place(payloads, sizes.tolist())
        rows = self.metadata[self.count : self.count + n]
        image = rows["f0"]
        image["mode"], image["width"], image["height"], image["data_ptr"] = mode, width, height, pointers
        rows["f1"], rows["f2"] = label, index
        self.sizes[self.count : self.count + n] = sizes
        self._write(self.position, buffers)
        self.position += sum(map(len, buffers))
        self.count += n
        return rows

    def restore(self, rows: np.ndarray, sizes: np.ndarray) -> None:
        """Take over records that an interrupted writer of the same file wrote: metadata rows and sizes, ``[n]``."""
        n = self.count + len(rows)
        self.metadata[self.count : n], self.sizes[self.count : n], self.count = rows, sizes, n
        if len(rows):
            self.position = int(rows["f0"]["data_ptr"][-1]) + int(sizes[-1])
            self.page_size = max(self.page_size, fmt.page_size_for(int(sizes.max())))

    def drop_the_rest(self) -> None:
        """Cut the file behind the last record: what an interrupted writer left there is not known to be whole."""
        os.ftruncate(self.fd, self.position)

    def sync(self) -> int:
        """Wait until all records are on the disk; returns the position up to which they are."""
        position = self.position  # before: another thread may go on writing
        with naming(self.path):
            os.fdatasync(self.fd)
        return position

    def _check(self, n: int, sizes: np.ndarray, mode: np.ndarray, width: np.ndarray, height: np.ndarray) -> None:
        if self.count + n > len(self.metadata):
            raise BetonError(f"{self.path}: {self.count + n} records, but room was reserved for {len(self.metadata)}")
        bad = (np.minimum(width, height) < 1) | (np.maximum(width, height) > fmt.MAX_SIDE)
        if bad.any():
            i = int(bad.argmax())
            raise BetonError(
                f"an image of {width[i]} x {height[i]} pixels cannot be stored: sides go from 1 to {fmt.MAX_SIDE}"
            )
        bad = (mode == fmt.MODE_RAW) & (sizes != width.astype(np.int64) * height * 3)
        if bad.any():
            i = int(bad.argmax())
            need = int(width[i]) * int(height[i]) * 3
            raise BetonError(f"a raw image of {width[i]} x {height[i]} needs {need} bytes, not {sizes[i]}")
        if n and sizes.max() > fmt.MAX_PAGE_SIZE:
            raise BetonError(f"a record of {sizes.max()} bytes exceeds the largest page, {fmt.MAX_PAGE_SIZE} bytes")

    def _place(
        self, payloads: Sequence[bytes | memoryview], sizes: list[int]
    ) -> tuple[list[int], list[bytes | memoryview]]:
        """Pointers of the records, and what to write from here on: payloads and padding."""
        position, page = self.position, self.page_size
        pointers: list[int] = []
        buffers: list[bytes | memoryview] = []
        for payload, size in zip(payloads, sizes, strict=True):
            while size > page:
                page *= 2
            room = -position % page
            if size > room and room:  # never straddle a page
                buffers.append(bytes(room))
                position += room
            pointers.append(position)
            buffers.append(payload)
            position += size
        self.page_size = page
        return pointers, buffers

    def _write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        with naming(self.path):
            for first in range(0, len(buffers), WRITEV_BUFFERS):
                part = buffers[first : first + WRITEV_BUFFERS]
                size = sum(map(len, part))
                written = os.pwritev(self.fd, part, offset)
                if written < size:  # interrupted or nearly full: the plain loop finishes it or gets the error
                    write_at(self.fd, memoryview(b"".join(part))[written:], offset + written)
                offset += size

    def close(self, contents: Contents | None = None) -> None:
        """Write the tables and the sidecar, sync, rename both. Without ``contents`` there is no sidecar afterwards."""
        end = fmt.round_up(self.position, self.page_size)
        rows = self.metadata[: self.count]
        allocations = np.empty(self.count, fmt.ALLOCATION)
        allocations["sample_id"], allocations["ptr"] = np.arange(self.count), rows["f0"]["data_ptr"]
        allocations["size"] = self.sizes[: self.count]
        header = np.zeros(1, fmt.HEADER)
        header[0] = (fmt.VERSION, len(FIELDS), self.page_size, self.count, end)
        fields = np.zeros(len(FIELDS), fmt.FIELD)
        for row, (name, type_id) in zip(fields, FIELDS, strict=True):
            row["type_id"] = type_id
            row["name"][: len(name)] = list(name.encode())
        tables = header.tobytes() + fields.tobytes() + rows.tobytes()
        with naming(self.path):
            os.ftruncate(self.fd, end)
            self._write(end, [allocations.tobytes()])
            self._write(0, [tables])
            os.fsync(self.fd)
        if contents is None:
            sidecar(self.path).unlink(missing_ok=True)
        else:
            write_partial(self.path, stamp(end + allocations.nbytes, crc32(tables)), contents)
            put_in_place(self.path)
        commit(self.partial, self.path)  # still locked
        self.release()

    def abandon(self) -> None:
        """Remove the unfinished file."""
        if self.fd >= 0:
            self.partial.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Close the file as it is: unfinished, for a later ``restore``, unless ``close`` was called before."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._owner is not None:
            self._owner.__exit__(None, None, None)
            self._owner = None

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.abandon()
