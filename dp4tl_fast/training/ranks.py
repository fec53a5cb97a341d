"""The processes that torchrun started, and this one among them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def process_group() -> Iterator[int]:
    """Join the others under torchrun (gloo on the CPU, NCCL on GPUs, one GPU a process). Yields this process's rank.

    Alone it does nothing, and does not import torch.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield 0
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def rank_and_ranks() -> tuple[int, int]:
    """This process's rank and their number; ``(0, 1)`` outside ``process_group``."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
