"""finetune beyond the mean: kNN probe, accuracy by class and by group, few shots, targets by name."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from small_runs import noisy_colours

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BetonError, UsageError
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.finetune import main
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.probes import knn_probe
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.finetuning.splits import few_shots
from dp4tl_fast.inference import accuracy
from dp4tl_fast.pretrain import main as pretrain
from dp4tl_fast.reporting.page import report
from dp4tl_fast.selection import Selection


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("finetune")
    for name, counts in (("train", (10, 9, 12, 7)), ("test", (5, 6, 4, 7))):
        noisy_colours(root, name, counts)
    flags = ["--arch=small-4", "--size=16", "--epochs=2", "--batch_size=16", "--lr=0.05", "--precision=fp32"]
    assert pretrain([f"--source={root / 'train.beton'}", f"--out={root / 'run'}", *flags]) == 0
    return root


def arguments(root, **changes):
    both = {"train": str(root / "train.beton"), "test": str(root / "test.beton")}
    return {"checkpoint": str(root / "run"), **both, "batch_size": 8, "precision": "fp32", **changes}


def write_groups(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("index", "group"), *rows])
    return str(path)


def test_splits_that_number_their_classes_differently_are_refused(runs, tmp_path):
    """A test set without the first class calls the second one 0: its accuracy would be nonsense."""
    for name in ("gap", "more"):
        shutil.copytree(runs / "test", tmp_path / name)
    shutil.rmtree(tmp_path / "gap/class0")
    shutil.copytree(tmp_path / "more/class0", tmp_path / "more/class9")
    for name, complaint in (("gap", r"gap\.beton: calls class 0 'class1', but .*train\.beton calls it 'class0'"),
                            ("more", r"more\.beton: has 5 classes, but .*train\.beton only 4")):  # fmt: skip
        convert(str(tmp_path / name), str(tmp_path / f"{name}.beton"))
        with pytest.raises(BetonError, match=complaint):
            finetune(FinetuneConfig(out=str(tmp_path / "o"), mode="lp", **arguments(runs, test=str(tmp_path / f"{name}.beton"))))
        for flag in ("--val", "--compare"):
            more = [f"--val={tmp_path / f'{name}.beton'}", "--arch=small-4", "--size=16", "--batch_size=16"]
            if flag == "--compare":
                Selection.of_classes(Beton(runs / "train.beton"), np.array([0, 1]), method="lm", scores=np.arange(4.0)).save(
                    tmp_path / "lm.json"
                )
                more.append(f"--compare={tmp_path / 'lm.json'}")
            assert pretrain([f"--source={runs / 'train.beton'}", f"--out={tmp_path / 'p'}", *more]) == 2
        assert not (tmp_path / "p").exists() and not (tmp_path / "o").exists()
    fewer = arguments(runs, test=str(first_two(runs, tmp_path)))
    assert finetune(FinetuneConfig(out=str(tmp_path / "fewer"), mode="lp", epochs=1, **fewer))


def first_two(runs, tmp_path):
    """A test set of the first two classes only, which it numbers alike."""
    for c in (0, 1):
        shutil.copytree(runs / f"test/class{c}", tmp_path / f"two/class{c}")
    convert(str(tmp_path / "two"), str(tmp_path / "two.beton"))
    return tmp_path / "two.beton"


def test_knn_is_scikit_learns_with_these_weights():
    """Cosine distance d, weight exp((1 - d) / T): with the features normalised as scikit-learn's metric does it."""
    generator = torch.Generator().manual_seed(0)
    x, q = torch.randn(300, 12, generator=generator), torch.randn(1500, 12, generator=generator)
    y, truth = torch.randint(0, 7, (300,), generator=generator), torch.randint(0, 7, (1500,), generator=generator)
    for k, temperature in ((1, 0.07), (20, 0.5), (500, 1.0)):
        ours = knn_probe((x, y), (q, truth), 7, neighbours=k, temperature=temperature)
        model = KNeighborsClassifier(
            min(k, 300), metric="cosine", weights=lambda d, t=temperature: np.exp((1 - d) / t), algorithm="brute"
        )
        expected = model.fit(x.double().numpy(), y.numpy()).predict(q.double().numpy())
        assert (ours.predicted.numpy() == expected).mean() > 0.999  # equal votes but for rounding
        assert ours.last == ours.best == pytest.approx((ours.predicted == truth).float().mean().item())


@pytest.mark.parametrize("mode", ["lp", "ff", "knn"])
def test_accuracy_by_class_and_group(runs, tmp_path, mode):
    test = Beton(runs / "test.beton")
    groups = {int(i): "even" if i % 2 == 0 else "odd" for i in test.index}
    table = write_groups(tmp_path / "g.csv", [*groups.items(), (10_000, "elsewhere")])
    summary = finetune(FinetuneConfig(**arguments(runs, mode=mode, out=str(tmp_path / "o"), epochs=4, seeds=2, groups=table)))
    assert json.loads((tmp_path / "o/summary.json").read_text()) == summary
    counts = dict(zip(test.class_names, test.class_counts.tolist(), strict=True))
    total = sum(counts[name] * value for name, value in summary["per_class"].items())
    assert total / test.num_samples == pytest.approx(summary["top_1_mean"])
    sizes = {g: sum(v == g for v in groups.values()) for g in ("even", "odd")}
    assert set(summary["per_group"]) == set(sizes)
    assert sum(sizes[g] * v for g, v in summary["per_group"].items()) / test.num_samples == pytest.approx(summary["top_1_mean"])
    assert summary["worst_group_mean"] <= min(summary["per_group"].values()) + 1e-12
    assert summary["seeds"] == (1 if mode == "knn" else 2)


def test_by_key_against_a_loop():
    rng = np.random.default_rng(0)
    right, keys = rng.random((3, 50)) < 0.6, rng.integers(0, 6, 50)
    keys[keys == 4] = 5
    found = accuracy.by_key(right, keys, 6)
    for run in range(3):
        for key in range(6):
            mine = right[run][keys == key]
            assert np.isnan(found[run, key]) if key == 4 else found[run, key] == mine.mean()


def test_few_shots_are_balanced_drawn_anew_and_enough(runs, tmp_path):
    train = Beton(runs / "train.beton")
    for seed in range(3):
        records = few_shots(train, 5, seed)
        assert np.bincount(train.labels[records]).tolist() == [5] * 4 and (np.diff(records) > 0).all()
    assert few_shots(train, 5, 0).tolist() != few_shots(train, 5, 1).tolist()
    for mode in ("lp", "ff", "knn"):
        summary = finetune(FinetuneConfig(**arguments(runs, mode=mode, out=str(tmp_path / mode), epochs=2, seeds=2, shots=3)))
        assert summary["shots"] == 3 and len(summary["top_1"]) == 2
    with pytest.raises(UsageError, match=r"`shots=8`: class .* has only 7 images"):
        finetune(FinetuneConfig(**arguments(runs, mode="lp", out=str(tmp_path / "x"), shots=8)))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, "a")], "are missing"),
        ([("x", "a")], "not a number"),
        ([(0, "a"), (0, "b")], "with another group"),
    ],
)
def test_bad_group_tables(runs, tmp_path, rows, message):
    with pytest.raises(UsageError, match=message):
        accuracy.read_groups(write_groups(tmp_path / "g.csv", rows), Beton(runs / "test.beton"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="needs the columns"):
        accuracy.read_groups(str(tmp_path / "other.csv"), Beton(runs / "test.beton"))
    with pytest.raises(UsageError, match="cannot be read"):
        accuracy.read_groups(str(tmp_path / "none.csv"), Beton(runs / "test.beton"))


def test_a_data_set_of_torchvisions_by_name(runs, tmp_path, monkeypatch):
    """Converted once, beside --out, and used again."""
    import torchvision

    made = []

    class Digits(torchvision.datasets.VisionDataset):
        """Stands where torchvision's data sets do; small enough for a test."""

        classes = ("zero", "one", "two")

        def __init__(self, root, split="train"):
            made.append(split)
            super().__init__(root)

        def __len__(self):
            return 12

        def __getitem__(self, i):
            from PIL import Image

            return Image.new("RGB", (16, 16), (80 * (i % 3), 100, 50)), i % 3

    monkeypatch.setattr(torchvision.datasets, "DigitsForTest", Digits, raising=False)
    names = {s: f"torchvision:DigitsForTest?root={tmp_path}&split={s}" for s in ("train", "test")}
    for out in ("a", "b"):
        target = {"train": names["train"], "test": names["test"], "out": str(tmp_path / out)}
        summary = finetune(FinetuneConfig(**{**arguments(runs, mode="knn"), **target}))
        assert summary["per_class"] == {"zero": 1.0, "one": 1.0, "two": 1.0}
    assert len(list((tmp_path / ".dp4tl-cache").glob("*.beton"))) == 2


def test_report_shows_the_knn_probe(runs, tmp_path):
    finetune(FinetuneConfig(**arguments(runs, mode="knn", out=str(tmp_path / "knn"))))
    rows = report(dirs=[str(runs / "run"), str(tmp_path)], out=str(tmp_path / "r.html"))["rows"]
    assert rows[0]["knn_mean"] is not None and rows[0]["lp_mean"] is None
    assert "kNN %" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("flag", ["--neighbours=0", "--temperature=0", "--shots=-1", "--mode=svm"])
def test_bad_values(runs, tmp_path, flag, capsys):
    flags = [f"--{k}={v}" for k, v in arguments(runs, out=str(tmp_path / "o")).items()]
    assert main([*flags, flag]) == 2
    assert flag.split("=")[0].lstrip("-") in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
