"""Images inside tar files, read in place: ImageNet's own train and validation tars, class folders, WebDataset.

A tar is a row of 512-byte headers, each followed by its member's bytes, padded to 512 (POSIX.1-2001 ustar and pax; GNU
long names and base-256 sizes). One walk over the headers lists the members; images are then read by position.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dp4tl_fast.errors import SourceError
from dp4tl_fast.sources.base import Names, Source
from dp4tl_fast.sources.imagenet import validation_labels

BLOCK = 512
IMAGE_ENDINGS = (b".jpg", b".jpeg", b".png", b".webp", b".gif", b".bmp", b".tif", b".tiff", b".ppm")
MAX_NAME = 1 << 16


@dataclass(frozen=True, slots=True)
class Member:
    name: bytes
    start: int  # of its bytes in the file
    size: int


def members(fd: int, start: int, stop: int, where: str) -> Iterator[Member]:
    """The regular files of the tar that lies in bytes ``start`` to ``stop`` of an open file.

    Raises:
        SourceError: A header is damaged, or a member goes beyond ``stop`` (a truncated download).
    """
    at, long_name, pax_size, empty = start, b"", -1, True
    while at + BLOCK <= stop:
        header = os.pread(fd, BLOCK, at)
        if len(header) < BLOCK or header == bytes(BLOCK):
            break
        if not _checksum_is_right(header):
            raise SourceError(f"{where}: no tar header at byte {at}. Is the file damaged, or compressed?")
        kind = header[156:157]
        size = pax_size if pax_size >= 0 and kind in b"0\0" else _number(header[124:136], where)
        data = at + BLOCK
        if size < 0 or data + size > stop:
            raise SourceError(f"{where}: ends at byte {stop}, inside the member at {at} of {size} bytes. Truncated?")
        if kind in (b"L", b"x"):
            body = os.pread(fd, min(size, MAX_NAME), data)
            if kind == b"L":
                long_name = body.rstrip(b"\0")
            else:
                records = _pax(body)
                long_name, pax_size = records.get(b"path", long_name), int(records.get(b"size", b"-1"))
        else:
            if kind in (b"0", b"\0"):
                prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
                short = header[:100].split(b"\0")[0]
                yield Member(long_name or (prefix + b"/" + short if prefix else short), data, size)
            long_name, pax_size = b"", -1
        empty = False
        at = data + -(-size // BLOCK) * BLOCK
    if empty:
        raise SourceError(f"{where}: holds no files, or is no tar")


def _checksum_is_right(header: bytes) -> bool:
    try:
        return int(header[148:156].strip(b" \0") or b"-1", 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def _number(text: bytes, where: str) -> int:
    if text[0] & 0x80:  # base 256
        return int.from_bytes(text[1:], "big")
    try:
        return int(text.strip(b" \0") or b"0", 8)
    except ValueError:
        raise SourceError(f"{where}: {text!r} is no size. Is the tar damaged?") from None


def _pax(body: bytes) -> dict[bytes, bytes]:
    """``length key=value\\n`` records."""
    records = {}
    while (match := re.match(rb"(\d{1,9}) ([^=]+)=", body)) and match.end() < int(match[1]) <= len(body):
        records[match[2]] = body[match.end() : int(match[1]) - 1]
        body = body[int(match[1]) :]
    return records


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _visible(name: bytes) -> bool:
    return not any(part.startswith(b".") and part != b"." for part in name.split(b"/"))


class TarSource(Source):
    """Images in one or more tar files. What they hold decides what they are: see the functions below.

    Args:
        paths: Local tars, uncompressed.
        labels: The devkit, for a flat tar of ImageNet's validation images.
        below: Only members below this folder.
    """

    def __init__(self, paths: list[Path], labels: str = "", below: str = "") -> None:
        self._paths = paths
        self._below = os.fsencode(below.strip("/") + "/") if below else b""
        self._fds = []
        try:
            for path in paths:
                self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._list(labels)
        except BaseException:
            self.close()
            raise

    def _list(self, labels: str) -> None:
        rows = [(tar, member) for tar, fd in enumerate(self._fds) for member in self._members(tar, fd)]
        names = [member.name for _, member in rows if _visible(member.name)]
        if any(name.endswith((b".cls", b".json")) for name in names):
            self.class_names, parts = _webdataset(rows, self._text)
        elif names and all(name.endswith(b".tar") for name in names):
            self.class_names, parts = self._tar_of_tars(rows)
        elif labels:
            self.class_names, parts = _validation(rows, labels)
        else:
            self.class_names, parts = _class_folders(rows, str(self._paths[0]))
        self._names = Names()
        tables = []
        for samples in parts:  # a part at a time becomes arrays: no object an image stays
            self._names.extend([member.name for _, _, member in samples])
            rows_ = [(label, tar, m.start, m.size) for label, tar, m in samples]
            tables.append(np.array(rows_, np.int64).reshape(-1, 4))
        self._names.freeze()
        columns = np.concatenate([np.zeros((0, 4), np.int64), *tables]).T.copy()
        self.labels, self._tars, self._starts, self.sizes = columns
        if len(self.labels) == 0:
            raise SourceError(f"{self._paths[0]}: holds no images")

    def _members(self, tar: int, fd: int) -> Iterator[Member]:
        found = members(fd, 0, os.fstat(fd).st_size, str(self._paths[tar]))
        return (m for m in found if m.name.removeprefix(b"./").startswith(self._below))

    def _text(self, tar: int, member: Member) -> bytes:
        return os.pread(self._fds[tar], min(member.size, 1 << 20), member.start)

    def _tar_of_tars(self, rows: list[tuple[int, Member]]) -> Listing:
        """One inner tar a class, as in ILSVRC2012_img_train.tar."""
        inner = sorted((Path(os.fsdecode(m.name)).stem, tar, m) for tar, m in rows if _visible(m.name))

        def images(label: int, tar: int, outer: Member) -> list[Sample]:
            where = f"{self._paths[tar]}: {os.fsdecode(outer.name)}"
            found = members(self._fds[tar], outer.start, outer.start + outer.size, where)
            return [(label, tar, m) for m in sorted(found, key=lambda m: m.name) if _visible(m.name)]

        return [name for name, _, _ in inner], (images(i, tar, outer) for i, (_, tar, outer) in enumerate(inner))

    def name(self, i: int) -> str:
        return f"{self._paths[self._tars[i]]}: {os.fsdecode(self._names[i])}"

    def read(self, i: int) -> bytes:
        return os.pread(self._fds[self._tars[i]], int(self.sizes[i]), int(self._starts[i]))

    def identity(self) -> str:
        digest = hashlib.sha256(self._names.block())
        for table in (self.labels, self.sizes, self._starts, self._tars):
            digest.update(table.tobytes())
        for fd in self._fds:
            status = os.fstat(fd)
            digest.update(b"%d %d " % (status.st_size, status.st_mtime_ns))
        return digest.hexdigest()

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


Sample = tuple[int, int, Member]  # label, number of the tar, member
Listing = tuple[list[str], Iterable[list[Sample]]]  # class names, samples in listing order, in parts


def _class_folders(rows: list[tuple[int, Member]], where: str) -> Listing:
    """``[.../]class/image``: the folder above an image is its class; other files (a README, a list) are left out."""
    images = [(m.name, tar, m) for tar, m in rows if _visible(m.name) and _is_image(m.name)]
    flat = next((name for name, _, _ in images if b"/" not in name.removeprefix(b"./")), None)
    if flat is not None:
        raise SourceError(
            f"{where}: {os.fsdecode(flat)} lies in no class folder. For ImageNet's validation images give "
            "--labels ILSVRC2012_devkit_t12.tar.gz"
        )
    trees = sorted({os.fsdecode(b"/".join(name.split(b"/")[:-2])) for name, _, _ in images})
    if len(trees) > 1:
        raise SourceError(f"{where}: holds class folders in {', '.join(trees[:3])}. Choose: {where}#{trees[0]}")
    classes = sorted({name.split(b"/")[-2] for name, _, _ in images})
    ids = {name: i for i, name in enumerate(classes)}
    samples = [(ids[name.split(b"/")[-2]], tar, m) for name, tar, m in images]
    return [os.fsdecode(name) for name in classes], [sorted(samples, key=lambda s: (s[0], s[2].name, s[1]))]


def _validation(rows: list[tuple[int, Member]], labels: str) -> Listing:
    """Flat images whose labels the devkit knows, in the order of their names."""
    images = sorted(((m.name, tar, m) for tar, m in rows if _visible(m.name)), key=lambda row: row[0])
    names, label_of = validation_labels(Path(labels))
    if len(label_of) != len(images):
        raise SourceError(f"{labels}: has {len(label_of)} labels for {len(images)} images. Do they belong together?")
    return names, [[(label, tar, m) for label, (_, tar, m) in zip(label_of, images, strict=True)]]


def _webdataset(rows: list[tuple[int, Member]], text: Callable[[int, Member], bytes]) -> Listing:
    """``key.jpg`` with ``key.cls`` (a number) or ``key.json`` (with ``label``): samples in the order of the tars."""
    groups: dict[tuple[int, bytes], dict[bytes, Member]] = {}
    for tar, m in rows:
        if _visible(m.name):
            folder, slash, base = m.name.rpartition(b"/")
            key, _, ending = base.partition(b".")
            groups.setdefault((tar, folder + slash + key), {})[ending.lower()] = m
    samples: list[Sample] = []
    for (tar, key), files in groups.items():
        image = next((m for ending, m in files.items() if _is_image(b"." + ending)), None)
        if image is None:
            continue
        samples.append((_label(files, partial(text, tar), os.fsdecode(key)), tar, image))
    count = max((label for label, _, _ in samples), default=-1) + 1
    return [str(i) for i in range(count)], [samples]


def _label(files: dict[bytes, Member], text: Callable[[Member], bytes], key: str) -> int:
    try:
        label = int(text(files[b"cls"])) if b"cls" in files else json.loads(text(files[b"json"]))["label"]
        if not isinstance(label, int) or not 0 <= label <= 10_000_000:
            raise ValueError(f"{label!r} is no class id")
    except (KeyError, ValueError, TypeError) as error:
        raise SourceError(f"sample {key!r}: its label (.cls, or 'label' in .json) cannot be read: {error}") from None
    return label
