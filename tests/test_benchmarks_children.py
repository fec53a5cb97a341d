"""Functions that the suites run in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from native_files import jpeg, picture, write

from benchmarks import children, io, network, scale
from benchmarks.child import Child, call, call_within
from benchmarks.harness import Suite
from dp4tl_fast.beton import Beton
from dp4tl_fast.remote import store

pytestmark = pytest.mark.usefixtures("tests_on_the_childs_path")


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    folder = tmp_path_factory.mktemp("children")
    return write(folder / "small.beton", [jpeg(picture(60, 50, i)) for i in range(300)])


def whole_numbers(below: int) -> list[int]:
    """Runs in the child."""
    print("not an answer")
    sys.stderr.write("x" * 200_000)  # more than a pipe holds
    return list(range(below))


def add(number: int):
    """Runs in the child."""
    if number < 0:
        raise ValueError(f"{number} is negative")
    return lambda turn: number + turn


def test_a_call_answers_with_what_the_function_returned():
    assert call(whole_numbers, below=3) == [0, 1, 2]


def test_a_child_waits_for_its_turn_and_counts_it():
    child = Child(add, number=40)
    assert [child.work(), child.work()] == [40, 41]
    child.close()


def sleep() -> None:
    """Runs in the child, and starts another."""
    print("begun", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-c", "import time; time.sleep(1000)"], check=True)


def test_a_call_that_takes_too_long_is_killed_and_says_how_far_it_came(capsys):
    with pytest.raises(RuntimeError, match=r"sleep: (?s:.*)still ran after 1 s"):
        call_within(1, sleep)
    capsys.readouterr()
    assert call_within(60, whole_numbers, below=2) == [0, 1]
    assert "xxx" in capsys.readouterr().err


@pytest.mark.parametrize("start", [call, Child])
def test_the_childs_error_is_told(start):
    with pytest.raises(RuntimeError, match=r"add: (?s:.*)ValueError: -1 is negative"):
        start(add, number=-1)


def test_torch_is_not_imported_where_start_up_counts(beton: Beton):
    assert imported("benchmarks.children") == imported("benchmarks.child") == []
    assert 0 < call(children.first_batch, subject="ours", path=str(beton.path), images=300) < 60
    opened = call(children.open_file, path=str(beton.path))
    assert opened["seconds"] > 0 and opened["MiB"] < 100


def imported(module: str) -> list[str]:
    """Those that a fresh process imports with this module."""
    program = f"import {module}, sys, json; print(json.dumps([m for m in ('torch', 'numpy', 'dp4tl_fast') if m in sys.modules]))"
    return json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("subject", ("ours", "ours-max-ram", "ffcv"))
def test_a_cold_epoch_tells_what_it_wanted_and_read(beton: Beton, subject: str):
    reading = io.measure(beton.path, 0.4, subject, seed=3)
    kept = np.random.default_rng(3).permutation(beton.num_classes)[: round(0.4 * beton.num_classes)]
    assert reading["wanted"] == beton.sizes[np.isin(beton.labels, kept)].sum()
    assert reading["file"] == beton.path.stat().st_size
    assert reading["read"] >= 0 and reading["seconds"] > 0  # a file in memory reads nothing from a device


def test_quasi_random_order_holds_every_label(beton: Beton):
    labels = call(children.quasi_random_labels, path=str(beton.path))
    assert sorted(labels) == sorted(beton.labels.tolist())


def test_a_task_on_a_wrong_file_is_not_timed(tmp_path: Path):
    assert set(scale.WHAT) == set(children.TASKS)
    with pytest.raises(RuntimeError, match="cost: "):
        call(children.cost, task="verify", file=str(tmp_path / "nothing.beton"))


def test_a_file_behind_a_url_is_measured(beton: Beton, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "ROUNDS", 1)
    monkeypatch.setattr(network, "KEEP", (0.4,))
    suite = Suite(name="io")
    network.network(suite, Path(beton.path))
    rows = {(row.case, row.subject): row.value for row in suite.rows}
    assert rows["remote-40%", "ours"] > 0 and rows["remote-40%", "plain parallel download"] > 0
    tables = store.FIRST + beton.file_size - beton._alloc_ptr  # the file has no sidecar: five answers say so, with a page each
    assert tables <= round(rows["remote-40%-excess", "ours"] * beton.file_size) < tables + 2000
    assert rows["remote-40%-first-batch", "ours"] > 0
    assert [goal.id for goal in suite.goals] == ["io/remote-excess-bytes", "io/remote-throughput-share", "io/remote-first-batch"]
