"""Where to compute, and in what precision."""

from __future__ import annotations

from pathlib import Path

import torch

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels import training_step
from dp4tl_fast.training import checkpoint, ranks

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU if torch sees one, else the CPU; anything else is torch's own name. A GPU by number becomes current."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"`device={name}`: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"`device={name}`: torch sees no CUDA GPU. `dp4tl-fast doctor` says why; `device=cpu` works")
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"`device={name}`: torch sees {torch.cuda.device_count()} GPUs, cuda:0 and on")
        torch.cuda.set_device(device)  # whose streams and random numbers are meant where none is named
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Autocast dtype; ``None`` is fp32. ``auto`` is bf16 where that is faster: on GPUs that multiply it (else fp16), and on CPUs
    by a measurement."""
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return PRECISIONS[training_step.faster()]
    if name not in PRECISIONS:
        raise UsageError(f"`precision={name}`: must be one of auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def precision_of_run(name: str, device: torch.device, checkpoints: Path) -> str:
    """The name of ``pick_precision``'s choice, one for all processes and all of a run: what it began with, wherever it goes on."""
    def pick() -> str:
        begun = checkpoint.checkpoints(checkpoints) if name == "auto" else []
        known = str(checkpoint.read_weights(begun[-1])[1].get(checkpoint.PRECISION, name)) if begun else name
        chosen = pick_precision(known, device)
        return next(name for name, dtype in PRECISIONS.items() if dtype == chosen)

    return ranks.on_rank_zero(pick)
