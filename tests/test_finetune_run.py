"""finetune as a run: what it leaves, how it stops and goes on, what it starts from, several processes, recipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_runs import noisy_colours, run, to_tune
from test_distributed import ONE_THREAD, TORCHRUN

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.cli import Terminated
from dp4tl_fast.common.errors import CheckpointError, Dp4tlError, UsageError
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.finetuning.config import FinetuneConfig, SaveConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.finetuning.splits import hold_out
from dp4tl_fast.finetuning.tuning import Tuning
from dp4tl_fast.inference import passes
from dp4tl_fast.loaders import open_loader
from dp4tl_fast.training import checkpoint, models
from dp4tl_fast.training.preprocessing import Preprocessing
from dp4tl_fast.training.supervised import Supervised

SMALL = {"batch_size": 8, "epochs": 3, "seeds": 2, "lr": 0.01, "precision": "fp32", "tensorboard": False, "workers": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return to_tune(tmp_path_factory.mktemp("tune"), epochs=2)


def config(data, out, **changes):
    files = {"train": str(data / "train.beton"), "test": str(data / "test.beton"), "checkpoint": str(data / "run")}
    return FinetuneConfig(out=str(out), **{**files, **SMALL, **changes})


def tensors(folder):
    return checkpoint.read_weights(folder)[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def accuracy_of(folder, beton):
    """The checkpoint's top-1, from nothing but what it holds."""
    model, meta = checkpoint.load_model(folder)
    pixels = Preprocessing.of(meta)
    with open_loader(beton, None, pixels.spec(batch_size=8)) as loader:
        found = passes.rows(model, loader, pixels.normalise(torch.device("cpu")), lambda x: x.argmax(1))
    return float((found.numpy() == Beton(beton).labels).mean())


@pytest.mark.parametrize("mode", ["lp", "ff"])
def test_it_leaves_a_network_that_says_how_to_use_it(data, tmp_path, mode):
    out = tmp_path / "o"
    summary = finetune(config(data, out, mode=mode, tensorboard=True))
    for seed in range(2):
        folder = out / f"seed-{seed}"
        _, meta = checkpoint.load_model(folder)
        assert meta["class_names"] == ["class0", "class1", "class2", "class3"] and meta["num_classes"] == 4
        assert (meta["size"], meta["crop_ratio"], meta["interpolation"], meta["arch"]) == (16, 1.0, "bilinear", "small-4")
        assert meta["start_sha256"] == summary["checkpoint_sha256"] == checkpoint.weights_hash(data / "run")
        assert accuracy_of(folder, data / "test.beton") == pytest.approx(summary["top_1"][seed])
        rows = metrics(folder)
        assert [r["epoch"] for r in rows] == [0, 1, 2] and rows[-1]["test_top_1"] == summary["top_1"][seed]
        assert list(folder.glob("events.out.tfevents*"))
        best = max(r["test_top_1"] for r in rows)
        assert accuracy_of(folder / "checkpoint" / checkpoint.BEST, data / "test.beton") == pytest.approx(best)
    start, end = tensors(data / "run"), tensors(out / "seed-0")
    frozen = [k for k in start if not k.startswith("fc.")]
    assert all(torch.equal(start[k], end[k]) for k in frozen) == (mode == "lp")
    assert not (out / "start.safetensors").exists()


def stop_at(monkeypatch, *steps):
    """Stops a seed's training after each of these steps (seed's folder name, step)."""
    plain = Tuning._on_step
    monkeypatch.setattr(
        Tuning, "_on_step", lambda self, state: plain(self, state) or (self.out.name, state.step) in steps
    )


@pytest.mark.parametrize("mode", ["lp", "ff"])
def test_stopped_twice_it_ends_with_the_same_bits(data, tmp_path, monkeypatch, mode):
    """In the middle of an epoch of the first seed, and at the end of one of the second: 5 steps an epoch."""
    augmented = {"augment": "randaugment", "mix": "mixup", "ema_decay": 0.9} if mode == "ff" else {"ema_decay": 0.9}
    whole = finetune(config(data, tmp_path / "whole", mode=mode, **augmented))
    stop_at(monkeypatch, ("seed-0", 7), ("seed-1", 10))
    out = tmp_path / "cut"
    for resume in (False, True):
        with pytest.raises(Terminated, match="saved at step"):
            finetune(config(data, out, mode=mode, resume=resume, **augmented))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="already holds a run"):
        finetune(config(data, out, mode=mode, **augmented))
    done = finetune(config(data, out, mode=mode, resume=True, **augmented))
    for seed in ("seed-0", "seed-1"):
        assert same(tensors(tmp_path / "whole" / seed), tensors(out / seed))
        newest = [checkpoint.checkpoints(p / seed / "checkpoint")[-1] for p in (tmp_path / "whole", out)]
        assert same(*(checkpoint.read_weights(p / checkpoint.EMA)[0] for p in newest))
    assert {k: v for k, v in done.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}
    assert finetune(config(data, out, mode=mode, resume=True, **augmented)) == done  # nothing to do


def test_sigterm_leaves_a_run_to_go_on_with(data, tmp_path):
    """The command itself, with a signal that it sends to itself as a scheduler would."""
    code = (
        "import os, signal, sys\nfrom dp4tl_fast.finetuning.tuning import Tuning\nfrom dp4tl_fast.finetune import main\n"
        "plain = Tuning._on_step\n"
        "def step(self, run):\n"
        "    if run.step == 4: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return plain(self, run)\n"
        "Tuning._on_step = step\nsys.exit(main(sys.argv[1:]))"
    )
    flags = [f"--{k}={data / v}" for k, v in (("checkpoint", "run"), ("train", "train.beton"), ("test", "test.beton"))]
    flags += ["--mode=ff", "--epochs=2", "--batch-size=8", "--seeds=1", "--no-tensorboard", "--precision=fp32", "--workers=1"]
    environment = os.environ | ONE_THREAD
    cut = subprocess.run(
        [sys.executable, "-c", code, *flags, f"--out={tmp_path / 'cut'}"], capture_output=True, text=True, env=environment
    )
    assert cut.returncode == 130 and "saved at step 4 of 10; continue with --resume" in cut.stderr, cut.stderr
    for out, more in (("cut", ["--resume"]), ("whole", [])):
        command = [sys.executable, "-m", "dp4tl_fast.finetune", *flags, f"--out={tmp_path / out}", *more]
        assert subprocess.run(command, capture_output=True, env=environment).returncode == 0
    assert same(tensors(tmp_path / "cut/seed-0"), tensors(tmp_path / "whole/seed-0"))


def test_a_run_that_still_trains_changes_no_later_seed(data, tmp_path, monkeypatch):
    shutil.copytree(data / "run", tmp_path / "run")
    whole = finetune(config(data, tmp_path / "whole", mode="ff", checkpoint=str(tmp_path / "run")))
    stop_at(monkeypatch, ("seed-0", 3))
    with pytest.raises(Terminated):
        finetune(config(data, tmp_path / "cut", mode="ff", checkpoint=str(tmp_path / "run")))
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run")
    run(data / "train.beton", tmp_path / "run", epochs=1, seed=5)  # another network, by now
    done = finetune(config(data, tmp_path / "cut", mode="ff", checkpoint=str(tmp_path / "run"), resume=True))
    assert done["top_1"] == whole["top_1"] and done["checkpoint_sha256"] == whole["checkpoint_sha256"]
    assert same(tensors(tmp_path / "whole/seed-1"), tensors(tmp_path / "cut/seed-1"))
    (tmp_path / "cut/summary.json").unlink()
    shutil.rmtree(tmp_path / "cut/seed-1")
    with pytest.raises(CheckpointError, match="was started from other weights"):  # its copy is gone with the end
        finetune(config(data, tmp_path / "cut", mode="ff", checkpoint=str(tmp_path / "run"), resume=True))


def test_more_seeds_join_and_other_settings_or_images_do_not(data, tmp_path):
    one = finetune(config(data, tmp_path / "o", seeds=1))
    more = finetune(config(data, tmp_path / "o", seeds=3, resume=True))
    assert more["top_1"][0] == one["top_1"][0] and len(more["top_1"]) == 3
    with pytest.raises(UsageError, match=r"`resume` with other settings: lr was 0\.01, now 0\.02"):
        finetune(config(data, tmp_path / "o", lr=0.02, resume=True))
    other = noisy_colours(tmp_path, "train", (3, 3, 3, 3))
    with pytest.raises(UsageError, match=r"train_records_sha256 was .*now holds other images"):
        finetune(config(data, tmp_path / "o", train=str(other), resume=True))


def test_other_classes_in_equal_tables_are_not_gone_on_with(data, tmp_path):
    """Pixels, as many of each class, in another order of classes."""
    noisy_colours(tmp_path, "t", (5, 5, 5, 5))
    for turned in (False, True):
        (tmp_path / "order.txt").write_text("\n".join(sorted((f"class{c}" for c in range(4)), reverse=turned)))
        for name in ("a", "b"):
            convert(str(tmp_path / "t"), str(tmp_path / f"{name}.beton"), write_mode="raw", class_order=str(tmp_path / "order.txt"))
        both = {"train": str(tmp_path / "a.beton"), "test": str(tmp_path / "b.beton")}
        if not turned:
            finetune(config(data, tmp_path / "o", seeds=1, **both))
    with pytest.raises(UsageError, match=r"test_contents_sha256 was .*; train_contents_sha256 was .*now holds other images"):
        finetune(config(data, tmp_path / "o", seeds=1, resume=True, **both))


@pytest.mark.parametrize("mode", ["lp", "ff"])
def test_two_processes_end_where_one_does(data, tmp_path, mode):
    """Each record is trained on by one of them, and tested by one of them; one writes, one speaks."""
    flags = [f"--{k}={data / v}" for k, v in (("checkpoint", "run"), ("train", "train.beton"), ("test", "test.beton"))]
    flags += [f"--mode={mode}", "--epochs=3", "--batch-size=38", "--seeds=2", "--no-tensorboard", "--precision=fp32", "--json"]
    found = []
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        command = [*start, "-m", "dp4tl_fast.finetune", *flags, f"--out={tmp_path / name}"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        found.append(json.loads(line))
    assert found[1]["processes"] == 2 and len(found[1]["per_class"]) == 4
    if mode == "lp":  # in ff each process normalises with its own images
        assert found[0]["top_1"] == found[1]["top_1"]
        for seed in ("seed-0", "seed-1"):
            for name, one in tensors(tmp_path / "one" / seed).items():  # sums of float32 in another order over three steps
                torch.testing.assert_close(tensors(tmp_path / "two" / seed)[name], one, rtol=1e-4, atol=1e-5)
    for row in metrics(tmp_path / "two/seed-0"):
        assert row["samples"] == 38


def test_more_processes_than_images_is_refused(data, monkeypatch, tmp_path):
    from dp4tl_fast.finetuning import work

    monkeypatch.setattr(work, "world_size", lambda: 64)
    with pytest.raises(UsageError, match="64 processes x 1 parts cannot share 38 training images"):
        finetune(config(data, tmp_path / "o", batch_size=64))
    assert not (tmp_path / "o").exists()


def test_the_best_epoch_is_chosen_on_validation(data, tmp_path, monkeypatch):
    """Measured in turn: the test set (of the epoch) and then the validation set."""
    accuracies = iter([(3, 0), (9, 2), (5, 4), (8, 1)])

    found = {}

    def top_1(self, part, predicted):
        if part == "test":
            found["now"] = next(accuracies)
            return found["now"][0] / 10
        return found["now"][1] / 10

    monkeypatch.setattr(Tuning, "_top_1", top_1)
    summary = finetune(config(data, tmp_path / "o", val_share=0.25, seeds=1, epochs=4))
    assert (summary["top_1"], summary["top_1_best_mean"], summary["best_on"]) == ([0.8], 0.5, "val")
    best = (tmp_path / "o/seed-0/checkpoint" / checkpoint.BEST).resolve().name
    trained = 38 - (2 + 2 + 3 + 2)  # a quarter of 10, 9, 12 and 7, rounded
    assert int(best) == 3 * -(-trained // 8)


def test_what_is_held_out_is_not_trained_on():
    class File:
        labels = np.repeat([0, 1, 2], (20, 10, 3))
        num_samples, num_classes, class_names, path = 33, 3, ["a", "b", "c"], "f"

    drawn = [hold_out(File, None, 0.2, seed) for seed in (0, 1)]
    for train, val in drawn:
        assert sorted([*train, *val]) == list(range(33)) and np.bincount(File.labels[val]).tolist() == [4, 2, 1]
    assert drawn[0][1].tolist() != drawn[1][1].tolist()
    few = np.array([0, 1, 20, 21, 30, 31])
    train, val = hold_out(File, few, 0.5, 0)
    assert sorted([*train, *val]) == few.tolist() and np.bincount(File.labels[val]).tolist() == [1, 1, 1]
    with pytest.raises(UsageError, match=r"leaves nothing to train on of class a .* which has 1 images"):
        hold_out(File, np.array([0, 20, 21]), 0.5, 0)


def test_from_scratch_is_the_control(data, tmp_path):
    made = finetune(config(data, tmp_path / "o", mode="ff", checkpoint="", from_scratch=True, arch="small-4", size=16))
    assert made["checkpoint"] is None and made["checkpoint_sha256"] is None and len(made["top_1"]) == 2
    assert not same(tensors(tmp_path / "o/seed-0"), tensors(tmp_path / "o/seed-1"))
    for bad in ({"mode": "lp", "checkpoint": ""}, {"mode": "ff"}, {"mode": "ff", "checkpoint": "", "arch": None}):
        with pytest.raises(UsageError, match="`from_scratch`"):
            config(data, tmp_path / "x", **{"from_scratch": True, "arch": "small-4", **bad})


def test_flip_averaging_is_the_mean_of_both(data):
    model, _ = checkpoint.load_model(data / "run")
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (model(images).softmax(1) + model(images.flip(-1)).softmax(1)) / 2
        torch.testing.assert_close(passes.flip_averaged(model)(images).exp(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("arch", "top", "bottom"), [("resnet18", "fc", "conv1"), ("vit_b_16", "heads.head", "class_token")])
def test_layers_learn_slower_the_deeper_they_lie(arch, top, bottom):
    model = models.build(arch, 3)
    scales = {name: models.layer_scales(model, 0.5)[p] for name, p in model.named_parameters()}
    assert scales[f"{top}.weight"] == 1 and min(scales.values()) == next(v for k, v in scales.items() if k.startswith(bottom))
    blocks = {"resnet18": ("layer1.0.", "layer1.1.", "layer4.1."), "vit_b_16": ("encoder_layer_0.", "encoder_layer_1.", "_11.")}
    low, next_, high = ({v for k, v in scales.items() if part in k} for part in blocks[arch])
    assert len(low) == len(high) == 1 and 2 * low.pop() == next_.pop() < high.pop() < 1


def test_what_cannot_be_trained_is_told_before_anything_is_written(data, tmp_path):
    scratch = {"mode": "ff", "checkpoint": "", "from_scratch": True, "arch": "small-4", "size": 4}
    cases = {
        "one image": ({**scratch, "batch_size": 1}, "leaves a batch, or a part of one, of a single image"),
        "parts of one": ({**scratch, "batch_size": 38, "accumulate": 38}, "of a single image"),
        "alexnet": ({**scratch, "arch": "alexnet", "size": 32}, "`size=32`: alexnet cannot be trained on images of 32 x 32"),
        "backend": ({"mode": "lp", "backend": "banana"}, "unknown backend 'banana'"),
        "accumulate": ({"batch_size": 9, "accumulate": 2}, "not a multiple"),
    }  # fmt: skip
    for name, (changes, message) in cases.items():
        with pytest.raises(Dp4tlError, match=message):
            finetune(config(data, tmp_path / name, **changes))
        assert not (tmp_path / name).exists(), name
        (tmp_path / name).mkdir()
    for bad in ({"augment": "randaugment"}, {"tta": "flip"}, {"val": "x", "val_share": 0.1}, {"layer_decay": 0.0}, {"mode": "knn",
                "ema_decay": 0.9}, {"checkpoint": ""}, {"schedule": "banana"}):  # fmt: skip
        with pytest.raises(UsageError, match=f"`{next(iter(set(bad) - {'mode'}))}"):
            config(data, tmp_path / "x", **bad)


def test_a_last_image_is_trained_on_with_some_of_the_batch_before(data, tmp_path, monkeypatch):
    """38 images in batches of 37, and of 36 in two parts. Of a single image of 4 pixels each channel ends as one value."""
    plain, seen = Supervised.forward, []

    def forward(self, model, images, labels, index=None):
        seen.append(len(labels))
        return plain(self, model, images, labels, index)

    monkeypatch.setattr(Supervised, "forward", forward)
    scratch = {"mode": "ff", "checkpoint": "", "from_scratch": True, "arch": "small-4", "size": 4, "epochs": 1, "seeds": 1}
    finetune(config(data, tmp_path / "one", **scratch, batch_size=37))
    assert seen == [36, 2]
    del seen[:]
    finetune(config(data, tmp_path / "two", **scratch, batch_size=36, accumulate=2))
    assert seen == [17, 17, 2, 2]
    rows = metrics(tmp_path / "two/seed-0")
    assert rows[0]["samples"] == 38


def test_the_last_and_the_best_stay(data, tmp_path):
    finetune(config(data, tmp_path / "o", mode="ff", seeds=1, epochs=6, save=SaveConfig(every=1, keep_last=2)))
    folder = tmp_path / "o/seed-0/checkpoint"
    kept = {int(c.name) for c in checkpoint.checkpoints(folder)}
    rows = metrics(tmp_path / "o/seed-0")
    best = 5 * (1 + max(range(6), key=lambda e: (rows[e]["test_top_1"], -e)))
    assert kept == {25, 30, best} and int((folder / checkpoint.BEST).resolve().name) == best


def test_checkpoints_are_as_readable_as_other_files(data, tmp_path):
    before = os.umask(0o022)
    try:
        finetune(config(data, tmp_path / "o", seeds=1, epochs=1))
    finally:
        os.umask(before)
    for path in (tmp_path / "o").rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_pretraining_continues_from_weights(data, tmp_path):
    """At a rate of next to nothing it ends where it began; weights that change under a run that has begun are refused."""
    start, plain = tensors(data / "run"), {"epochs": 1, "lr": 1e-9, "schedule": "constant", "weight_decay": 0.0}
    summary = run(data / "train.beton", tmp_path / "r", init=str(data / "run"), **plain)
    assert summary["settings"]["init_sha256"] == checkpoint.weights_hash(data / "run")
    found = tensors(tmp_path / "r")
    for name, value in start.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert checkpoint.load_model(tmp_path / "r")[1]["start_sha256"] == summary["settings"]["init_sha256"]
    noisy_colours(tmp_path, "three", (8, 8, 8))
    run(tmp_path / "three.beton", tmp_path / "t", init=str(data / "run"), **plain)  # other classes: a fresh classifier
    found = tensors(tmp_path / "t")
    assert found["fc.weight"].shape[0] == 3 and torch.allclose(found["stem.0.weight"], start["stem.0.weight"], atol=1e-6)
    with pytest.raises(CheckpointError, match="holds a small-4, not a small-8"):
        run(data / "train.beton", tmp_path / "x", init=str(data / "run"), arch="small-8", epochs=1)
    assert not (tmp_path / "x").exists()
    (tmp_path / "r/summary.json").unlink()
    shutil.rmtree(tmp_path / "r/checkpoint")
    with pytest.raises(CheckpointError, match="was started from other weights"):
        run(data / "train.beton", tmp_path / "r", init=str(tmp_path / "t"), resume=True, **plain)
