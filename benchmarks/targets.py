"""The source and the targets of the studies, made from the unpacked data sets below ``--data``.

The source is Tiny-ImageNet without ``HELD_OUT`` training images of each class. Narrow targets are groups of its classes: their
images are the held-out ones and those of ``val/``, so that no image is both in the source and in a target. Flowers and CIFAR-10
are data sets of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.conversion.run import convert

SOURCE = "tiny-imagenet"
HELD_OUT = 50  # training images of each source class
TRAIN = 20  # of those, images of each class that a narrow target trains on; it is tested on the others and on val/


@dataclass(frozen=True, kw_only=True)
class Target:
    """Either a group of the source's classes, or a data set in ``folder`` with ``train/`` and ``test/``."""

    classes: tuple[str, ...] = ()
    folder: str = ""


TARGETS = {
    "carnivores": Target(classes=(
        "n02085620", "n02094433", "n02099601", "n02099712", "n02106662", "n02113799", "n02123045", "n02123394", "n02124075",
        "n02125311", "n02129165", "n02132136",
    )),
    "vehicles": Target(classes=(
        "n02814533", "n02917067", "n03100240", "n03393912", "n03444034", "n03670208", "n03796401", "n03977966", "n04146614",
        "n04285008", "n04465501", "n04487081",
    )),
    "food": Target(classes=(
        "n07583066", "n07614500", "n07615774", "n07695742", "n07711569", "n07715103", "n07720875", "n07734744", "n07747607",
        "n07749582", "n07753592", "n07768694", "n07871810", "n07873807", "n07875152", "n07920052",
    )),
    "flowers": Target(folder="flowers17"),
    "cifar10": Target(folder="cifar10"),
}  # fmt: skip


def files_of(names: Sequence[str]) -> list[str]:
    """Names of the files that ``build`` makes: ``source``, ``val``, and ``TARGET-train`` and ``TARGET-test`` for each target."""
    return ["source", "val", *(f"{name}-{part}" for name in names for part in ("train", "test"))]


def build(data: Path, root: Path, names: Sequence[str]) -> dict[str, Path]:
    """``{name: .beton}`` of all ``files_of(names)`` in ``root``; those that are there are not made again.

    Raises:
        UsageError: An unknown target, or a data set that is not below ``data``.
    """
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise UsageError(f"target {', '.join(unknown)}: known are {', '.join(TARGETS)}")
    files = {name: root / f"{name}.beton" for name in files_of(names)}
    root.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=root, prefix="links-") as links:
                _link(_images(data, name), Path(links))
                convert(links, str(file))
    return files


def _images(data: Path, name: str) -> dict[str, list[Path]]:
    """Class -> images of one of ``files_of``."""
    if name == "val":
        return _classes(data / SOURCE / "val")
    if name == "source":
        return {c: paths[:-HELD_OUT] for c, paths in _classes(data / SOURCE / "train").items()}
    target, part = name.rsplit("-", 1)
    if folder := TARGETS[target].folder:
        return _classes(data / folder / part)
    train, val = _classes(data / SOURCE / "train"), _classes(data / SOURCE / "val")
    missing = [c for c in TARGETS[target].classes if c not in train or c not in val]
    if missing:
        raise UsageError(f"{data / SOURCE}: has no class {', '.join(missing)}, which target {target!r} needs")
    held_out = {c: train[c][-HELD_OUT:] for c in TARGETS[target].classes}
    if part == "train":
        return {c: paths[:TRAIN] for c, paths in held_out.items()}
    return {c: paths[TRAIN:] + val[c] for c, paths in held_out.items()}


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Class -> images, both in sorted order."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Unpack the data set below --data")
    return {c.name: sorted(p for p in c.iterdir() if p.is_file()) for c in sorted(folder.iterdir()) if c.is_dir()}


def _link(images: dict[str, list[Path]], folder: Path) -> None:
    """Class folders of symbolic links; the name of the split goes before the image's, as both may have an image of one name."""
    for name, paths in images.items():
        (folder / name).mkdir()
        for path in paths:
            (folder / name / f"{path.parent.parent.name}-{path.name}").symlink_to(path.resolve())
