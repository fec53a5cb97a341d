"""What a run computes on, in words, and what software it uses."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp4tl_fast.common import cgroups

if TYPE_CHECKING:
    import torch

# Those that decide how fast a run is, or what it computes.
PACKAGES = (
    "dp4tl_fast", "torch", "torchvision", "triton", "numpy", "ffcv",
    "nvidia-dali-cuda130", "numba", "pillow", "scikit-learn",
)  # fmt: skip


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Machine and versions, for people who want to repeat a measurement. No host name, user or path.

    Args:
        packages: Distributions to give the versions of, under ``versions``; those that are not installed are left out.
    """
    gib, gpu = memory() / 2**30, gpus()
    return {
        "machine": f"{cores()} core{'s' * (cores() > 1)} of {cpu_model()}, {gib:.0f} GiB memory, {gpu or 'no GPU'}",
        "cpu": cpu_model(),
        "instructions": instructions(),
        "cores": cores(),
        "memory_gib": round(gib, 1),
        "gpu": gpu,
        "os": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name))},
    }


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_model() -> str:
    """The name, and family and model where known: virtual machines hide the full name."""
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{cpu_name()} (family {family}, model {model})" if family else cpu_name()


def instructions() -> list[str]:
    """Of those that decide how fast a CPU is here, the ones that it has: of one model, virtual machines hide some."""
    known = _cpuinfo("flags").split()
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16") if flag in known]


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those it is bound to, or fewer where its container has a quota (rounded up)."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, math.ceil(min(cgroups.cpu_quotas(root), default=bound))))


def memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: the machine's, or fewer where its container has a limit."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *cgroups.memory_limits(root)])


def gpus() -> str | None:
    """``2 x NVIDIA H100 (80 GiB)``: those that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return f"{torch.cuda.device_count()} x {properties.name} ({properties.total_memory / 2**30:.0f} GiB)"


def device_name(device: torch.device, ranks: int) -> str:
    """``2 x NVIDIA H100`` for two processes with a GPU each, or ``8 cores of AMD EPYC``."""
    if device.type != "cuda":
        return f"{cores()} core{'s' * (cores() > 1)} of {cpu_name()}"
    import torch

    return f"{ranks} x {torch.cuda.get_device_name(device)}"


def _cpuinfo(key: str) -> str:
    """Of the first processor, in /proc/cpuinfo."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
