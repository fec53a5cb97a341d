"""What result files say about the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.environment import PEERS, environment
from dp4tl_fast.common import machine

RESULTS = sorted((Path(__file__).parent.parent / "benchmarks/results").glob("*.json"))


def test_committed_results_say_what_a_new_one_would():
    new = environment()
    assert new["versions"]["torch"] == version("torch") and new["cores"] == machine.cores()
    for path in RESULTS:
        committed = json.loads(path.read_text())["environment"]
        assert committed.keys() == new.keys(), path
        assert committed["versions"].keys() <= {*machine.PACKAGES, *PEERS}, path


def test_torch_is_imported_only_when_the_gpu_is_asked_for():
    program = "import sys; import dp4tl_fast.common.machine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_packages_that_are_not_installed_are_left_out():
    assert machine.environment(["numpy", "no-such-package"])["versions"] == {"numpy": version("numpy")}
