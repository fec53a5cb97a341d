"""``linear_argmax`` on the CPU: tiles of products by torch, reduced in C++ while they are in cache.

The products only screen the columns: the few that can win a row are computed again in float32 from x and w themselves. So
products may be taken in float32 or bfloat16, whichever is faster on this CPU (``rates.py``), and the results are the same
bits, whatever the library, the number of threads or the size of a tile.
"""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path

import torch

from dp4tl_fast.kernels import _native
from dp4tl_fast.kernels.dispatch import histogram
from dp4tl_fast.kernels.precision import exact_float32
from dp4tl_fast.kernels.rates import Race, forced

# A tile of products: large enough for the matrix product to run at full rate, small enough for the cache that the
# reduction reads it from. Extra memory is one tile, and one tile's rows of x when they must be converted.
TILE_ROWS = 8192
TILE_COLUMNS = 1024
# Columns computed again per row, as a share of all and beyond the one that wins: above this, screening in bfloat16 saves
# less than it costs.
MAX_UNDECIDED = 1 / 32
FAINT = 1e-12  # norm of a column below which the squares of what rounding moves may underflow
PRODUCTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MEASURED = 1 << 22  # rows * columns from which the work takes longer than to measure the rates, once, on this machine
SAMPLE = 512  # rows and columns that are measured


def linear_argmax(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    group: torch.Tensor | None,
    groups: int,
    isa: str = "auto",
    products: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """index int64 [rows], value float32 [rows], counts int64 [groups, columns]: see ``reference.py``.

    Args:
        isa: an instruction set of ``_native.isas()``. The last bits of ``value`` and exact near ties may depend on it.
        products: ``"float32"``, ``"bfloat16"``, or ``"auto"`` for the faster. Results do not depend on it.
    """
    if products == "auto":
        products = faster_products(x.dtype, x.shape[1], len(x) * len(w))
    index, value = _winners(x, w.contiguous(), offset, isa, PRODUCTS[products])
    return index, value, histogram(index, group, groups, len(w))


def faster_products(dtype: torch.dtype, depth: int, scores: int = MEASURED) -> str:
    """``"float32"`` or ``"bfloat16"`` for rows of this dtype and depth; ``scores`` is rows * columns.

    bfloat16 only if the CPU multiplies it in hardware. Then the rates decide, except for little work, which takes less
    time than measuring them.
    """
    chosen = forced("linear_argmax", PRODUCTS)
    if chosen is None and not _native.has_bf16_products():
        return "float32"
    return chosen or ("bfloat16" if scores < MEASURED else _fastest(dtype, depth, torch.get_num_threads()))


@functools.cache  # to look the rates up means to make what would be measured, and to read what CPU this is: milliseconds
def _fastest(dtype: torch.dtype, depth: int, threads: int) -> str:
    return race(dtype, depth).fastest()


def race(dtype: torch.dtype, depth: int) -> Race:
    """Small tiles of each kind of products that the CPU has, at this depth, up to 1,024, rounded up to a power of two."""
    width = min(max(64, 1 << (depth - 1).bit_length()), 1024)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(SAMPLE, width, generator=generator).to(dtype) for _ in range(2))
    possible = PRODUCTS if _native.has_bf16_products() else {"float32": torch.float32}
    ways = {name: partial(_winners, x, w, torch.zeros(SAMPLE), "auto", way) for name, way in possible.items()}
    name = f"linear_argmax of {str(dtype).removeprefix('torch.')}, depth {width}, threads {torch.get_num_threads()}"
    versions = f"torch {torch.__version__}, core of {Path(_native.__file__).stat().st_mtime_ns}"
    return Race(name, versions, ways, work=2e-9 * SAMPLE * SAMPLE * width)


def _winners(
    x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, isa: str, products: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """index [rows] and value [rows]. A tile that leaves too many columns undecided ends screening in bfloat16."""
    threads, rows_at_once = torch.get_num_threads(), min(TILE_ROWS, len(x))

    def prepared(products: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        tile = torch.empty(rows_at_once * min(TILE_COLUMNS, len(w)), dtype=products)
        converted = torch.empty(rows_at_once * x.shape[1] if x.dtype != products else 0, dtype=products)
        return w.to(products), product_error(w, products), tile, converted

    operand, error, tile, converted = prepared(products)
    value = torch.full((len(x),), -torch.inf)
    index = torch.zeros(len(x), dtype=torch.int64)
    for start in range(0, len(x), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        x_tile = x[rows] if x.stride(1) == 1 else x[rows].contiguous()
        x_operand = x_tile if x.dtype == products else converted[: x_tile.numel()].view(x_tile.shape).copy_(x_tile)
        undecided = 0
        for first in range(0, len(w), TILE_COLUMNS):
            columns = slice(first, first + TILE_COLUMNS)
            w_tile = w[columns]
            scores = tile[: len(x_tile) * len(w_tile)].view(len(x_tile), len(w_tile))
            with exact_float32():
                torch.mm(x_operand, operand[columns].T, out=scores)
            undecided += _native.update_best(
                scores, offset[columns], error[columns], x_tile, w_tile, first, value[rows], index[rows], threads, isa
            )
        if products == torch.bfloat16 and undecided > len(x_tile) * (1 + len(w) * MAX_UNDECIDED):
            products = torch.float32
            operand, error, tile, converted = prepared(products)
    return index, value


def product_error(w: torch.Tensor, products: torch.dtype) -> torch.Tensor:
    """error [columns]: a product of x and w[k] with factors of this dtype is off by up to ‖x‖ · error[k].

    Off from the dot product that the core computes in float32, and before the product itself is rounded to its dtype.
    Rounding to bfloat16 moves x_i by up to u |x_i|, u = 2^-8, and w[k] by d[k], which is known; so the product by up to
    u ‖x‖ ‖w[k]‖ + (1 + u) ‖x‖ ‖d[k]‖. Summing in float32 moves it by up to depth · 2^-24 ‖x‖ ‖w[k]‖ in each of the two.
    """
    errors = []
    for tile in w.split(TILE_COLUMNS):
        exact = tile.float()
        norm = exact.norm(dim=1)
        error = norm * (2 * (w.shape[1] + 2) * 2**-24)
        if products == torch.bfloat16 and w.dtype != torch.bfloat16:  # else rounding moves nothing
            moved = (exact - exact.to(products)).norm(dim=1)
            moved = moved.where(norm > FAINT, 2**-8 * norm)
            error += 2**-8 * norm + (1 + 2**-8) * moved
        errors.append(1.01 * error)  # the norms and this bound are rounded, too
    return torch.cat(errors)
