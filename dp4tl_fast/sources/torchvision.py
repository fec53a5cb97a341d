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
from dp4tl_fast.sources.base import Names, Source, named_classes
from dp4tl_fast.sources.spool import SpoolSource

# Where its data sets keep the paths of their images and the labels; files are then stored as they are.
FILES = (("samples", None), ("_samples", None), ("_image_files", "_labels"), ("_images", "_labels"))


def open_torchvision(spec: str, scratch: Path) -> Source:
    """Open what ``NAME?root=...&...`` says. Values ``true``, ``false`` and numbers are taken as such.

    Raises:
        SourceError: There is no such data set, it refuses the arguments, or it has no labels.
    """
    import torchvision

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
                return PathsSource(spec, [(str(p), int(y)) for p, y, *_ in pairs], _class_names(dataset))
    return PicturesSource(spec, dataset, scratch)


def _value(text: str) -> str | int | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text


def _class_names(dataset: Any) -> list[str]:
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    return [name if isinstance(name, str) else ", ".join(map(str, name)) for name in names]


class PathsSource(Source):
    """Files on disk with labels."""

    def __init__(self, spec: str, rows: list[tuple[str, int]], class_names: list[str]) -> None:
        self._names = Names()
        self._names.extend([path.encode(errors="surrogateescape") for path, _ in rows])
        self._names.freeze()
        self.labels = np.array([label for _, label in rows], np.int64)
        self.class_names = named_classes(spec, class_names, self.labels)
        self.sizes = np.array([Path(path).stat().st_size for path, _ in rows], np.int64)

    def name(self, i: int) -> str:
        return self._names[i].decode(errors="surrogateescape")

    def read(self, i: int) -> bytes:
        return Path(self.name(i)).read_bytes()

    def identity(self) -> str:
        tables = (self._names.block(), self.labels.tobytes(), self.sizes.tobytes())
        return hashlib.sha256(b"".join(tables)).hexdigest()


class PicturesSource(SpoolSource):
    """Data sets that hold pixels (CIFAR, MNIST ...): spooled as PNG, which loses nothing."""

    def __init__(self, spec: str, dataset: Any, scratch: Path) -> None:
        super().__init__(spec, scratch)
        self.class_names = _class_names(dataset)
        self._spool(self._samples(dataset))

    def _samples(self, dataset: Any) -> Iterator[tuple[int, bytes]]:
        for i in range(len(dataset)):
            picture, label = dataset[i][:2]
            if not hasattr(picture, "save") or not isinstance(label, (int, np.integer)):
                raise SourceError(f"{self._src}: sample {i} is not an image with a class id")
            out = io.BytesIO()
            picture.save(out, "PNG")
            yield int(label), out.getvalue()
