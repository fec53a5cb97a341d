"""``cluster_sums`` on a GPU without atomics: rows are sorted by cluster, and each program sums one cluster in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK_ROWS = 32
BLOCK_DEPTH = 128


@triton.jit
def _kernel(
    x, order, start, sums, depth, row_stride, depth_stride, BLOCK_ROWS: tl.constexpr, BLOCK_DEPTH: tl.constexpr
):  # fmt: skip
    cluster = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_DEPTH + tl.arange(0, BLOCK_DEPTH)
    end = tl.load(start + cluster + 1)
    total = tl.zeros([BLOCK_DEPTH], tl.float64)
    for first in range(tl.load(start + cluster), end, BLOCK_ROWS):
        i = first + tl.arange(0, BLOCK_ROWS)
        row = tl.load(order + i, mask=i < end, other=0)
        address = x + row[:, None] * row_stride + d[None, :].to(tl.int64) * depth_stride
        tile = tl.load(address, mask=(i < end)[:, None] & (d < depth)[None, :], other=0.0)
        total += tl.sum(tile.to(tl.float32), axis=0).to(tl.float64)
    tl.store(sums + cluster * depth + d, total, mask=d < depth)


def cluster_sums(features: torch.Tensor, index: torch.Tensor, clusters: int) -> torch.Tensor:
    """float64 [clusters, depth]: see ``reference.py``. The same bits each time on one device."""
    sums = torch.empty(clusters, features.shape[1], dtype=torch.float64, device=features.device)
    start = torch.zeros(clusters + 1, dtype=torch.int64, device=features.device)
    start[1:] = torch.bincount(index, minlength=clusters).cumsum(0)
    order = torch.argsort(index, stable=True)
    with torch.cuda.device_of(features):
        _kernel[(clusters, triton.cdiv(features.shape[1], BLOCK_DEPTH))](
            features, order, start, sums, features.shape[1], features.stride(0), features.stride(1),
            BLOCK_ROWS=BLOCK_ROWS, BLOCK_DEPTH=BLOCK_DEPTH,
        )  # fmt: skip
    return sums
