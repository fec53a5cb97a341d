"""Files that are either the old one or the complete new one."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write to a temporary name in the same directory, sync, rename. Creates missing parent directories."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    with open(partial, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    commit(partial, path)


def partial_path(path: Path) -> Path:
    """The temporary name under which ``path`` is written."""
    return path.with_name(f".{path.name}.partial")


def commit(partial: Path, path: Path) -> None:
    """Give a complete, synced file its final name, durably."""
    partial.replace(path)
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as a ``.npy`` file's contents."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
