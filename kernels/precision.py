"""Float32 that stays float32: exact matrix products, and norms of 16-bit rows that do not overflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NORM_ROWS = 1 << 14  # rows squared at a time: bounds the extra memory


def squared_norms(x: torch.Tensor) -> torch.Tensor:
    """‖x‖² of each row in float32, whatever the dtype: in float16 it would overflow above 65504."""
    import torch

    if len(x) <= NORM_ROWS:
        return x.float().square().sum(dim=1)
    norms = torch.empty(len(x), device=x.device)
    for start in range(0, len(x), NORM_ROWS):
        norms[start : start + NORM_ROWS] = x[start : start + NORM_ROWS].float().square().sum(dim=1)
    return norms


@contextmanager
def exact_float32() -> Iterator[None]:
    """No bfloat16 or TF32 inside a float32 matrix product, which ``torch.set_float32_matmul_precision`` can allow.

    Changes torch's settings only if they reduce the precision, and restores them.
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
