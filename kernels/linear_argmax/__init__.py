"""The one loop behind ``linear_label_counts`` and ``nearest_centroid``: argmax over k of x · w[k] + offset[k].

Logits are x · w + bias. The nearest centroid c has the smallest ‖c‖² − 2 x · c, that is the largest x · c − ‖c‖²/2.
Products are taken in the dtype of x and summed in float32; the matrix of scores is never whole in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels.dispatch import choose, histogram, require_groups, require_matrix

if TYPE_CHECKING:
    import torch

# A tile of scores on the CPU: big enough for the matrix product to run at full rate, small enough for the cache that
# the reduction reads it from. Extra memory is one tile, and one tile's rows of x when they must be converted.
TILE_ROWS = 8192
TILE_COLUMNS = 1024
MAX_UNDECIDED = 1 / 32  # of the columns, beyond one a row: more than this, and deciding costs more than screening saves


@dataclass(frozen=True, slots=True)
class Winners:
    index: torch.Tensor  # int64 [rows], -1 where a score is NaN
    value: torch.Tensor  # float32 [rows], the winning score
    counts: torch.Tensor  # int64 [groups, columns of scores]; rows with a NaN do not count


def linear_argmax(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    group: torch.Tensor | None,
    groups: int | None,
    implementation: str,
    names: tuple[str, str] = ("x", "w"),
) -> Winners:
    """Winner of each row of x [rows, depth] among w [columns, depth] with offset [columns], and their histogram.

    ``w`` is rounded to the dtype of ``x``, ``offset`` to float32. The lowest column wins ties. Results are on the
    device of ``w``; ``x`` may stay in host memory and is then streamed to it.
    """
    require_matrix(names[0], x)
    require_matrix(names[1], w)
    if x.shape[1] != w.shape[1]:
        raise UsageError(f"{names[0]} have {x.shape[1]} columns, {names[1]} {w.shape[1]}: they must agree")
    if len(w) == 0:
        raise UsageError(f"{names[1]} has no rows: at least one is needed")
    if x.device != w.device and x.device.type != "cpu":
        raise UsageError(f"{names[0]} are on {x.device}, {names[1]} on {w.device}: put both on one device")
    chosen = choose(implementation, w.device)
    x, w, offset = x.detach(), w.detach().to(x.dtype), offset.detach().float().contiguous()
    ids, groups = require_groups(group, groups, len(x), w.device)
    if chosen == "triton":
        from dp4tl_fast.kernels.linear_argmax.triton_impl import linear_argmax as triton

        return Winners(*triton(x, w, offset, ids, groups))
    if chosen == "native":
        index, value = _native(x, w, offset)
    else:
        from dp4tl_fast.kernels.linear_argmax.reference import linear_argmax as reference

        index, value = reference(x.to(w.device), w, offset)
    return Winners(index, value, histogram(index, ids, groups, len(w)))


def _native(
    x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, isa: str = "auto", screen: bool | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles of scores by torch's matrix product, reduced in C++ while they are in cache.

    Where the CPU multiplies bfloat16 in hardware (``screen``), products are taken in bfloat16, twice as fast or more,
    to find the few columns that can win a row; those are computed again in float32 from x and w themselves, so that no
    result depends on the rounding. A tile that leaves too many undecided turns screening off for the rest of the call.
    """
    import torch

    from dp4tl_fast.kernels import _native as core

    threads = torch.get_num_threads()
    screen = core.has_bf16_products() if screen is None else screen
    w = w.contiguous()
    operand = w.to(torch.bfloat16 if screen else torch.float32)
    error = screening_error(w)
    value = torch.full((len(x),), -torch.inf)
    index = torch.zeros(len(x), dtype=torch.int64)
    tile = torch.empty(min(TILE_ROWS, len(x)) * min(TILE_COLUMNS, len(w)), dtype=operand.dtype)
    for start in range(0, len(x), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        x_tile = x[rows] if x.stride(1) == 1 else x[rows].contiguous()
        x_operand = x_tile.to(operand.dtype)
        undecided = 0
        for first in range(0, len(w), TILE_COLUMNS):
            columns = slice(first, first + TILE_COLUMNS)
            w_tile = w[columns]
            scores = tile[: len(x_tile) * len(w_tile)].view(len(x_tile), len(w_tile))
            with exact_float32():
                torch.mm(x_operand, operand[columns].T, out=scores)
            best = first, value[rows], index[rows], threads, isa
            if operand.dtype == torch.bfloat16:
                undecided += core.update_best_screened(scores, offset[columns], error[columns], x_tile, w_tile, *best)
            else:
                core.update_best(scores, offset[columns], *best)
        if undecided > len(x_tile) * (1 + len(w) * MAX_UNDECIDED):
            operand = w.to(torch.float32)
            tile = torch.empty(len(tile), dtype=torch.float32)
    return index, value


def screening_error(w: torch.Tensor) -> torch.Tensor:
    """error [columns]: a product of x and w[k] taken in bfloat16, but not yet rounded to it, is off by ‖x‖ · error[k].

    Rounding both factors to bfloat16 (u = 2^-8 each, none if they are bfloat16) moves the product by up to
    (2 u + u²) Σ|x_i w_i|, summing in float32 by up to depth · 2^-24 Σ|x_i w_i|, and Σ|x_i w_i| <= ‖x‖ ‖w[k]‖.
    """
    import torch

    factors = 0 if w.dtype == torch.bfloat16 else 2 * 2**-8 + 2**-16
    relative = 1.01 * (factors + (w.shape[1] + 2) * 2**-24)  # 1.01: the norms and this bound are rounded, too
    return w.float().norm(dim=1) * relative


@contextmanager
def exact_float32() -> Iterator[None]:
    """No bfloat16 or TF32 inside a float32 matrix product, which ``torch.set_float32_matmul_precision`` can allow.

    Changes torch's settings only where they are in the way, and puts them back.
    """
    import torch

    if not hasattr(torch.backends.mkldnn, "matmul"):  # before torch 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    settings = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    reduced = [(each, each.fp32_precision) for each in settings if each.fp32_precision not in ("none", "ieee")]
    for each, _ in reduced:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        for each, precision in reduced:
            each.fp32_precision = precision
