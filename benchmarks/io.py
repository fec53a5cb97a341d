"""Bytes that the disk gives for a selection: every backend, both layouts, cold cache; FFCV's own loader beside them.

Records have the size of ImageNet's JPEGs but hold pixels, so that an epoch's time is that of reading. Each measurement is
a process of its own: the system counts what a process makes the disk read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.harness import Suite
from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton.format import MODE_RAW
from dp4tl_fast.loaders import LoaderSpec, open_loader

FILE_BYTES, SIDE, CLASSES = 2 << 30, 134, 500  # records of 54 KB
KEPT = (100, 60, 40, 20)  # per cent of the classes
OURS = ("native", "ffcv", "dali")
STOCK = "ffcv-stock"
BATCH = 128


def run(suite: Suite) -> None:
    excess = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for layout in ("class", "shuffled"):
            path = Path(folder) / f"{layout}.beton"
            write(path, layout)
            for kept in KEPT:
                subjects = OURS if kept != min(KEPT) else (*OURS, STOCK)  # it reads nearly all, whatever is kept
                results = {subject: measure(subject, path, kept) for subject in subjects}
                wanted = results["native"]["wanted"]
                read = {subject: [result["read"]] for subject, result in results.items()}
                suite.add(f"{layout}-{kept}%", {**read, "wanted": [wanted]}, "fraction of file")
                suite.add(f"{layout}-{kept}%-cold-epoch", {s: [results[s]["seconds"]] for s in OURS}, "s")
                excess.append(read["native"][0] - wanted)
            path.unlink()
    suite.goal("excess-bytes-read", goal=0.02, measured=max(excess), unit="fraction of file", at_most=True)


def write(path: Path, layout: str) -> None:
    """A file of noise, labels 0 to CLASSES - 1."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, 3 * SIDE * SIDE + 4096, np.uint8)
    count = FILE_BYTES // (3 * SIDE * SIDE)
    labels = np.arange(count) * CLASSES // count
    with BetonWriter(path, count) as writer:
        for i, label in enumerate(labels if layout == "class" else random.permutation(labels)):
            pixels = noise[i % 4096 : i % 4096 + 3 * SIDE * SIDE]
            writer.append(pixels.tobytes(), MODE_RAW, SIDE, SIDE, int(label), i)
        writer.close()


def measure(subject: str, path: Path, kept: int) -> dict[str, float]:
    """One cold epoch in a process of its own: ``read`` and ``wanted`` as fractions of the file, ``seconds``."""
    command = [sys.executable, "-m", "benchmarks.io", subject, str(path), str(kept)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{subject}, {kept} %: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Kept:
    """Stands for a selection: classes drawn at random, so that they lie scattered."""

    def __init__(self, per_cent: int) -> None:
        self.classes = np.random.default_rng(1).permutation(CLASSES)[: CLASSES * per_cent // 100]

    def indices(self, beton: Beton) -> np.ndarray:
        return np.flatnonzero(np.isin(beton.labels, self.classes))


def child(subject: str, path: Path, kept: int) -> dict[str, float]:
    beton = Beton(path)
    wanted = int(beton.sizes[Kept(kept).indices(beton)].sum())
    batches = stock_ffcv(beton, kept) if subject == STOCK else ours(subject, beton, kept)
    evict(path)
    before, start = read_from_disk(), time.perf_counter()
    for _ in batches:
        pass
    seconds, read = time.perf_counter() - start, read_from_disk() - before
    return {"read": read / beton.file_size, "wanted": wanted / beton.file_size, "seconds": seconds}


def ours(backend: str, beton: Beton, kept: int) -> Iterable:
    spec = LoaderSpec(batch_size=BATCH, size=64, transform="random_resized_crop", shuffle=True, flip=True)
    return open_loader(beton, Kept(kept), spec, backend)  # type: ignore[arg-type]


def stock_ffcv(beton: Beton, kept: int) -> Iterable:
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    image = [RandomResizedCropRGBImageDecoder((64, 64)), RandomHorizontalFlip(), ToTensor(), ToTorchImage()]
    return Loader(
        str(beton.path), batch_size=BATCH, num_workers=len(os.sched_getaffinity(0)), order=OrderOption.RANDOM,
        os_cache=True, drop_last=False, indices=Kept(kept).indices(beton),
        pipelines={"image": image, "label": [IntDecoder(), ToTensor()], "index": None},
    )  # fmt: skip


def evict(path: Path) -> None:
    """Drop the file's records from the page cache (its tables stay mapped)."""
    os.sync()  # a page that waits to be written cannot be dropped
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def read_from_disk() -> int:
    """Bytes that this process made the disk read."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))), flush=True)
    os._exit(0)  # FFCV's and DALI's threads and finalizers would hold the exit up
