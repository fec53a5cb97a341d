"""Pretraining in two processes (gloo): what one process does at the same global batch, and an end for all when one ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import noisy_colours
from test_preemption import broken

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.training import checkpoint, ranks

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
CASES = Path(__file__).with_name("distributed_cases.py")
FLAGS = {"arch": "small-8", "size": 16, "batch_size": 16, "epochs": 3, "lr": 0.05, "precision": "fp32", "workers": 1}


ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CASES.parent.parent)}  # bits depend on the number of threads


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four classes of noisy colours: 24 images each as source, 19 in all to validate (which two processes cannot share evenly)."""
    root = tmp_path_factory.mktemp("data")
    noisy_colours(root, "source", (24,) * 4)
    noisy_colours(root, "val", (5, 5, 5, 4))
    return root


def command(data, out, *more, **changes):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**FLAGS, **changes}.items()]
    return ["-m", "dp4tl_fast.pretrain", f"--source={data / 'source.beton'}", f"--out={out}", "--no-tensorboard", *flags, *more]


def alone(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ | ONE_THREAD)


def together(*arguments):
    return subprocess.run([*TORCHRUN, *arguments], capture_output=True, text=True, env=os.environ | ONE_THREAD)


def weights(out):
    return load_file(checkpoint.find_weights(out))


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


CASE_NAMES = ("supervised", "accumulated", "moco", "moco_v3")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """``tests/distributed_cases.py`` in one process and in two: a folder of results each."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for run, folder, names in zip((alone, together), folders, (CASE_NAMES, (*CASE_NAMES, "per-rank")), strict=True):
        done = run(str(CASES), str(folder), *names)
        assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize("objective", CASE_NAMES)
def test_two_processes_compute_what_one_does(cases, objective):
    """Weights, averages, queue and key encoder, metrics and evaluation."""
    one, two = (torch.load(folder / f"{objective}.pt") for folder in cases)
    for part in ("weights", "ema", "objective"):
        # float32 sums in another order over six steps; batch statistics in float64 in two processes, in float32 in one
        torch.testing.assert_close(two[part], one[part], rtol=1e-5, atol=2e-6)
    for a, b in zip(one["history"], two["history"], strict=True):
        for name in a.keys() & {"loss", "top_1", "top_5", "samples", "bytes_read", "lr", "epoch"}:
            assert a[name] == pytest.approx(b[name], rel=1e-5), name


def test_without_global_batch_statistics_all_ranks_end_with_one_network(cases):
    """The case itself compares the ranks' weights and running statistics; they are not those of one process."""
    alone, apart = (torch.load(cases[1] / f"{name}.pt")["weights"] for name in ("supervised", "per-rank"))
    assert alone.keys() == apart.keys() and not all(torch.equal(alone[k], apart[k]) for k in alone)


def test_the_command_in_two_processes(data, tmp_path):
    """Each record is read once an epoch by one of them, none is measured twice, and one of them writes and speaks."""
    more = (f"--val={data / 'val.beton'}", "--sync-bn", "--ema-decay=0.9", "--json")
    results = []
    for run, out in ((alone, "one"), (together, "two")):
        done = run(*command(data, tmp_path / out, *more))
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        results.append(json.loads(line))
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=1e-4)  # over 18 steps
    assert results[0]["val_top_1"] == results[1]["val_top_1"] and results[0]["val_ema_top_1"] == results[1]["val_ema_top_1"]
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a["samples"] == b["samples"] == 96 and a["bytes_read"] == b["bytes_read"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["lr"] == b["lr"]
    before = weights(tmp_path / "two")
    done = together(*command(data, tmp_path / "two"))
    assert done.returncode != 0 and "already holds a run" in done.stderr and "dp4tl_fast/pretrain.py" not in done.stderr
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(tmp_path / "two").values(), strict=True))


def test_one_image_per_process_is_refused_at_the_start(data, tmp_path):
    """Where the network's batch normalisation fails on it; over all processes (``sync_bn``) there are two."""
    done = together(*command(data, tmp_path / "one", size=4, batch_size=2))
    assert done.returncode != 0 and "of a single image, which the batch normalisation of small-8" in done.stderr, done.stderr
    assert not (tmp_path / "one").exists()
    done = together(*command(data, tmp_path / "two", "--sync-bn", size=4, batch_size=2, epochs=1))
    assert done.returncode == 0, done.stderr


def test_a_batch_must_split_evenly(monkeypatch):
    from dp4tl_fast.pretraining import batches

    monkeypatch.setattr(ranks, "rank", lambda: 1)
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    config = PretrainConfig(source="s", out="o", batch_size=24, accumulate=3, workers=1)
    mine = {"batch_size": 12, "rank": 1, "world_size": 2, "workers": 1, "pinned": torch.cuda.is_available()}
    assert batches.share(config) == mine
    config.batch_size = 25
    with pytest.raises(UsageError, match=r"not a multiple of 2 processes x 3 parts .* Use 24"):
        batches.share(config)


def processes(parent):
    """The workers of a torchrun, by rank."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    ranks = {}
    for pid in children:
        environment = dict(e.partition("=")[::2] for e in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        if "RANK" in environment:
            ranks[int(environment["RANK"])] = int(pid)
    return ranks


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_the_run_resumes_to_the_same_bits(data, tmp_path):
    """MoCo, which has the most to keep: a queue, a second network, permutations of each rank's own."""
    long = {"epochs": 12, "arch": "small-16", "size": 48, "objective": "moco", "moco.queue": 64}
    whole = together(*command(data, tmp_path / "whole", **long))
    assert whole.returncode == 0, whole.stderr
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [*TORCHRUN, *command(data, cut, **long)], stderr=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
    )
    while process.poll() is None and not checkpoint.checkpoints(cut / "checkpoint"):
        time.sleep(0.01)  # until there is something to resume from
    os.kill(processes(process.pid)[1], signal.SIGTERM)  # not to the one that writes
    stderr = process.communicate()[1]
    assert process.returncode != 0 and "saved at step" in stderr, stderr
    assert not (cut / "summary.json").exists(), "the run must be cut before its end for this test to mean anything"
    again = together(*command(data, cut, "--resume", **long))
    assert again.returncode == 0 and "resuming" in again.stderr, again.stderr
    a, b = weights(tmp_path / "whole"), weights(cut)
    assert all(torch.equal(a[k], b[k]) for k in a)
    for one, other in zip(rows(tmp_path / "whole"), rows(cut), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)  # the ranks' sums, added at another time


def test_an_error_in_one_process_ends_all(data, tmp_path):
    """One record is damaged: whoever meets it says so, and the other does not wait for it."""
    (tmp_path / "images").symlink_to(data / "source")
    convert(str(tmp_path / "images"), str(tmp_path / "bad.beton"))
    beton = Beton(tmp_path / "bad.beton")
    start, size = int(beton.images["data_ptr"][17]), int(beton.sizes[17])
    with open(tmp_path / "bad.beton", "r+b") as file:
        file.seek(start)
        file.write(b"\0" * size)
    arguments = [a.replace(str(data / "source.beton"), str(tmp_path / "bad.beton")) for a in command(data, tmp_path / "r")]
    done = together(*arguments)
    assert done.returncode != 0 and "record 17" in done.stderr
    assert "dp4tl_fast/runs/session.py" not in done.stderr, "the other process says in a line what ended it"
    assert not checkpoint.checkpoints(tmp_path / "r/checkpoint")


@pytest.mark.parametrize("name", ["evaluate", "prune"])
def test_a_process_whose_peer_has_ended_says_so_in_a_line(data, tmp_path, name):
    """One of two meets a damaged record; the other waits for its part of the result."""
    run = tmp_path / "run"
    assert alone(*command(data, run)).returncode == 0
    bad = broken(data / "source.beton", tmp_path / "bad.beton", [0])
    flags = {
        "evaluate": [str(run), str(bad), "--batch-size=8"],
        "prune": [f"--source={data / 'source.beton'}", f"--target={bad}", f"--surrogate={run}", f"--out={tmp_path / 's.json'}",
                  "--keep=2", "--batch-size=8", "--accept-surrogate"],
    }[name]  # fmt: skip
    done = together("-m", f"dp4tl_fast.{name}", *flags)
    assert done.returncode != 0 and "record 0 " in done.stderr
    assert "dp4tl_fast/" not in done.stderr, done.stderr  # no traceback, of either
