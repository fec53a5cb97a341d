"""Records that cannot be decoded, in finetuning, validation and evaluation: an error, or left out, counted and listed."""

import json
import subprocess

import numpy as np
import pytest
from small_runs import noisy_colours, run
from test_finetune_run import config, stop_at
from test_preemption import ENVIRONMENT, TORCHRUN, broken, listed, rows

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.copying import subset
from dp4tl_fast.common.cli import Terminated
from dp4tl_fast.common.errors import RecordError, TrainingError, UsageError
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.inference.config import EvaluateConfig
from dp4tl_fast.inference.evaluate import evaluate

pytestmark = pytest.mark.filterwarnings("ignore:skipped")
GONE = {"train": [4, 21], "test": [0, 9]}
SKIP = {"on_bad_record": "skip"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Good files, and in ``bad`` those without the records of ``GONE``; a network."""
    root = tmp_path_factory.mktemp("bad")
    (root / "bad").mkdir()
    for name, counts in (("train", (10, 9, 12, 7)), ("test", (5, 6, 4, 7))):
        noisy_colours(root, name, counts)
        broken(root / f"{name}.beton", root / f"bad/{name}.beton", GONE[name])
    run(root / "train.beton", root / "run", epochs=2)
    return root


def bad_files(data):
    return {name: str(data / f"bad/{name}.beton") for name in GONE}


def expected(data):
    found = []
    for name in ("test", "train"):
        beton = Beton(data / f"bad/{name}.beton")
        found += [(r, int(beton.labels[r]), beton.class_names[beton.labels[r]], str(beton.path)) for r in GONE[name]]
    return found


def without_times(summary):
    return {k: v for k, v in summary.items() if k != "seconds"}


@pytest.mark.parametrize("mode", ["lp", "knn", "ff"])
def test_finetuning_stops_at_a_bad_record_or_leaves_it_out(data, tmp_path, mode):
    with pytest.raises(RecordError, match=r"record \d+ .*`on_bad_record=skip`"):
        finetune(config(data, tmp_path / "stop", mode=mode, **bad_files(data)))
    found = finetune(config(data, tmp_path / "o", mode=mode, **SKIP, **bad_files(data)))
    assert found["bad_records"] == 4 and listed(tmp_path / "o") == expected(data)
    for per_seed in found["top_1"]:
        assert per_seed * 20 == pytest.approx(round(per_seed * 20), abs=1e-9), "20 of 22 test images are read"
    says = r"[34] records cannot be decoded, more than `max_bad=\d`\. bad_records.csv lists them; the first: .*record"
    with pytest.raises(TrainingError, match=says):
        finetune(config(data, tmp_path / "few", mode=mode, max_bad=2 if mode == "ff" else 3, **SKIP, **bad_files(data)))
    assert len(listed(tmp_path / "few/seed-0" if mode == "ff" else tmp_path / "few")) >= 3


@pytest.mark.parametrize("gone", [GONE, {"train": range(8), "test": range(4)}], ids=["some", "all of the first batch"])
def test_a_probe_without_bad_records_is_one_of_the_others(data, tmp_path, gone):
    """The same seed on a file of the other records ends with the same accuracies on the same images."""
    good, bad = {}, {}
    (tmp_path / "bad").mkdir()
    for name, records in gone.items():
        beton = Beton(data / f"{name}.beton")
        good[name], bad[name] = str(tmp_path / f"{name}.beton"), str(tmp_path / f"bad/{name}.beton")
        subset(beton, np.setdiff1d(np.arange(beton.num_samples), records), good[name])
        broken(data / f"{name}.beton", tmp_path / f"bad/{name}.beton", records)
    skip = {**SKIP, "max_bad": 12}
    for mode in ("lp", "knn"):
        ours = finetune(config(data, tmp_path / f"{mode}-skip", mode=mode, batch_size=4, **skip, **bad))
        theirs = finetune(config(data, tmp_path / f"{mode}-good", mode=mode, batch_size=4, **good))
        assert ours["top_1"] == theirs["top_1"] and ours["per_class"] == theirs["per_class"]
        assert (ours["bad_records"], theirs["bad_records"]) == (sum(map(len, gone.values())), 0)


@pytest.mark.parametrize("mode", ["lp", "ff"])
def test_what_is_left_out_is_the_same_after_a_resume(data, tmp_path, monkeypatch, mode):
    settings = {"mode": mode, "val_share": 0.2, **SKIP, **bad_files(data)}
    whole = finetune(config(data, tmp_path / "whole", **settings))
    stop_at(monkeypatch, ("seed-0", 6), ("seed-1", 4))
    for resume in (False, True):
        with pytest.raises(Terminated):
            finetune(config(data, tmp_path / "cut", resume=resume, **settings))
    monkeypatch.undo()
    done = finetune(config(data, tmp_path / "cut", resume=True, **settings))
    assert without_times(done) == without_times(whole) and listed(tmp_path / "cut") == listed(tmp_path / "whole")
    assert done["bad_records"] >= 4


def test_a_validation_leaves_bad_records_out(data, tmp_path):
    """Of a pretraining: its accuracy is over the images that are left."""
    found = run(data / "train.beton", tmp_path / "r", val=str(data / "bad/test.beton"), **SKIP)
    assert found["bad_records"] == 2 and [r for r, *_ in listed(tmp_path / "r")] == GONE["test"]
    for row in rows(tmp_path / "r"):
        assert row["val_top_1"] * 20 == pytest.approx(round(row["val_top_1"] * 20), abs=1e-9)


@pytest.mark.parametrize("backend", ["native", "torchvision"])
def test_an_evaluation_leaves_bad_records_out(data, tmp_path, capsys, backend):
    finetune(config(data, tmp_path / "ft", mode="lp", seeds=1))
    bad, options = str(data / "bad/test.beton"), {"backend": backend, "device": "cpu", "batch_size": 4, "attack_eps": 2.0}
    with pytest.raises(RecordError, match=r"record 0 .*`on_bad_record=skip`"):
        evaluate(EvaluateConfig(str(tmp_path / "ft"), bad, **options))
    found = evaluate(EvaluateConfig(str(tmp_path / "ft"), bad, out=str(tmp_path / "e"), **SKIP, **options))
    whole = evaluate(EvaluateConfig(str(tmp_path / "ft"), str(data / "test.beton"), out=str(tmp_path / "w"), **options))
    assert (found["images"], found["bad_records"], found["left_out"]) == (20, 2, 0) and whole["bad_records"] == 0
    assert listed(tmp_path / "e") == expected(data)[:2] and not (tmp_path / "w/bad_records.csv").exists()
    assert "2 records cannot be decoded and are left out: " in capsys.readouterr().err
    table = np.loadtxt(tmp_path / "e/confusion.csv", delimiter=",", skiprows=1, usecols=range(1, 5), dtype=int)
    full = np.loadtxt(tmp_path / "w/confusion.csv", delimiter=",", skiprows=1, usecols=range(1, 5), dtype=int)
    assert table.sum() == 20 and (table <= full).all() and found["top_1"] == np.trace(table) / 20
    assert json.loads((tmp_path / "e/evaluation.json").read_text()) == found
    with pytest.raises(TrainingError, match=r"2 records cannot be decoded, more than `max_bad=1`"):
        evaluate(EvaluateConfig(str(tmp_path / "ft"), bad, max_bad=1, **SKIP, **options))


def test_where_nothing_can_be_decoded_it_says_so(data, tmp_path):
    none = str(broken(data / "test.beton", tmp_path / "test.beton", range(22)))
    for mode in ("lp", "knn", "ff"):
        with pytest.raises((UsageError, TrainingError), match=r"none of (the )?22 records|22 records cannot be decoded"):
            finetune(config(data, tmp_path / mode, mode=mode, test=none, **SKIP))


def test_several_processes_leave_out_the_same(data, tmp_path):
    """Two processes, each of which reads half of every batch; one of them has no image of the second file's only batch."""
    flags = [f"--{name}={path}" for name, path in bad_files(data).items()]
    flags += [f"--checkpoint={data / 'run'}", "--seeds=1", "--mode=lp", "--epochs=2", "--batch-size=8", "--no-tensorboard"]
    subset(Beton(data / "test.beton"), np.array([3, 4]), tmp_path / "one.beton")
    more = [str(tmp_path / "r/seed-0"), str(broken(tmp_path / "one.beton", tmp_path / "half.beton", [0]))]
    for command, out, given, bad in (("finetune", "r", flags, 4), ("evaluate", "e", more, 1)):
        command = [*TORCHRUN, "-m", f"dp4tl_fast.{command}", *given, f"--out={tmp_path / out}", "--on-bad-record=skip", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["bad_records"] == bad == len(listed(tmp_path / out))
    assert listed(tmp_path / "r") == expected(data)
