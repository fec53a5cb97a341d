"""``label_counts`` on the CPU, in C++, with the instruction set that is the fastest here (``rates.py``)."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path

import torch

from dp4tl_fast.kernels import _native
from dp4tl_fast.kernels.rates import Race, forced

MEASURED = 1 << 25  # logits from which the work takes longer than to measure the rates, once, on this machine
SAMPLE = 1024  # rows that are measured
CHUNK_ELEMENTS = 1 << 22  # logits copied at a time when they are not contiguous along a row


def label_counts(
    logits: torch.Tensor, group: torch.Tensor | None, groups: int, isa: str = "auto"
) -> tuple[torch.Tensor, int]:
    """counts int64 [groups, classes] and the first row with a NaN, or -1: see ``reference.py``.

    ``isa`` is an instruction set of ``_native.isas()``, or ``"auto"`` for the fastest. Results do not depend on it.
    """
    rows, classes = logits.shape
    if isa == "auto":
        isa = fastest_isa(logits.dtype, classes, logits.numel())
    counts = torch.zeros(groups, classes, dtype=torch.int64)
    step = rows if logits.stride(1) == 1 else CHUNK_ELEMENTS // classes
    step = max(step, 1)
    first_nan = -1
    for start in range(0, rows, step):
        chunk = logits[start : start + step]
        if chunk.stride(1) != 1:
            chunk = chunk.contiguous()
        ids = None if group is None else group[start : start + len(chunk)]
        row = _native.label_counts(chunk, ids, counts, torch.get_num_threads(), isa)
        if first_nan < 0 <= row:
            first_nan = start + row
    return counts, first_nan


def fastest_isa(dtype: torch.dtype, classes: int, logits: int = MEASURED) -> str:
    """The instruction set for that many logits of this dtype; ``"auto"``, the newest, for few."""
    chosen = forced("label_counts", _native.isas())
    return chosen or ("auto" if logits < MEASURED else _fastest(dtype, classes, torch.get_num_threads()))


@functools.cache
def _fastest(dtype: torch.dtype, classes: int, threads: int) -> str:
    return race(dtype, classes).fastest()


def race(dtype: torch.dtype, classes: int) -> Race:
    """Some rows by each instruction set that the CPU has; the classes are rounded up to a power of two, up to 1,024."""
    width, threads = min(max(64, 1 << (classes - 1).bit_length()), 1024), torch.get_num_threads()
    logits = torch.randn(SAMPLE, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    counts = torch.zeros(1, width, dtype=torch.int64)
    ways = {isa: partial(_native.label_counts, logits, None, counts, threads, isa) for isa in _native.isas()}
    name = f"label_counts of {str(dtype).removeprefix('torch.')}, {width} classes, threads {threads}"
    return Race(name, f"core of {Path(_native.__file__).stat().st_mtime_ns}", ways, work=1e-9 * logits.numel())
