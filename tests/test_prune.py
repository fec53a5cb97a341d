"""The prune command on small real files: every method, clusters, several targets, keep rules."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pruning_data import PER_CLASS, forward_passes, run

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.copying import subset as copy_records
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.stopwatch import Stopwatch
from dp4tl_fast.mapping.registry import METHODS, Scores
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.run import pretrain
from dp4tl_fast.pruning.choose import KeptVotes, kept_votes
from dp4tl_fast.selection import Selection
from dp4tl_fast.training import checkpoint


@pytest.mark.parametrize("method", METHODS)
def test_every_method_by_one_command(data, tmp_path, method):
    (tmp_path / "scores.csv").write_text("class,score\nclass0,3\nclass1,1\n2,7\nclass3,2\n")
    options = {"classes": ["class1", "3"]} if method == "handpicked" else {}
    options |= {"scores": str(tmp_path / "scores.csv")} if method == "influence" else {}
    result = run(data, tmp_path / "s.json", method=method, keep="0.5", clusters=6, **options)
    source, selection = Beton(data / "source.beton"), Selection.load(tmp_path / "s.json")
    assert len(selection.indices(source)) == selection.kept_samples == result["kept_samples"] == 2 * PER_CLASS
    assert result["method"] == method
    if method in ("lm", "fm"):
        assert selection.kept_classes[0] == 0 and sum(selection.scores) == 9  # red pictures are nearest to red
    if method == "handpicked":
        assert selection.kept_classes == [1, 3]
    if method == "influence":
        assert selection.kept_classes == [0, 2]
    reverse = run(data, tmp_path / "r.json", method=method, keep="0.5", clusters=6, reverse=True, **options)
    assert reverse["kept_samples"] == 2 * PER_CLASS
    other = Selection.load(tmp_path / "r.json").indices(source)
    assert not np.isin(other, selection.indices(source)).any()  # the halves are complements


def test_fm_equals_ten_lines_of_numpy(data, tmp_path):
    """From images to votes: the features are the network's own, the rest is NumPy."""
    result = run(data, tmp_path / "fm.json", "red", "blue", method="fm")
    model, _ = checkpoint.load_model(data / "surrogate")
    model.fc = torch.nn.Identity()
    votes = np.zeros(4, int)
    x, y = features(model, data / "source.beton")
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    for target in ("red", "blue"):
        t, _ = features(model, data / f"{target}.beton")
        votes += np.bincount(((t[:, None] - means[None]) ** 2).sum(2).argmin(1), minlength=4)
    assert result["scores"] == votes.tolist()


def features(model, path):
    from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD, LoaderSpec, open_loader

    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with open_loader(path, None, LoaderSpec(size=16, crop_ratio=1.0, workers=1)) as loader, torch.inference_mode():
        pairs = [(model(torch.from_numpy((i.numpy() / 255 - mean) / std).float()), y) for i, y in loader]
    return np.concatenate([f.numpy() for f, _ in pairs]).astype(float), np.concatenate([y.numpy() for _, y in pairs])


# -- clusters ---------------------------------------------------------------------------------------------------------


def test_clusters_are_kept_whole_saved_and_reused(data, tmp_path):
    result = run(data, tmp_path / "a.json", method="fm", groups="kmeans", clusters=5, keep="1")
    selection, source = Selection.load(tmp_path / "a.json"), Beton(data / "source.beton")
    saved = np.load(tmp_path / "a.json.groups.npz", allow_pickle=False)
    assert saved["centroids"].shape == (5, 16) and saved["index"].shape == (48,) and saved["votes"].sum() == 9
    best = int(saved["votes"].argmax())
    assert result["parameters"]["kept_clusters"] == [best]
    assert selection.indices(source).tolist() == np.flatnonzero(saved["index"] == best).tolist()
    again = run(data, tmp_path / "b.json", "blue", method="fm", groups=str(tmp_path / "a.json.groups.npz"), keep="1")
    reused = np.load(tmp_path / "b.json.groups.npz", allow_pickle=False)
    assert np.array_equal(saved["centroids"], reused["centroids"]) and np.array_equal(saved["index"], reused["index"])
    assert again["parameters"]["kept_clusters"] != [best]
    for bad in ("nonsense", str(tmp_path / "a.json")):
        with pytest.raises(UsageError, match="`groups="):
            run(data, tmp_path / "c.json", method="fm", groups=bad)


def test_two_processes_choose_what_one_does(data, tmp_path):
    """Under torchrun, with batches that do not divide the records, cold and from the cache."""

    def under_torchrun(out, *more):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "dp4tl_fast.prune"]
        flags = [f"--source={data / 'source.beton'}", f"--target={data / 'red.beton'}", f"--surrogate={data / 'surrogate'}",
                 f"--out={out}", "--workers=1", "--batch-size=5", "--json", *more]  # fmt: skip
        done = subprocess.run(command + flags, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 1  # one process speaks
        return json.loads(lines[0])

    alone = run(data, tmp_path / "a.json", method="fm", groups="kmeans", clusters=5, keep="2", cache="none")
    flags = ("--method=fm", "--groups=kmeans", "--clusters=5", "--keep=2")
    cold = under_torchrun(tmp_path / "two/b.json", *flags)
    warm = under_torchrun(tmp_path / "two/c.json", *flags)
    spent = cold["profile"]["loading"] + cold["profile"]["forward"]  # and K-means; not the moment that copying took
    assert warm["seconds"]["cached"] > spent and "cached" not in cold["seconds"]
    source = Beton(data / "source.beton")
    records = [Selection.load(tmp_path / p).indices(source).tolist() for p in ("a.json", "two/b.json", "two/c.json")]
    assert records[0] == records[1] == records[2]
    assert alone["parameters"]["cluster_votes"] == cold["parameters"]["cluster_votes"]
    # The same network in batches of another size: float32 sums in another order.
    a, b = (np.load(tmp_path / p)["centroids"] for p in ("a.json.groups.npz", "two/b.json.groups.npz"))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# -- where the time goes ----------------------------------------------------------------------------------------------


def test_every_moment_belongs_to_the_innermost_section(monkeypatch):
    ticks = iter([0, 1, 3, 6, 10, 15])
    monkeypatch.setattr("dp4tl_fast.common.stopwatch.time.perf_counter", lambda: next(ticks))
    watch = Stopwatch("outer")
    with watch.section("middle"), watch.section("inner"):
        pass
    assert watch.lap() == {"outer": 1 + 5, "middle": 2 + 4, "inner": 3}


def test_the_profile_adds_up(data, tmp_path):
    cold = run(data, tmp_path / "a.json")["profile"]
    warm = run(data, tmp_path / "b.json")["profile"]
    parts = ["start", "loading", "forward", "counting", "selection", "writing"]
    assert list(cold) == [*parts, "total", "overhead"] and cold["total"] == pytest.approx(sum(cold[p] for p in parts))
    rest = sum(cold[p] for p in parts if p not in ("start", "forward"))
    assert cold["overhead"] == pytest.approx(rest / cold["forward"])
    assert list(warm) == [*(p for p in parts if p not in ("loading", "forward")), "total"]  # nothing to be compared with


# -- several targets --------------------------------------------------------------------------------------------------


def test_several_targets_in_one_pass(data, tmp_path, monkeypatch):
    calls = forward_passes(monkeypatch)
    result = run(data, tmp_path / "s.json", "red", "blue", method="fm", merge="turns")
    assert sorted(calls) == ["blue.beton", "red.beton", "source.beton"]
    assert result["kept_classes"] == [0, 2] and [t["name"] for t in result["targets"]] == ["red.beton", "blue.beton"]
    each = {k: Selection.load(v) for k, v in result["per_target"].items()}
    assert each[str(data / "red.beton")].kept_classes[0] == 0 and len(each) == 2
    alone = run(data, tmp_path / "alone.json", "blue", method="fm")
    assert alone["scores"] == each[str(data / "blue.beton")].scores
    (tmp_path / "other").mkdir()
    for name in ("red.beton", "red.info.zip"):
        (tmp_path / "other" / name).write_bytes((data / name.replace("red", "blue")).read_bytes())
    twins = run(data, tmp_path / "t.json", method="fm", target=[str(data / "red.beton"), str(tmp_path / "other/red.beton")])
    assert [Selection.load(p).scores for p in twins["per_target"].values()] == [s.scores for s in each.values()]
    for again in ("red.beton", "../" + data.name + "/red.beton"):
        with pytest.raises(UsageError, match="given twice"):
            run(data, tmp_path / "t.json", target=[str(data / "red.beton"), str(data / again)])
    named = [run(data, tmp_path / n, "red", "blue", method="fm", keep=k)["per_target"] for n, k in (("s-0.4", "1"), ("s-0.2", "2"))]
    assert len({path for paths in named for path in paths.values()}) == 4  # a dot in a name is no suffix to replace
    with pytest.raises(UsageError, match=r"t\.red\.json`: is also an input"):
        run(data, tmp_path / "t.json", "red", "blue", surrogate=str(tmp_path / "t.red.json"))
    union = run(data, tmp_path / "u.json", "red", "blue", method="fm", merge="union", keep="1")
    assert union["kept_classes"] == [0, 2]


@pytest.mark.parametrize("method", ["lm", "fm"])
def test_the_share_of_each_target_that_is_kept(data, tmp_path, capsys, method):
    result = run(data, tmp_path / "s.json", "red", "blue", method=method, keep="1")
    red, blue = (str(data / f"{name}.beton") for name in ("red", "blue"))
    kept = {path: Selection.load(result["per_target"][path]).scores[0] / n for path, n in ((red, 9), (blue, 5))}
    assert result["kept_classes"] == [0] and kept[red] > kept[blue]
    for path, name in ((red, "class0"), (blue, "class2")):  # a target of one class
        assert result["votes_kept"].pop(path) == {"share": kept[path], "per_class": {name: kept[path]}}
    assert result["votes_kept"] == {}
    assert f"red.beton: the kept classes have {kept[red]:.0%} of the votes\n" in capsys.readouterr().err
    assert run(data, tmp_path / "c.json", "red", method="cmt")["votes_kept"] == {}  # counts no votes


def test_target_classes_that_are_served_least_are_named():
    votes = np.array([[3, 1], [0, 0], [1, 3], [4, 0]])  # of four target classes for two source classes
    found = kept_votes(Scores(np.zeros(2), votes_by_target_class=lambda: votes), np.array([0]), ["cat", "dog", "elk", "fox"])
    assert found == KeptVotes(8 / 12, {"cat": 0.75, "elk": 0.25, "fox": 1.0})  # no dog was seen
    assert str(found) == "67% of the votes; least of elk 25%"


def test_a_target_that_is_like_nothing_in_the_source_is_refused(data, tmp_path):
    """A copy without the target's class keeps the list of classes, and the surrogate votes for what is gone."""
    copy_records(Beton(data / "source.beton"), np.flatnonzero(Beton(data / "source.beton").labels % 2), tmp_path / "odd.beton")
    for options in ({}, {"sample": "weighted"}, {"keep": "auto"}, {"keep": "auto", "budget": "9epochs"}):
        with pytest.raises(UsageError, match=r"red\.beton: none of its 9 images is most like classes that have records"):
            run(data, tmp_path / "s.json", source=str(tmp_path / "odd.beton"), **{"keep": "1", **options})
    assert not (tmp_path / "s.json").exists()


# -- rules, surrogates, outputs ---------------------------------------------------------------------------------------


def test_budget_auto_and_materialize(data, tmp_path):
    result = run(data, tmp_path / "b.json", keep="", budget=0.5, materialize=str(tmp_path / "m.beton"))
    copy, source = Beton(tmp_path / "m.beton"), Beton(data / "source.beton")
    assert result["kept_samples"] == copy.num_samples == 24
    records = Selection.load(tmp_path / "b.json").indices(source)
    assert copy.labels.tolist() == source.labels[records].tolist()
    assert all(copy.payload(i).tobytes() == source.payload(r).tobytes() for i, r in enumerate(records))
    assert run(data, tmp_path / "a.json", keep="auto")["kept_classes"][0] == 0


def test_pretraining_on_single_records(data, tmp_path):
    """Only the surviving records are read, and the run is tied to them, not to their classes alone."""

    def train(selection, **more):
        return pretrain(
            PretrainConfig(
                source=str(data / "source.beton"), val=str(data / "source.beton"), selection=str(selection), arch="small-4",
                size=16, batch_size=4, epochs=1, out=str(tmp_path / "r"), tensorboard=False, workers=1, **more,
            )
        )  # fmt: skip

    run(data, tmp_path / "a.json", method="moderate", keep="0.5")
    run(data, tmp_path / "b.json", method="moderate", keep="0.5", reverse=True)
    assert Selection.load(tmp_path / "a.json").kept_classes == Selection.load(tmp_path / "b.json").kept_classes
    assert train(tmp_path / "a.json")["samples"] == 24
    assert json.loads((tmp_path / "r/metrics.jsonl").read_text())["samples"] == 24
    with pytest.raises(UsageError, match="selection_records_sha256"):
        train(tmp_path / "b.json", resume=True)
