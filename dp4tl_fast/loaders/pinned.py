"""Batch memory that a GPU copies from while it computes: page-locked, and torch's own.

A batch is one tensor, and what is delivered are slices of it: torch's allocator of page-locked memory notes an asynchronous
copy by the storage it reads, and gives the memory out again only once that copy is done. It would not know a tensor made from
the bare address (DLPack): the next batch could be written over one on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dp4tl_fast.common.errors import BackendError

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.loaders.spec import LoaderSpec

Allocator = Callable[[int], "torch.Tensor"]  # bytes -> uint8 [bytes] on the CPU; RuntimeError or MemoryError: there is none


def pinned_allocator() -> Allocator:
    """Page-locked memory. Asking costs little once torch has some of that size.

    Raises:
        BackendError: There is no GPU to copy to.
    """
    import torch

    if not torch.cuda.is_available():
        raise BackendError("loader: pinned = True, but torch sees no CUDA GPU. Leave pinned out; `dp4tl-fast doctor` says more")
    return lambda size: torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)


def plain_allocator() -> Allocator:
    """Memory for a CPU."""
    import torch

    return lambda size: torch.empty(size, dtype=torch.uint8)


def held_bytes(size: int) -> int:
    """What ``size`` bytes take: torch rounds page-locked memory up to a power of two."""
    return 1 << (size - 1).bit_length()


def views_in(memory: torch.Tensor, spec: LoaderSpec, rows: int) -> list[torch.Tensor]:
    """The images of a batch in its memory (uint8 ``[views x batch_size x size x size x 3 items or more]``): slices
    ``[rows, 3, size, size]``, channels-last, one per view."""
    import torch

    shape = (spec.views, spec.batch_size, spec.size, spec.size, 3)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    size = torch.Size(shape).numel() * dtype.itemsize
    pixels = memory[:size].view(dtype).view(shape)
    return [pixels[view, :rows].permute(0, 3, 1, 2) for view in range(spec.views)]
