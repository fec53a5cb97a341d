"""convert --on ray: on a real cluster of two nodes, whatever is killed while it converts, the bytes of a single run."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dp4tl_fast
from dp4tl_fast.__main__ import main as dispatch
from dp4tl_fast.beton.reader import Beton
from dp4tl_fast.beton.sidecars import sidecar
from dp4tl_fast.common.errors import SourceError, UsageError
from dp4tl_fast.conversion import parts as parts_module
from dp4tl_fast.conversion import ray as ray_module
from dp4tl_fast.conversion.images import ImageRule
from dp4tl_fast.conversion.parts import Parts, count_of, folder_of
from dp4tl_fast.conversion.plan import Plan
from dp4tl_fast.conversion.ray import Job, cpus_per_worker, make_part
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.sources import SourceOptions

ROOT = Path(dp4tl_fast.__file__).parent.parent
IMAGES, PER_PART = 40, 5
OPTIONS = {"write_mode": "jpg", "on_error": "skip"}
FLAGS = ["--write-mode", "jpg", "--on-error", "skip", "--on", "ray"]
DRIVER = """
import sys
from dp4tl_fast.conversion import parts, ray
parts.PART_IMAGES, ray.LOSSES = int(sys.argv[1]), int(sys.argv[2])
from dp4tl_fast.convert import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each; workers come from this checkout."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp") as logs:  # paths of sockets must be short
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_TMPDIR", logs)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token of the user's
        patch.delenv("RAY_ADDRESS", raising=False)
        from ray.cluster_utils import Cluster

        small = {"num_cpus": 1, "object_store_memory": 80 << 20}
        beats = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}  # five missed ones are a dead node
        made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False, "_system_config": beats})
        try:
            made.add_node(**small)
            patch.setenv("RAY_ADDRESS", made.address)
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ray") / "tree"
    noise = np.random.default_rng(6).integers(0, 256, (1000, 1040, 3), np.uint8)
    for i in range(IMAGES):
        folder = root / f"c{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise[:, i : i + 1000]).save(folder / f"{i:02}.jpg", quality=70)
    (root / "c1" / "bad.jpg").write_bytes(b"\xff\xd8 not an image")
    return root


@pytest.fixture(scope="module")
def whole(tree: Path) -> Path:
    convert(str(tree), str(tree.with_name("whole.beton")), workers=1, **OPTIONS)
    return tree.with_name("whole.beton")


def start(tree: Path, out: Path, *flags: str, per_part: int = PER_PART, losses: int = 5) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, str(per_part), str(losses), str(tree), str(out), *FLAGS, "--json", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def same(out: Path, whole: Path) -> bool:
    assert not folder_of(out).exists(), "the parts have gone"
    return out.read_bytes() == whole.read_bytes() and sidecar(out).read_bytes() == sidecar(whole).read_bytes()


def raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def frozen(node: Any, out: Path) -> int:
    """A worker of the node, stopped while it writes a part. One killed a moment ago may still be seen."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in children(raylet(node)):
            if writes(pid, out) and stopped(pid):
                if writes(pid, out):
                    return pid
                os.kill(pid, signal.SIGCONT)
        time.sleep(0.002)
    raise AssertionError("no worker was seen at work")


def children(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended
            found += [int(word) for word in file.read_text().split()]
    return found


def stopped(pid: int) -> bool:
    """Stop a process, and wait until it is. False: it ended instead."""
    with suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
        while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) not in "ZX":
            if state in "Tt":
                return True
            os.sched_yield()
    return False


def writes(pid: int, out: Path) -> bool:
    with suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                opened = fd.readlink()
                if opened.parent == folder_of(out) and opened.name.endswith(".partial"):
                    return True
    return False


def test_a_killed_worker_and_a_killed_node_change_no_byte(cluster: Any, tree: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.beton"
    driver = start(tree, out)
    try:
        os.kill(frozen(cluster.head_node, out), signal.SIGKILL)
        (node,) = cluster.worker_nodes
        worker = frozen(node, out)
        cluster.remove_node(node, allow_graceful=False)  # its worker still holds the part's file
        os.kill(worker, signal.SIGKILL)
        printed, said = driver.communicate(timeout=300)
    finally:
        driver.kill()
    assert driver.returncode == 0, said
    assert said.count("its worker was lost") >= 2, said
    assert f"{IMAGES + 1}.0/{IMAGES + 1}.0" in said, "progress"
    assert json.loads(printed)["samples"] == IMAGES, "nothing else is printed"
    assert same(out, whole)


def test_sigterm_keeps_what_was_done(
    cluster: Any, tree: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.beton"
    driver = start(tree, out, "--resume")
    try:
        worker = frozen(cluster.head_node, out)
        while not list(folder_of(out).glob("o.shard-*.beton")):
            os.kill(worker, signal.SIGCONT)
            worker = frozen(cluster.head_node, out)
        driver.terminate()
        os.kill(worker, signal.SIGCONT)
        printed, said = driver.communicate(timeout=300)
    finally:
        driver.kill()
    assert (driver.returncode, printed, said.splitlines()[-1]) == (130, "", "dp4tl-fast convert: terminated")
    assert not out.exists()
    monkeypatch.setattr(parts_module, "PART_IMAGES", PER_PART)
    with pytest.raises(UsageError, match="other input or flags"):
        convert(str(tree), str(out), write_mode="raw", on="ray", resume=True)
    result = convert(str(tree), str(out), on="ray", resume=True, **OPTIONS)
    assert result["resumed"] >= PER_PART
    assert same(out, whole)
    again = convert(str(tree), str(out), on="ray", resume=True, **OPTIONS)
    assert again["resumed"] == IMAGES + 1
    assert {k: v for k, v in again.items() if k not in ("resumed", "seconds")} == {
        k: v for k, v in result.items() if k not in ("resumed", "seconds")
    }


def test_a_part_that_loses_every_worker_ends_the_conversion(cluster: Any, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.beton"
    driver = start(tree, out, per_part=IMAGES + 1, losses=2)
    try:
        for _ in range(2):
            os.kill(frozen(cluster.head_node, out), signal.SIGKILL)
        said = driver.communicate(timeout=300)[1]
    finally:
        driver.kill()
    assert driver.returncode == 2, said
    assert "o.shard-0-of-1.beton: 2 workers were lost while they made it: " in said.splitlines()[-1]
    assert not out.exists()


def test_what_a_machine_lacks_is_one_line(cluster: Any, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has no such descriptor, as another machine has no such mount."""
    source, folder = os.open(tree.parent, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(SourceError, match=r"no such file or folder\. Every machine must see the source"):
            convert(f"/proc/self/fd/{source}/tree", str(tmp_path / "o.beton"), on="ray", **OPTIONS)
        with pytest.raises(UsageError, match=r"does not see .*\.o\.beton\.parts\. Every machine must see"):
            convert(str(tree), f"/proc/self/fd/{folder}/o.beton", on="ray", **OPTIONS)
        with pytest.raises(UsageError, match=r"workers=2.*more than 1 CPUs"):
            convert(str(tree), str(tmp_path / "o.beton"), on="ray", workers=2)
    finally:
        os.close(source)
        os.close(folder)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SourceError, match=r"bad\.jpg: .*Repair or remove it"):
        convert(str(tree), str(tmp_path / "o.beton"), on="ray", write_mode="jpg")
    assert [path.name for path in tmp_path.iterdir()] == [".o.beton.parts"], "for a next run to go on with"


def test_a_part_stops_once_the_mark_has_gone(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # as make_part will; undone at the end
    plan = Plan(src=str(tree), options=SourceOptions(), rule=ImageRule(write_mode="jpg"), layout="class", seed=0, skip=True)
    parts = Parts(tmp_path / "o.beton", 1, tmp_path / ".seen-1")
    parts.mark.touch()
    identity = plan.open(tmp_path).identity()
    job = pickle.dumps(Job(plan=plan, parts=parts, identity=identity, workers=1, folder=str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(ray_module, "_check_same", lambda job, listing, here: parts.mark.unlink())
        assert make_part(job, 0) == 0
    assert not parts.path(0).exists(), "it has stopped"
    parts.mark.touch()
    resumed = make_part(job, 0)
    assert isinstance(resumed, int) and 0 < resumed < IMAGES, "a chunk was done"
    assert Beton(parts.path(0)).num_samples == IMAGES


def test_flags_that_do_not_go_together(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["convert", str(tree), str(tmp_path / "o.beton")]
    for flags, line in (
        (["--on", "ray", "--shard", "0/2"], "--shard 0/2: must be left out with --on ray, which makes all parts"),
        (["--ray-address", "x:1"], "--ray-address x:1: must be given with --on ray"),
        (["--on", "slurm"], "--on slurm: must be here or ray"),
        (["--on", "ray", "--ray-address", "127.0.0.1:nine"], "--ray-address 127.0.0.1:nine: no Ray cluster answers: invalid"),
        (["--on", "ray", "--ray-address", "127.0.0.1:1"], "--ray-address 127.0.0.1:1: no Ray cluster answers: [Errno 111]"),
    ):
        assert dispatch([*base, *flags]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"dp4tl-fast convert: {line}")
    (tmp_path / "c.yaml").write_text("on: ray\nray_address: nowhere\nshard: 0/2\n")  # YAML reads the key as true
    assert dispatch([*base, "--config", str(tmp_path / "c.yaml")]) == 2
    assert "--shard 0/2: must be left out" in capsys.readouterr().err
    (tmp_path / "c.yaml").unlink()
    monkeypatch.setitem(sys.modules, "ray", None)
    assert dispatch([*base, "--on", "ray"]) == 2
    assert "--on ray: Ray is not installed. pip install 'dp4tl_fast[ray]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_parts_and_cpus() -> None:
    assert [count_of(np.full(n, 1)) for n in (1, 5000, 5001, 1_281_167, 14_000_000)] == [1, 1, 2, 257, 512]
    assert count_of(np.full(40, 1 << 28)) == 10
    nodes = [{"Alive": True, "Resources": {"CPU": n}} for n in (64.0, 16.0)]
    nodes += [{"Alive": True, "Resources": {}}, {"Alive": False, "Resources": {"CPU": 2.0}}]
    assert (cpus_per_worker(nodes, 0), cpus_per_worker(nodes, 32)) == (16, 32)
    with pytest.raises(UsageError, match="no machine"):
        cpus_per_worker(nodes[2:], 0)
