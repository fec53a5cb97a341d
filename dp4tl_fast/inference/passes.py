"""One pass of a network over a file: a row for every record, in file order, on every process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

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
) -> torch.Tensor:
    """``of(network(images))`` of all records of ``loader``, which reads them in file order without dropping any.

    Args:
        network: In eval mode; ``[b, 3, size, size]`` -> ``[b, ...]``.
        prepare: ``training.loop.Normalise``: what the loader delivers -> the network's input.
        of: What to keep of a batch's output in float32: ``[b, ...]``.
        watch: What the batches go through: may end them by an error, on every rank.

    Returns:
        ``[n, ...]`` on the CPU, the same on every rank. Each rank computes its share.
    """
    spec = loader.spec
    mine = rank_batches(np.arange(len(loader.records)), **sharding(spec))
    parts = [of(network(prepare(batch.images)).float()).cpu() for batch in watch(loader)]
    if spec.world_size == 1:
        return torch.cat(parts)
    shape = ranks.on_rank_zero(lambda: (tuple(parts[0].shape[1:]), parts[0].dtype))  # a rank may have had no batch; rank 0 had
    whole = torch.zeros((len(loader.records), *shape[0]), dtype=shape[1])
    for records, part in zip(mine, parts, strict=True):
        whole[torch.from_numpy(records)] = part
    return ranks.all_reduce_sum(whole)


def flip_averaged(network: nn.Module) -> Network:
    """The mean of a network's probabilities on an image and on its mirror image, as logits (their logarithm)."""

    def both(images: torch.Tensor) -> torch.Tensor:
        probabilities = [network(x).float().softmax(1) for x in (images, images.flip(3))]
        return ((probabilities[0] + probabilities[1]) / 2).log()

    return both


TTA = {"none": lambda network: network, "flip": flip_averaged}
