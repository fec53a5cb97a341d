"""Read the tables of a ``.beton`` file. Nothing in the file is trusted: every count, offset and size is checked first."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import unicodedata
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton.checksum import crc32
from dp4tl_fast.beton.fingerprint import CHECKSUMS, CLASS_NAMES, RECORDS, Fingerprint
from dp4tl_fast.beton.sidecars import KINDS, Sidecar, Stamp, sidecar, stamp
from dp4tl_fast.common.content import HEAD_BYTES, what_it_is
from dp4tl_fast.common.errors import BetonError, RecordError
from dp4tl_fast.remote.arriving import Arriving, local
from dp4tl_fast.remote.url import Url, is_url

if TYPE_CHECKING:
    from dp4tl_fast.remote.arrivals import Arrivals
    from dp4tl_fast.remote.file import RemoteFile

PIECE = 1 << 16  # rows of a table at a time: what is made of them stays in the processor's cache
SAME_FOLDERS = "Convert both from folders of the same classes"


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type_id: int
    column: str  # its name in the metadata table


class Beton:
    """A read-only view of a ``.beton`` file: memory-mapped tables, no object per record.

    The file stays open: it is still read after it was renamed, replaced or removed, and a relative path after ``chdir``.
    Pickled, it is opened again by its absolute path, and must have the same records then.

    A file may lie elsewhere (``s3://``, ``gs://``, ``az://``, ``https://``): its tables are fetched when it is opened, and records
    into a local file as long as it before they are read, see ``arriving``. Loaders do so by themselves.

    Args:
        path: Of the file, or its URL.
        cache_dir, cache_limit: Where what is fetched is kept, and the most bytes there; see ``remote.CacheConfig``.

    Attributes:
        path: As it was given: for messages.
        real_path: Absolute and free of links, as of opening: for what lies beside it, and for opening it again. Of a file elsewhere
            the local one.
        sidecar: What lies beside it: class names, checksums, how it was made.
        file_size: In bytes.
        page_size: In bytes, as stored.
        num_samples: Records, as stored.
        fields: ``{name: Field}`` in file order.
        metadata: Structured array ``[num_samples]``, mapped.

    Raises:
        BetonError: The file is missing, malformed, truncated or unfinished; the message names the offending value.
    """

    def __init__(self, path: str | Path | Url, *, cache_dir: str | Path = "", cache_limit: str | int = "") -> None:
        self._cache = {"cache_dir": str(cache_dir), "cache_limit": str(cache_limit)}
        self._remote: RemoteFile | None = None
        if is_url(path):
            from dp4tl_fast.remote.file import RemoteFile  # seldom needed, and not small

            self.path: Path | Url = path if isinstance(path, Url) else Url(str(path))
            self._remote = RemoteFile(self.path, cache_dir, cache_limit)  # type: ignore[arg-type]
            self.real_path = self._remote.path
        else:
            self.path = Path(path)  # type: ignore[arg-type]
            self.real_path = self.path.resolve()
        with self._remote.opening() if self._remote else nullcontext():
            self._open()

    def _open(self) -> None:
        """Map the file, and check its tables against its size."""
        try:
            self._fd = os.open(self.real_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for ever
            weakref.finalize(self, os.close, self._fd).atexit = False  # a thread may be reading still
            self._pages = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise BetonError(f"{self.path}: no such file. Make one with `dp4tl-fast convert SRC {self.path}`") from None
        except (OSError, ValueError) as error:
            raise BetonError(f"{self.path}: cannot be read as a .beton file: {error}") from None
        self._map = np.frombuffer(self._pages, np.uint8)
        self.file_size = self._map.size
        if what := what_it_is(bytes(self._map[:HEAD_BYTES])):
            self._fail(f"is not a .beton file but {what}")
        header = self._table(0, fmt.HEADER, 1, "header")[0]
        if header["version"] != fmt.VERSION:
            self._fail(
                f"format version {header['version']}, but only version {fmt.VERSION} is known. Is it a .beton file?"
            )
        self.page_size = int(header["page_size"])
        if self.page_size < 2 or self.page_size & (self.page_size - 1):
            self._fail(f"page size {self.page_size} is not a power of two")
        self.num_samples = int(header["num_samples"])
        self._alloc_ptr = int(header["alloc_table_ptr"])
        if self._alloc_ptr == 0:
            self._fail("its writer never finished (the allocation table's pointer is 0). Write it again")
        self.fields: dict[str, Field] = {}
        for i, row in enumerate(self._table(24, fmt.FIELD, int(header["num_fields"]), "field descriptors")):
            name = bytes(row["name"]).split(b"\0")[0].decode("ascii", "replace")
            type_id = int(row["type_id"])
            if type_id not in fmt.FIELD_METADATA:
                self._fail(f"field {name!r} has type id {type_id}, whose layout is unknown")
            if name in self.fields:
                self._fail(f"two fields are named {name!r}")
            self.fields[name] = Field(name, type_id, f"f{i}")
        if not self.fields:
            self._fail("has no fields")
        row_dtype = fmt.metadata_dtype([f.type_id for f in self.fields.values()])
        table_start = 24 + fmt.FIELD.itemsize * len(self.fields)
        self.metadata = self._table(table_start, row_dtype, self.num_samples, "metadata table")
        self.data_start = table_start + row_dtype.itemsize * self.num_samples
        alloc_bytes = self.file_size - self._alloc_ptr
        if self._alloc_ptr < self.data_start or alloc_bytes < 0 or alloc_bytes % fmt.ALLOCATION.itemsize:
            self._fail(
                f"allocation table at {self._alloc_ptr} does not fit a file of {self.file_size} bytes. Is it truncated?"
            )
        if self._remote:
            self._remote.bring(self._alloc_ptr, self.file_size)
            names = (sidecar(self._remote.url.name, kind).name for kind in KINDS)
            self._remote.bring_sidecars({name: sidecar(self.real_path, kind) for name, kind in zip(names, KINDS, strict=True)})
        self.sidecar = Sidecar(self.real_path if self._remote else self.path, self._stamp)  # type: ignore[arg-type]

    def _stamp(self) -> Stamp:
        crc = crc32(self._map[: self.data_start])
        self._release()
        return stamp(self.file_size, crc)

    def _fail(self, message: str) -> None:
        raise BetonError(f"{self.path}: {message}")

    def _table(self, start: int, dtype: np.dtype, count: int, what: str) -> np.ndarray:
        stop = start + dtype.itemsize * count
        if stop > self.file_size:
            self._fail(f"{what} needs bytes {start} to {stop}, but the file ends at {self.file_size}. Is it truncated?")
        if self._remote:
            self._remote.bring(start, stop)
        return self._map[start:stop].view(dtype)

    def _release(self) -> None:
        """Give the tables' pages back to the page cache: what is needed of them has been copied."""
        if hasattr(self._pages, "madvise"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    # -- columns ------------------------------------------------------------------------------------------------------

    def column(self, name: str) -> np.ndarray:
        """The metadata column of a field, ``[num_samples]``."""
        if name not in self.fields:
            self._fail(f"has no field {name!r} (it has {', '.join(self.fields) or 'none'})")
        return self.metadata[self.fields[name].column]

    @cached_property
    def labels(self) -> np.ndarray:
        """Class id of every record, int64 ``[num_samples]``, checked to be non-negative."""
        if "label" not in self.fields or self.fields["label"].type_id != fmt.TYPE_INT:
            self._fail(f"has no integer field 'label' (it has {', '.join(self.fields) or 'none'})")
        self.check_size()
        labels = np.ascontiguousarray(self.column("label"))
        if labels.size and labels.min() < 0:
            self._fail(f"record {int(labels.argmin())} has the negative label {int(labels.min())}")
        if labels.size and labels.max() > 10_000_000:
            self._fail(
                f"record {int(labels.argmax())} has label {int(labels.max())}; above 10,000,000 it cannot be a class id"
            )
        self._release()
        return labels

    @cached_property
    def index(self) -> np.ndarray:
        """The ``index`` field, int64 ``[num_samples]``; the record number where the file has none."""
        if "index" in self.fields:
            self.check_size()
            return np.ascontiguousarray(self.column("index"))
        return np.arange(self.num_samples)

    @property
    def images(self) -> np.ndarray:
        """The image column: mode, width, height, data_ptr. Structured ``[num_samples]``."""
        if "image" not in self.fields or self.fields["image"].type_id != fmt.TYPE_RGB:
            have = ", ".join(f"{f.name} of type {f.type_id}" for f in self.fields.values()) or "none"
            self._fail(f"has no RGB image field 'image' (it has {have}). Convert its images with `dp4tl-fast convert`")
        return self.column("image")

    @cached_property
    def sizes(self) -> np.ndarray:
        """Stored bytes of every image, int64 ``[num_samples]``, each record checked to lie inside the file's pages."""
        self.check_size()
        table, ptr = self._map[self._alloc_ptr :].view(fmt.ALLOCATION), self.images["data_ptr"]
        sizes = np.full(self.num_samples, -1, np.int64)
        for part in pieces(len(table)):
            owner, own = table["sample_id"][part], ptr[part]
            if len(own) == len(owner) and (owner == np.arange(part.start, part.stop, dtype=np.uint64)).all():
                place: slice | np.ndarray = part  # as writers write it: each record's allocation at its own place
            elif (highest := int(owner.max())) < self.num_samples:
                place, own = owner, ptr[owner]
            else:
                self._fail(f"allocation table names sample {highest}, but there are only {self.num_samples}")
            is_image = table["ptr"][part] == own  # a record may own other allocations, of bytes or array fields
            if is_image.all():
                sizes[place] = table["size"][part]
            else:
                sizes[owner[is_image]] = table["size"][part][is_image]
        for part in pieces(self.num_samples):
            start, size = ptr[part].astype(np.int64), sizes[part]
            bad = (size < 0) | (start < self.data_start) | (start > self._alloc_ptr) | (size > self._alloc_ptr - start)
            if bad.any():
                i = int(bad.argmax())
                raise RecordError(
                    f"{self.path}: record {part.start + i} (class {int(self.labels[part.start + i])}) has {int(size[i])} bytes at "
                    f"{int(start[i])}, outside the file's pages ({self.data_start} to {self._alloc_ptr}). The file is corrupt"
                )
        self._release()
        return sizes

    # -- classes ------------------------------------------------------------------------------------------------------

    @cached_property
    def num_classes(self) -> int:
        """One more than the highest class id, or the class list's length where the sidecar has more."""
        return max(int(self.labels.max(initial=-1)) + 1, len(self.sidecar.class_names))

    @cached_property
    def class_counts(self) -> np.ndarray:
        """Records per class, int64 ``[num_classes]``."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @cached_property
    def class_stops(self) -> np.ndarray:
        """Records of this class and all lower ones, int64 ``[num_classes]``: where each class ends in layout ``class``."""
        return np.cumsum(self.class_counts)

    @cached_property
    def class_bytes(self) -> np.ndarray:
        """Stored image bytes per class, int64 ``[num_classes]``."""
        return np.bincount(self.labels, weights=self.sizes, minlength=self.num_classes).astype(np.int64)

    @cached_property
    def layout(self) -> str:
        """``class`` when every class is one run of records, in id order; else ``shuffled``."""
        return "class" if bool((np.diff(self.labels) >= 0).all()) else "shuffled"

    @property
    def class_names(self) -> list[str]:
        """Class names from the sidecar, or the ids as text."""
        names = self.sidecar.class_names
        return names + [str(i) for i in range(len(names), self.num_classes)]

    def checksums(self) -> np.ndarray | None:
        """The CRC-32 of every record's payload, uint32 ``[num_samples]``, read anew; ``None`` where the file has none."""
        return self.sidecar.checksums(self.num_samples)

    def check_split(self, split: Beton) -> None:
        """Raise ``BetonError`` unless ``split``, a test set say, numbers its classes as this file does, as far as both tell."""
        if split.num_classes > self.num_classes:
            split._fail(f"has {split.num_classes} classes, but {self.path} only {self.num_classes}. {SAME_FOLDERS}")
        ours, theirs = self.sidecar.class_names, split.sidecar.class_names
        for i, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            if a == b:
                continue
            if unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b):
                forms = f"{b!a}, but {self.path} calls it {a!a}: the same text in another Unicode form"
                split._fail(f"calls class {i} {forms}. Rename the folders of one of them, and convert it again")
            split._fail(f"calls class {i} {b!r}, but {self.path} calls it {a!r}. {SAME_FOLDERS}, or with `class_order={self.path}`")

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What identifies a source for a selection: see ``fingerprint.difference``. Takes 0.15 s per million records."""
        found: Fingerprint = {
            "samples": self.num_samples,
            "classes": self.num_classes,
            "labels_sha256": _sha256(self.labels),
            CLASS_NAMES: hashlib.sha256(json.dumps(self.class_names).encode()).hexdigest(),
            RECORDS: self.records_sha256,
        }
        if hashed := self._hashed_checksums():
            found[CHECKSUMS] = hashed
        return found

    def _hashed_checksums(self) -> str:
        checksums = self.checksums()
        return "" if checksums is None else hashlib.sha256(checksums.tobytes()).hexdigest()

    @cached_property
    def checksums_sha256(self) -> str:
        """As the fingerprint has it: tells images of one size apart, which ``records_sha256`` does not where they are stored raw.

        Empty where the file has no checksums, or where what lies beside its name is damaged, or another file's by now.
        """
        try:
            return self._hashed_checksums()
        except BetonError:
            return ""

    @cached_property
    def records_sha256(self) -> str:
        """Differs for other images, or the same in another order: hash of labels, ``index``, sizes and shapes.

        No image is read, so it takes about 0.1 s per million records.
        """
        self.check_size()
        return _sha256(self.labels, self.index, self.sizes, self.images["width"], self.images["height"])

    @cached_property
    def contents_sha256(self) -> str | None:
        """What ``records_sha256`` cannot tell: hash of class names in order and of every record's checksum.

        ``None`` where the file has no checksums: then it is not known.
        """
        found = self.fingerprint
        return hashlib.sha256(f"{found[CLASS_NAMES]} {found[CHECKSUMS]}".encode()).hexdigest() if CHECKSUMS in found else None

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.path if self._remote else self.real_path, self.records_sha256, self._cache, self.checksums_sha256)

    # -- payloads -----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> Url | None:
        """Where the file lies, if that is elsewhere."""
        return self._remote.url if self._remote else None

    @property
    def version(self) -> str:
        """Of a file elsewhere: what tells it from an earlier or later one of its name; else empty."""
        return str(self._remote.entry.version) if self._remote else ""

    @property
    def bytes_fetched(self) -> int:
        """What came over the network since a file elsewhere was opened, tables and sidecar included; 0 for a local one."""
        return self._remote.store.received if self._remote else 0

    @cached_property
    def _arrivals(self) -> Arrivals:
        from dp4tl_fast.remote.arrivals import Arrivals

        assert self._remote is not None
        starts = self.images["data_ptr"].astype(np.int64)
        return Arrivals(self._remote, starts, self.sizes, self.checksums())

    def arriving(self, batches: Sequence[np.ndarray], others: np.ndarray | None = None) -> Arriving:
        """For who reads the file itself: have the records of these batches before they are read, in this order.

        Args:
            batches: Record numbers, int64 ``[n]`` each.
            others: Records that will be wanted later; they are fetched meanwhile, in long stretches.
        """
        return self._arrivals.arriving(batches, others) if self._remote else local

    def fetch(self, records: np.ndarray) -> None:
        """Return once these records may be read."""
        with self.arriving([records]) as arriving:
            arriving.wait(0)

    def payload(self, i: int) -> np.ndarray:
        """The stored bytes of record ``i``: a JPEG, or raw RGB rows. uint8 ``[size]``, in memory of their own."""
        if self._remote:
            self.fetch(np.array([i]))
        self.check_size()
        found = np.empty(int(self.sizes[i]), np.uint8)
        self.read_into(int(self.images["data_ptr"][i]), found)
        return found

    @property
    def open_path(self) -> str:
        """A name for the open file that other libraries can open, valid in this process while this object lives."""
        return f"/proc/self/fd/{self._fd}"

    def check_size(self) -> None:
        """Raise ``BetonError`` if the file is shorter than it was when it was opened."""
        size = os.fstat(self._fd).st_size
        if size < self.file_size:
            self._fail(f"shrank from {self.file_size} to {size} bytes while it was being read")

    def read_into(self, start: int, to: np.ndarray, fd: int | None = None) -> None:
        """Fill ``to``, uint8 ``[size]``, with the file's bytes from ``start`` on.

        Unlike the mapped tables, this may be used on a file that shrinks, where touching a mapped page kills the process (SIGBUS).

        Args:
            fd: Another descriptor of the open file, with its own readahead.

        Raises:
            BetonError: The file ends before, or cannot be read.
        """
        fd = self._fd if fd is None else fd
        done = 0
        while done < len(to):
            try:
                count = os.preadv(fd, [to[done:].data], start + done)
            except OSError as error:
                raise BetonError(f"{self.path}: cannot be read at byte {start + done}: {error.strerror}") from None
            if count == 0:
                self.check_size()
                self._fail(f"ends at byte {start + done}, in the middle of a record")
            done += count


def pieces(count: int) -> Iterator[slice]:
    """The numbers below ``count`` in slices of ``PIECE``."""
    return (slice(start, min(start + PIECE, count)) for start in range(0, count, PIECE))


def _sha256(*columns: np.ndarray) -> str:
    """Of whole numbers as int64, one column after the other."""
    digest = hashlib.sha256()
    for column in columns:
        for part in pieces(len(column)):
            digest.update(np.ascontiguousarray(column[part], "<i8").data)
    return digest.hexdigest()


def _reopen(path: Path | Url, records_sha256: str, cache: dict[str, str], checksums_sha256: str) -> Beton:
    """What unpickling calls."""
    beton = Beton(path, **cache)
    others = {checksums_sha256, beton.checksums_sha256} - {""}  # one may have none
    if beton.records_sha256 != records_sha256 or len(others) > 1:
        raise BetonError(f"{path}: is not the file that was pickled: it has other records. Open it by its path instead")
    return beton
