"""The training suite on a few small images: three ways of training, each in its own process, and what is said of them."""

import pytest
import torch
from small_runs import noisy_colours

from benchmarks import training
from benchmarks.harness import Suite
from benchmarks.training_subjects import ours, reference

pytestmark = pytest.mark.slow


def test_the_suite_trains_in_all_three_ways(tmp_path, monkeypatch):
    noisy_colours(tmp_path, "imagenet-sample", (6,) * 4)
    for name, value in (("IMAGES", 48), ("BATCH", 16), ("SIZE", 32), ("ARCH", "small-8"), ("SMALL", ("small-4",))):
        monkeypatch.setattr(training, name, value)
    suite = Suite(name="training", data=tmp_path)
    training.run(suite)
    rows = {(row.case, row.subject): row for row in suite.rows}
    for subject in training.SUBJECTS:
        assert rows["samples", subject].value > 0 and 0 <= rows["data-wait", subject].value <= 1
    assert rows["samples", "ours"].rounds == rows["data-wait", "ours"].rounds == 5
    goals = {goal.id: goal for goal in suite.goals}
    faster = rows["small-4 at 32 pixels", "auto"]
    assert faster.ratio_to == "fp32" and faster.rounds == training.SMALL_ROUNDS
    assert goals["training/auto-precision-small-4"].measured == faster.ratio
    assert goals["training/vs-reference"].measured == rows["samples", "ours"].ratio
    share = goals["training/data-wait-share"]
    assert share.measured == rows["data-wait", "ours"].value and share.at_most and share.goal == 0.05


@pytest.mark.parametrize("subject", [reference, ours])
def test_the_subjects_learn(tmp_path, subject):
    """All see the same data with the same settings, and each its own way brings the loss down."""
    file = noisy_colours(tmp_path, "images", (16,) * 3)
    folder = str(tmp_path / "images")
    torch.manual_seed(0)  # of the weights and of torchvision's order and crops
    epoch = subject({"folder": folder, "file": str(file), "size": 16, "batch": 8, "arch": "small-4", "threads": 1})
    told = [epoch(number) for number in range(4)]
    assert all(t["samples"] == 48 and 0 < t["wait_s"] < t["seconds"] for t in told)
    assert min(t["loss"] for t in told) < 0.5 * told[0]["loss"]  # at a rate for large batches it goes up again, too
