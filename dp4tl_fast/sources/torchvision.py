"""``torchvision:NAME?root=DIR&split=train``: any of torchvision's classification data sets."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.base import Names, Source
from dp4tl_fast.sources.classes import class_labels
from dp4tl_fast.sources.files import check_file, read_whole
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.spool import SpoolSource

# Where its data sets keep the paths of their images and the labels; files are then stored as they are.
FILES = (("samples", None), ("_samples", None), ("_image_files", "_labels"), ("_images", "_labels"))


def open_torchvision(spec: str, options: SourceOptions, scratch: Path | None) -> Source:
    """Open what ``NAME?root=...&...`` says. Values ``true``, ``false`` and numbers are taken as such.

    Raises:
        SourceError: There is no such data set, it refuses the arguments, or it has no labels.
    """
    import torchvision

    options.refuse(spec, "split", "classes_from", "labels", "image_key", "label_key", "image_column", "label_column")
    name, _, query = spec.removeprefix("torchvision:").partition("?")
    kind = getattr(torchvision.datasets, name, None)
    if not isinstance(kind, type):
        raise SourceError(f"{spec}: torchvision.datasets has no {name!r}")
    arguments: dict[str, Any] = {key: _value(value) for key, value in parse_qsl(query)}
    try:
        dataset = kind(**arguments)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise SourceError(f"{spec}: {str(error).splitlines()[0]}") from None
    for paths, labels in FILES:
        rows = getattr(dataset, paths, None)
        targets = getattr(dataset, labels, None) if labels else None
        if isinstance(rows, list) and rows and (labels is None or targets is not None):
            pairs = rows if labels is None else list(zip(rows, targets, strict=True))  # type: ignore[arg-type]
            if all(isinstance(row, tuple) and len(row) >= 2 and isinstance(row[0], (str, Path)) for row in pairs):
                return PathsSource(spec, [(str(p), y) for p, y, *_ in pairs], _class_names(dataset), options)
    return PicturesSource(spec, dataset, options, scratch)


def _value(text: str) -> str | int | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text


def _class_names(dataset: Any) -> list[str]:
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    return [name if isinstance(name, str) else ", ".join(map(str, name)) for name in names]


class PathsSource(Source):
    """Files on disk with labels."""

    def __init__(self, spec: str, rows: list[tuple[str, Any]], class_names: list[str], options: SourceOptions) -> None:
        super().__init__()
        self._names = Names()
        self._names.extend([path.encode(errors="surrogateescape") for path, _ in rows])
        self._names.freeze()
        labels = [label for _, label in rows]
        self.class_names, self.labels, rule = class_labels(
            spec, labels, lambda i: f"{spec}: {rows[i][0]}", options, class_names or None
        )
        self.notes.append(rule)
        self.sizes = np.array([check_file(path).st_size for path, _ in rows], np.int64)

    def name(self, i: int) -> str:
        return self._names[i].decode(errors="surrogateescape")

    def read_file(self, i: int) -> bytes:
        return read_whole(self._names[i], int(self.sizes[i]))

    def identity(self) -> str:
        tables = (self._names.block(), self.labels.tobytes(), self.sizes.tobytes())
        return hashlib.sha256(b"".join(tables)).hexdigest()


class PicturesSource(SpoolSource):
    """Data sets that hold pixels (CIFAR, MNIST ...): spooled as PNG, which loses nothing."""

    def __init__(self, spec: str, dataset: Any, options: SourceOptions, scratch: Path | None) -> None:
        super().__init__(spec, scratch)
        found: list[int] = []
        self.labels, self.class_names = np.zeros(0, np.int64), []
        self._spool(self._samples(dataset, found))
        if not found:
            raise SourceError(f"{spec}: holds no images")
        names = _class_names(dataset) or None
        self.class_names, self.labels, rule = class_labels(spec, found, lambda i: f"{spec}: sample {i}", options, names)
        self.notes.append(rule)

    def _samples(self, dataset: Any, labels: list[int]) -> Iterator[bytes]:
        for i in range(len(dataset)):
            picture, label = dataset[i][:2]
            if not hasattr(picture, "save") or not isinstance(label, (int, np.integer)):
                raise SourceError(f"{self._src}: sample {i} is not an image with a class id")
            out = io.BytesIO()
            picture.save(out, "PNG")
            if label < 0:
                raise SourceError(f"{self._src}: sample {i} has the label {label}, which is not a class id. Choose another split")
            labels.append(int(label))
            yield out.getvalue()
