"""What lies beside ``x.beton``: one zip file, ``x.info.zip``, with what FFCV's format has no room for.

    beton.json     the file it belongs to: {"format": 1, "bytes": its size, "tables_crc32": CRC-32 of all before the pages}
    classes.json   [{"id": 0, "name": "n01440764"}, ...]
    convert.json   how the file was made, and the counts of the conversion
    audit.csv      images that are not stored byte for byte: index, record, source, what
    crc32.npy      CRC-32 (zlib) of every record's payload, uint32 [n]

Each member is read when it is needed. Earlier versions wrote four files, ``x.classes.json`` and so on; these are still
read where there is no ``x.info.zip``. A class list may also be written by hand beside a file that has none.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from dp4tl_fast.common.errors import BetonError
from dp4tl_fast.common.files import commit, npy_bytes, partial_path, unnamed

CHECKSUM = np.dtype("<u4")  # CRC-32 (zlib) of a record's payload
ARCHIVE, STAMP, CLASSES, CONVERSION, AUDIT, CHECKSUMS = (
    "info.zip", "beton.json", "classes.json", "convert.json", "audit.csv", "crc32.npy",
)  # fmt: skip
KINDS = (ARCHIVE, CLASSES, CONVERSION, AUDIT, CHECKSUMS)
MAX_MEMBER = 1 << 32  # bytes: the checksums of a thousand million records
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # file names need not be UTF-8
DAMAGED = (  # what the standard library raises over bytes that are no archive, no JSON, no table
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, NotImplementedError, MemoryError, csv.Error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip

Stamp = dict[str, int]  # which .beton a sidecar belongs to
AuditRow = tuple[
    int | str, int | str, str, str
]  # position in the listing or "", record or "", where it is from, what happened


def sidecar(beton: str | Path, kind: str = ARCHIVE) -> Path:
    """``x.beton`` -> ``x.<kind>``, where ``kind`` is ``info.zip`` or the name of an earlier version's file.

    A file of another ending keeps it, ``x.ffcv`` -> ``x.ffcv.<kind>``: it may lie beside ``x.beton``.
    """
    path = Path(beton)
    return path.with_suffix(f".{kind}") if path.suffix == ".beton" else path.with_name(f"{path.name}.{kind}")


def stamp(size: int, tables_crc32: int) -> Stamp:
    """What identifies a ``.beton``: its size in bytes, and the CRC-32 of header, fields and metadata table."""
    return {"format": 1, "bytes": size, "tables_crc32": tables_crc32}


# -- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What to write beside a file. What is empty or ``None`` is left out.

    Attributes:
        class_names: By class id.
        checksums: Of every record, in parts uint32 ``[k]``.
        info: How the file was made and what came of it; see ``info``.
        audit: Rows (index, record, source, what), written as they come.
    """

    class_names: list[str]
    checksums: list[np.ndarray] | None = None
    info: Mapping[str, Any] | None = None
    audit: Iterable[AuditRow] | None = None


def info(identity: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """What ``convert.json`` holds: how the file was made (``identity``), and the counts of the conversion."""
    return {"format": 1, "identity": identity, **summary}


def write_partial(beton: Path, mark: Stamp, contents: Contents) -> None:
    """Write the sidecar of ``beton`` under its temporary name, for ``put_in_place``."""
    with unnamed(sidecar(beton), "wb") as file, zipfile.ZipFile(file, "w") as archive:
        _write(archive, STAMP, json.dumps(mark))
        names = [{"id": i, "name": name} for i, name in enumerate(contents.class_names)]
        _write(archive, CLASSES, json.dumps(names, indent=1))
        if contents.info is not None:
            _write(archive, CONVERSION, json.dumps(contents.info, indent=1))
        if contents.audit is not None:
            with _member(archive, AUDIT) as member, io.TextIOWrapper(member, **TEXT) as text:  # type: ignore[arg-type]
                table = csv.writer(text, lineterminator="\n")
                table.writerow(["index", "record", "source", "what"])
                table.writerows(contents.audit)
        if contents.checksums is not None:
            data = np.concatenate([np.zeros(0, CHECKSUM), *contents.checksums]).astype(CHECKSUM)
            _write(archive, CHECKSUMS, npy_bytes(data), zipfile.ZIP_STORED)  # random bytes do not get smaller


def put_in_place(beton: Path) -> None:
    """Give what ``write_partial`` wrote its name. It replaces what earlier versions wrote for the same file."""
    commit(partial_path(sidecar(beton)), sidecar(beton))
    for kind in KINDS[1:]:
        sidecar(beton, kind).unlink(missing_ok=True)


def _member(archive: zipfile.ZipFile, name: str, method: int = zipfile.ZIP_DEFLATED) -> IO[bytes]:
    """A member to write to, dated as zip begins: equal contents are equal bytes."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type, entry.external_attr = method, 0o644 << 16
    return archive.open(entry, "w", force_zip64=True)


def _write(archive: zipfile.ZipFile, name: str, data: str | bytes, method: int = zipfile.ZIP_DEFLATED) -> None:
    with _member(archive, name, method) as member:
        member.write(data.encode() if isinstance(data, str) else data)


# -- reading ----------------------------------------------------------------------------------------------------------


class Sidecar:
    """What lies beside a ``.beton``. Where it lies is settled here, once: the current folder may change afterwards.

    Args:
        beton: As the user gave it. Where nothing lies beside a link, what lies beside its target counts.
        mark: Computes the file's stamp.

    Raises:
        BetonError: The sidecar belongs to another file, or is damaged.
    """

    def __init__(self, beton: Path, mark: Callable[[], Stamp]) -> None:
        places = (beton.absolute(), beton.resolve())
        self._beton = next((place for place in places if any(_kinds(place))), places[0])
        self._archive = sidecar(self._beton)
        self._mark = mark() if self._archive.exists() else None
        self.class_names = self._read_class_names()

    @property
    def path(self) -> Path | None:
        """The archive, or an earlier version's class list; ``None`` where there is neither."""
        return next((p for kind in (ARCHIVE, CLASSES) if (p := sidecar(self._beton, kind)).exists()), None)

    def _read_class_names(self) -> list[str]:
        """Names by class id; empty where there is no class list."""
        with self._open(CLASSES, "a class list") as file:
            if file is None:
                return []
            rows = json.loads(file.read())
            if [row["id"] for row in rows] != list(range(len(rows))):
                raise ValueError("ids are not 0, 1, 2, ...")
            return [str(row["name"]) for row in rows]

    def checksums(self, samples: int) -> np.ndarray | None:
        """The checksum of every record, uint32 ``[samples]``; ``None`` where the file has none.

        Raises:
            BetonError: The table is damaged or belongs to a file with another number of records.
        """
        with self._open(CHECKSUMS, "a table of checksums") as file:
            if file is None:
                return None
            checksums = np.lib.format.read_array(file, allow_pickle=False)
            if checksums.dtype != CHECKSUM or checksums.shape != (samples,):
                found = f"{checksums.dtype} {list(checksums.shape)}"
                raise ValueError(f"it holds {found}, but {CHECKSUM} [{samples}] is needed")
            return checksums

    def info(self) -> dict[str, Any] | None:
        """What ``info`` made; ``None`` where there is nothing of the kind."""
        with self._open(CONVERSION, "a description of a conversion") as file:
            found = None if file is None else json.loads(file.read())
        return found if isinstance(found, dict) and isinstance(found.get("identity"), dict) else None

    def audit(self) -> Iterator[dict[str, str]]:
        """The rows of ``audit.csv``; none where the file has none."""
        with self._open(AUDIT, "an audit table") as file:
            if file is not None:
                yield from csv.DictReader(io.TextIOWrapper(file, **TEXT))  # type: ignore[arg-type]

    @contextmanager
    def _open(self, kind: str, what: str) -> Iterator[IO[bytes] | None]:
        """The bytes of a member, or of an earlier version's file; ``None`` where there is none."""
        path = sidecar(self._beton, kind) if self._mark is None else self._archive
        try:
            if self._mark is None:
                with _existing(path) as file:
                    yield file
                return
            with zipfile.ZipFile(path) as archive:
                mark = json.loads(_small(archive, STAMP).read())
                if mark != self._mark:
                    self._fail(mark)
                if kind not in archive.namelist():
                    yield None
                    return
                with _small(archive, kind) as member:
                    yield member
        except DAMAGED as error:
            raise BetonError(f"{path}: not {what} ({error}). Remove it, or convert again") from None

    def _fail(self, mark: Any) -> NoReturn:
        raise BetonError(
            f"{self._archive}: belongs to another file than {self._beton}: it was written for {mark}, not {self._mark}. "
            "Convert again, or remove it: classes are then named by number"
        )


def _kinds(beton: Path) -> Iterator[bool]:
    return (sidecar(beton, kind).exists() for kind in KINDS)


@contextmanager
def _existing(path: Path) -> Iterator[IO[bytes] | None]:
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed by the `with` below
    except FileNotFoundError:
        yield None
        return
    with file:
        yield file


def _small(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A member that does not fill the memory, whatever the archive says."""
    if (size := archive.getinfo(name).file_size) > MAX_MEMBER:
        raise ValueError(f"{name} takes {size} bytes")
    return archive.open(name)
