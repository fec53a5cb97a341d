"""Where a command computes, and what reads its images: the options that all commands that train or score share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dp4tl_fast.common.checks import require
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.machine import cores

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class Placement:
    """Where to compute.

    Args:
        backend: Library that loads the images: native, ffcv, dali or torchvision (slow).
        device: auto (a GPU if there is one, else the CPU), cpu, cuda, cuda:1, ...
        workers: Loader threads; 0 uses one per core, shared out among torchrun's processes on a machine.
    """

    backend: str = "native"
    device: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        require(self.workers >= 0, "workers", self.workers, "0 (one per core) or more")


def loader_share(batch_size: int, accumulate: int, workers: int, device: torch.device) -> dict[str, Any]:
    """This process's part of every batch, its loader threads, and whether a GPU takes the batches: fields of a ``LoaderSpec``.

    Raises:
        UsageError: The batch cannot be divided evenly: equal parts make the mean of the ranks' gradients the batch's.
    """
    from dp4tl_fast.training.ranks import rank, world_size

    ranks = world_size()
    parts = ranks * accumulate
    if batch_size % parts:
        raise UsageError(
            f"`batch_size={batch_size}`: not a multiple of {ranks} processes x {accumulate} parts (`accumulate`). "
            f"Use {max(1, batch_size // parts) * parts}"
        )
    threads = workers or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    pinned = device.type == "cuda"
    return {"batch_size": batch_size // ranks, "rank": rank(), "world_size": ranks, "workers": threads, "pinned": pinned}
