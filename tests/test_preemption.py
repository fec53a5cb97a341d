"""Signals while a run trains or validates, and images that cannot be read: nothing that was computed is lost."""

import csv
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import FAST, noisy_colours, run

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.cli import Terminated
from dp4tl_fast.common.errors import RecordError, TrainingError, UsageError
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.runs.config import CheckpointConfig
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.supervised import Supervised


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    noisy_colours(root, "s", (16, 16, 16))
    noisy_colours(root, "v", (7, 7, 7))
    return root


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(one, other):
    a, b = (load_file(checkpoint.find_weights(x)) for x in (one, other))
    timed = {"seconds", "samples_per_s", "data_wait_s", "energy_j"}
    told = [[{k: v for k, v in row.items() if k not in timed} for row in rows(x)] for x in (one, other)]
    return all(torch.equal(a[k], b[k]) for k in a) and told[0] == told[1]


def signalled(monkeypatch, name, number, when):
    """``Supervised.name`` sends this process a signal at its call ``when``."""
    plain, calls = getattr(Supervised, name), iter(range(10**6))

    def method(self, *arguments):
        if next(calls) == when:
            os.kill(os.getpid(), number)
        return plain(self, *arguments)

    monkeypatch.setattr(Supervised, name, method)


@pytest.mark.parametrize("batch", [0, 3, 8])  # of three per epoch: in the first, the second and the last epoch's validation
def test_a_signal_during_validation_saves_and_the_continuation_validates(data, tmp_path, monkeypatch, batch):
    options = {"val": str(data / "v.beton"), "checkpoint": CheckpointConfig(every=3)}
    run(data / "s.beton", tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        signalled(patched, "score", signal.SIGTERM, batch)
        if batch == 8:  # the very last batch: there is none after it to stop before
            run(data / "s.beton", tmp_path / "r", **options)
        else:
            with pytest.raises(Terminated, match="saved at step"):
                run(data / "s.beton", tmp_path / "r", **options)
            assert [int(c.name) for c in checkpoint.checkpoints(tmp_path / "r/checkpoint")][-1] == 6 * (1 + batch // 3)
            assert len(rows(tmp_path / "r")) == batch // 3, "its epoch is yet to be measured"
            patched.undo()
            run(data / "s.beton", tmp_path / "r", resume=True, **options)
    assert same(tmp_path / "whole", tmp_path / "r")


def test_other_signals_stop_a_run_where_they_are_asked_for(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        signalled(patched, "after_step", signal.SIGUSR1, 8)
        with pytest.raises(Terminated, match="saved at step 9 of 18"):
            run(data / "s.beton", tmp_path / "r", stop_signals="usr1,SIGHUP")
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    run(data / "s.beton", tmp_path / "r", resume=True)
    run(data / "s.beton", tmp_path / "whole")
    assert same(tmp_path / "whole", tmp_path / "r")
    for wrong in ("KILL", "USR3", "15"):
        with pytest.raises(UsageError, match=f"{wrong} is not a signal that can be caught"):
            PretrainConfig(source="s", out="o", stop_signals=wrong)


def broken(path, out, records):
    """A copy of a file in which the images of these records are no images."""
    beton, body = Beton(path), bytearray(path.read_bytes())
    for record in records:
        start, size = int(beton.images["data_ptr"][record]), int(beton.sizes[record])
        body[start : start + size] = bytes(size)
    out.write_bytes(body)
    side = path.with_suffix(".info.zip")
    assert zipfile.is_zipfile(side)
    out.with_suffix(".info.zip").write_bytes(side.read_bytes())
    return out


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def together(source, out, *more):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in FAST.items() if k != "tensorboard"]
    command = [*TORCHRUN, "-m", "dp4tl_fast.pretrain", f"--source={source}", f"--out={out}", "--no-tensorboard", *flags, *more]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.slow
def test_several_processes_lose_no_epoch_to_an_image_that_cannot_be_validated(data, tmp_path):
    bad = broken(data / "v.beton", tmp_path / "v.beton", [20])
    done = together(data / "s.beton", tmp_path / "r", f"--val={bad}")
    assert done.returncode != 0 and "record 20" in done.stderr and "another process could not read its images" in done.stderr
    (kept,) = checkpoint.checkpoints(tmp_path / "r/checkpoint")
    assert int(kept.name) == 6 and not rows(tmp_path / "r")
    bad.write_bytes((data / "v.beton").read_bytes())
    assert together(data / "s.beton", tmp_path / "r", f"--val={bad}", "--resume").returncode == 0
    assert together(data / "s.beton", tmp_path / "whole", f"--val={bad}").returncode == 0
    assert same(tmp_path / "whole", tmp_path / "r")


def listed(out):
    with open(out / "bad_records.csv", newline="") as file:
        return [(int(r["record"]), int(r["class"]), r["class_name"], r["file"]) for r in csv.DictReader(file)]


@pytest.mark.filterwarnings("ignore:skipped")
def test_bad_records_are_left_out_counted_and_listed(data, tmp_path, monkeypatch):
    bad = broken(data / "s.beton", tmp_path / "s.beton", [3, 20, 40])
    with pytest.raises(RecordError, match=r"record \d+ .*`on_bad_record=skip`"):
        run(bad, tmp_path / "raise")
    whole = run(bad, tmp_path / "whole", on_bad_record="skip")
    expected = [(3, 0, "class0", str(bad)), (20, 1, "class1", str(bad)), (40, 2, "class2", str(bad))]
    assert whole["bad_records"] == 3 and listed(tmp_path / "whole") == expected
    assert [row["samples"] for row in rows(tmp_path / "whole")] == [48] * 3  # no batch is smaller
    with monkeypatch.context() as patched:
        signalled(patched, "after_step", signal.SIGTERM, 9)
        with pytest.raises(Terminated):
            run(bad, tmp_path / "r", on_bad_record="skip")
    again = run(bad, tmp_path / "r", on_bad_record="skip", resume=True)
    assert again["bad_records"] == 3 and listed(tmp_path / "r") == expected and same(tmp_path / "whole", tmp_path / "r")


@pytest.mark.filterwarnings("ignore:skipped")
def test_too_many_bad_records_stop_the_run_which_continues_where_more_are_allowed(data, tmp_path):
    bad = broken(data / "s.beton", tmp_path / "s.beton", [3, 20, 40])
    with pytest.raises(TrainingError, match=r"3 records cannot be decoded, more than `max_bad=2`.*first: .*record 3 "):
        run(bad, tmp_path / "r", on_bad_record="skip", max_bad=2)
    assert len(listed(tmp_path / "r")) == 3
    run(bad, tmp_path / "r", on_bad_record="skip", max_bad=3, resume=True)
    run(bad, tmp_path / "whole", on_bad_record="skip")
    assert same(tmp_path / "whole", tmp_path / "r")


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_batch_of_bad_records_ends_the_run(data, tmp_path):
    bad = broken(data / "s.beton", tmp_path / "s.beton", range(48))
    with pytest.raises(TrainingError, match="no record of a batch can be decoded"):
        run(bad, tmp_path / "r", on_bad_record="skip")


def test_bad_records_of_several_processes_are_counted_together(data, tmp_path):
    bad = broken(data / "s.beton", tmp_path / "s.beton", [3, 20, 40])
    done = together(bad, tmp_path / "r", "--on-bad-record=skip", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bad_records"] == 3 and [record for record, *_ in listed(tmp_path / "r")] == [3, 20, 40]
    done = together(bad, tmp_path / "few", "--on-bad-record=skip", "--max-bad=1")
    assert done.returncode != 0 and "more than --max-bad 1" in done.stderr
