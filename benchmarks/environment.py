"""What a result file says about the machine and the software that produced it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from dp4tl_fast.common import machine

PACKAGES = (
    "dp4tl_fast", "torch", "torchvision", "triton", "numpy", "ffcv", "nvidia-dali-cuda130", "numba", "pillow",
    "scikit-learn", "faiss-cpu", "fastkmeans", "flash-kmeans", "spdl",
)  # fmt: skip


def environment() -> dict[str, object]:
    """The ``environment`` of F.json. No host name, user or path."""
    cores = machine.cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = _gpu()
    return {
        "machine": f"{cores} cores of {_cpu_model()}, {memory:.0f} GiB memory, {gpu or 'no GPU'}",
        "cpu": _cpu_model(),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in _cpu_flags()],
        "cores": cores,
        "memory_gib": round(memory, 1),
        "gpu": gpu,
        "os": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def _cpuinfo(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.split(":")[0].strip() == key:
            return line.split(":", 1)[1].strip()
    return ""


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _cpu_model() -> str:
    name = machine.cpu_name() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} (family {family}, model {model})" if family else name  # virtual machines hide the full name


def _gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return f"{torch.cuda.device_count()} x {properties.name} ({properties.total_memory / 2**30:.0f} GiB)"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that was measured, with ``+changes`` when tracked files differ from it."""
    root = Path(__file__).parent
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # an unpacked archive has no history
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
