"""Sources behind a URL that fsspec knows (``s3://``, ``https://``, ``memory://`` ...)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from dp4tl_fast.common.content import HEAD_BYTES, image_kind
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.remote.url import unsigned
from dp4tl_fast.sources.litter import is_litter_folder, outside_litter, why_litter
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.shards import is_shard
from dp4tl_fast.sources.tree import Files, Folder, TreeSource

MAX_NOTES = 16  # files beside shards that are looked into


def filesystem(url: str) -> tuple[Any, str]:
    """The file system and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise SourceError(f"{unsigned(url)}: URLs need fsspec. Install it with `pip install dp4tl_fast[remote]`") from None
    try:
        return fsspec.core.url_to_fs(url)
    except Exception as error:  # each file system has errors of its own, from packages that need not be installed here
        raise SourceError(f"{unsigned(url)}: {_words(error)}") from None


def file_name(url: str) -> str:
    """The name of the file, without the query that signed URLs have."""
    return unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]


def found_at(url: str) -> list[str]:
    """The URLs that a pattern with ``*`` names, sorted; a URL without one names itself."""
    if "*" not in url:
        return [url]
    fs, path = filesystem(url)
    try:
        found = sorted(fs.glob(path))
    except Exception as error:
        raise SourceError(f"{unsigned(url)}: cannot be listed: {_words(error)}") from None
    if not found:
        raise SourceError(f"{unsigned(url)}: matches no file")
    return [fs.unstrip_protocol(name) for name in found]


def fetch(url: str, scratch: Path) -> Path:
    """Copy a remote file into ``scratch``, for sources that are read at random (tar, Parquet, Arrow)."""
    fs, path = filesystem(url)
    scratch.mkdir(parents=True, exist_ok=True)
    local = scratch / file_name(url)
    try:
        fs.get_file(path, str(local))
    except Exception as error:
        raise SourceError(f"{unsigned(url)}: cannot be fetched: {_words(error)}") from None
    os.utime(local, (0, 0))  # its own time is that of the copy, and another copy is the same source
    return local


class RemoteFolder:
    """What lies below a URL.

    Attributes:
        url: For messages.
        fs, root: The file system, and the folder in it.
        files: Path -> what the file system tells of the file.
        folders: Paths of folders, where the file system has any of its own: object stores do not.
    """

    def __init__(self, url: str) -> None:
        self.url = unsigned(url)
        self.fs, root = filesystem(url)
        self.root = root.rstrip("/")
        try:
            found = self.fs.find(self.root, withdirs=True, detail=True)
        except Exception as error:
            raise SourceError(f"{self.url}: cannot be listed: {_words(error)}") from None
        found = {path: info for path, info in found.items() if self.below(path)}  # without the folder itself
        self.files = {path: info for path, info in found.items() if info.get("type") != "directory"}
        self.folders = [path for path in found if path not in self.files]
        if not self.files:
            raise SourceError(f"{self.url}: holds no images")

    def below(self, path: str) -> bytes:
        """A path as seen from the folder."""
        return os.fsencode(path.removeprefix(self.root).strip("/"))

    def shards(self) -> list[str]:
        """URLs of its tars, Parquet and Arrow files, if it holds nothing else but a few files that are no images."""
        seen = [path for path in self.files if not any(map(is_litter_folder, self.below(path).split(b"/")))]
        parts = sorted(path for path in seen if is_shard(path.rpartition("/")[2]))
        others = [path for path in seen if not is_shard(path.rpartition("/")[2])] if parts else []
        if len(others) > MAX_NOTES or any(image_kind(self.head(path)) for path in others):
            return []
        return [self.fs.unstrip_protocol(path) for path in parts]

    def fetch(self, path: str) -> bytes:
        """A file's bytes."""
        try:
            return self.fs.cat_file(path)
        except Exception as error:
            raise SourceError(f"cannot be fetched: {_words(error)}") from None

    def head(self, path: str) -> bytes:
        """The first of a file's bytes. Servers refuse to send a range of none."""
        try:
            return b"" if self.files.get(path, {}).get("size") == 0 else self.fs.cat_file(path, 0, HEAD_BYTES)
        except Exception as error:
            raise SourceError(f"{path}: cannot be fetched: {_words(error)}") from None


class RemoteFolderSource(TreeSource):
    """A remote folder of class folders; each image is fetched when its turn comes, by several threads at once."""

    def __init__(self, folder: RemoteFolder, options: SourceOptions) -> None:
        super().__init__(folder.url, options)
        self._folder = folder
        rows: dict[bytes, list[tuple[bytes, tuple[int, ...]]]] = {}
        for path in folder.folders:
            self._add(rows, folder.below(path))
        for path, info in folder.files.items():
            below = folder.below(path)
            inside, _, base = below.rpartition(b"/")
            if not self._add(rows, inside):
                self.left_out.append((path, "in a hidden folder, or a system's"))
            elif why := why_litter(base, lambda path=path: folder.head(path)):  # type: ignore[misc]
                self.left_out.append((path, why))
            else:
                size = info.get("size")
                if not isinstance(size, int):
                    raise SourceError(
                        f"{folder.url}: the server does not report the size of {os.fsdecode(below)}. Download the folder first"
                    )
                rows[inside].append((base, (size,)))
        tree = Folder(b"", b"")
        for path, files in rows.items():
            tree.at(path).files = Files.of(files)
        self._arrange(tree)

    @staticmethod
    def _add(rows: dict[bytes, list[tuple[bytes, tuple[int, ...]]]], path: bytes) -> bool:
        """Note a folder, also one without images; of one that is litter, that around it, and say so."""
        outside = outside_litter(path)
        rows.setdefault(outside, [])
        return outside == path

    def _head(self, path: bytes, row: np.ndarray) -> bytes:
        return self._folder.head(f"{self._folder.root}/{os.fsdecode(path)}")

    def name(self, i: int) -> str:
        return f"{self._folder.root}/{os.fsdecode(self._names[i])}"

    def read_file(self, i: int) -> bytes:
        return self._folder.fetch(self.name(i))


def _words(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    words = (str(error).splitlines() or [""])[0] or type(error).__name__
    return re.sub(r"\w+://\S+", lambda match: unsigned(match[0]), words)
