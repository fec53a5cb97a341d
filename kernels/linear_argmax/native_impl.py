"""``linear_argmax`` on the CPU: tiles of scores by torch's matrix product, reduced in C++ while they are in cache.

With screening, products are taken in bfloat16, which is faster on CPUs that multiply it in hardware, to find the few
columns that can win a row; those are computed again in float32 from x and w themselves, so that no winner depends on the
rounding.
"""

from __future__ import annotations

import torch

from dp4tl_fast.kernels import _native
from dp4tl_fast.kernels.dispatch import histogram
from dp4tl_fast.kernels.precision import exact_float32

# A tile of scores: large enough for the matrix product to run at full rate, small enough for the cache that the
# reduction reads it from. Extra memory is one tile, and one tile's rows of x when they must be converted.
TILE_ROWS = 8192
TILE_COLUMNS = 1024
# Undecided columns per row, as a share of all and beyond the one that wins: above this, deciding them costs more than
# screening saves.
MAX_UNDECIDED = 1 / 32


def linear_argmax(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    group: torch.Tensor | None,
    groups: int,
    isa: str = "auto",
    screen: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """index int64 [rows], value float32 [rows], counts int64 [groups, columns]: see ``reference.py``.

    Args:
        isa: forces an instruction set of ``_native.isas()``.
        screen: forces screening on or off; ``None`` screens where the CPU multiplies bfloat16 in hardware. A tile that
            leaves too many columns undecided turns screening off for the rest of the call.
    """
    threads = torch.get_num_threads()
    screen = _native.has_bf16_products() if screen is None else screen
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
                undecided += _native.update_best_screened(scores, offset[columns], error[columns], x_tile, w_tile, *best)
            else:
                _native.update_best(scores, offset[columns], *best)
        if undecided > len(x_tile) * (1 + len(w) * MAX_UNDECIDED):
            operand = w.to(torch.float32)
            tile = torch.empty(len(tile), dtype=torch.float32)
    return index, value, histogram(index, group, groups, len(w))


def screening_error(w: torch.Tensor) -> torch.Tensor:
    """error [columns]: a product of x and w[k] taken in bfloat16, but not yet rounded to it, is off by ‖x‖ · error[k].

    Rounding both factors to bfloat16 (u = 2^-8 each, none if they are bfloat16) moves the product by up to
    (2 u + u²) Σ|x_i w_i|, summing in float32 by up to depth · 2^-24 Σ|x_i w_i|, and Σ|x_i w_i| <= ‖x‖ ‖w[k]‖.
    """
    factors = 0 if w.dtype == torch.bfloat16 else 2 * 2**-8 + 2**-16
    relative = 1.01 * (factors + (w.shape[1] + 2) * 2**-24)  # 1.01: the norms and this bound are rounded, too
    return w.float().norm(dim=1) * relative
