"""The batches that commands ask for: augmented for training, plain for measuring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import BaseLoader, LoaderSpec, open_loader
from dp4tl_fast.selection import Selection

if TYPE_CHECKING:
    from dp4tl_fast.pretrain import PretrainConfig


def size_at(epoch: int, config: PretrainConfig) -> int:
    """Side of the training images in an epoch."""
    return config.end_size if config.end_size and epoch >= config.end_size_from else config.size


def eval_size(config: PretrainConfig) -> int:
    return config.val_size or config.end_size or config.size


def open_train(config: PretrainConfig, source: Beton, selection: Selection | None, views: int) -> BaseLoader:
    """Shuffled, augmented uint8 batches of the surviving records."""
    spec = LoaderSpec(
        batch_size=config.batch_size, size=config.size, transform="random_resized_crop", scale=(config.min_scale, 1.0),
        flip=config.flip, shuffle=True, drop_last=True, seed=config.seed, workers=config.workers,
        views=views, with_index=config.forgetting,
    )  # fmt: skip
    return open_loader(source, selection, spec, config.backend)


def open_eval(path: str | Path, selection: Selection | None, config: PretrainConfig) -> BaseLoader:
    """Every record of the surviving classes once, in file order, centre-cropped."""
    beton = Beton(path)
    size = eval_size(config)
    spec = LoaderSpec(batch_size=config.batch_size, size=size, crop_ratio=crop_ratio(size), workers=config.workers)
    return open_loader(beton, selection.for_split(beton) if selection else None, spec, config.backend)


def crop_ratio(size: int) -> float:
    """The usual 224 of 256 pixels, but all of an image that is small already."""
    return 224 / 256 if size > 64 else 1.0
