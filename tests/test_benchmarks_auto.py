"""The suites that train, on a few coloured pictures: the whole chain, and what they record."""

import pytest
from pruning_data import images

from benchmarks import auto, end_to_end
from benchmarks.harness import Suite


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Folders named like the real data, and settings that take seconds."""
    images(tmp_path / "tiny-imagenet/train", range(4), 16, 0)
    images(tmp_path / "cifar10/train", [0, 2], 12, 1)
    images(tmp_path / "cifar10/test", [0, 2], 8, 2)
    small = {"arch": "small-4", "size": 16, "batch_size": 8, "epochs": 2, "workers": 1}
    for suite in (auto, end_to_end):
        monkeypatch.setattr(suite, "SURROGATE", {**suite.SURROGATE, **small, "epochs": 4})
    monkeypatch.setattr(end_to_end, "NETWORK", {**end_to_end.NETWORK, **small})
    for mode in end_to_end.TRANSFER:
        monkeypatch.setitem(end_to_end.TRANSFER, mode, {**end_to_end.TRANSFER[mode], "size": 16, "epochs": 2, "workers": 1})
    return tmp_path


def test_auto_is_measured_beside_a_sweep(data, monkeypatch):
    monkeypatch.setattr(auto, "SHARES", ("0.5", "1.0"))
    suite = Suite(name="auto", data=data)
    auto.run(suite)
    rows = {(row.case, row.subject): row for row in suite.rows}
    subjects = ["keep 0.5", "keep 1.0", "keep auto:0.75", "keep auto"]
    cases = ["classes kept", "votes carried", "pretraining", "cifar10 linear probe"]
    assert list(rows) == [(case, subject) for case in cases for subject in subjects]
    assert [rows["classes kept", f"keep {k}"].value for k in auto.SHARES] == [2, 4]
    assert rows["votes carried", "keep 1.0"].value == 100 and rows["votes carried", "keep auto"].value >= 90
    assert rows["pretraining", "keep 0.5"].ratio is not None and rows["cifar10 linear probe", "keep auto"].ratio_to == "keep 1.0"


def test_end_to_end_compares_with_the_full_run(data, monkeypatch):
    monkeypatch.setattr(end_to_end, "KEEP", ("0.5",))
    suite = Suite(name="end_to_end", data=data)
    end_to_end.run(suite)
    cases = ["pretraining", "pretraining with pruning", "bytes read", "cifar10 linear probe", "cifar10 full finetuning"]
    subjects = {f"{name} classes" for name in ("full 4", "lm 2", "fm 2", "random 2")}
    assert {(row.case, row.subject) for row in suite.rows} == {(case, s) for case in cases for s in subjects}
    assert {row.rounds for row in suite.rows} == {len(end_to_end.SEEDS)}
    full = {row.case: row.value for row in suite.rows if row.subject == "full 4 classes"}
    halves = [row.value for row in suite.rows if row.case == "bytes read" and row.subject != "full 4 classes"]
    assert all(0.4 * full["bytes read"] < value < 0.6 * full["bytes read"] for value in halves)
    goals = {goal.id: goal.measured for goal in suite.goals}
    assert set(goals) == {"end_to_end/speedup-at-50", "end_to_end/lossless-ratio-lm", "end_to_end/lossless-ratio-fm"}
    lossless = {m: 0.0 if full["cifar10 linear probe"] - _value(suite, m) > end_to_end.LOSS else 0.5 for m in ("lm", "fm")}
    assert {m: goals[f"end_to_end/lossless-ratio-{m}"] for m in lossless} == lossless


def _value(suite, method):
    return next(r.value for r in suite.rows if r.case == "cifar10 linear probe" and r.subject.startswith(method))
