"""The one loop behind ``linear_label_counts`` and ``nearest_centroid``: argmax over k of x · w[k] + offset[k].

Logits are x · w + bias. The nearest centroid c has the smallest ‖c‖² − 2 x · c, that is the largest x · c − ‖c‖²/2.
Products are taken in the dtype of x and summed in float32; the matrix of scores is never whole in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from dp4tl_fast.errors import UsageError
from dp4tl_fast.kernels.dispatch import choose, histogram, native, require_groups, require_matrix

if TYPE_CHECKING:
    import torch

# A tile of scores on the CPU: big enough for the matrix product to run at full rate, small enough for the cache that
# the reduction reads it from. Extra memory is one tile, and one tile's rows of x when they must be converted.
TILE_ROWS = 2048
TILE_COLUMNS = 1024


class Winners(NamedTuple):
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
    x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, isa: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles of scores by torch's matrix product, reduced in C++ while they are in cache.

    A bfloat16 product comes back rounded to bfloat16: every near tie is then decided again in float32 (core/counts.h).
    """
    import torch

    core, threads = native(), torch.get_num_threads()
    rounded = x.dtype == torch.bfloat16 and core.has_bf16_products()
    dtype = torch.bfloat16 if rounded else torch.float32
    w = w.to(dtype).contiguous()
    value = torch.full((len(x),), -torch.inf)
    index = torch.zeros(len(x), dtype=torch.int64)
    tile = torch.empty(min(TILE_ROWS, len(x)) * min(TILE_COLUMNS, len(w)), dtype=dtype)
    for start in range(0, len(x), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        x_tile = x[rows].to(dtype)
        if rounded and x_tile.stride(1) != 1:
            x_tile = x_tile.contiguous()
        for first in range(0, len(w), TILE_COLUMNS):
            columns = slice(first, first + TILE_COLUMNS)
            w_tile = w[columns]
            scores = tile[: len(x_tile) * len(w_tile)].view(len(x_tile), len(w_tile))
            with exact_float32():
                torch.mm(x_tile, w_tile.T, out=scores)
            if rounded:
                core.update_best_rounded(
                    scores, offset[columns], x_tile, w_tile, first, value[rows], index[rows], threads, isa
                )
            else:
                core.update_best(scores, offset[columns], first, value[rows], index[rows], threads, isa)
    return index, value


@contextmanager
def exact_float32() -> Iterator[None]:
    """No bfloat16 inside a float32 matrix product, which ``torch.set_float32_matmul_precision("medium")`` allows.

    Changes torch's setting only where it is in the way, and puts it back.
    """
    import torch

    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9
    if matmul is not None:
        before = matmul.fp32_precision
        if before in ("none", "ieee"):
            yield
            return
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
