"""A folder of class folders: ``SRC/class/**/image``. Classes and files in sorted order; hidden ones are left out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.base import Names, Source


class FolderSource(Source):
    """Every visible file below ``root/class/`` is a sample of the class.

    Raises:
        SourceError: The folder is missing, has no class folders, or a class folder has no file.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = os.fsencode(Path(root))
        try:
            with os.scandir(self.root) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(b".")]
                classes = sorted(entry.name for entry in visible if entry.is_dir())
        except FileNotFoundError:
            raise SourceError(f"{root}: no such folder. Give the folder that holds one folder per class") from None
        except OSError as error:
            raise SourceError(f"{root}: cannot be listed: {error.strerror}") from None
        if not classes:
            found = f"{len(visible)} files but no folder" if visible else "nothing"
            raise SourceError(f"{root}: holds {found}; it must hold one folder per class, with the images in it")
        self.class_names = [os.fsdecode(name) for name in classes]
        root_status = os.stat(self.root)  # noqa: PTH116  # bytes
        self._names = Names()
        counts, sizes, self._mtimes = [], [], []
        for name in classes:
            files = sorted(_walk(self.root + b"/" + name, name + b"/", (root_status,)))
            if not files:
                raise SourceError(f"{root}: class folder {os.fsdecode(name)!r} has no images. Fill it or remove it")
            self._names.extend([path for path, _, _ in files])
            counts.append(len(files))
            sizes.append(np.array([size for _, size, _ in files], np.int64))
            self._mtimes.append(np.array([mtime for _, _, mtime in files], np.int64))
        self._names.freeze()
        self.labels = np.repeat(np.arange(len(classes)), counts)
        self.sizes = np.concatenate(sizes)

    def name(self, i: int) -> str:
        return os.fsdecode(self.root + b"/" + self._names[i])

    def read(self, i: int) -> bytes:
        fd = os.open(self.root + b"/" + self._names[i], os.O_RDONLY)
        try:  # one read of the listed size, one more byte to see that it has not grown
            data = os.read(fd, int(self.sizes[i]) + 1)
            if len(data) == self.sizes[i]:
                return data
            rest = []
            while part := os.read(fd, 1 << 20):
                rest.append(part)
            return data + b"".join(rest)
        finally:
            os.close(fd)

    def identity(self) -> str:
        digest = hashlib.sha256(self._names.block())
        for table in (self.labels, self.sizes, *self._mtimes):
            digest.update(table.tobytes())
        return digest.hexdigest()


def _walk(folder: bytes, prefix: bytes, above: tuple[os.stat_result, ...]) -> Iterator[tuple[bytes, int, int]]:
    """(path below the root, bytes, mtime in ns) of every visible file in ``folder`` and below; links are followed."""
    try:
        this = os.stat(folder)  # noqa: PTH116  # bytes
        if any(os.path.samestat(this, other) for other in above):
            raise SourceError(f"{os.fsdecode(folder)}: leads back to a folder above it. Remove the link")
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir():
                    yield from _walk(entry.path, prefix + entry.name + b"/", (*above, this))
                else:
                    status = entry.stat()
                    yield prefix + entry.name, status.st_size, status.st_mtime_ns
    except FileNotFoundError as error:
        where = os.fsdecode(error.filename)
        raise SourceError(f"{where}: a link to nothing. Remove it or restore its target") from None
    except OSError as error:
        where = os.fsdecode(error.filename or folder)
        raise SourceError(f"{where}: cannot be read: {error.strerror}. Make it readable or remove it") from None
