"""How a run ends early, what it keeps, what it says: memory, disks, changed files, the profile."""

import errno
import json
import resource
import subprocess
import sys
import threading

import pytest
import torch
from small_runs import FAST, noisy_colours, run

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BetonError, CheckpointError, TrainingError, UsageError
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.pretraining.config import CheckpointConfig
from dp4tl_fast.runs.profiling import what_bounds
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.supervised import Supervised


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return noisy_colours(tmp_path_factory.mktemp("data"), "s", (16, 16, 16))


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_last_and_the_best_checkpoints_stay(data, tmp_path, monkeypatch):
    accuracies = iter([0.2, 0.9, 0.5, 0.9, 0.4])
    monkeypatch.setattr("dp4tl_fast.training.loop.evaluate", lambda *a: {"top_1": next(accuracies), "top_5": 1.0})
    run(data, tmp_path / "r", val=str(data), checkpoint=CheckpointConfig(keep_last=2), epochs=5)
    folder = tmp_path / "r/checkpoint"
    assert [int(c.name) for c in checkpoint.checkpoints(folder)] == [12, 24, 30]  # 6 steps an epoch; the second was best
    assert (folder / checkpoint.BEST).resolve().name == "0000000012"
    checkpoint.load_model(folder / checkpoint.BEST)


def test_without_validation_the_lowest_loss_is_the_best(data, tmp_path):
    run(data, tmp_path / "r", checkpoint=CheckpointConfig(keep_last=1, every=5), epochs=5)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    best = (tmp_path / "r/checkpoint" / checkpoint.BEST).resolve().name
    assert int(best) == 6 * (1 + losses.index(min(losses)))


def test_the_best_survives_a_resume(data, tmp_path, monkeypatch):
    accuracies = iter([0.2, 0.9, 0.5, None, 0.4, 0.3])

    def evaluate(*_):
        value = next(accuracies)
        if value is None:
            raise KeyboardInterrupt
        return {"top_1": value, "top_5": 1.0}

    monkeypatch.setattr("dp4tl_fast.training.loop.evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "r", val=str(data), checkpoint=CheckpointConfig(keep_last=1), epochs=5)
    run(data, tmp_path / "r", val=str(data), checkpoint=CheckpointConfig(keep_last=1), epochs=5, resume=True)
    folder = tmp_path / "r/checkpoint"
    assert [int(c.name) for c in checkpoint.checkpoints(folder)] == [12, 30]
    assert (folder / checkpoint.BEST).resolve().name == "0000000012"


def test_a_best_that_was_not_linked_before_the_end_came_is_linked_by_the_next_save(data, tmp_path, monkeypatch):
    accuracies, link, killed = iter([0.2, 0.9, 0.5, 0.4, 0.3]), checkpoint._link, []

    def kill_once(path, target):
        if target == "0000000012" and not killed:
            killed.append(target)
            raise KeyboardInterrupt
        link(path, target)

    monkeypatch.setattr("dp4tl_fast.training.loop.evaluate", lambda *a: {"top_1": next(accuracies), "top_5": 1.0})
    monkeypatch.setattr(checkpoint, "_link", kill_once)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "r", val=str(data), checkpoint=CheckpointConfig(keep_last=1), epochs=5)
    assert (tmp_path / "r/checkpoint" / checkpoint.BEST).resolve().name == "0000000006"
    run(data, tmp_path / "r", val=str(data), checkpoint=CheckpointConfig(keep_last=1), epochs=5, resume=True)
    assert (tmp_path / "r/checkpoint" / checkpoint.BEST).resolve().name == "0000000012"


@pytest.mark.parametrize("most", [5, 0])
def test_out_of_memory_says_what_fits(data, tmp_path, monkeypatch, most):
    """As on a GPU: a step with more images than fit raises torch's error; the trial really takes a step."""
    plain, tried = Supervised.forward, []

    def forward(self, model, images, labels, index):
        tried.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
        return plain(self, model, images, labels, index)

    monkeypatch.setattr(Supervised, "forward", forward)
    says = "4 fit: use `accumulate=4`, which keeps the batch of 16, or `batch_size=4`" if most else "a single one does not fit"
    with pytest.raises(TrainingError, match=says):
        run(data, tmp_path / "r", batch_size=16)
    assert tried == ([16, 8, 4] if most else [16, 8, 4, 2, 1])
    assert not list((tmp_path / "r").rglob("*.safetensors"))


def test_other_errors_of_torch_are_not_called_memory(data, tmp_path, monkeypatch):
    def forward(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Supervised, "forward", forward)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run(data, tmp_path / "r")


LIMITED = """
import resource, sys
from dp4tl_fast.pretrain import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_keeps_the_last_checkpoint_and_goes_on_later(data, tmp_path):
    """A limit on the size of files stands for the disk: a write fails with an error of the operating system."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    out = tmp_path / "r"
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in FAST.items() if k != "tensorboard"] + ["--no-tensorboard"]
    command = [sys.executable, "-c", LIMITED]
    full = subprocess.run([*command, "20000", f"--source={data}", f"--out={out}", *flags], capture_output=True, text=True)
    assert full.returncode == 2 and "cannot be written" in full.stderr and "Traceback" not in full.stderr, full.stderr
    assert not checkpoint.checkpoints(out / "checkpoint") and not list((out / "checkpoint").iterdir())
    run(data, tmp_path / "whole")
    again = [*command, str(2**40), f"--source={data}", f"--out={out}", "--resume", *flags]
    assert subprocess.run(again, capture_output=True).returncode == 0
    a, b = (checkpoint.read_weights(tmp_path / n)[0] for n in ("whole", "r"))
    for name in a:  # threads of their own: not the same bits
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_a_log_that_cannot_be_written_is_one_line(data, tmp_path, monkeypatch):
    from dp4tl_fast.runs.folder import Log

    def full(self, metrics):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(Log, "epoch", full)
    with pytest.raises(TrainingError, match=r"stopped at step 6: .*No space left on device.* `resume`"):
        run(data, tmp_path / "r")


def test_bad_input_overwrites_nothing(data, tmp_path):
    run(data, tmp_path / "r", epochs=1)
    before = files(tmp_path / "r")
    with pytest.raises(UsageError, match="arch was 'small-4', now 'small-8'"):
        run(data, tmp_path / "r", epochs=1, resume=True, arch="small-8")
    (tmp_path / "r/summary.json").unlink()  # as if it had not been finished
    other = tmp_path / "other"
    run(data, other, epochs=1, arch="small-8")
    newest = checkpoint.checkpoints(tmp_path / "r/checkpoint")[-1]
    (newest / checkpoint.WEIGHTS).write_bytes(checkpoint.find_weights(other).read_bytes())
    with pytest.raises(CheckpointError, match=r"of another shape .*another architecture"):
        run(data, tmp_path / "r", epochs=1, resume=True)
    after = files(tmp_path / "r")
    changed = {p.name for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    assert changed == {"summary.json", checkpoint.WEIGHTS}  # what this test did itself
    with pytest.raises(CheckpointError, match="holds a small-8, not a small-4"):
        finetune(FinetuneConfig(checkpoint=str(other), train=str(data), test=str(data), out=str(tmp_path / "f"), arch="small-4"))
    assert not (tmp_path / "f").exists()


def test_a_source_without_labels_is_refused(data, tmp_path):
    raw = bytearray(data.read_bytes())
    field = Beton(data).fields["label"]
    place = raw.index(b"label\0")
    assert field.name == "label" and raw.count(b"label\0") == 1
    raw[place : place + 5] = b"other"
    (tmp_path / "s.beton").write_bytes(raw)
    with pytest.raises(BetonError, match="no integer field 'label'"):
        run(tmp_path / "s.beton", tmp_path / "r")
    assert not (tmp_path / "r").exists()


# -- the profile ------------------------------------------------------------------------------------------------------


def test_profile(data, tmp_path, capsys):
    run(data, tmp_path / "plain")
    run(data, tmp_path / "r", profile=True)
    report = json.loads((tmp_path / "r/profile.json").read_text())
    assert report["steps"] == 5 and 0 <= report["data_wait_share"] <= 1 and report["seconds"] > 0
    assert {"read", "decode", "resize", "starve"} <= report["loader_seconds"].keys()
    assert report["bound"] in capsys.readouterr().err
    names = [e.get("name", "") for e in json.loads((tmp_path / "r/trace.json").read_text())["traceEvents"]]
    assert sum(name.startswith("ProfilerStep#") for name in names) == 5 and "aten::convolution" in names
    a, b = (checkpoint.read_weights(tmp_path / n)[0] for n in ("plain", "r"))
    assert all(torch.equal(a[k], b[k]) for k in a)  # watching changes nothing


def test_profile_of_a_run_of_two_steps(data, tmp_path):
    run(data, tmp_path / "r", profile=True, epochs=2, batch_size=48)  # and an epoch ends inside
    assert json.loads((tmp_path / "r/profile.json").read_text())["steps"] == 1


def test_what_bounds_a_run():
    stages = {"read": 1.0, "decode": 6.0, "resize": 3.0, "starve": 9.0, "idle": 0.0}

    def says(wait, busy=None, loader=stages):
        return what_bounds({"data_wait_share": wait, "gpu_busy_share": busy, "loader_seconds": loader})

    assert "loader bounds" in says(0.4) and "60 % decode" in says(0.4) and "`workers`" in says(0.4, 0.9)
    assert "this backend does not report" in says(0.4, loader={})
    assert "CPU bounds" in says(0.02) and "GPU bounds" in says(0.02, 0.95)
    assert "`compile`" in says(0.02, 0.5) and "local disk" in says(0.4, loader={"read": 9.0, "decode": 1.0})


def test_a_run_in_a_thread_of_its_own(data, tmp_path):
    """As a notebook or a server starts it: Python takes no signal handlers there."""
    ended = []
    thread = threading.Thread(target=lambda: ended.append(run(data, tmp_path / "r", epochs=1)["epochs"]))
    thread.start()
    thread.join()
    assert ended == [1] and (tmp_path / "r/summary.json").exists()
