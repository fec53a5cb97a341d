"""Training ResNets from JPEGs: images per second of ``dp4tl-fast pretrain``'s own loop in bf16 with ``--compile``, by what feeds
it, against the same loop fed with one batch that already lies on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu_day.loaders import CLASSES, PHOTOS, repeated
from benchmarks.gpu_day.photos import photos
from benchmarks.gpu_day.setting import Setting
from benchmarks.harness import Suite, interleave
from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders import IndexedBatch, LoaderSpec, backend_class
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.learner import build
from dp4tl_fast.training.loop import train
from dp4tl_fast.training.placement import loader_share

SYNTHETIC = "synthetic"
BACKENDS = ("native", "dali", "ffcv")
RATE = 0.01


class OneBatch:
    """The ceiling: a loader (``loaders.contract.Loader``) of uint8 images that lie on the device already."""

    bytes_read = 0

    def __init__(self, batches: int, spec: LoaderSpec, classes: int, device: str) -> None:
        shape = (spec.batch_size, 3, spec.size, spec.size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, classes, shape[:1], device=device)
        self._batch, self._batches = IndexedBatch(images, labels, torch.arange(spec.batch_size)), batches

    def __iter__(self) -> Iterator[IndexedBatch]:
        return (self._batch for _ in range(self._batches))

    def set_epoch(self, epoch: int) -> None: ...

    def close(self) -> None: ...


def network(suite: Suite, setting: Setting, arch: str, size: int, batch: int, steps: int, goal: float) -> None:
    """Images per second of training ``arch`` at ``size`` pixels, in epochs of ``steps`` batches."""
    size, batch, steps = setting.size((size, batch, steps), (16, 4, 2))
    found = photos(setting.folder, setting.size(PHOTOS, 12), setting.size(CLASSES, 3))
    config = PretrainConfig(
        source=str(found.path), out=str(setting.folder / arch), arch=setting.size(arch, "small-4"), size=size, batch_size=batch,
        precision="bf16", compile=True, device=setting.device,
    )  # fmt: skip
    learner = build(config, found, None, total_steps=1)
    loaders = _loaders(suite, found, config, steps, setting)

    def epoch_of(loader: Any) -> Callable[[], float]:
        def images_per_second() -> float:
            told: dict[str, float] = {}
            run = learner.run
            loader.set_epoch(run.epoch)
            train(
                run, loader, learner.prepare, lambda step: RATE, epochs=run.epoch + 1, how=learner.how,
                on_epoch=lambda _, metrics: told.update(metrics),
            )  # fmt: skip
            return told["samples"] / told["seconds"]

        return images_per_second

    try:
        speeds = interleave({name: epoch_of(loader) for name, loader in loaders.items()})
    finally:
        for loader in loaders.values():
            loader.close()
    case = f"{arch}-{size}px-bf16-compile"
    rows = suite.add(case, speeds, "images/s", ratio_to=SYNTHETIC)
    suite.goal(case, goal=goal, measured=rows["native"].value, unit="images/s")
    suite.goal(f"{case}-fed", goal=0.95, measured=rows["native"].ratio or 0.0, unit="x synthetic")
    if not setting.rehearsal:
        suite.add(f"{case}-memory", {"peak": [torch.cuda.max_memory_allocated() / 2**20]}, "MiB")
    suite.settings[case] = {"batch": batch, "images per epoch": batch * steps}


def _loaders(suite: Suite, found: Beton, config: PretrainConfig, steps: int, setting: Setting) -> dict[str, Any]:
    """What feeds the network; backends that are not installed are left out."""
    share = loader_share(config.batch_size, 1, config.workers, torch.device(setting.device))
    spec = LoaderSpec(
        size=config.size, transform="random_resized_crop", scale=(config.min_scale, 1.0), flip=True, shuffle=True, drop_last=True,
        with_index=True, **share,
    )  # fmt: skip
    loaders: dict[str, Any] = {SYNTHETIC: OneBatch(steps, spec, found.num_classes, setting.device)}
    for backend in BACKENDS:
        try:
            loaders[backend] = backend_class(backend)(found, repeated(found, config.batch_size * steps), spec)
        except BackendError as error:
            if backend == "native":
                raise
            suite.leave_out(backend, error)
    return loaders


def resnet18(suite: Suite, setting: Setting) -> None:
    network(suite, setting, "resnet18", 160, 1_024, 24, goal=25_000)


def resnet50(suite: Suite, setting: Setting) -> None:
    network(suite, setting, "resnet50", 224, 512, 12, goal=3_000)
