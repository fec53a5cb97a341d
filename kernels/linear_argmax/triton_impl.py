"""``linear_argmax`` on a GPU: a tiled matrix product whose epilogue keeps the running argmax; a second kernel counts.

As many programs as the GPU has multiprocessors each go through blocks of rows, columns and depth in one loop, so that the next
tiles are on their way (by TMA on Hopper) during the epilogue of this one; the scores stay in registers. All blocks of rows at
work have to stay in the L2 cache, or x is read from memory once per block of columns: where they would not, several programs
share a block of rows, each with its part of the columns, and the second kernel compares the parts.
Operations: 2 * rows * columns * depth.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from dp4tl_fast.kernels.linear_argmax.tuning import Tile, pick, pick_parts
from dp4tl_fast.kernels.triton_max import nan_max

STREAM_BYTES = 256 << 20  # size of each of the two buffers through which rows reach the GPU, or an alignment
ALIGNMENT = 16  # bytes, of the start of every row that a tensor descriptor reads
COUNT_ROWS = 512  # rows per program of the second kernel
COPIES = 16  # of the counts, so that rows with the same winner do not all wait for one address
COPIED_CELLS = 1 << 16  # more counts than this are spread widely enough, and have one copy


@triton.jit(do_not_specialize=["rows", "columns", "parts"])
def _kernel(
    x, w, offset, index, value, rows, columns, depth, parts,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """index, value [parts, rows]: the winner of each row among the columns of each part."""
    part = tl.program_id(0) % parts
    blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    start = blocks * part // parts * BLOCK_COLUMNS
    end = blocks * (part + 1) // parts * BLOCK_COLUMNS
    first = tl.program_id(0) // parts * BLOCK_ROWS
    stride = tl.num_programs(0) // parts * BLOCK_ROWS
    best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    winner = tl.zeros([BLOCK_ROWS], tl.int32)
    score = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    steps = (end - start) // BLOCK_COLUMNS * tl.cdiv(depth, BLOCK_DEPTH)
    c = start
    k = 0
    for _ in range(tl.cdiv(rows - first, stride) * steps):
        x_tile = x.load([first, k])
        w_tile = w.load([c, k])
        if WIDEN:
            x_tile, w_tile = x_tile.to(tl.float32), w_tile.to(tl.float32)
        score = tl.dot(x_tile, w_tile.T, score, input_precision=PRECISION)
        complete = k + BLOCK_DEPTH >= depth
        done = complete & (c + BLOCK_COLUMNS >= end)
        if complete:
            column = c + tl.arange(0, BLOCK_COLUMNS)
            score += tl.load(offset + column)[None, :]
            top = tl.reduce(score, 1, nan_max)
            lowest = tl.min(tl.where(score == top[:, None], column[None, :], columns), axis=1)
            winner = tl.where(top > best, lowest, winner)  # strictly: the earlier block wins ties
            best = nan_max(best, top)
            score = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
            if done:
                row = first + tl.arange(0, BLOCK_ROWS)
                cell = part * rows.to(tl.int64) + row
                tl.store(index + cell, winner, mask=row < rows)
                tl.store(value + cell, best, mask=row < rows)
                best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
                winner = tl.zeros([BLOCK_ROWS], tl.int32)
        # Outside the branch, where the loop can compute the next addresses ahead.
        k = tl.where(complete, 0, k + BLOCK_DEPTH)
        c = tl.where(done, start, tl.where(complete, c + BLOCK_COLUMNS, c))
        first = tl.where(done, first + stride, first)


@triton.jit(do_not_specialize=["rows", "columns", "parts", "cells", "copies"])
def _count(
    part_index, part_value, group, counts, index, value, rows, columns, parts, cells, copies,
    HAS_GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """The winner of each row among its parts, and the histogram."""
    program = tl.program_id(0).to(tl.int64)
    row = program * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_exists = row < rows
    best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    winner = tl.zeros([BLOCK_ROWS], tl.int32)
    for part in range(parts):
        cell = part * rows.to(tl.int64) + row
        top = tl.load(part_value + cell, mask=row_exists, other=float("-inf"))
        winner = tl.where(top > best, tl.load(part_index + cell, mask=row_exists, other=0), winner)
        best = nan_max(best, top)
    is_nan = best != best
    cell = winner.to(tl.int64)
    tl.store(index + row, tl.where(is_nan, -1, cell), mask=row_exists)
    tl.store(value + row, best, mask=row_exists)
    if HAS_GROUP:
        cell += tl.load(group + row, mask=row_exists, other=0) * columns
    tl.atomic_add(counts + program % copies * cells + cell, 1, mask=row_exists & ~is_nan, sem="relaxed")


def linear_argmax(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    group: torch.Tensor | None,
    groups: int,
    tile: Tile | None = None,
    parts: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """index int64 [rows], value float32 [rows], counts int64 [groups, columns] on the device of ``w``: see ``reference.py``.

    x may be in host memory.
    """
    rows, (columns, depth), device = len(x), w.shape, w.device
    index = torch.empty(rows, dtype=torch.int64, device=device)
    value = torch.empty(rows, dtype=torch.float32, device=device)
    gpu = _properties(device)
    tile = tile or pick(w.element_size(), columns, gpu.shared_memory_per_block_optin if gpu else 1 << 30)
    programs = gpu.multi_processor_count if gpu else 4
    parts = parts or pick_parts(tile, columns, depth * w.element_size() * programs, gpu.L2_cache_size if gpu else 1 << 30)
    # Whole blocks of columns, filled with copies of the last one, which wins ties against its copies: the kernel needs no mask.
    if missing := -columns % tile.columns:
        w, offset = torch.cat([w, w[-1:].expand(missing, depth)]), torch.cat([offset, offset[-1:].expand(missing)])
    w = _aligned(w)
    w_tiles = TensorDescriptor.from_tensor(w, [tile.columns, tile.depth])
    precision = "tf32x3" if x.dtype == torch.float32 else "ieee"
    widen = device.type != "cuda"  # Triton's interpreter multiplies the bits of bfloat16 as integers
    cells = groups * columns
    copies = COPIES if cells <= COPIED_CELLS else 1
    counts = torch.zeros(copies, groups, columns, dtype=torch.int64, device=device)
    for start, chunk in _readable(x, device):
        count, part = len(chunk), slice(start, start + len(chunk))
        if count == 0:
            continue
        part_index = torch.empty(parts, count, dtype=torch.int32, device=device)
        part_value = torch.empty(parts, count, dtype=torch.float32, device=device)
        shared = min(triton.cdiv(count, tile.rows), max(1, programs // parts))  # programs per part
        with torch.cuda.device_of(w):
            _kernel[(shared * parts,)](
                TensorDescriptor.from_tensor(chunk, [tile.rows, tile.depth]), w_tiles, offset, part_index, part_value,
                count, columns, depth, parts, PRECISION=precision, WIDEN=widen, BLOCK_ROWS=tile.rows,
                BLOCK_COLUMNS=tile.columns, BLOCK_DEPTH=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
            _count[(triton.cdiv(count, COUNT_ROWS),)](
                part_index, part_value, counts if group is None else group[part], counts, index[part], value[part],
                count, columns, parts, cells, copies, HAS_GROUP=group is not None, BLOCK_ROWS=COUNT_ROWS,
            )  # fmt: skip
    return index, value, counts.sum(dim=0)


def _properties(device: torch.device):
    """Of a GPU; ``None`` without one (interpreted)."""
    return torch.cuda.get_device_properties(device) if device.type == "cuda" else None


def _is_aligned(x: torch.Tensor) -> bool:
    """Whether a tensor descriptor can read it: rows of adjacent elements that do not overlap and begin at multiples of 16 bytes."""
    pitch = x.stride(0) * x.element_size()
    return x.stride(1) == 1 and x.stride(0) >= x.shape[1] and pitch % ALIGNMENT == 0 and x.data_ptr() % ALIGNMENT == 0


def _aligned(x: torch.Tensor) -> torch.Tensor:
    return x if _is_aligned(x) else _empty_aligned(x, len(x), x.device).copy_(x)


def _empty_aligned(x: torch.Tensor, rows: int, device: torch.device) -> torch.Tensor:
    """Room for that many rows as those of x."""
    pitch = triton.cdiv(x.shape[1] * x.element_size(), ALIGNMENT) * ALIGNMENT // x.element_size()
    return torch.empty(rows, pitch, dtype=x.dtype, device=device)[:, : x.shape[1]]


def _readable(x: torch.Tensor, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (start, rows of x on ``device``, aligned): all at once if they are, else copies of some at a time."""
    size = max(1, STREAM_BYTES // (x.shape[1] * x.element_size() * 128)) * 128  # keeps every slice aligned
    if x.device != device:
        yield from _stream(x, device, size)
    elif _is_aligned(x):
        yield 0, x
    else:
        yield from ((start, _aligned(x[start : start + size])) for start in range(0, len(x), size))


def _stream(x: torch.Tensor, device: torch.device, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (start, ``size`` rows of x on ``device``): copies run on their own stream, concurrently with the consumer."""
    copier, consumer = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    shape = (min(size, len(x)), x.shape[1])
    pinned = [torch.empty(shape, dtype=x.dtype, pin_memory=True) for _ in range(2)]
    buffers = [_empty_aligned(x, shape[0], device) for _ in range(2)]
    copied, used = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))
    copier.wait_stream(consumer)  # the buffers' memory may still be in use on the consumer's stream
    for i, start in enumerate(range(0, len(x), size)):
        rows = x[start : start + size]
        slot, count = i % 2, len(rows)
        copied[slot].synchronize()  # the pinned buffer is free again (an event never recorded is complete)
        pinned[slot][:count].copy_(rows)
        copier.wait_event(used[slot])
        with torch.cuda.stream(copier):
            buffers[slot][:count].copy_(pinned[slot][:count], non_blocking=True)
            copied[slot].record(copier)
        consumer.wait_event(copied[slot])
        yield start, buffers[slot][:count]
        used[slot].record(consumer)
