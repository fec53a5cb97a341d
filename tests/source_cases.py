"""Small images and trees for tests of what can be converted."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from dp4tl_fast.sources import Source, SourceOptions, open_source


def image(colour: int = 0, kind: str = "JPEG", size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (colour % 256, 90, 160)).save(out, kind)
    return out.getvalue()


def put(root: Path, files: Mapping[str | bytes, bytes | None]) -> Path:
    """Write files below ``root``; ``None`` is a folder."""
    for name, data in files.items():
        path = os.path.join(os.fsencode(root), os.fsencode(name))  # noqa: PTH118  # bytes
        os.makedirs(path if data is None else os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        if data is not None:
            with open(path, "wb") as file:
                file.write(data)
    return root


def make_tar(path: Path, files: Iterable[tuple[str, bytes | None]], mode: str = "w", **options: object) -> Path:
    """A tar of these members, as they come; ``None`` is a folder."""
    with tarfile.open(path, mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in files:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def opened(src: str | Path, scratch: Path | None = None, **options: object) -> Source:
    return open_source(str(src), SourceOptions(**options), scratch=scratch)  # type: ignore[arg-type]


def samples(src: str | Path, scratch: Path | None = None, **options: object) -> list[tuple[str, bytes]]:
    """(class name, file bytes) in listing order."""
    source = opened(src, scratch, **options)
    try:
        return [(source.class_names[source.labels[i]], source.read(i)) for i in range(len(source))]
    finally:
        source.close()


def labels_of(src: Path, **options: object) -> tuple[list[str], list[int]]:
    """Class names by id, and the class id of every sample."""
    source = opened(src, src.parent, **options)
    try:
        return source.class_names, source.labels.tolist()
    finally:
        source.close()


def names_of(src: str | Path, **options: object) -> dict[str, list[str]]:
    """Class name -> its files' base names, classes in the order of their ids."""
    source = opened(src, **options)
    try:
        found: dict[str, list[str]] = {name: [] for name in source.class_names}
        for i in range(len(source)):
            found[source.class_names[source.labels[i]]].append(source.name(i).rpartition("/")[2])
        return found
    finally:
        source.close()
