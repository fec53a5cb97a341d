"""Images per second into a .beton: ``convert`` against ``ffcv.DatasetWriter``, on the same images with the same workers.

``keep``: images at full size. FFCV decodes every JPEG and encodes it anew (its ``jpg`` mode); convert stores what is in
the file, with or without entry points. ``reencode``: longer side at most 400 pixels, quality 90, in both. Every subject's
time ends when its file is on the disk (fsync). ``copy`` is the limit: the same bytes as one file, written and synced.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.harness import Suite, interleave, timed
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.sources import open_source

WORKERS = 2
COPIES = 4  # of the 500 sample images, as links: enough that start-up does not count
MAX_SIDE, QUALITY = 400, 90
KEEP_GOAL, REENCODE_GOAL = 10.0, 2.0


class Samples:
    """What FFCV's writer is given: (PIL image, label), opened lazily as torchvision's ImageFolder does."""

    def __init__(self, root: Path) -> None:
        source = open_source(str(root))
        self._rows = [(source.name(i), int(label)) for i, label in enumerate(source.labels)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        path, label = self._rows[i]
        with Image.open(path) as image:
            return image.convert("RGB"), label


def run(suite: Suite) -> None:
    first = next(iter(sorted(suite.require_data().glob("**/imagenet-sample/n*"))), None)
    if first is None:
        raise SystemExit("suite 'convert' needs the unpacked imagenet-sample below --data")
    with tempfile.TemporaryDirectory(prefix="dp4tl-convert-", dir=suite.require_data()) as scratch:
        tree = _links(sorted(first.parent.glob("n*")), Path(scratch) / "tree")
        _measure(suite, Samples(tree), tree, Path(scratch) / "out.beton")


def _links(folders: list[Path], tree: Path) -> Path:
    """``COPIES`` times the class folders, as symbolic links to their images."""
    for folder in folders:
        target = tree / folder.name
        target.mkdir(parents=True, exist_ok=True)
        for image in folder.iterdir():
            for copy in range(COPIES):
                (target / f"{copy}_{image.name}").symlink_to(image.resolve())
    return tree


def _measure(suite: Suite, samples: Samples, tree: Path, out: Path) -> None:
    def ours(**options: object) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            convert(str(tree), str(out), workers=WORKERS, **options)  # type: ignore[arg-type]

    def theirs(max_side: int | None) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

        image = RGBImageField(write_mode="jpg", max_resolution=max_side, jpeg_quality=QUALITY)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            writer = DatasetWriter(str(out), {"image": image, "label": IntField()}, num_workers=WORKERS)
            writer.from_indexed_dataset(samples)
        _sync(out)

    whole = out.with_name("whole")
    with open(whole, "wb") as file:
        for image in sorted(tree.glob("*/*")):
            file.write(image.read_bytes())

    def copy() -> None:
        shutil.copyfile(whole, out)
        _sync(out)

    def fresh(subject: Callable[[], float]) -> Callable[[], float]:
        """Deletes the previous round's file before the time is taken."""

        def seconds() -> float:
            out.unlink(missing_ok=True)
            return subject()

        return seconds

    n = len(samples)
    cases = {
        "keep": {
            "ffcv jpg": lambda: theirs(None),
            "convert keep": lambda: ours(entry_points="off"),
            "convert keep, entry points": lambda: ours(entry_points="on"),
            "copy": copy,
        },
        "reencode": {
            "ffcv jpg, max_resolution 400": lambda: theirs(MAX_SIDE),
            "convert max_side 400": lambda: ours(max_side=MAX_SIDE, quality=QUALITY, entry_points="off"),
        },
    }
    goals = {  # goal -> case, subject, asked
        "keep": ("keep", "convert keep", KEEP_GOAL),
        "keep-entry-points": ("keep", "convert keep, entry points", KEEP_GOAL),  # the default
        "reencode": ("reencode", "convert max_side 400", REENCODE_GOAL),
    }
    for case, subjects in cases.items():
        seconds = interleave({name: fresh(timed(subject)) for name, subject in subjects.items()})
        rates = {name: [n / s for s in values] for name, values in seconds.items()}
        rows = suite.add(case, rates, "images/s", ratio_to=next(iter(subjects)))
        for name, (where, subject, goal) in goals.items():
            if where == case:
                suite.goal(name, goal=goal, measured=rows[subject].ratio or 0.0, unit="x ffcv.DatasetWriter")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
