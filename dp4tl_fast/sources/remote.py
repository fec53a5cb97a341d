"""Sources behind a URL that fsspec knows (``s3://``, ``https://``, ``memory://`` ...)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.base import Names, Source


def filesystem(url: str) -> tuple[Any, str]:
    """The file system and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise SourceError(f"{url}: URLs need fsspec. Install it with `pip install dp4tl_fast[remote]`") from None
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise SourceError(f"{url}: {error}") from None


def fetch(url: str, scratch: Path) -> Path:
    """Copy a remote file into ``scratch``, for sources that are read at random (tar, Parquet, CSV)."""
    fs, path = filesystem(url)
    scratch.mkdir(parents=True, exist_ok=True)
    local = scratch / Path(path).name
    try:
        fs.get_file(path, str(local))
    except (OSError, ValueError) as error:
        raise SourceError(f"{url}: cannot be fetched: {error}") from None
    return local


class RemoteFolderSource(Source):
    """A remote folder of class folders; each image is fetched when its turn comes, by several threads at once."""

    def __init__(self, url: str) -> None:
        self._fs, root = filesystem(url)
        self._root = root.rstrip("/")
        try:
            found = self._fs.find(self._root, detail=True)
        except (OSError, ValueError) as error:
            raise SourceError(f"{url}: cannot be listed: {error}") from None
        rows = []
        for path, info in found.items():
            parts = path.removeprefix(self._root).strip("/").split("/")
            if len(parts) >= 2 and not any(part.startswith(".") for part in parts):
                rows.append((parts[0], "/".join(parts), int(info["size"])))
        if not rows:
            raise SourceError(f"{url}: holds no class folders with images")
        rows.sort()
        self.class_names = sorted({name for name, _, _ in rows})
        ids = {name: i for i, name in enumerate(self.class_names)}
        self._names = Names()
        self._names.extend([path.encode() for _, path, _ in rows])
        self._names.freeze()
        self.labels = np.array([ids[name] for name, _, _ in rows], np.int64)
        self.sizes = np.array([size for _, _, size in rows], np.int64)

    def name(self, i: int) -> str:
        return f"{self._root}/{self._names[i].decode()}"

    def read(self, i: int) -> bytes:
        return self._fs.cat_file(self.name(i))

    def identity(self) -> str:
        tables = (self._names.block(), self.labels.tobytes(), self.sizes.tobytes())
        return hashlib.sha256(b"".join(tables)).hexdigest()
