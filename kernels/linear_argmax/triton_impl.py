"""``linear_argmax`` on a GPU: a tiled matrix product whose epilogue keeps the running argmax; counts at the end.

A program owns a block of rows and goes through all columns: x is read once per block of columns, and the scores stay in
registers. The loops over columns and depth are one loop, so that the next tile is loaded during the epilogue of this one.
Operations: 2 * rows * columns * depth.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from dp4tl_fast.kernels.linear_argmax.tuning import Tile, pick

STREAM_BYTES = 256 << 20  # size of each of the two buffers through which rows in host memory reach the GPU


@triton.jit(do_not_specialize=["rows", "columns"])
def _kernel(
    x, w, offset, group, counts, index, value,
    rows, columns, depth, x_row_stride, x_depth_stride, w_row_stride,
    HAS_GROUP: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_exists = row < rows
    best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    winner = tl.zeros([BLOCK_ROWS], tl.int32)
    nans = tl.zeros([BLOCK_ROWS], tl.int32)
    score = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    steps = tl.cdiv(depth, BLOCK_DEPTH)
    for t in range(tl.cdiv(columns, BLOCK_COLUMNS) * steps):
        column = t // steps * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        k = t % steps * BLOCK_DEPTH + tl.arange(0, BLOCK_DEPTH)
        column_exists = column < columns
        x_address = x + row[:, None] * x_row_stride + k[None, :].to(tl.int64) * x_depth_stride
        w_address = w + column[None, :].to(tl.int64) * w_row_stride + k[:, None]
        x_tile = tl.load(x_address, mask=row_exists[:, None] & (k < depth)[None, :], other=0.0)
        w_tile = tl.load(w_address, mask=column_exists[None, :] & (k < depth)[:, None], other=0.0)
        if WIDEN:
            x_tile, w_tile = x_tile.to(tl.float32), w_tile.to(tl.float32)
        score = tl.dot(x_tile, w_tile, score, input_precision=PRECISION)
        if t % steps == steps - 1:  # the last slice of depth: these columns are complete
            score += tl.load(offset + column, mask=column_exists, other=0.0)[None, :]
            nan = (score != score) & column_exists[None, :]
            nans = tl.maximum(nans, tl.max(nan.to(tl.int32), axis=1))
            score = tl.where(column_exists[None, :] & (score == score), score, float("-inf"))
            top = tl.max(score, axis=1)
            lowest = tl.min(tl.where(score == top[:, None], column[None, :], columns), axis=1)
            winner = tl.where(top > best, lowest, winner)  # strictly: the earlier block wins ties
            best = tl.maximum(best, top)
            score = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    cell = winner.to(tl.int64)
    tl.store(index + row, tl.where(nans == 0, cell, -1), mask=row_exists)
    tl.store(value + row, tl.where(nans == 0, best, float("nan")), mask=row_exists)
    if HAS_GROUP:
        cell += tl.load(group + row, mask=row_exists, other=0) * columns
    tl.atomic_add(counts + cell, 1, mask=row_exists & (nans == 0), sem="relaxed")


def linear_argmax(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    group: torch.Tensor | None,
    groups: int,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """index int64 [rows], value float32 [rows], counts int64 [groups, columns] on the device of ``w``: see ``reference.py``.

    x may be in host memory.
    """
    rows, (columns, depth) = len(x), w.shape
    w = w.contiguous()
    index = torch.empty(rows, dtype=torch.int64, device=w.device)
    value = torch.empty(rows, dtype=torch.float32, device=w.device)
    counts = torch.zeros(groups, columns, dtype=torch.int64, device=w.device)
    tile = tile or pick(w.element_size(), columns, _shared_bytes(w.device))
    precision = "tf32x3" if x.dtype == torch.float32 else "ieee"
    widen = w.device.type != "cuda"  # Triton's interpreter multiplies the bits of bfloat16 as integers
    chunks = [(0, x)] if x.device == w.device else _stream(x, w.device)
    for start, chunk in chunks:
        part = slice(start, start + len(chunk))
        if len(chunk) == 0:
            continue
        with torch.cuda.device_of(w):
            _kernel[(triton.cdiv(len(chunk), tile.rows),)](
                chunk, w, offset, counts if group is None else group[part], counts, index[part], value[part],
                len(chunk), columns, depth, chunk.stride(0), chunk.stride(1), w.stride(0),
                HAS_GROUP=group is not None, PRECISION=precision, WIDEN=widen, BLOCK_ROWS=tile.rows,
                BLOCK_COLUMNS=tile.columns, BLOCK_DEPTH=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return index, value, counts


def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a block may use; without a GPU (interpreted) any tile fits."""
    if device.type != "cuda":
        return 1 << 30
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


def _stream(x: torch.Tensor, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (start, rows of x on ``device``): copies run on their own stream, concurrently with the consumer."""
    size = max(1, STREAM_BYTES // (x.shape[1] * x.element_size() * 128)) * 128  # keeps every slice aligned
    copier, consumer = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    shape = (min(size, len(x)), x.shape[1])
    pinned = [torch.empty(shape, dtype=x.dtype, pin_memory=True) for _ in range(2)]
    buffers = [torch.empty(shape, dtype=x.dtype, device=device) for _ in range(2)]
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
