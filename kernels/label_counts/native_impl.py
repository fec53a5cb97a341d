"""``label_counts`` on the CPU, in C++."""

from __future__ import annotations

import torch

from dp4tl_fast.kernels import _native

CHUNK_ELEMENTS = 1 << 22  # logits copied at a time when they are not contiguous along a row


def label_counts(
    logits: torch.Tensor, group: torch.Tensor | None, groups: int, isa: str = "auto"
) -> tuple[torch.Tensor, int]:
    """counts int64 [groups, classes] and the first row with a NaN, or -1: see ``reference.py``.

    ``isa`` forces an instruction set of ``_native.isas()``.
    """
    rows, classes = logits.shape
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
