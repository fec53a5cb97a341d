"""Images inside tar files, read in place: ImageNet's own train and validation tars, class folders, WebDataset."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.base import MAX_CLASS_ID, Names, Source
from dp4tl_fast.sources.imagenet import validation_labels
from dp4tl_fast.sources.tar_members import Member, is_image, is_visible, members

LABEL_ENDINGS = (b"cls", b"json")  # a WebDataset's


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
        names = [member.name for _, member in rows if is_visible(member.name)]
        if _has_labels(rows):
            self.class_names, parts = _webdataset(rows, self._text)
        elif names and all(name.endswith(b".tar") for name in names):
            self.class_names, parts = self._tar_of_tars(rows)
        elif labels:
            self.class_names, parts = _validation(rows, labels)
        else:
            self.class_names, parts = _class_folders(rows, str(self._paths[0]))
        self._names = Names()
        tables = []
        for samples in parts:  # part by part, so that no object per image stays in memory
            self._names.extend([member.name for _, _, member in samples])
            rows_ = [(label, tar, m.start, m.size) for label, tar, m in samples]
            tables.append(np.array(rows_, np.int64).reshape(-1, 4))
        self._names.freeze()
        columns = np.concatenate([np.zeros((0, 4), np.int64), *tables]).T.copy()
        self.labels, self._tars, self._starts, self.sizes = columns
        if len(self.labels) == 0:
            raise SourceError(f"{self._paths[0]}: holds no images")

    def _members(self, tar: int, fd: int) -> list[Member]:
        return members(fd, 0, os.fstat(fd).st_size, str(self._paths[tar]), self._below)

    def _text(self, tar: int, member: Member) -> bytes:
        return os.pread(self._fds[tar], min(member.size, 1 << 20), member.start)

    def _tar_of_tars(self, rows: list[tuple[int, Member]]) -> Listing:
        """One inner tar per class, as in ILSVRC2012_img_train.tar."""
        inner = sorted((Path(os.fsdecode(m.name)).stem, tar, m) for tar, m in rows if is_visible(m.name))

        def images(label: int, tar: int, outer: Member) -> list[Sample]:
            where = f"{self._paths[tar]}: {os.fsdecode(outer.name)}"
            found = members(self._fds[tar], outer.start, outer.start + outer.size, where)
            return [(label, tar, m) for m in sorted(found, key=lambda m: m.name) if is_visible(m.name)]

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
    images = [(m.name, tar, m) for tar, m in rows if is_visible(m.name) and is_image(m.name)]
    flat = next((name for name, _, _ in images if b"/" not in name.removeprefix(b"./")), None)
    if flat is not None:
        raise SourceError(
            f"{where}: {os.fsdecode(flat)} lies in no class folder. For ImageNet's validation images give "
            "`labels=ILSVRC2012_devkit_t12.tar.gz`"
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
    images = sorted(((m.name, tar, m) for tar, m in rows if is_visible(m.name)), key=lambda row: row[0])
    names, label_of = validation_labels(Path(labels))
    if len(label_of) != len(images):
        raise SourceError(f"{labels}: has {len(label_of)} labels for {len(images)} images. Do they belong together?")
    return names, [[(label, tar, m) for label, (_, tar, m) in zip(label_of, images, strict=True)]]


def _has_labels(rows: list[tuple[int, Member]]) -> bool:
    """Whether it is a WebDataset: an image has its label beside it. A list or a note of the same ending makes none."""
    parts = [(tar, *_key_and_ending(m.name)) for tar, m in rows if is_visible(m.name)]
    labelled = {(tar, key) for tar, key, ending in parts if ending in LABEL_ENDINGS}
    return bool(labelled) and any((tar, key) in labelled for tar, key, ending in parts if is_image(b"." + ending))


def _key_and_ending(name: bytes) -> tuple[bytes, bytes]:
    """``a/b.c.jpg`` -> ``a/b``, which names the sample, and ``c.jpg``."""
    folder, slash, base = name.rpartition(b"/")
    key, _, ending = base.partition(b".")
    return folder + slash + key, ending.lower()


def _webdataset(rows: list[tuple[int, Member]], text: Callable[[int, Member], bytes]) -> Listing:
    """``key.jpg`` with ``key.cls`` (a number) or ``key.json`` (with ``label``): samples in the order of the tars."""
    groups: dict[tuple[int, bytes], dict[bytes, Member]] = {}
    for tar, m in rows:
        if is_visible(m.name):
            key, ending = _key_and_ending(m.name)
            groups.setdefault((tar, key), {})[ending] = m
    samples: list[Sample] = []
    for (tar, key), files in groups.items():
        image = next((m for ending, m in files.items() if is_image(b"." + ending)), None)
        if image is None:
            continue
        samples.append((_label(files, partial(text, tar), os.fsdecode(key)), tar, image))
    count = max((label for label, _, _ in samples), default=-1) + 1
    return [str(i) for i in range(count)], [samples]


def _label(files: dict[bytes, Member], text: Callable[[Member], bytes], key: str) -> int:
    try:
        label = int(text(files[b"cls"])) if b"cls" in files else json.loads(text(files[b"json"]))["label"]
        if not isinstance(label, int) or not 0 <= label <= MAX_CLASS_ID:
            raise ValueError(f"{label!r} is no class id")
    except (KeyError, ValueError, TypeError) as error:
        raise SourceError(f"sample {key!r}: its label (.cls, or 'label' in .json) cannot be read: {error}") from None
    return label
