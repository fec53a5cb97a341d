"""What a result file says about the machine and the software that produced it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from dp4tl_fast.common import machine

PEERS = (
    "faiss-cpu", "fastkmeans", "flash-kmeans", "flashlib", "spdl", "turboloader", "tensorflow", "tensorflow-cpu", "litdata",
    "mosaicml-streaming", "scikit-learn-intelex",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """The ``environment`` of F.json."""
    return {**machine.environment((*machine.PACKAGES, *PEERS)), "commit": _commit()}


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
