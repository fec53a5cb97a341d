"""Training a small network on real JPEGs: the PyTorch reference ImageNet script's way, with FFCV, and ours.

The same network, batch, resolution and fp32 for all; what differs is how images come and what the loop does around the
step. Each is a process of its own with the threads its users would give it (one per core for loading, one per core for torch), and
runs an epoch when it is its turn. Then the small networks of the studies at 32 pixels, in fp32 and in the precision that
``pretrain`` chooses by measuring which is faster here. About 6 minutes on two cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import training_subjects
from benchmarks.child import Child
from benchmarks.harness import ROUNDS, Suite, interleave
from dp4tl_fast.common.machine import cores
from dp4tl_fast.conversion.run import convert

SUBJECTS = ("reference", "ffcv", "ours")
IMAGES, BATCH, SIZE, ARCH = 3072, 128, 96, "small-16"
SMALL, SMALL_SIZE, SMALL_SIDE, SMALL_ROUNDS = ("small-16", "small-32"), 32, 64, 11  # networks; pixels; the stored shorter side
PRECISIONS, FASTER_GOAL = ("fp32", "auto"), 1.3


class Training(Child):
    """A subject's process; a call runs an epoch, returns its samples per second and keeps the share spent waiting for data."""

    def __init__(self, subject: str, **options: Any) -> None:
        super().__init__(training_subjects.subject, name=subject, options=options)
        self.waits: list[float] = []

    def __call__(self) -> float:
        epoch = self.work()
        self.waits.append(epoch["wait_s"] / epoch["seconds"])
        return epoch["samples"] / epoch["seconds"]


def repeat_images(data: Path, folder: Path, images: int) -> None:
    """Class folders of links to the images of ``imagenet-sample``, each as often as it takes to have ``images`` files."""
    found = sorted(p for p in (data / "imagenet-sample").rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise SystemExit(f"{data}: no imagenet-sample there. Unpack imagenet-sample.tar")
    for i in range(images):
        image = found[i % len(found)]
        link = folder / image.parent.name / f"{i:06}.JPEG"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(image.resolve())


@contextmanager
def processes(subjects: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Training]]:
    """A process for each of these options, started one after the other; ``subject`` among them says what it runs."""
    started: dict[str, Training] = {}
    try:
        for name, options in subjects.items():
            started[name] = Training(**options)
        yield started
    finally:
        for child in started.values():
            child.close()


def run(suite: Suite) -> None:
    with tempfile.TemporaryDirectory(prefix="dp4tl-training-") as name:
        root = Path(name)
        repeat_images(suite.require_data(), root / "images", IMAGES)
        convert(str(root / "images"), str(root / "source.beton"))
        convert(str(root / "images"), str(root / "small.beton"), short_side=SMALL_SIDE)
        common = {"folder": str(root / "images"), "batch": BATCH, "threads": cores()}
        options = {**common, "file": str(root / "source.beton"), "size": SIZE, "arch": ARCH}
        with processes({subject: {**options, "subject": subject} for subject in SUBJECTS}) as children:
            samples = interleave(children)
        rows = suite.add("samples", samples, "samples/s", ratio_to="reference")
        waits = {subject: child.waits[-ROUNDS:] for subject, child in children.items()}  # without the warm-up
        suite.add("data-wait", waits, "share")
        suite.goal("vs-reference", goal=1.0, measured=rows["ours"].ratio or 0.0, unit="x reference script")
        suite.goal("data-wait-share", goal=0.05, measured=median(waits["ours"]), unit="of the time", at_most=True)
        for arch in SMALL:
            options = {**common, "file": str(root / "small.beton"), "size": SMALL_SIZE, "arch": arch, "subject": "ours"}
            with processes({precision: {**options, "precision": precision} for precision in PRECISIONS}) as children:
                samples = interleave(children, rounds=SMALL_ROUNDS)
            rows = suite.add(f"{arch} at {SMALL_SIZE} pixels", samples, "samples/s", ratio_to="fp32")
            suite.goal(f"auto-precision-{arch}", goal=FASTER_GOAL, measured=rows["auto"].ratio or 0.0, unit="x fp32")
