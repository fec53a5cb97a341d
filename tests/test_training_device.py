"""Pretraining on the device there is. On a GPU batches are copied while the step before them computes: nothing may be lost,
mixed up or counted twice for that."""

import json
import math

import pytest
import torch
from small_runs import noisy_colours, run

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.pretraining.config import MocoConfig
from dp4tl_fast.pretraining.training import Training
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.device import pick_device
from dp4tl_fast.training.feed import ahead

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return noisy_colours(tmp_path_factory.mktemp("data"), "s", (16, 16, 16))


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_gpu_chosen_by_number_becomes_the_current_one(monkeypatch):
    """Streams and random numbers are the current device's where none is named."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device("cuda:1").index == 1 and pick_device("auto").index is None and pick_device("cpu").type == "cpu"
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(UsageError, match="`device=cuda:2`: torch sees 2 GPUs"):
        pick_device("cuda:2")


def test_batches_arrive_whole_and_in_order():
    batches = [
        ((torch.full((8, 3, 64, 64), i, dtype=torch.uint8), torch.full((8, 3, 64, 64), i + 1, dtype=torch.uint8)),
         torch.full((8,), i), torch.full((8,), i)) for i in range(20)
    ]  # fmt: skip
    for i, ((a, b), labels, index) in enumerate(ahead(iter(batches), DEVICE)):
        assert a.device.type == labels.device.type == DEVICE.type and not index.is_cuda
        assert (a == i).all() and (b == i + 1).all() and (labels == i).all() and (index == i).all()
    assert i == 19


@pytest.mark.parametrize("objective", ["supervised", "moco", "moco_v3", "adversarial"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_objective_trains(data, tmp_path, objective, precision):
    run(data, tmp_path / "r", objective=objective, precision=precision, moco=MocoConfig(queue=32), ema_decay=0.9, clip_norm=5.0)
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "r"))


@pytest.mark.parametrize("step", [9, 12])
def test_a_stop_resumes_at_its_place(data, tmp_path, monkeypatch, step):
    """In mid-epoch, and at the last step of an epoch, whose end is then still to come."""
    run(data, tmp_path / "whole")
    plain = Training._on_step
    monkeypatch.setattr(Training, "_on_step", lambda self, state: plain(self, state) or state.step == step)
    with pytest.raises(cli.Terminated):
        run(data, tmp_path / "cut")
    monkeypatch.undo()
    state = checkpoint.load_state(checkpoint.checkpoints(tmp_path / "cut/checkpoint")[-1])
    # 6 batches of 8 an epoch; the one ahead is not counted
    assert state["loader"]["batch"] == step - 6 and state["tally"]["samples"] == 8 * (step - 6)
    run(data, tmp_path / "cut", resume=True)
    a, b = (checkpoint.read_weights(tmp_path / name)[0] for name in ("whole", "cut"))
    for name in a:  # cuDNN may add in another order
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-3)
    assert [row["samples"] for row in rows(tmp_path / "cut")] == [48, 48, 48]
    assert [c.name for c in (tmp_path / "cut/checkpoint").iterdir() if c.name.startswith(".")] == []


def test_the_profile_counts_the_gpu(data, tmp_path):
    run(data, tmp_path / "r", profile=True)
    busy = json.loads((tmp_path / "r/profile.json").read_text())["gpu_busy_share"]
    assert busy > 0 if DEVICE.type == "cuda" else busy is None
