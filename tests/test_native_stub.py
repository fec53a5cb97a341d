"""The committed stub is what the type checker knows of the native module: it must be the one that is generated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dp4tl_fast.kernels import _native

STUB = Path(__file__).parent.parent / "kernels" / "_native.pyi"


def test_committed_stub_is_the_generated_one(tmp_path: Path) -> None:
    fresh = tmp_path / "_native.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "_native", "-o", str(fresh)]
    command += ["-i", str(Path(_native.__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    remedy = "cmake --build build/native --target _native_stub"
    assert fresh.read_text() == STUB.read_text(), f"kernels/_native.pyi is out of date: {remedy}"
