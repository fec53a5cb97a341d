"""The batches that commands ask for: augmented for training, plain for measuring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import BaseLoader, Batch, Draws, IndexedBatch, LoaderSpec, open_loader
from dp4tl_fast.pretraining.folder import epoch_size
from dp4tl_fast.selection import Selection
from dp4tl_fast.training.device import pick_device
from dp4tl_fast.training.placement import loader_share

if TYPE_CHECKING:
    from dp4tl_fast.pretraining.config import PretrainConfig


def size_at(epoch: int, config: PretrainConfig) -> int:
    """Side of the training images in an epoch."""
    return config.end_size if config.end_size and epoch >= config.end_size_from else config.size


def eval_size(config: PretrainConfig) -> int:
    return config.val_size or config.end_size or config.size


def share(config: PretrainConfig) -> dict[str, Any]:
    """This process's part of every batch, see ``loader_share``."""
    return loader_share(config.batch_size, config.accumulate, config.workers, pick_device(config.device))


def open_train(config: PretrainConfig, source: Beton, selection: Selection | None) -> BaseLoader[IndexedBatch]:
    """Shuffled, augmented uint8 batches of an epoch's records: this process's part of each."""
    spec = LoaderSpec(
        size=config.size, transform="random_resized_crop", scale=(config.min_scale, 1.0), flip=config.flip, shuffle=True,
        drop_last=True, seed=config.seed, views=config.views, with_index=True, on_error=config.on_bad_record, **share(config),
    )  # fmt: skip
    loader = open_loader(source, selection, spec, config.backend)
    size = epoch_size(config, source, selection)
    if size < len(loader.records) and config.epoch_samples:
        loader.set_draws(Draws([loader.records], [size]))
    return loader


def open_eval(beton: Beton, selection: Selection | None, config: PretrainConfig) -> BaseLoader[Batch]:
    """Every record of the surviving classes once over all processes, in file order, centre-cropped."""
    mine = share(config)
    mine["batch_size"] //= config.accumulate  # what is known to fit in memory
    spec = LoaderSpec.evaluation(size=eval_size(config), on_error=config.on_bad_record, **mine)
    return open_loader(beton, selection.for_split(beton) if selection else None, spec, config.backend)
