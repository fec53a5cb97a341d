"""Where to compute, and in what precision."""

from __future__ import annotations

import torch

from dp4tl_fast.common.errors import UsageError

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
    """Autocast dtype; ``None`` is fp32. ``auto`` is bf16 where the hardware multiplies it natively."""
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
    if name not in PRECISIONS:
        raise UsageError(f"`precision={name}`: known are auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
