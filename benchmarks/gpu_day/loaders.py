"""Feeding a GPU: images per second that arrive on it as normalised fp16, how busy it is kept, and the share of the copies.

``native``, ``ffcv`` and ``dali-cpu`` decode on the CPU and copy; ``dali`` and torchvision copy JPEGs and decode there (nvJPEG).
Backends that are not installed are left out by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from benchmarks.gpu_day.photos import photos
from benchmarks.gpu_day.setting import Setting
from benchmarks.harness import Suite, interleave
from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders import BaseLoader, LoaderSpec, backend_class
from dp4tl_fast.loaders.augment import parameters

# name -> backend, and whether it is asked for batches on the device (DALI then decodes there)
BACKENDS = {"native": ("native", True), "ffcv": ("ffcv", True), "dali": ("dali", True), "dali-cpu": ("dali", False)}
PHOTOS, CLASSES = 1_024, 64  # files that every epoch reads several times


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


def run(suite: Suite, setting: Setting) -> None:
    found = photos(setting.folder, setting.size(PHOTOS, 12), setting.size(CLASSES, 3))
    suite.settings["photos"] = {"images": found.num_samples, "mean bytes": int(found.sizes.mean())}
    measure(suite, found, setting.device, *setting.size((10_000, 256, 224), (24, 8, 32)))


def open_backends(suite: Suite, beton: Beton, images: int, spec: LoaderSpec) -> dict[str, BaseLoader]:
    """Those of ``BACKENDS`` that work here; the others are left out, with the reason."""
    opened = {}
    for name, (backend, on_device) in BACKENDS.items():
        own = spec if on_device else replace(spec, device="cpu")
        try:
            opened[name] = backend_class(backend)(beton, repeated(beton, images), own)
        except BackendError as error:
            if name == "native":
                raise
            suite.leave_out(name, error)
    return opened


def measure(suite: Suite, found: Beton, device: str, images: int, batch: int, size: int) -> None:
    """Images per second into a consumer that does nothing; then the device's busy share and the copies' share of the time."""
    spec = LoaderSpec(
        batch_size=batch, size=size, transform="random_resized_crop", flip=True, shuffle=True, dtype="float16", device=device
    )
    loaders: dict[str, BaseLoader | Torchvision] = {"torchvision": Torchvision(found, images, spec)}
    loaders |= open_backends(suite, found, images, spec)
    utilisation = _utilisation(suite, device)
    busy: dict[str, list[float]] = {b: [] for b in loaders}
    try:
        speeds = interleave({b: _epoch(loader, device, utilisation, busy[b]) for b, loader in loaders.items()})
        reference = "dali" if "dali" in loaders else "torchvision"
        rows = suite.add("images-on-the-device", speeds, "images/s", ratio_to=reference)
        if utilisation is not None:
            suite.add("device-busy", {b: values[1:] for b, values in busy.items()}, "%")  # without the warm-up
        rate = _copy_rate(device, spec)
        suite.add("copy-limit", {"pinned copies alone": [rate]}, "images/s")
        copying = [b for b in speeds if b in ("native", "ffcv", "dali-cpu")]
        shares = {b: [100 * speed / rate for speed in speeds[b]] for b in copying}
        suite.add("time-in-copies-of-pixels", shares, "% of the epoch")
        if "dali" in rows:
            suite.goal("loaders-native", goal=1.0, measured=rows["native"].ratio or 0.0, unit="x DALI with nvJPEG")
    finally:
        for loader in loaders.values():
            loader.close()


def _utilisation(suite: Suite, device: str) -> Callable[[], float] | None:
    """Asks the driver how busy the GPU is, in percent; ``None`` where it cannot be asked."""
    if device == "cpu":
        return None
    try:
        torch.cuda.utilization(device)
    except ModuleNotFoundError as error:
        suite.leave_out("device-busy", f"{error}: install nvidia-ml-py")
        return None
    return lambda: torch.cuda.utilization(device)


def _epoch(
    loader: BaseLoader | Torchvision, device: str, utilisation: Callable[[], float] | None, busy: list[float]
) -> Callable[[], float]:
    """A subject: images per second of one epoch, on the device. Notes the mean of its utilisation, sampled at every batch."""

    def images_per_second() -> float:
        loader.set_epoch(loader.epoch + 1)
        seen, samples = 0, []
        start = time.perf_counter()
        for images, labels, *_ in loader:
            images.to(device, non_blocking=True)  # what is there already stays
            seen += len(labels)
            if utilisation is not None:
                samples.append(utilisation())
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
