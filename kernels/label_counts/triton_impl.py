"""``label_counts`` on a GPU: each program keeps the running argmax of a few rows in registers and adds to the counts.

Reads every logit once and writes nothing but the counts: the floor is rows * classes * itemsize / bandwidth.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from dp4tl_fast.kernels.label_counts.tuning import DEFAULT, Tile, block_shape
from dp4tl_fast.kernels.triton_max import nan_max

COPIES = 16  # of the counts, so that programs whose rows share a class do not all wait for one address
MAX_UNIT = 16  # logits; the widest load is 16 bytes
COPIED_CELLS = 1 << 16  # more counts than this are spread widely enough, and have one copy


@triton.jit(do_not_specialize=["rows", "class_units", "row_stride_units"])
def _kernel(
    logits, group, counts, nan_rank,
    rows, class_units, row_stride_units, class_stride, cells, copies,
    UNIT: tl.constexpr, HAS_GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    classes = class_units * UNIT  # the compiler then knows that UNIT divides it, and loads that many logits at once
    program = tl.program_id(0).to(tl.int64)
    row = program * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_exists = row < rows
    best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    index = tl.zeros([BLOCK_ROWS], tl.int32)
    for first in range(0, classes, BLOCK_CLASSES):
        column = first + tl.arange(0, BLOCK_CLASSES)
        exists = row_exists[:, None] & (column < classes)[None, :]
        address = logits + row[:, None] * (row_stride_units * UNIT) + column[None, :].to(tl.int64) * class_stride
        x = tl.load(address, mask=exists, other=float("-inf")).to(tl.float32)
        top = tl.reduce(x, 1, nan_max)
        lowest = tl.min(tl.where(x == top[:, None], column[None, :], classes), axis=1)
        index = tl.where(top > best, lowest, index)  # strictly: the earlier block wins ties
        best = nan_max(best, top)
    is_nan = best != best
    cell = index.to(tl.int64)
    if HAS_GROUP:
        cell += tl.load(group + row, mask=row_exists, other=0) * classes
    tl.atomic_add(counts + program % copies * cells + cell, 1, mask=row_exists & ~is_nan, sem="relaxed")
    tl.atomic_max(nan_rank + tl.zeros_like(row), rows - row, mask=row_exists & is_nan, sem="relaxed")


def label_counts(
    logits: torch.Tensor, group: torch.Tensor | None, groups: int, tile: Tile = DEFAULT
) -> tuple[torch.Tensor, int]:
    """counts [groups, classes] int64 and the first row with a NaN, or -1: see ``reference.py``."""
    rows, classes = logits.shape
    if rows == 0:
        return torch.zeros(groups, classes, dtype=torch.int64, device=logits.device), -1
    cells = groups * classes
    copies = COPIES if cells <= COPIED_CELLS else 1
    zeros = torch.zeros(2 + copies * cells, dtype=torch.int64, device=logits.device)  # one launch for both; aligned
    nan_rank, counts = zeros[:1], zeros[2:].view(copies, groups, classes)  # rows - (first row with a NaN), 0 for none
    block_rows, block_classes = block_shape(tile, classes)
    unit = math.gcd(logits.stride(0), classes, MAX_UNIT) if logits.stride(1) == 1 else 1
    with torch.cuda.device_of(logits):
        _kernel[(triton.cdiv(rows, block_rows),)](
            logits, counts if group is None else group, counts, nan_rank,
            rows, classes // unit, logits.stride(0) // unit, logits.stride(1), cells, copies,
            UNIT=unit, HAS_GROUP=group is not None, BLOCK_ROWS=block_rows, BLOCK_CLASSES=block_classes, num_warps=tile.warps,
        )  # fmt: skip
    total = counts.sum(dim=0)  # before the CPU waits for the GPU
    rank = int(nan_rank)
    return total, rows - rank if rank else -1
