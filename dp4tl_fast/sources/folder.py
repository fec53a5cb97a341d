"""A folder of class folders. Links are followed; hidden files and well-known litter are passed over."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.files import kind_of, read_head, read_whole
from dp4tl_fast.sources.litter import is_litter_folder, why_litter
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.tree import Files, Folder, TreeSource


class FolderSource(TreeSource):
    """The images below ``root``; see ``tree`` for what is a class.

    Raises:
        SourceError: The folder is missing or empty, holds something that is neither file nor folder, or a link that leads
            nowhere or back.
    """

    def __init__(self, root: str | Path, options: SourceOptions) -> None:
        super().__init__(str(root), options)
        self._root = os.fsencode(Path(root))
        tree = Folder(b"", b"")
        self._list(tree, self._root, ())
        self._arrange(tree)

    def _list(self, folder: Folder, path: bytes, above: tuple[os.stat_result, ...]) -> None:
        """Fill in what lies in ``path`` and below."""
        rows: list[tuple[bytes, tuple[int, ...]]] = []
        try:
            this = os.stat(path)  # noqa: PTH116  # bytes
            if any(os.path.samestat(this, other) for other in above):
                raise SourceError(f"{os.fsdecode(path)}: leads back to a folder above it. Remove the link")
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir():
                        if is_litter_folder(entry.name):
                            self._leave_out(folder, entry.name + b"/", "a hidden folder, or a system's")
                        else:
                            inner = Folder(entry.name, folder.path + b"/" + entry.name if folder.path else entry.name)
                            folder.folders[entry.name] = inner
                            self._list(inner, entry.path, (*above, this))
                        continue
                    if why := why_litter(entry.name, lambda entry=entry: read_head(entry.path)):  # type: ignore[misc]
                        self._leave_out(folder, entry.name, why)
                        continue
                    status = entry.stat()
                    if not stat.S_ISREG(status.st_mode):
                        raise SourceError(f"{os.fsdecode(entry.path)}: is {kind_of(status)}, not a file. Remove it")
                    rows.append((entry.name, (status.st_size, status.st_mtime_ns)))
        except FileNotFoundError as error:
            where = os.fsdecode(error.filename)
            raise SourceError(f"{where}: a broken link. Remove it or restore its target") from None
        except OSError as error:
            where = os.fsdecode(error.filename or path)
            raise SourceError(f"{where}: cannot be read: {error.strerror}. Make it readable or remove it") from None
        folder.files = Files.of(rows)

    def _leave_out(self, folder: Folder, name: bytes, why: str) -> None:
        self.left_out.append((os.fsdecode(folder.path + b"/" + name if folder.path else name), why))

    def _head(self, path: bytes, row: np.ndarray) -> bytes:
        return read_head(self._root + b"/" + path)

    def name(self, i: int) -> str:
        return os.fsdecode(self._root + b"/" + self._names[i])

    def read_file(self, i: int) -> bytes:
        return read_whole(self._root + b"/" + self._names[i], int(self.sizes[i]))
