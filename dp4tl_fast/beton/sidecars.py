"""Files beside ``x.beton``: ``x.classes.json``, ``x.crc32.npy``, ``x.audit.csv``, ``x.convert.json``; see ``sidecar``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.common.errors import BetonError
from dp4tl_fast.common.files import atomically, write_atomically

CHECKSUM = np.dtype("<u4")  # CRC-32 (zlib) of a record's payload


def sidecar(beton: str | Path, kind: str) -> Path:
    """``x.beton`` -> ``x.<kind>``, for ``classes.json``, ``crc32.npy``, ``audit.csv`` and ``convert.json``.

    A file of another ending keeps it, ``x.ffcv`` -> ``x.ffcv.<kind>``: it may lie beside ``x.beton``.
    """
    path = Path(beton)
    return path.with_suffix(f".{kind}") if path.suffix == ".beton" else path.with_name(f"{path.name}.{kind}")


def write_classes(beton: str | Path, names: list[str]) -> None:
    """Write the class list beside a ``.beton`` file."""
    text = json.dumps([{"id": i, "name": n} for i, n in enumerate(names)], indent=1)
    write_atomically(sidecar(beton, "classes.json"), text)


@contextmanager
def audit_table(beton: Path) -> Iterator[Any]:
    """A ``csv.writer`` for ``x.audit.csv``: images that are not stored byte for byte. The file appears when it is whole."""
    path = sidecar(beton, "audit.csv")
    with atomically(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["index", "record", "source", "what"])
        yield table


def read_audit(beton: Path) -> Iterator[dict[str, str]]:
    """The rows of ``x.audit.csv``."""
    with open(sidecar(beton, "audit.csv"), newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield from csv.DictReader(file)


def write_checksums(beton: Path, checksums: list[np.ndarray]) -> None:
    """Write the checksum of every record, given in parts ``[k]``."""
    data = io.BytesIO()
    np.save(data, np.concatenate([np.zeros(0, CHECKSUM), *checksums]).astype(CHECKSUM))
    write_atomically(sidecar(beton, "crc32.npy"), data.getvalue())


def read_checksums(beton: Path, samples: int) -> np.ndarray | None:
    """The checksum of every record, uint32 ``[n]``; ``None`` where the file has none.

    Raises:
        BetonError: The sidecar is damaged or belongs to a file with another number of records.
    """
    path = sidecar(beton, "crc32.npy")
    try:
        checksums = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise BetonError(f"{path}: not a table of checksums ({error}). Remove it, or convert again") from None
    if checksums.dtype != CHECKSUM or checksums.shape != (samples,):
        raise BetonError(
            f"{path}: holds {checksums.dtype} {list(checksums.shape)}, but {CHECKSUM} [{samples}] is needed. "
            "Remove it, or convert again"
        )
    return checksums


def write_info(beton: Path, identity: dict[str, Any], summary: dict[str, Any]) -> None:
    """Write how the file was made (``identity``) and what came of it."""
    info = {"format": 1, "identity": identity, **summary}
    write_atomically(sidecar(beton, "convert.json"), json.dumps(info, indent=1))


def read_info(beton: Path) -> dict[str, Any] | None:
    """What ``write_info`` wrote; ``None`` where there is nothing readable."""
    try:
        info = json.loads(sidecar(beton, "convert.json").read_text())
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) and isinstance(info.get("identity"), dict) else None
