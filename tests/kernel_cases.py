"""Inputs and judgements shared by the kernel tests."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

from benchmarks.kernel_checks import DTYPES, dot_error  # noqa: F401 - for the tests

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ("native", "triton")  # the triton one on DEVICE: interpreted without a GPU
SOME = settings(max_examples=40, deadline=None)  # the interpreter is slow

# One, two, odd, around a vector (16, 64) and just past a tile of the Triton kernels (128, 256).
SIZES = st.sampled_from([1, 2, 3, 5, 15, 16, 17, 31, 33, 63, 64, 65, 67, 127, 129, 130])
ROWS = st.sampled_from([0, 1, 2, 3, 7, 17, 63, 65, 129, 131])
SEEDS = st.integers(0, 2**31)


def device_of(implementation: str) -> str:
    return DEVICE if implementation == "triton" else "cpu"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def group_ids(seed: int, rows: int, groups: int) -> torch.Tensor:
    return torch.randint(0, groups, (rows,), generator=generator(seed + 9))


def integers(seed: int, *shape: int, high: int = 3) -> torch.Tensor:
    """Small integers, as float32: every sum of products of them is exact in every dtype, and ties abound."""
    return torch.randint(-high, high + 1, shape, generator=generator(seed)).float()


def strided(matrix: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values with other strides."""
    rows, columns = matrix.shape
    if layout == "columns first":
        return matrix.T.contiguous().T
    if layout == "rows apart":
        wide = torch.full((rows, columns + 3), torch.nan, dtype=matrix.dtype, device=matrix.device)
        wide[:, 1 : columns + 1] = matrix
        return wide[:, 1 : columns + 1]
    if layout == "every second":
        wide = torch.full((2 * rows, 2 * columns), torch.nan, dtype=matrix.dtype, device=matrix.device)
        wide[::2, ::2] = matrix
        return wide[::2, ::2]
    return matrix


LAYOUTS = st.sampled_from(["contiguous", "columns first", "rows apart", "every second"])


def assert_winners(index: torch.Tensor, scores: torch.Tensor, error: torch.Tensor) -> None:
    """``index`` wins in the exact ``scores`` [rows, k] (larger is better), or is a near tie of the winner.

    Each computed score is off by at most ``error`` [rows]: a column can only win wrongly if its exact score is within
    2 * error of the best one. Where the gap to the second is larger, this demands equality.
    """
    assert index.dtype == torch.int64 and bool(((index >= 0) & (index < scores.shape[1])).all())
    behind = scores.max(dim=1).values - scores.gather(1, index[:, None])[:, 0]
    assert bool((behind <= 2 * error).all()), f"winner behind by {behind.max():.3g}, allowed {2 * error.max():.3g}"
