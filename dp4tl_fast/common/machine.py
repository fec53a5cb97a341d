"""What a run computes on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device, ranks: int) -> str:
    """``2 x NVIDIA H100`` for two processes with a GPU each, or ``8 cores of AMD EPYC``."""
    if device.type != "cuda":
        return f"{cores()} cores of {cpu_name()}"
    import torch

    return f"{ranks} x {torch.cuda.get_device_name(device)}"
