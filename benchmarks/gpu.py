"""Feeding a GPU: images per second that arrive on it as normalised fp16, how busy it is kept, and the share of the copies.

Needs a CUDA GPU. ``native`` and ``ffcv`` decode on the CPU and copy; ``dali`` and torchvision copy JPEGs and decode there
(nvJPEG). The tests run it on the CPU, so that it stays correct where there is no GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Suite, interleave
from benchmarks.parity import class_folders, converted
from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import BaseLoader, LoaderSpec, backend_class
from dp4tl_fast.loaders.augment import parameters

BACKENDS = ("native", "ffcv", "dali")
IMAGES, BATCH, SIZE = 10_000, 256, 224


def repeated(beton: Beton, images: int) -> np.ndarray:
    """Every record several times, so that an epoch is long enough: for loader classes, as open_loader refuses it."""
    return np.sort(np.resize(np.arange(beton.num_samples), images))


class Torchvision:
    """The peer that needs nothing but torchvision: whole JPEGs decoded on the device in batches, then cropped one by one."""

    def __init__(self, beton: Beton, images: int, spec: LoaderSpec) -> None:
        self.beton, self.spec, self.epoch = beton, spec, 0
        self._records = repeated(beton, images)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = np.random.default_rng(self.epoch).permutation(self._records)
        for start in range(0, len(order), self.spec.batch_size):
            records = order[start : start + self.spec.batch_size]
            yield self._images(records), torch.from_numpy(self.beton.labels[records]).to(self.spec.device)

    def _images(self, records: np.ndarray) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg
        from torchvision.transforms.v2 import functional as tv

        spec, rows = self.spec, self.beton.images[records]
        jpegs = [torch.from_numpy(np.array(self.beton.payload(int(r)))) for r in records]
        boxes, mirror = parameters(spec, self.epoch, records, rows["height"], rows["width"], 0)
        decoded = decode_jpeg(jpegs, ImageReadMode.RGB, spec.device)
        pairs = zip(decoded, boxes.tolist(), strict=True)
        crops = [tv.resized_crop(whole, *box, [spec.size] * 2, antialias=True) for whole, box in pairs]
        crops = [tv.horizontal_flip(crop) if m else crop for crop, m in zip(crops, mirror, strict=True)]
        return tv.normalize(tv.to_dtype(torch.stack(crops), torch.float16, scale=True), list(spec.mean), list(spec.std))

    def close(self) -> None: ...


def run(suite: Suite) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("suite 'gpu' needs a CUDA GPU that torch can use; there is none here")
    try:
        torch.cuda.utilization()
    except ModuleNotFoundError as error:
        raise SystemExit(f"suite 'gpu' asks the driver how busy the GPU is: {error}. Run pip install '.[bench-gpu]'") from None
    with tempfile.TemporaryDirectory() as name:
        photos = converted(class_folders(suite.require_data() / "imagenet-sample"), Path(name) / "photos.beton")
        measure(suite, photos, "cuda", IMAGES, BATCH, SIZE)


def measure(suite: Suite, photos: Beton, device: str, images: int, batch: int, size: int) -> None:
    """Images per second into a consumer that does nothing; then the device's busy share and the copies' share of the time."""
    spec = LoaderSpec(
        batch_size=batch, size=size, transform="random_resized_crop", flip=True, shuffle=True, dtype="float16", device=device
    )
    loaders: dict[str, BaseLoader | Torchvision] = {"torchvision": Torchvision(photos, images, spec)}
    loaders |= {b: backend_class(b)(photos, repeated(photos, images), spec) for b in BACKENDS}
    busy: dict[str, list[float]] = {b: [] for b in loaders}
    try:
        speeds = interleave({b: _epoch(loader, device, busy[b]) for b, loader in loaders.items()})
        rounds = len(speeds["native"])
        suite.add("images-on-the-device", speeds, "images/s", ratio_to="dali")
        if device != "cpu":
            suite.add("device-busy", {b: values[-rounds:] for b, values in busy.items()}, "%")
        rate = _copy_rate(device, spec)
        shares = {b: [100 * speed / rate for speed in speeds[b]] for b in ("native", "ffcv")}
        suite.add("time-in-copies-of-pixels", shares, "% of the epoch")
    finally:
        for loader in loaders.values():
            loader.close()


def _epoch(loader: BaseLoader | Torchvision, device: str, busy: list[float]) -> Callable[[], float]:
    """A subject: images per second of one epoch. Notes the mean of the driver's utilisation, sampled at every batch."""

    def images_per_second() -> float:
        loader.set_epoch(loader.epoch + 1)
        seen, samples = 0, []
        start = time.perf_counter()
        for _, labels in loader:
            seen += len(labels)
            if device != "cpu":
                samples.append(torch.cuda.utilization(device))
        _wait(device)
        busy.append(float(np.mean(samples)) if samples else 0.0)
        return seen / (time.perf_counter() - start)

    return images_per_second


def _copy_rate(device: str, spec: LoaderSpec) -> float:
    """Images per second that a copy alone of pinned batches reaches."""
    batch = torch.zeros((spec.batch_size, 3, spec.size, spec.size), dtype=torch.float16)
    batch = batch.pin_memory() if device != "cpu" else batch
    target = torch.empty_like(batch, device=device)
    target.copy_(batch)
    _wait(device)
    start = time.perf_counter()
    for _ in range(20):
        target.copy_(batch, non_blocking=True)
    _wait(device)
    return 20 * spec.batch_size / (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
