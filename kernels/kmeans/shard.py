"""The rows of this process among those of all: the reductions of k-means, which in a single process do nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist

from dp4tl_fast.common.errors import UsageError


class Shard:
    """``sum`` and ``gather`` over processes. All of them must call these in the same order."""

    def __init__(self, distributed: bool) -> None:
        if distributed and not dist.is_initialized():
            raise UsageError("distributed=True without a process group: start under torchrun and call init_process_group")
        self.ranks = dist.get_world_size() if distributed else 1
        self.rank = dist.get_rank() if distributed else 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The element-wise sum over processes, in place."""
        if self.ranks > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """[ranks, ...]: the tensors of all processes, which have one shape."""
        if self.ranks == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.ranks)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)
