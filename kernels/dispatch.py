"""What every operation shares: choosing the implementation, checking arguments, counting the winners.

Implementations: ``native`` (C++, CPU), ``triton`` (GPU, or the CPU under ``TRITON_INTERPRET=1``), ``reference`` (plain
torch, the truth). ``auto`` takes the one made for the tensor's device; nothing falls back silently.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dp4tl_fast.common.errors import BackendError, UsageError

if TYPE_CHECKING:
    import torch

IMPLEMENTATIONS = ("auto", "native", "triton", "reference")
MODULES = {"native": "native_impl", "triton": "triton_impl", "reference": "reference"}  # in the folder of each operation


def choose(implementation: str, device: torch.device) -> str:
    """``native``, ``triton`` or ``reference`` for data on ``device``. Raises BackendError if that cannot work here."""
    if implementation not in IMPLEMENTATIONS:
        raise UsageError(f"implementation {implementation!r} is unknown: use one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "auto":
        implementation = {"cpu": "native", "cuda": "triton"}.get(device.type, "reference")
    if implementation == "native" and device.type != "cpu":
        raise BackendError(f"implementation 'native' runs on the CPU, the data is on {device}: use 'triton' or 'auto'")
    if implementation == "native":
        require_native()
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if implementation == "triton" and device.type != "cuda" and not interpreted:
        raise BackendError(f"implementation 'triton' needs a CUDA device, the data is on {device}: use 'auto'")
    return implementation


def load(operation: str, implementation: str) -> Any:
    """The function ``operation`` of that implementation, which ``choose`` returned; torch and Triton are imported here."""
    return getattr(import_module(f"dp4tl_fast.kernels.{operation}.{MODULES[implementation]}"), operation)


def require_native() -> None:
    """Raise BackendError with the reason and the remedy if the compiled module is missing."""
    try:
        from dp4tl_fast.kernels import _native  # noqa: F401
    except ImportError as error:
        remedy = "build it with 'pip install -e .', or ask for implementation='reference'"
        raise BackendError(f"the native kernels cannot be loaded ({error}): {remedy}") from error


def require_matrix(name: str, matrix: torch.Tensor) -> None:
    """Raise UsageError unless ``matrix`` is [rows, columns >= 1] of float32, float16 or bfloat16."""
    import torch

    if matrix.ndim != 2 or matrix.shape[1] < 1:
        raise UsageError(f"{name} has shape {list(matrix.shape)}: expected [rows, columns] with at least one column")
    if matrix.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UsageError(f"{name} is {matrix.dtype}: expected float32, float16 or bfloat16")


def require_groups(
    group: torch.Tensor | None, groups: int | None, rows: int, device: torch.device
) -> tuple[torch.Tensor | None, int]:
    """Check one integer id per row and return it as contiguous int64 on ``device``, with the number of groups.

    Without ``groups``, the number is the largest id + 1. Ids outside [0, groups) raise UsageError.
    """
    import torch

    if group is None:
        if groups not in (None, 1):
            raise UsageError(f"groups={groups} without group ids: give one id per row in `group`")
        return None, 1
    if group.ndim != 1 or len(group) != rows or group.is_floating_point() or group.dtype == torch.bool:
        raise UsageError(f"group is {group.dtype} of shape {list(group.shape)}: expected {rows} integers, one per row")
    group = group.to(device=device, dtype=torch.int64).contiguous()
    low, high = (int(x) for x in group.aminmax()) if rows else (0, -1)
    groups = high + 1 if groups is None else groups
    if low < 0 or high >= groups:
        raise UsageError(f"group ids range from {low} to {high}: they must lie in [0, {groups})")
    return group, groups


def histogram(index: torch.Tensor, group: torch.Tensor | None, groups: int, classes: int) -> torch.Tensor:
    """counts[g, c] = rows of group g whose ``index`` is c, int64 [groups, classes]; rows with index -1 do not count."""
    import torch

    cells = index if group is None else index + group * classes
    return torch.bincount(cells[index >= 0], minlength=groups * classes).view(groups, classes)


def require_no_nan(row: int, what: str) -> None:
    """Raise UsageError if there is a first row with a NaN; ``row`` -1 means there is none."""
    if row >= 0:
        raise UsageError(f"row {row} of {what} has a NaN: fix what produced it, or skip such rows with nan='skip'")


def require_all_counted(counts: torch.Tensor, index: torch.Tensor, what: str) -> None:
    """Raise UsageError if the counts of ``index`` miss a row, which then has a NaN. Waits for the GPU once."""
    if int(counts.sum()) < len(index):
        require_no_nan(int((index < 0).int().argmax()), what)


def require_nan_policy(nan: str) -> None:
    if nan not in ("error", "skip"):
        raise UsageError(f"nan={nan!r} is unknown: use 'error' or 'skip'")
