"""``--profile``: a trace of a few steps, where the loader's threads spent their time, and what bounds the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dp4tl_fast.common import cli
from dp4tl_fast.common.files import commit, partial_path, write_atomically
from dp4tl_fast.loaders.contract import IndexedBatch, Loader
from dp4tl_fast.training.state import Run

WARMUP, ACTIVE = 3, 5  # steps
WAITS_AT_ALL, BUSY = 0.1, 0.85  # shares of the time from which on the loader, or the GPU, is what bounds
REMEDIES = {
    "decode": "give it more `workers`, or convert with a smaller `max_side`",
    "resize": "give it more `workers`",
    "read": "the storage is slow: copy the .beton to a local disk",
}


class Profiler:
    """Watches the first steps of a run; leaves ``trace.json`` (for chrome://tracing or Perfetto) and ``profile.json``.

    Args:
        steps: Steps that are still to come; a short run is watched for less.
    """

    def __init__(self, out: Path, run: Run, loader: Loader[IndexedBatch], device: torch.device, steps: int) -> None:
        self._out, self._run, self._loader, self._device = out, run, loader, device
        warmup = min(WARMUP, max(0, steps - 1))
        self._first, self._last = run.step + warmup, run.step + min(warmup + ACTIVE, steps)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=warmup, active=self._last - self._first, repeat=1),
            on_trace_ready=self._write,
        )
        self._seconds = self._waited = 0.0
        self._tally, self._before = run.tally, (run.tally.seconds, run.tally.data_wait_s)
        self._running = steps > 0
        if self._running:
            self._profile.start()

    def step(self, run: Run) -> None:
        """After every step."""
        if not self._running:
            return
        tally = run.tally
        before = self._before if tally is self._tally else (0.0, 0.0)  # a new epoch has a new tally
        if run.step > self._first:
            self._seconds += tally.seconds - before[0]
            self._waited += tally.data_wait_s - before[1]
        self._profile.step()
        if run.step == self._last:
            self._profile.stop()
            self._running = False
        self._tally, self._before = tally, (tally.seconds, tally.data_wait_s)

    def _write(self, profile: torch.profiler.profile) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        trace = self._out / "trace.json"
        profile.export_chrome_trace(str(partial_path(trace)))
        commit(partial_path(trace), trace)
        kernels = sum(e.self_device_time_total for e in profile.key_averages()) * 1e-6
        stages: dict[str, float] = getattr(self._loader, "profile", dict)()
        report = {
            "steps": self._last - self._first,
            "seconds": self._seconds,
            "data_wait_share": self._waited / self._seconds,
            "gpu_busy_share": kernels / self._seconds if self._device.type == "cuda" else None,
            "loader_seconds": stages,
        }
        report["bound"] = what_bounds(report)
        write_atomically(self._out / "profile.json", json.dumps(report, indent=1) + "\n")
        cli.message(f"{report['bound']} ({trace}, {self._out / 'profile.json'})")


def what_bounds(report: dict[str, Any]) -> str:
    """One sentence for ``profile.json``'s numbers."""
    waits, busy = report["data_wait_share"], report["gpu_busy_share"]
    data = f"{100 * waits:.0f} % of the time is spent waiting for images"
    if waits >= WAITS_AT_ALL:
        work = {name: report["loader_seconds"].get(name, 0.0) for name in REMEDIES}
        total = sum(work.values())
        if not total:
            return f"The loader bounds this run: {data}; this backend does not report what it spends it on."
        most = max(work, key=lambda name: work[name])
        spent = ", ".join(f"{100 * seconds / total:.0f} % {name}" for name, seconds in work.items())
        return f"The loader bounds this run: {data}; its threads spend {spent}: {REMEDIES[most]}."
    if busy is None:
        return f"Computing on the CPU bounds this run: {data}."
    if busy >= BUSY:
        return f"The GPU bounds this run: it computes {100 * busy:.0f} % of the time, and {data}."
    return (
        f"Starting the GPU's kernels bounds this run: it computes {100 * busy:.0f} % of the time, and {data}: use larger "
        "batches or `compile`."
    )
