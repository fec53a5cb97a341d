"""``label_counts`` on a GPU: each program keeps the running argmax of a few rows in registers and adds to the counts.

Reads every logit once and writes nothing but the counts: the floor is rows * classes * itemsize / bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dp4tl_fast.kernels.label_counts.tuning import DEFAULT, Tile, block_shape

COPIES = 16  # of the counts, so that programs whose rows share a class do not all wait for one address
COPIED_CELLS = 1 << 16  # more counts than this are spread widely enough, and have one copy


@triton.jit(do_not_specialize=["rows", "classes"])
def _kernel(
    logits, group, counts, nan_rank,
    rows, classes, row_stride, class_stride, cells, copies,
    HAS_GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_exists = row < rows
    best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    index = tl.zeros([BLOCK_ROWS], tl.int32)
    nans = tl.zeros([BLOCK_ROWS], tl.int32)
    for first in range(0, classes, BLOCK_CLASSES):
        column = first + tl.arange(0, BLOCK_CLASSES)
        exists = row_exists[:, None] & (column < classes)[None, :]
        address = logits + row[:, None] * row_stride + column[None, :].to(tl.int64) * class_stride
        x = tl.load(address, mask=exists, other=float("-inf")).to(tl.float32)
        nans = tl.maximum(nans, tl.max((x != x).to(tl.int32), axis=1))
        x = tl.where(x != x, float("-inf"), x)
        top = tl.max(x, axis=1)
        lowest = tl.min(tl.where(x == top[:, None], column[None, :], classes), axis=1)
        index = tl.where(top > best, lowest, index)  # strictly: the earlier block wins ties
        best = tl.maximum(best, top)
    cell = index.to(tl.int64)
    if HAS_GROUP:
        cell += tl.load(group + row, mask=row_exists, other=0) * classes
    tl.atomic_add(counts + program % copies * cells + cell, 1, mask=row_exists & (nans == 0), sem="relaxed")
    tl.atomic_max(nan_rank + tl.zeros_like(row), rows - row, mask=row_exists & (nans != 0), sem="relaxed")


def label_counts(
    logits: torch.Tensor, group: torch.Tensor | None, groups: int, tile: Tile = DEFAULT
) -> tuple[torch.Tensor, int]:
    """counts [groups, classes] int64 and the first row with a NaN, or -1: see ``reference.py``."""
    rows, classes = logits.shape
    if rows == 0:
        return torch.zeros(groups, classes, dtype=torch.int64, device=logits.device), -1
    cells = groups * classes
    copies = COPIES if cells <= COPIED_CELLS else 1
    counts = torch.zeros(copies, groups, classes, dtype=torch.int64, device=logits.device)
    nan_rank = torch.zeros(1, dtype=torch.int64, device=logits.device)  # rows - (first row with a NaN), 0 for none
    block_rows, block_classes = block_shape(tile, classes)
    with torch.cuda.device_of(logits):
        _kernel[(triton.cdiv(rows, block_rows),)](
            logits, counts if group is None else group, counts, nan_rank,
            rows, classes, logits.stride(0), logits.stride(1), cells, copies,
            HAS_GROUP=group is not None, BLOCK_ROWS=block_rows, BLOCK_CLASSES=block_classes, num_warps=tile.warps,
        )  # fmt: skip
    rank = int(nan_rank)
    return counts.sum(dim=0), rows - rank if rank else -1
