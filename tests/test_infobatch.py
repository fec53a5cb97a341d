"""InfoBatch: who is skipped, what the others count, exact resumes, and several processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_runs import FAST, noisy_colours, run

from dp4tl_fast.common.errors import CheckpointError, UsageError
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.infobatch import InfoBatch
from dp4tl_fast.training.supervised import Supervised

N, SKIP = 4000, 0.4


def objective(index=None, seed=3):
    return InfoBatch(Supervised(), np.arange(N) if index is None else index, SKIP, seed)


def test_some_of_what_is_below_the_mean_is_skipped():
    batch, pool = objective(), np.arange(0, N, 2)
    assert batch.choose(pool, 0, 16).tolist() == pool.tolist()  # nothing is known yet
    batch.losses[:] = torch.arange(N).float() ** 2  # the mean of an even number's is about N^2 / 3
    low = pool[pool < N / 3**0.5]
    kept = batch.choose(pool, 1, 16)
    assert np.isin(kept, pool).all() and np.isin(pool[len(low) + 1 :], kept).all()
    skipped = len(pool) - len(kept)
    assert abs(skipped - SKIP * len(low)) < 5 * (SKIP * (1 - SKIP) * len(low)) ** 0.5
    assert batch.below.sum() == len(low)
    batch.losses[:] = 0
    assert batch.choose(pool, 1, 16).tolist() == kept.tolist()  # of a running epoch it is settled
    batch.losses[:] = torch.arange(N).float() ** 2
    assert batch.choose(pool, 2, 16).tolist() != kept.tolist()
    assert batch.choose(pool, 14, 16).tolist() == pool.tolist() and not batch.below.any()  # the last eighth
    assert len(batch.choose(pool, 2, 4)) < len(pool) == len(batch.choose(pool, 3, 4))  # of a short run the last epoch


def test_the_gradient_is_that_of_all_records_in_the_mean():
    """Over many draws, the weighted sum over the kept records is the sum over all."""
    losses = torch.rand(N, generator=torch.Generator().manual_seed(0))
    sums = []
    for seed in range(40):
        batch = objective(seed=seed)
        batch.losses[:] = losses
        kept = torch.from_numpy(batch.choose(np.arange(N), 1, 16))
        weights = torch.where(batch.below[kept], 1 / (1 - SKIP), 1.0)
        sums.append(float((weights * losses[kept]).sum()))
    error = np.std(sums) / len(sums) ** 0.5
    assert abs(np.mean(sums) - float(losses.sum())) < 4 * error


def test_losses_are_noted_and_weigh():
    index = np.array([7, 5, 9, 1])
    batch = objective(index)
    batch.below[torch.tensor([2])] = True  # index 9
    model = torch.nn.Linear(3, 2)
    images, labels = torch.randn(3, 3), torch.tensor([0, 1, 1])
    loss, sums = batch(model, images, labels, torch.tensor([9, 1, 7]))
    each = torch.nn.functional.cross_entropy(model(images), labels, reduction="none")
    torch.testing.assert_close(loss, (each * torch.tensor([1 / 0.6, 1, 1])).mean())
    assert set(sums) == {"top_1", "top_5"}
    batch.after_step(model)
    torch.testing.assert_close(batch.losses, torch.stack([each[2], torch.tensor(1.0), each[0], each[1]]).detach())
    with pytest.raises(UsageError, match="same `index` field"):
        objective(np.array([1, 1]))


# -- runs --------------------------------------------------------------------------------------------------------------

DYNAMIC = {"dynamic": "infobatch", "epochs": 8, "batch_size": 8}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return noisy_colours(tmp_path_factory.mktemp("infobatch"), "s", (24,) * 4)


def weights(out):
    return {k: v.tobytes() for k, v in load_file(checkpoint.find_weights(out)).items()}


def rows(out):
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_reads_less_and_its_rate_follows_the_epochs(source, tmp_path):
    plain = run(source, tmp_path / "plain", epochs=8)
    done = run(source, tmp_path / "dynamic", **DYNAMIC)
    assert plain["images"] == 8 * 96 and done["images"] < 0.9 * plain["images"]
    samples = [row["samples"] for row in rows(tmp_path / "dynamic")]
    assert samples[0] == samples[-1] == 96 and min(samples[1:-1]) < 96
    assert done["images"] == sum(samples) and done["samples"] == 96
    for a, b in zip(rows(tmp_path / "plain"), rows(tmp_path / "dynamic"), strict=True):
        assert abs(a["lr"] - b["lr"]) < 1.01 * FAST["lr"] / 24  # a step of the warm-up's
    state = checkpoint.load_state(checkpoint.checkpoints(tmp_path / "dynamic/checkpoint")[-1])["objective"]
    assert (state["losses"] != 1).all()  # all were seen


@pytest.mark.parametrize("steps", [12, 17, 31])  # at an epoch's end, in the second, and later
def test_a_run_resumes_to_the_same_bits(source, tmp_path, steps, monkeypatch):
    from test_prune_weighted import stop_after

    run(source, tmp_path / "whole", **DYNAMIC)
    stop_after(monkeypatch, steps)
    with pytest.raises(KeyboardInterrupt, match=f"saved at step {steps} "):
        run(source, tmp_path / "halves", **DYNAMIC)
    monkeypatch.undo()
    run(source, tmp_path / "halves", resume=True, **DYNAMIC)
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")
    assert [r["samples"] for r in rows(tmp_path / "halves")] == [r["samples"] for r in rows(tmp_path / "whole")]


def test_a_run_without_its_losses_is_not_resumed(source, tmp_path, monkeypatch):
    from test_prune_weighted import stop_after

    stop_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "r", **DYNAMIC)
    monkeypatch.undo()
    newest = checkpoint.checkpoints(tmp_path / "r/checkpoint")[-1]
    state = checkpoint.load_state(newest)
    del state["objective"]["losses"]
    torch.save(state, newest / checkpoint.STATE)
    before = (newest / checkpoint.STATE).read_bytes()
    with pytest.raises(CheckpointError, match="lacks the losses of these records"):
        run(source, tmp_path / "r", resume=True, **DYNAMIC)
    assert (newest / checkpoint.STATE).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic": "infobits"}, "none or infobatch"), ({"dynamic": "infobatch", "dynamic_skip": 1.0}, "above 0 and below 1"),
        ({"dynamic": "infobatch", "objective": "adversarial"}, "in supervised training, not adversarial"),
        ({"dynamic": "infobatch", "forgetting": True}, "`forgetting`"),
        ({"dynamic": "infobatch", "epoch_samples": 9}, "`epoch_samples`"),
    ],
)  # fmt: skip
def test_settings_refused(options, message):
    with pytest.raises(UsageError, match=message):
        PretrainConfig(source="s", out="o", **options)


def test_an_epoch_must_hold_a_batch_when_it_skips(source, tmp_path):
    with pytest.raises(UsageError, match=r"`dynamic_skip=0.95`: .* 4 of 96 records"):
        run(source, tmp_path / "r", dynamic_skip=0.95, **DYNAMIC)


def test_two_processes_choose_alike_and_resume(source, tmp_path):
    """Every rank learns the losses of all: else their epochs would differ in length, and the run would hang."""
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**FAST, **DYNAMIC}.items() if k != "tensorboard"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dp4tl_fast.pretrain",
               f"--source={source}", "--no-tensorboard", *flags]  # fmt: skip
    threads = os.environ | {"OMP_NUM_THREADS": "1"}  # bits depend on their number
    done = subprocess.run([*command, f"--out={tmp_path / 'two'}"], capture_output=True, text=True, env=threads)
    assert done.returncode == 0, done.stderr
    samples = [row["samples"] for row in rows(tmp_path / "two")]
    assert samples[0] == samples[-1] == 96 and sum(samples) < 0.9 * 8 * 96
    newest = checkpoint.checkpoints(tmp_path / "two/checkpoint")[-1]
    assert (checkpoint.load_state(newest)["objective"]["losses"] != 1).all()
    shutil.copytree(tmp_path / "two", tmp_path / "again", symlinks=True)  # as it was before the last epoch
    (tmp_path / "again/summary.json").unlink()
    shutil.rmtree(tmp_path / "again/checkpoint" / newest.name)
    done = subprocess.run([*command, f"--out={tmp_path / 'again'}", "--resume"], capture_output=True, text=True, env=threads)
    assert done.returncode == 0 and "resuming" in done.stderr, done.stderr
    assert weights(tmp_path / "again") == weights(tmp_path / "two")
