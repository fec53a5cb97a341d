"""Pretraining and finetuning through their commands, on small real files."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from small_runs import noisy_colours

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import CheckpointError, Dp4tlError, RecordError, SelectionError, TrainingError, UsageError
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.run import pretrain
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
from dp4tl_fast.selection import Selection
from dp4tl_fast.training import checkpoint, models
from dp4tl_fast.training.schedule import learning_rate

FAST = {
    "arch": "small-4",
    "size": 16,
    "batch_size": 16,
    "epochs": 3,
    "lr": 0.1,
    "tensorboard": False,
    "precision": "fp32",
    "workers": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four classes of noisy colours, 24 images each, as source; the same classes, 10 each, as target."""
    root = tmp_path_factory.mktemp("data")
    for name, n in (("source", 24), ("val", 5), ("target", 10)):
        noisy_colours(root, name, (n,) * 4)
    return root


def run(data, out, **changes):
    return pretrain(PretrainConfig(**{"source": str(data / "source.beton"), "out": str(out), **FAST, **changes}))


def weights(out):
    return load_file(checkpoint.find_weights(out))


def test_learns_and_fills_the_run_folder(data, tmp_path):
    summary = run(data, tmp_path / "r", val=str(data / "val.beton"), tensorboard=True, epochs=6, flip=False)
    rows = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == list(range(6))
    assert {"seconds", "samples", "samples_per_s", "data_wait_s", "loss", "top_1", "top_5", "lr", "bytes_read"} <= rows[
        0
    ].keys()
    assert rows[-1]["loss"] < rows[0]["loss"] and summary["val_top_1"] > 0.7  # four plain colours
    assert list((tmp_path / "r").glob("events.out.tfevents*"))
    model, meta = checkpoint.load_model(tmp_path / "r")
    assert meta["num_classes"] == 4 and isinstance(model, models.SmallResNet)


def test_weights_load_in_plain_torchvision(data, tmp_path):
    from torchvision.models import resnet18

    run(data, tmp_path / "r", arch="resnet18", epochs=1, size=32)
    resnet18(num_classes=4).load_state_dict(weights(tmp_path / "r"))


def test_reads_only_the_selection(data, tmp_path):
    prune(PruneConfig(source=str(data / "source.beton"), out=str(tmp_path / "s.json"), keep="2", method="random", seed=3))
    summary = run(data, tmp_path / "r", selection=str(tmp_path / "s.json"), val=str(data / "val.beton"))
    assert summary["classes_kept"] == 2 and summary["samples"] == 48 and summary["method"] == "random"
    full = run(data, tmp_path / "full")
    assert summary["bytes_read"] < 0.7 * full["bytes_read"]


def test_compact_labels_shrink_the_head(data, tmp_path):
    prune(PruneConfig(source=str(data / "source.beton"), out=str(tmp_path / "s.json"), keep="2", method="random", seed=3))
    run(
        data,
        tmp_path / "r",
        selection=str(tmp_path / "s.json"),
        val=str(data / "val.beton"),
        compact_labels=True,
        epochs=6,
    )
    _, meta = checkpoint.read_weights(tmp_path / "r")
    assert meta["num_classes"] == 2 and meta["classes"] == Selection.load(tmp_path / "s.json").kept_classes
    assert weights(tmp_path / "r")["fc.weight"].shape[0] == 2


def test_same_seed_same_bits(data, tmp_path):
    run(data, tmp_path / "a")
    run(data, tmp_path / "b")
    run(data, tmp_path / "c", seed=1)
    a, b, c = (weights(tmp_path / n) for n in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def command(data, out, *more, **changes):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**FAST, **changes}.items()]
    return [
        sys.executable,
        "-m",
        "dp4tl_fast.pretrain",
        f"--source={data / 'source.beton'}",
        f"--out={out}",
        *flags,
        *more,
    ]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_resumed_ends_with_the_same_bits(data, tmp_path, monkeypatch, sent):
    long = {"epochs": 30, "arch": "small-16", "size": 48}
    # All in processes of their own and on one thread: the bits depend on torch's number of threads, which importing FFCV
    # in another test changes; and two threads of a tiny network mostly wait for each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    subprocess.run(command(data, tmp_path / "whole", **long), check=True, capture_output=True)
    cut = tmp_path / "cut"
    process = subprocess.Popen(command(data, cut, **long), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not checkpoint.checkpoints(cut / "checkpoint"):
        time.sleep(0.01)  # until there is something to resume from
    process.send_signal(sent)
    stderr = process.communicate()[1]
    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 130), stderr
    assert not (cut / "summary.json").exists(), "the run must be cut before its end for this test to mean anything"
    again = subprocess.run(command(data, cut, "--resume", **long), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    a, b = weights(tmp_path / "whole"), weights(cut)
    assert all(torch.equal(a[k], b[k]) for k in a)
    losses = [
        [json.loads(line)["loss"] for line in (d / "metrics.jsonl").read_text().splitlines()]
        for d in (tmp_path / "whole", cut)
    ]
    assert losses[0] == losses[1]


def test_a_finished_run_does_nothing(data, tmp_path, capsys):
    first = run(data, tmp_path / "r")
    stamp = checkpoint.find_weights(tmp_path / "r").stat().st_mtime_ns
    assert run(data, tmp_path / "r", resume=True) == first
    assert checkpoint.find_weights(tmp_path / "r").stat().st_mtime_ns == stamp
    assert "nothing to do" in capsys.readouterr().err


def test_refusals(data, tmp_path):
    run(data, tmp_path / "r")
    with pytest.raises(UsageError, match="already holds a run"):
        run(data, tmp_path / "r")
    with pytest.raises(UsageError, match=r"lr was 0\.1, now 0\.2"):
        run(data, tmp_path / "r", resume=True, lr=0.2)
    with pytest.raises(UsageError, match="larger than the 96 surviving records"):
        run(data, tmp_path / "big", batch_size=97)
    with pytest.raises(UsageError, match="unknown architecture"):
        run(data, tmp_path / "arch", arch="resnet19")
    prune(PruneConfig(source=str(data / "target.beton"), out=str(tmp_path / "t.json"), keep="2", method="random"))
    with pytest.raises(SelectionError, match="another source"):
        run(data, tmp_path / "other", selection=str(tmp_path / "t.json"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "whose"),
    [
        ({"size": 4, "batch_size": 8, "accumulate": 8}, "small-4"),
        ({"size": 4, "batch_size": 1}, "small-4"),
        ({"objective": "moco_v3", "batch_size": 8, "accumulate": 8}, "the objective"),  # the network alone could be trained so
    ],
)
def test_single_images_that_cannot_be_normalised_are_refused_at_the_start(data, tmp_path, changes, whose):
    with pytest.raises(UsageError, match=f"of a single image, which the batch normalisation of {whose} cannot be trained on"):
        run(data, tmp_path / "r", **changes)
    assert not (tmp_path / "r").exists()


def test_a_bad_validation_set_is_told_before_training(data, tmp_path):
    with pytest.raises(Dp4tlError, match="typo"):
        run(data, tmp_path / "r", val=str(tmp_path / "typo.beton"))
    assert not (tmp_path / "r").exists()


def test_an_image_that_cannot_be_validated_costs_no_epoch(data, tmp_path):
    val = Beton(data / "val.beton")
    start, size = int(val.images["data_ptr"][7]), int(val.sizes[7])
    body = bytearray((data / "val.beton").read_bytes())
    body[start : start + size] = bytes(size)
    (tmp_path / "val.beton").write_bytes(body)
    options = {"val": str(tmp_path / "val.beton"), "val_every": 2}
    with pytest.raises(RecordError, match="record 7"):
        run(data, tmp_path / "r", **options)
    (_, good) = checkpoint.checkpoints(tmp_path / "r/checkpoint")
    assert good.name == "0000000012"  # of the second epoch, which was to be validated
    (tmp_path / "val.beton").write_bytes((data / "val.beton").read_bytes())
    summary = run(data, tmp_path / "r", resume=True, **options)
    rows = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert ["val_top_1" in row for row in rows] == [False, True, True] and summary["val_top_1"] == rows[2]["val_top_1"]
    run(data, tmp_path / "whole", **options)
    assert all(torch.equal(v, weights(tmp_path / "r")[k]) for k, v in weights(tmp_path / "whole").items())


def test_another_source_under_the_same_name_is_not_gone_on_with(data, tmp_path):
    (tmp_path / "s.beton").write_bytes((data / "source.beton").read_bytes())
    run(data, tmp_path / "r", source=str(tmp_path / "s.beton"), epochs=1)
    (tmp_path / "s.beton").write_bytes((data / "target.beton").read_bytes())
    with pytest.raises(UsageError, match="now holds other images"):
        run(data, tmp_path / "r", source=str(tmp_path / "s.beton"), epochs=1, resume=True)


def test_a_source_in_another_order_of_classes_is_not_gone_on_with(data, tmp_path):
    """Pixels, as many of each class: tables are equal, byte for byte, and yet it is other data."""
    source, order = tmp_path / "s.beton", tmp_path / "order.txt"
    order.write_text("class3\nclass2\nclass1\nclass0\n")
    convert(str(data / "val"), str(source), write_mode="raw")
    before = Beton(source).records_sha256
    run(data, tmp_path / "r", source=str(source), epochs=1, val=str(source))
    assert run(data, tmp_path / "r", source=str(source), epochs=1, val=str(source), resume=True)
    convert(str(data / "val"), str(source), write_mode="raw", class_order=str(order))
    assert Beton(source).records_sha256 == before
    with pytest.raises(UsageError, match=r"source_contents_sha256 was .*s\.beton now holds other images"):
        run(data, tmp_path / "r", source=str(source), epochs=1, val=str(source), resume=True)
    source.with_suffix(".info.zip").unlink()
    assert run(data, tmp_path / "r", source=str(source), epochs=1, val=str(source), resume=True), "not known"


def test_a_run_of_an_earlier_version_is_gone_on_with(data, tmp_path):
    """Which did not record what the source holds."""
    run(data, tmp_path / "r", epochs=1)
    path = tmp_path / "r/config.yaml"
    lines = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("source_contents_sha256")]
    assert len(lines) == len(path.read_text().splitlines()) - 1
    path.write_text("".join(lines))
    assert run(data, tmp_path / "r", epochs=1, resume=True)


def test_a_loss_that_is_not_finite_names_its_images(data, tmp_path, monkeypatch):
    """Of the ninth batch, in the second epoch: found at the epoch's end, and nothing is saved after it."""
    from dp4tl_fast.training.supervised import Supervised

    batches, plain = [], Supervised.forward

    def poisoned(self, model, images, labels, index):
        batches.append(index.tolist())
        loss, sums = plain(self, model, images, labels, index)
        return (loss * float("nan") if len(batches) == 9 else loss), sums

    monkeypatch.setattr(Supervised, "forward", poisoned)
    with pytest.raises(TrainingError, match="not finite in step 8") as caught:
        run(data, tmp_path / "r")
    (good,) = checkpoint.checkpoints(tmp_path / "r/checkpoint")
    index = Beton(data / "source.beton").index.tolist()
    records = ", ".join(str(r) for r in sorted(index.index(i) for i in batches[8]))
    assert f"on records {records} of" in str(caught.value) and f"last good checkpoint is {good}." in str(caught.value)
    assert good.name == "0000000006" and not (tmp_path / "r/summary.json").exists()
    monkeypatch.undo()
    run(data, tmp_path / "r", resume=True)
    run(data, tmp_path / "whole")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "r")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_prune_with_a_surrogate(data, tmp_path):
    run(data, tmp_path / "surrogate", epochs=6, flip=False)
    common = {
        "source": str(data / "source.beton"),
        "target": [str(data / "target.beton")],
        "surrogate": str(tmp_path / "surrogate"),
    }
    result = prune(PruneConfig(**common, out=str(tmp_path / "lm.json"), keep="0.5"))
    assert sum(result["scores"]) == 40 and len(result["kept_classes"]) == 2  # every target image votes once
    assert result["seconds"]["surrogate"] > 0
    lowest = prune(PruneConfig(**common, out=str(tmp_path / "low.json"), keep="0.5", reverse=True))
    assert set(lowest["kept_classes"]) | set(result["kept_classes"]) == {0, 1, 2, 3}
    with pytest.raises(UsageError, match="needs `target`"):
        prune(PruneConfig(source=common["source"], out=str(tmp_path / "x.json"), keep="0.5"))
    with pytest.raises(CheckpointError, match="not a small-8"):
        prune(PruneConfig(**common, out=str(tmp_path / "x.json"), keep="0.5", arch="small-8"))
    assert not (tmp_path / "x.json").exists()


def test_a_surrogate_of_another_source_is_refused(data, tmp_path):
    prune(PruneConfig(source=str(data / "source.beton"), out=str(tmp_path / "s.json"), keep="2", method="random"))
    run(data, tmp_path / "small", selection=str(tmp_path / "s.json"), compact_labels=True, epochs=1)
    with pytest.raises(UsageError, match="knows 2 classes"):
        prune(PruneConfig(
            source=str(data / "source.beton"), target=[str(data / "target.beton")], surrogate=str(tmp_path / "small"),
            out=str(tmp_path / "x.json"), keep="2",
        ))  # fmt: skip


@pytest.mark.parametrize("mode", ["lp", "ff"])
def test_finetune(data, tmp_path, mode):
    run(data, tmp_path / "r", epochs=4)
    arguments = {
        "checkpoint": str(tmp_path / "r"),
        "train": str(data / "target.beton"),
        "test": str(data / "val.beton"),
    }
    summary = finetune(FinetuneConfig(
        **arguments, mode=mode, out=str(tmp_path / mode), epochs=12, lr=0.02, seeds=2, batch_size=8, precision="fp32"
    ))
    assert (
        len(summary["top_1"]) == 2
        and summary["top_1_mean"] > 0.7
        and summary["top_1_best_mean"] >= summary["top_1_mean"]
    )
    again = finetune(FinetuneConfig(
        **arguments, mode=mode, out=str(tmp_path / "again"), epochs=12, lr=0.02, seeds=2, batch_size=8, precision="fp32"
    ))
    assert again["top_1"] == summary["top_1"]
    with pytest.raises(UsageError, match="exists"):
        finetune(FinetuneConfig(**arguments, mode=mode, out=str(tmp_path / mode)))


def test_cached_features_equal_the_plain_way(data, tmp_path):
    """A linear probe over cached features is the frozen network with a fresh head, trained image by image."""
    from dp4tl_fast.finetuning.probes import features
    from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD, LoaderSpec, open_loader
    from dp4tl_fast.training.loop import Normalise

    run(data, tmp_path / "r", epochs=1)
    model, _ = checkpoint.load_model(tmp_path / "r")
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"))
    with open_loader(data / "val.beton", None, LoaderSpec(size=16, batch_size=7, crop_ratio=1.0)) as loader:
        x, y = features(model, loader, normalise), loader.beton.labels
        images = torch.cat([normalise(i) for i, _ in loader])
    with torch.no_grad():
        torch.testing.assert_close(model.fc(x), model(images), rtol=1e-5, atol=1e-5)  # fp32 sums in another order
    assert y.tolist() == sorted(y.tolist()) and len(y) == 20


@pytest.mark.parametrize("name", ["triangular", "cosine"])
def test_schedules(name):
    rates = [learning_rate(s, schedule=name, peak=0.5, total_steps=100, warmup_steps=20) for s in range(101)]
    assert max(rates) == rates[20] == 0.5 and rates[0] == pytest.approx(1e-4)
    assert all(b > a for a, b in itertools.pairwise(rates[:21]))
    assert all(b < a for a, b in itertools.pairwise(rates[20:]))


def test_untrusted_checkpoints(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"w": Evil()}))
    torch.save({"w": Evil()}, tmp_path / "evil2.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    for name in ("evil.pt", "evil2.pt", "bad.safetensors", "missing"):
        with pytest.raises(Dp4tlError, match=name):
            checkpoint.load_model(tmp_path / name, "small-4")
    assert not (tmp_path / "owned").exists()


def test_plain_state_dict_with_prefixes(tmp_path):
    model = models.build("small-4", 3)
    torch.save({"state_dict": {f"module._orig_mod.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pt")
    loaded, meta = checkpoint.load_model(tmp_path / "w.pt", "small-4")
    assert meta["num_classes"] == 3
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_progressive_resolution(data, tmp_path, monkeypatch):
    from dp4tl_fast.training import loop

    sides = []
    monkeypatch.setattr(loop.Normalise, "__call__", lambda self, x, *which: sides.append(x.shape[-1]) or x.float() / 255)
    run(data, tmp_path / "r", end_size=24, end_size_from=2)  # 6 batches an epoch, 3 epochs
    assert sides == [16] * 12 + [24] * 6
    assert checkpoint.read_weights(tmp_path / "r")[1]["size"] == 24
