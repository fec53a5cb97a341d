"""Trees of image files: what is a class in a folder, a tar, a zip, a folder behind a URL. One rule for all.

A tree is a list of folders, each with its files. Well-known litter was left out when it was listed (``litter``).

- Folders around everything are passed over: the root is the first folder that holds more than one other folder.
- Folders of the root that are named like splits, all of them, or two of them and with class folders inside, are splits.
- The folders of the root are the classes, with everything below them. If some class holds images in several folders, it
  must be said whether the folders of the root (``top``) or those around the images (``leaf``) are meant.
- Samples are listed class by class, in the order of folders and names, compared as bytes.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dp4tl_fast.common.content import image_kind
from dp4tl_fast.common.errors import SourceError, UsageError
from dp4tl_fast.sources.base import Names, Source
from dp4tl_fast.sources.classes import class_labels, order_in_words, ordered, reordered
from dp4tl_fast.sources.imagenet import validation_labels
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.table import read_mapping

SPLITS = ("train", "training", "trainval", "train_set", "val", "valid", "validation", "val_set", "dev", "eval",
          "test", "testing", "test_set")  # fmt: skip
SHOWN = 5  # names in a message


@dataclass(slots=True, eq=False)
class Files:
    """The files of one folder, sorted by name: names in one block, numbers in one table.

    Attributes:
        names: Joined by NUL, which no name holds.
        table: int64 ``[n, k]``; the first column is the size in bytes, the others tell the source where the bytes are.
    """

    names: bytes
    table: np.ndarray

    @classmethod
    def of(cls, rows: list[tuple[bytes, tuple[int, ...]]]) -> Files:
        rows.sort(key=lambda row: (row[0], row[1][1:]))
        table = np.array([numbers for _, numbers in rows], np.int64).reshape(len(rows), -1 if rows else 1)
        return cls(b"\0".join(name for name, _ in rows), table)

    def __len__(self) -> int:
        return len(self.table)


@dataclass(slots=True, eq=False)
class Folder:
    """A folder of a tree. ``total`` counts the files in it and below."""

    name: bytes
    path: bytes  # below the tree's root, without slashes around it
    files: Files | None = None
    folders: dict[bytes, Folder] = field(default_factory=dict)
    total: int = 0

    def at(self, path: bytes) -> Folder:
        """The folder at a path below this one, made where there is none."""
        here = self
        for name in filter(None, path.split(b"/")):
            if name not in here.folders:
                here.folders[name] = Folder(name, here.path + b"/" + name if here.path else name)
            here = here.folders[name]
        return here

    def walk(self) -> Iterator[Folder]:
        """This folder and all below that hold files, sorted by name."""
        if self.files is not None and len(self.files):
            yield self
        for name in sorted(self.folders):
            yield from self.folders[name].walk()

    def count(self) -> int:
        self.total = (0 if self.files is None else len(self.files)) + sum(f.count() for f in self.folders.values())
        return self.total

    @property
    def own(self) -> int:
        """Files in this very folder."""
        return 0 if self.files is None else len(self.files)


class TreeSource(Source):
    """Samples of a tree. Subclasses list it, call ``_arrange``, and read.

    Args:
        where: What messages call the source.
    """

    def __init__(self, where: str, options: SourceOptions) -> None:
        super().__init__()
        self._where, self._options = where, options
        self._names = Names()

    @abstractmethod
    def _head(self, path: bytes, row: np.ndarray) -> bytes:
        """The first bytes of the file at this path, with this row of ``Files.table``."""

    def _arrange(self, root: Folder) -> None:
        """Decide what is a class, and list the samples."""
        root.count()
        options = self._options
        table = options.classes_from not in ("", "top", "leaf")
        if not table:
            options.refuse(self._where, "image_column", "label_column")
            if options.label_type == "id":
                raise UsageError(
                    f"`label_type=id`: does not apply to {self._where}, whose classes are folders. `class_order=natural` puts 2 "
                    "before 10"
                )
        if options.labels:
            options.refuse(self._where, "classes_from")
        if options.split:
            root = self._split(root)
        if options.labels or table:
            self._list_flat(root)
        else:
            self._list_classes(self._classes(self._unwrapped(root)))
        if len(self.labels) == 0 and not options.allow_empty:
            raise SourceError(f"{self._where}: holds no images")

    # -- what is the root ---------------------------------------------------------------------------------------------

    def _unwrapped(self, root: Folder) -> Folder:
        """Without the folders that hold nothing but one folder of folders."""
        while len(root.folders) == 1 and not self._has_images(root):
            (inner,) = root.folders.values()
            if not inner.folders or self._has_images(inner):
                break
            self._leave_out_files(root)
            self.notes.append(f"the root is {_text(inner.path)}, the only folder")
            root = inner
        return root

    def _has_images(self, folder: Folder) -> bytes:
        """The name of an image in this very folder; empty where there is none."""
        if folder.files is None or not folder.own:
            return b""
        for i, name in enumerate(folder.files.names.split(b"\0")):
            if image_kind(self._head(os.fsencode(_below(folder, name)), folder.files.table[i])):
                return name
        return b""

    def _leave_out_files(self, folder: Folder) -> None:
        """Files that lie in no class folder. An image among them is not to be lost."""
        if not folder.own or folder.files is None:
            return
        if image := self._has_images(folder):
            raise SourceError(
                f"{self._where}: {_below(folder, image)} is in no class folder. Move such images into one, or elsewhere. "
                "For ImageNet's validation images give `labels=ILSVRC2012_devkit_t12.tar.gz`; for a table that names "
                "the class of every image, `classes_from=TABLE`"
            )
        for name in folder.files.names.split(b"\0"):
            self.left_out.append((_below(folder, name), "no image, and in no class folder"))

    # -- splits -------------------------------------------------------------------------------------------------------

    def _splits(self, root: Folder) -> list[Folder]:
        """Folders of the root that are splits; none where these are classes."""
        named = [f for name, f in sorted(root.folders.items()) if name.lower() in map(str.encode, SPLITS)]
        deep = [f for f in named if any(inner.total for inner in f.folders.values())]
        if named and len(named) == sum(1 for f in root.folders.values() if f.total or f in named):
            return named if len(named) > 1 else []
        return named if len(deep) >= 2 else []

    def _split(self, root: Folder) -> Folder:
        wanted = os.fsencode(self._options.split)
        while wanted not in root.folders and len(root.folders) == 1 and not root.own:
            (root,) = root.folders.values()
        if wanted not in root.folders:
            there = ", ".join(_text(name) for name in sorted(root.folders)[:SHOWN]) or "no folder"
            raise SourceError(f"{self._where}: has no split {self._options.split!r}. It holds {there}")
        self.notes.append(f"only the split {self._options.split} is read")
        return root.folders[wanted]

    # -- classes ------------------------------------------------------------------------------------------------------

    def _classes(self, root: Folder) -> list[tuple[str, list[Folder]]]:
        """(class name, its folders with images), in no particular order."""
        mode = self._options.classes_from
        if mode != "top" and not self._options.split and (splits := self._splits(root)):
            names = ", ".join(_text(f.name) for f in splits)
            raise SourceError(
                f"{self._where}: holds the splits {names}. Choose one with `split={_text(splits[0].name)}` "
                "(`classes_from=top` if they are classes)"
            )
        if not root.folders and root.own:
            self._leave_out_files(root)
        if not root.folders:
            found = f"{root.own} {'file' if root.own == 1 else 'files'} but no folder" if root.own else "nothing"
            raise SourceError(f"{self._where}: holds {found}; it must hold one folder per class, with the images in it")
        self._leave_out_files(root)
        if mode == "leaf":
            return self._leaves(root)
        if not mode:
            self._check_depth(root)
        return [(_text(name), self._not_empty(folder, list(folder.walk()))) for name, folder in sorted(root.folders.items())]

    def _check_depth(self, root: Folder) -> None:
        """Refuse to guess which folders are the classes."""
        below = [{f.path[len(top.path) :] for f in top.walk()} for top in root.folders.values() if top.total]
        if all(paths == {b""} for paths in below):
            return
        if len(below) > 1 and all(paths == below[0] for paths in below) and len(below[0]) == 1:
            (inner,) = below[0]
            self.notes.append(
                f"classes are the folders above {_text(inner.strip(b'/'))}, in which each holds its images"
            )
            return
        leaves = [f for f in root.walk() if f is not root]
        deepest = max(leaves, key=lambda f: f.path.count(b"/"))
        raise SourceError(
            f"{self._where}: holds images at several depths, as in {_text(deepest.path)}. Say which folders are the classes: "
            f"`classes_from=top` ({_some(root.folders)}) or `classes_from=leaf` ({_some({f.path: f for f in leaves})})"
        )

    def _leaves(self, root: Folder) -> list[tuple[str, list[Folder]]]:
        def ends(folder: Folder) -> Iterator[Folder]:
            if folder is not root and (folder.own or not folder.folders):
                yield folder
            for _, inner in sorted(folder.folders.items()):
                yield from ends(inner)

        leaves = list(ends(root))
        unique = max(Counter(f.name for f in leaves).values(), default=1) == 1
        start = len(root.path) + 1 if root.path else 0
        rule = "their names" if unique else "their paths, because some have the same name"
        self.notes.append(f"classes are the folders around the images, by {rule}")
        return [(_text(f.name if unique else f.path[start:]), self._not_empty(f, [f] if f.own else [])) for f in leaves]

    def _not_empty(self, folder: Folder, found: list[Folder]) -> list[Folder]:
        if not found and not self._options.allow_empty:
            raise SourceError(
                f"{self._where}: class folder {_text(folder.path)!r} has no images. Fill it or remove it, or give `allow_empty` "
                "to keep it as a class"
            )
        return found

    # -- listing ------------------------------------------------------------------------------------------------------

    def _list_classes(self, classes: list[tuple[str, list[Folder]]]) -> None:
        of = dict(classes)
        self.class_names = ordered(of, self._where, self._options)
        if self._options.class_order != "text":
            self.notes.append(f"classes are in {order_in_words(self._options)}")
        parts = [(label, folder) for label, name in enumerate(self.class_names) for folder in of.get(name, ())]
        self._set([folder for _, folder in parts])
        self.labels = np.repeat(np.array([label for label, _ in parts], np.int64), [folder.own for _, folder in parts])

    def _list_flat(self, root: Folder) -> None:
        """Images whose classes stand elsewhere: in the devkit, by their order, or in a table, by their names."""
        self._set(list(root.walk()))
        if self._options.labels:
            self.class_names, labels = validation_labels(Path(self._options.labels))
            if len(labels) != len(self.sizes):
                self._leave_out_no_images()
            if len(labels) != len(self.sizes):
                raise SourceError(
                    f"{self._options.labels}: has {len(labels)} labels for {len(self.sizes)} images. Do they belong together?"
                )
            self._take(sorted(range(len(labels)), key=lambda i: self._names[i].rpartition(b"/")[2]))
            found = np.array(labels, np.int64)
            self.class_names, self.labels = reordered(self.class_names, found, self._options.labels, self._options)
            return
        table = Path(self._options.classes_from)
        classes = read_mapping(table, self._options)
        chosen, values = [], []
        by_name: dict[bytes, bytes] = {}  # images that the table names without their folder
        for i in range(len(self.sizes)):
            path = self._names[i][len(root.path) :].lstrip(b"/")
            base = path.rpartition(b"/")[2]
            value = classes.get(path, classes.get(base))
            if value is not None:
                if path not in classes and (other := by_name.setdefault(base, path)) != path:
                    raise SourceError(
                        f"{table}: names {_text(base)}, but {self._where} has {_text(other)} and {_text(path)}. Name their folders"
                    )
                chosen.append(i)
                values.append(value)
            elif image_kind(self._head(self._names[i], self._table[i])):
                raise SourceError(f"{table}: does not name {_text(path)}, an image of {self._where}")
            else:
                self.left_out.append((_text(self._names[i]), "no image"))
        if unused := len(classes) - len(chosen):
            self.notes.append(f"{unused:,} of {len(classes):,} files named in {table} are missing")
        self._take(chosen)
        self.class_names, self.labels, rule = class_labels(
            str(table), values, lambda i: f"{table}: {_text(self._names[i])}", self._options
        )
        self.notes.append(rule)

    def _leave_out_no_images(self) -> None:
        images = [bool(image_kind(self._head(self._names[i], self._table[i]))) for i in range(len(self.sizes))]
        self.left_out += [(_text(self._names[i]), "no image") for i, is_one in enumerate(images) if not is_one]
        self._take([i for i, is_one in enumerate(images) if is_one])

    def _set(self, folders: list[Folder]) -> None:
        tables = []
        for folder in folders:
            if folder.files is not None and folder.own:
                start = folder.path + b"/" if folder.path else b""
                self._names.extend([start + name for name in folder.files.names.split(b"\0")])
                tables.append(folder.files.table)
        self._names.freeze()
        self._table = np.concatenate(tables) if tables else np.zeros((0, 1), np.int64)
        self.sizes = np.ascontiguousarray(self._table[:, 0])

    def _take(self, order: list[int]) -> None:
        names, self._names = self._names, Names()
        self._names.extend([names[i] for i in order])
        self._names.freeze()
        self._table = self._table[np.array(order, np.int64)]
        self.sizes = np.ascontiguousarray(self._table[:, 0])

    def name(self, i: int) -> str:
        return f"{self._where}: {_text(self._names[i])}"

    def identity(self) -> str:
        digest = hashlib.sha256(self._names.block())
        for table in (self.labels, self._table):
            digest.update(np.ascontiguousarray(table).tobytes())
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _text(name: bytes) -> str:
    return os.fsdecode(name)


def _below(folder: Folder, name: bytes) -> str:
    return _text(folder.path + b"/" + name if folder.path else name)


def _some(names: Iterable[bytes]) -> str:
    found = sorted(names)
    more = f", ... {len(found)} in all" if len(found) > SHOWN else ""
    return ", ".join(map(_text, found[:SHOWN])) + more
