"""The Triton ``linear_argmax`` whose programs share rows: whatever the parts and tiles, winners are those of the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, SEEDS, SOME, generator, group_ids, integers

from dp4tl_fast.kernels.linear_argmax.reference import linear_argmax as reference
from dp4tl_fast.kernels.linear_argmax.triton_impl import linear_argmax
from dp4tl_fast.kernels.linear_argmax.tuning import HALF, SMALL, Tile, pick_parts

TILES = (SMALL, Tile(16, 16, 32, 4, 2))
DTYPES = (torch.float32, torch.bfloat16)


@SOME
@given(
    rows=st.integers(1, 150), columns=st.integers(1, 150), depth=st.sampled_from([1, 8, 31, 40, 64, 70]), parts=st.integers(1, 9),
    tile=st.sampled_from(TILES), dtype=st.sampled_from(DTYPES), seed=SEEDS,
)  # fmt: skip
def test_parts_and_tiles_change_nothing(rows, columns, depth, parts, tile, dtype, seed):
    x, w = (integers(seed + i, n, depth).to(DEVICE, dtype) for i, n in enumerate((rows, columns)))
    offset, group = integers(seed + 2, columns).to(DEVICE), group_ids(seed, rows, 3).to(DEVICE)
    parts = min(parts, -(-columns // tile.columns))
    got, wanted = linear_argmax(x, w, offset, group, 3, tile, parts), reference(x, w, offset, group, 3)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_ties_nan_and_infinities_in_any_part(parts):
    """Columns are filled up to whole tiles with copies of the last one, which never win and whose NaN are its own."""
    x = torch.ones(6, 20, device=DEVICE)
    x[1, 3], x[2, 0], x[3, 0], x[4] = torch.nan, torch.inf, -torch.inf, 0
    w = torch.ones(57, 20, device=DEVICE)  # four tiles of columns, the last of nine
    w[20, 5] = -1
    offset = torch.zeros(57, device=DEVICE)
    offset[40] = offset[56] = 1
    got, wanted = linear_argmax(x, w, offset, None, 1, TILES[1], parts), reference(x, w, offset, None, 1)
    assert got[0].tolist() == wanted[0].tolist() == [40, -1, 0, 0, 40, 40]
    assert torch.equal(got[2], wanted[2]) and int(got[2].sum()) == 5


def test_rows_that_overlap_or_begin_anywhere_are_copied():
    values = torch.randn(200, generator=generator(1)).to(DEVICE)
    w, offset = torch.randn(70, 24, generator=generator(2)).to(DEVICE), torch.zeros(70, device=DEVICE)
    for x in (values.as_strided((40, 24), (4, 1)), values[1:].as_strided((8, 24), (24, 1)), values[:24].expand(5, 24)):
        got, wanted = linear_argmax(x, w, offset, None, 1, SMALL), reference(x, w, offset, None, 1)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[2], wanted[2])


def test_row_blocks_share_columns_only_as_far_as_the_cache_asks():
    tile, h100 = HALF[0], 50 << 20
    row_bytes = {depth: depth * 2 * 132 for depth in (512, 2_048)}  # of bfloat16 rows, on 132 multiprocessors
    assert [pick_parts(tile, k, row_bytes[512], h100) for k in (1_000, 21_000)] == [1, 1]
    assert [pick_parts(tile, k, row_bytes[2_048], h100) for k in (1_000, 2_000, 200)] == [4, 4, 1]
