"""Sources behind a URL that fsspec knows (``s3://``, ``https://``, ``memory://`` ...)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from dp4tl_fast.common.content import HEAD_BYTES
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.litter import is_litter_folder, why_litter
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.tree import Files, Folder, TreeSource


def filesystem(url: str) -> tuple[Any, str]:
    """The file system and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise SourceError(f"{url}: URLs need fsspec. Install it with `pip install dp4tl_fast[remote]`") from None
    try:
        return fsspec.core.url_to_fs(url)
    except Exception as error:  # each file system has errors of its own, from packages that need not be installed here
        raise SourceError(f"{url}: {_words(error)}") from None


def file_name(url: str) -> str:
    """The name of the file, without the query that signed URLs have."""
    return unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]


def matching(url: str) -> list[str]:
    """The URLs that a pattern with ``*`` names, sorted; a URL without one names itself."""
    if "*" not in url:
        return [url]
    fs, path = filesystem(url)
    try:
        found = sorted(fs.glob(path))
    except Exception as error:
        raise SourceError(f"{url}: cannot be listed: {_words(error)}") from None
    if not found:
        raise SourceError(f"{url}: matches no file")
    return [fs.unstrip_protocol(name) for name in found]


def fetch(url: str, scratch: Path) -> Path:
    """Copy a remote file into ``scratch``, for sources that are read at random (tar, Parquet, CSV)."""
    fs, path = filesystem(url)
    scratch.mkdir(parents=True, exist_ok=True)
    local = scratch / file_name(url)
    try:
        fs.get_file(path, str(local))
    except Exception as error:
        raise SourceError(f"{url}: cannot be fetched: {_words(error)}") from None
    return local


class RemoteFolderSource(TreeSource):
    """A remote folder of class folders; each image is fetched when its turn comes, by several threads at once."""

    def __init__(self, url: str, options: SourceOptions) -> None:
        super().__init__(url, options)
        self._fs, root = filesystem(url)
        self._root = root.rstrip("/")
        try:
            found = self._fs.find(self._root, detail=True)
        except Exception as error:
            raise SourceError(f"{url}: cannot be listed: {_words(error)}") from None
        rows: dict[bytes, list[tuple[bytes, tuple[int, ...]]]] = {}
        for path, info in found.items():
            below = os.fsencode(path.removeprefix(self._root).strip("/"))
            folder, _, base = below.rpartition(b"/")
            if any(map(is_litter_folder, filter(None, folder.split(b"/")))):
                self.left_out.append((path, "in a hidden folder, or a system's"))
            elif why := why_litter(base, lambda path=path: self._fetch(path, HEAD_BYTES)):  # type: ignore[misc]
                self.left_out.append((path, why))
            else:
                size = info.get("size")
                if not isinstance(size, int):
                    raise SourceError(
                        f"{url}: the server gives no size of {os.fsdecode(below)}. Download the folder first"
                    )
                rows.setdefault(folder, []).append((base, (size,)))
        if not rows:
            raise SourceError(f"{url}: holds no images")
        tree = Folder(b"", b"")
        for folder, files in rows.items():
            tree.at(folder).files = Files.of(files)
        self._arrange(tree)

    def _fetch(self, path: str, limit: int | None = None) -> bytes:
        try:
            return self._fs.cat_file(path, 0, limit) if limit else self._fs.cat_file(path)
        except Exception as error:
            raise SourceError(f"cannot be fetched: {_words(error)}") from None

    def _head(self, path: bytes, row: np.ndarray) -> bytes:
        return self._fetch(f"{self._root}/{os.fsdecode(path)}", HEAD_BYTES)

    def name(self, i: int) -> str:
        return f"{self._root}/{os.fsdecode(self._names[i])}"

    def read_file(self, i: int) -> bytes:
        return self._fetch(self.name(i))


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
