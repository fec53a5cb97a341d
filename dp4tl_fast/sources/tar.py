"""Images inside tar files, read in place: class folders, tars of tars (as ImageNet's), flat ones, WebDataset."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from dp4tl_fast.common.content import HEAD_BYTES, TAR, image_kind, what_it_is
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources import webdataset
from dp4tl_fast.sources.files import check_file
from dp4tl_fast.sources.litter import is_annotation, is_litter_folder, outside_litter, why_litter
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.tar_members import Contents, Member, members, normal
from dp4tl_fast.sources.tree import Files, Folder, TreeSource

EMPTY_TAR = 20 * 512  # bytes, all of them 0, that tar writes where there are no files
Rows = dict[bytes, list[tuple[bytes, tuple[int, ...]]]]  # folder -> its files: name, (size, number of the tar, start)


class TarSource(TreeSource):
    """Images in one or more tar files. A tar in a tar is a folder, of files alone if they lie in one folder there.

    Args:
        names: Local tars, uncompressed, and what each is called in messages.
        below: Only what lies below this folder.
    """

    def __init__(self, names: dict[Path, str], options: SourceOptions, below: str = "") -> None:
        self._paths = list(names.values())
        where = self._paths[0] if len(names) == 1 else f"{self._paths[0]} to {self._paths[-1].rpartition('/')[2]}"
        super().__init__(where + (f"#{below}" if below else ""), options)
        self._below = os.fsencode(below)
        self._fds: list[int] = []
        try:
            for path in names:
                check_file(path)
                self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._list_members()
        except BaseException:
            self.close()
            raise

    def _list_members(self) -> None:
        contents = [self._members(tar, 0, os.fstat(fd).st_size, "", self._below) for tar, fd in enumerate(self._fds)]
        found = webdataset.find([c.files for c in contents], self._bytes, self._options, self._paths)
        if found is not None:
            self._options.refuse(self._where, "labels", "classes_from", "split", "image_column", "label_column")
            self.notes += ["a WebDataset: files whose names are equal up to the first dot are one sample", found.rule]
            self.class_names, self.labels, self.bad = found.class_names, found.labels, found.bad
            self.left_out += found.left_out
            self._names.extend(found.names)
            self._names.freeze()
            self._table = found.table
            self.sizes = np.ascontiguousarray(self._table[:, 0])
            return
        self._options.refuse(self._where, "image_key", "label_key")
        rows: Rows = defaultdict(list)
        folders: set[bytes] = set()
        as_folders = self._are_folders(contents)
        for tar, content in enumerate(contents):
            inside = os.fsencode(self._paths[tar].rpartition("/")[2][:-4]) if as_folders else b""
            self._sort_in(tar, content, inside, rows, folders)
        root = Folder(b"", b"")
        for path in sorted(folders):
            root.at(path)
        for path in list(rows):
            root.at(path).files = Files.of(rows.pop(path))
        self._arrange(root.at(normal(self._below)))

    def _are_folders(self, contents: list[Contents]) -> bool:
        """Whether each of several tars is a class, as ImageNet's, unpacked once: they hold flat images, and it is said so."""
        flat = len(contents) > 1 and not any(c.folders or any(b"/" in m.name for m in c.files) for c in contents)
        if not flat or any(m.name.lower().endswith(b".tar") for c in contents for m in c.files) or self._options.labels:
            return False
        if not self._options.classes_from:
            raise SourceError(
                f"{self._where}: hold images in no folder. If each tar is a class, give `classes_from=leaf`; for a table that "
                "names the class of every image, `classes_from=TABLE`"
            )
        if as_folders := self._options.classes_from in ("top", "leaf"):
            self.notes.append("each tar is a folder")
        return as_folders

    def _members(self, tar: int, start: int, stop: int, inner: str, below: bytes = b"") -> Contents:
        where = f"{self._paths[tar]}{inner}"
        content = members(self._fds[tar], start, stop, where, below, partial(self._why_litter, tar))
        content.folders += [folder for name, _ in content.left_out if (folder := name.rpartition(b"/")[0])]
        self.left_out += [(f"{where}: {os.fsdecode(name)}", why) for name, why in content.left_out]
        return content

    def _why_litter(self, tar: int, m: Member) -> str:
        """Like ``litter.why_litter``, but annotations stay: in a WebDataset they hold the labels."""
        folder, _, base = m.name.rpartition(b"/")
        if folder and any(map(is_litter_folder, folder.split(b"/"))):
            return "in a hidden folder, or a system's"
        return "" if is_annotation(base) else why_litter(base, partial(self._bytes, tar, m, HEAD_BYTES))

    def _sort_in(self, tar: int, content: Contents, inside: bytes, rows: Rows, folders: set[bytes]) -> None:
        """Files to their folders, or all to ``inside``; a tar in the tar is one of them."""
        if inside:
            folders.add(inside)
        folders.update(filter(None, map(outside_litter, content.folders)))
        for m in content.files:
            folder, _, base = m.name.rpartition(b"/")
            if why := why_litter(base, partial(self._bytes, tar, m, HEAD_BYTES)):
                self.left_out.append((f"{self._paths[tar]}: {os.fsdecode(m.name)}", why))
                folders.update([folder] if folder else [])  # a class, though it may have no images
                continue
            if not base.lower().endswith(b".tar") or image_kind(head := self._bytes(tar, m, HEAD_BYTES)):
                rows[inside or folder].append((base, (m.size, tar, m.start)))
                continue
            path = m.name[:-4]
            folders.add(path)
            if m.size <= EMPTY_TAR and not any(self._bytes(tar, m, EMPTY_TAR)):
                continue
            if (what := what_it_is(head)) and what != TAR:
                raise SourceError(f"{self._paths[tar]}: {os.fsdecode(m.name)} is {what}")
            inner = self._members(tar, m.start, m.start + m.size, f": {os.fsdecode(m.name)}")
            several = len({file.name.rpartition(b"/")[0] for file in inner.files}) > 1  # splits, say, with classes inside
            for file in inner.files:
                if why := why_litter(file.name.rpartition(b"/")[2], partial(self._bytes, tar, file, HEAD_BYTES)):
                    self.left_out.append((f"{self._paths[tar]}: {os.fsdecode(m.name)}: {os.fsdecode(file.name)}", why))
                elif several:
                    below, _, base = file.name.rpartition(b"/")
                    rows[path + b"/" + below if below else path].append((base, (file.size, tar, file.start)))
                else:
                    rows[path].append((file.name, (file.size, tar, file.start)))

    def _bytes(self, tar: int, member: Member, limit: int) -> bytes:
        return os.pread(self._fds[tar], min(member.size, limit), member.start)

    def _head(self, path: bytes, row: np.ndarray) -> bytes:
        size, tar, start = row.tolist()
        return os.pread(self._fds[tar], min(size, HEAD_BYTES), start)

    def name(self, i: int) -> str:
        return f"{self._paths[self._table[i, 1]]}: {os.fsdecode(self._names[i])}"

    def read_file(self, i: int) -> bytes:
        size, tar, start = self._table[i].tolist()
        return os.pread(self._fds[tar], size, start)

    def identity(self) -> str:
        digest = hashlib.sha256(super().identity().encode())
        for fd in self._fds:
            status = os.fstat(fd)
            digest.update(b"%d %d " % (status.st_size, status.st_mtime_ns))
        return digest.hexdigest()

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
