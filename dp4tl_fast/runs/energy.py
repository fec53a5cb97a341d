"""Energy that the processor, or the GPU, uses while something runs; ``nan`` joules where the platform does not report it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")
OFTEN_S = 10.0  # RAPL counters of busy servers wrap around after about five minutes

Counter = tuple[Callable[[], float], float]  # reads joules; where it wraps around to 0


class Meter:
    """Joules since it was made, over all counters. ``nan`` from when one could not be read on: a gap is not guessed."""

    def __init__(self, counters: Sequence[Counter], known: bool = True) -> None:
        self._counters, self._joules = counters, 0.0 if known else math.nan
        self._last = [0.0] * len(counters)
        self._last = self._read()

    def __call__(self) -> float:
        before, self._last = self._last, self._read()
        for (_, whole), a, b in zip(self._counters, before, self._last, strict=True):
            self._joules += b - a + (whole if b < a else 0.0)
        return self._joules

    def keep_up(self) -> None:
        """Called often: reads before a counter can wrap around twice."""
        if time.monotonic() - self._at > OFTEN_S:
            self()

    def _read(self) -> list[float]:
        self._at = time.monotonic()
        try:
            return [read() for read, _ in self._counters]
        except (OSError, ValueError):
            self._joules = math.nan
            return self._last


UNKNOWN = Meter([], known=False)


def meter(device: torch.device) -> Meter:
    """Of what this process computes on: its GPU, or the machine's processors, which the machine's first process counts.

    Counts everything that runs there, not this process alone.
    """
    if device.type == "cuda":
        return _nvml(device)
    if device.type != "cpu":
        return UNKNOWN
    return rapl(POWERCAP) if os.environ.get("LOCAL_RANK", "0") == "0" else Meter([])


def rapl(powercap: Path) -> Meter:
    """Processor packages and their memory, by Linux's powercap (Documentation/power/powercap). Often root's alone to read.

    Cores and graphics are parts of a package, ``psys`` holds all packages: none of these is added.
    """
    zones = [z for z in sorted(powercap.glob("intel-rapl:*")) if _text(z / "name").startswith(("package", "dram"))]
    try:
        counters = [(partial(_joules, zone / "energy_uj"), _joules(zone / "max_energy_range_uj")) for zone in zones]
    except (OSError, ValueError):
        return UNKNOWN
    return Meter(counters) if counters else UNKNOWN


def _joules(path: Path) -> float:
    return int(path.read_bytes()) * 1e-6


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _nvml(device: torch.device) -> Meter:
    """A GPU's board, by NVML (Volta and newer; nvidia-ml-py, which is optional). Not yet run on a GPU."""
    try:
        import pynvml
    except ImportError:
        return UNKNOWN
    import torch

    def joules() -> float:
        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3  # from mJ
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from None

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return UNKNOWN
    return Meter([(joules, 0.0)])  # 64 bits: does not wrap around
