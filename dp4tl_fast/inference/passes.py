"""One pass of a network over a file: a row for every record, in file order, on every process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.loaders.base import BaseLoader
from dp4tl_fast.loaders.contract import Batch
from dp4tl_fast.loaders.epoch import sharding
from dp4tl_fast.loaders.order import rank_batches
from dp4tl_fast.training import ranks

Network = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def rows(
    network: Network,
    loader: BaseLoader[Batch],
    prepare: Any,
    of: Callable[[torch.Tensor], torch.Tensor],
    watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    nothing: torch.Tensor | None = None,
) -> torch.Tensor:
    """``of(network(images))`` of all records of ``loader``, which reads them in file order without dropping any.

    Args:
        network: In eval mode; ``[b, 3, size, size]`` -> ``[b, ...]``.
        prepare: ``training.loop.Normalise``: what the loader delivers -> the network's input.
        of: What to keep of a batch's output in float32: ``[b, ...]``.
        watch: What the batches go through: may end them by an error, on every rank.
        nothing: ``of`` no image, ``[0, ...]``: for a part of a file, in which maybe none can be decoded.

    Returns:
        ``[n, ...]`` on the CPU, the same on every rank; a record that the loader skips has NaN, or -1 among whole numbers. Each
        rank computes its share.

    Raises:
        UsageError: No record can be decoded, without ``nothing``.
    """
    mine = rank_batches(np.arange(len(loader.records)), **sharding(loader.spec))
    parts: list[tuple[np.ndarray, torch.Tensor]] = []
    gone = [np.zeros(0, np.int64)]
    for places, batch in zip(mine, watch(loader), strict=True):
        lost = np.isin(loader.records[places], [record for record, _ in loader.skipped])
        gone.append(places[lost])
        if len(batch.labels):
            parts.append((places[~lost], of(network(prepare(batch.images)).float()).cpu()))
    known = [part for _, part in parts[:1]] or ([] if nothing is None else [nothing])  # a rank may have had no image
    shapes = [found for each in ranks.gather_objects([(tuple(part.shape[1:]), part.dtype) for part in known]) for found in each]
    if not shapes:
        raise UsageError(f"{loader.beton.path}: none of {len(loader.records)} records can be decoded. Convert its source again")
    whole = torch.zeros((len(loader.records), *shapes[0][0]), dtype=shapes[0][1])
    whole[torch.from_numpy(np.concatenate(gone))] = math.nan if whole.is_floating_point() else -1
    for places, part in parts:
        whole[torch.from_numpy(places)] = part
    return ranks.all_reduce_sum(whole)


def flip_averaged(network: nn.Module) -> Network:
    """The mean of a network's probabilities on an image and on its mirror image, as logits (their logarithm)."""

    def both(images: torch.Tensor) -> torch.Tensor:
        probabilities = [network(x).float().softmax(1) for x in (images, images.flip(3))]
        return ((probabilities[0] + probabilities[1]) / 2).log()

    return both


TTA = {"none": lambda network: network, "flip": flip_averaged}
