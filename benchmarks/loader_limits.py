"""What this machine allows the loaders of suite ``loaders``, each in a process of its own, with the options of ``loader_subjects``.

``limit-copy``: of raw images, the bytes of the crop copied once, and a batch of normalised fp16 written to memory used before.
``limit-entropy``: of JPEGs, their entropy-coded data decoded to the end and nothing else. Loaders that stop at the end of the crop,
or begin at an entry point, decode less of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.loader_subjects import BATCH, repeated
from dp4tl_fast.beton import Beton
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders import LoaderSpec
from dp4tl_fast.loaders.augment import parameters

Work = Callable[[int, np.ndarray], None]  # (epoch, records)


def _entropy(beton: Beton, size: int) -> Work:
    payloads = [beton.payload(i).tobytes() for i in range(beton.num_samples)]

    def work(epoch: int, records: np.ndarray) -> None:
        found = _native.jpeg_checked([payloads[r] for r in records], [0] * len(records))
        if wrong := [what for what in found if isinstance(what, str)]:
            raise SystemExit(f"{beton.path}: an image cannot be decoded: {wrong[0]}")

    return work


def _copy(beton: Beton, size: int) -> Work:
    spec = LoaderSpec(batch_size=BATCH, size=size, transform="random_resized_crop", flip=True, shuffle=True)
    normalised = np.random.default_rng(0).random((3, size, size)).astype(np.float16)
    rows, largest = beton.images, int(beton.sizes.max())
    free: list[tuple[np.ndarray, np.ndarray]] = []  # as loaders keep theirs: new pages cost as much as what is written

    def work(epoch: int, records: np.ndarray) -> None:
        boxes, _ = parameters(spec, epoch, records, rows["height"][records], rows["width"][records], 0)
        try:
            crop, batch = free.pop()
        except IndexError:
            crop, batch = np.empty(largest, np.uint8), np.empty((BATCH, *normalised.shape), np.float16)
        for i, (record, (top, left, height, width)) in enumerate(zip(records, boxes.tolist(), strict=True)):
            image = np.asarray(beton.payload(int(record))).reshape(rows["height"][record], rows["width"][record], 3)
            np.copyto(crop[: height * width * 3].reshape(height, width, 3), image[top : top + height, left : left + width])
            np.copyto(batch[i], normalised)
        free.append((crop, batch))

    return work


LIMITS = {"limit-entropy": _entropy, "limit-copy": _copy}


def limit(name: str, options: dict[str, Any]) -> Callable[[int], float]:
    """What does an epoch's work of that kind and returns its seconds."""
    beton = Beton(options["file"])
    work = LIMITS[name](beton, options["size"])
    records = repeated(beton.num_samples, options["images"])
    batches = np.split(records, range(BATCH, len(records), BATCH))

    def seconds(number: int) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(options["threads"]) as pool:
            list(pool.map(lambda batch: work(number, batch), batches))
        return time.perf_counter() - start

    return seconds
