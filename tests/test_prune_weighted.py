"""Soft mapping and several cuts: what goes into the files, and the runs that follow them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pruning_data import PER_CLASS, run
from safetensors.numpy import load_file
from small_runs import run as pretrain

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SelectionError, UsageError
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.selection import Selection
from dp4tl_fast.training import checkpoint

WEIGHTED = {"sample": "weighted"}


@pytest.fixture(scope="module")
def source(data):
    return Beton(data / "source.beton")


# -- several cuts ----------------------------------------------------------------------------------------------------


def test_several_cuts_in_one_call_are_those_of_one_call_each(data, tmp_path):
    keeps = ("0.5", "1", "samples:0.75", "auto")
    result = run(data, tmp_path / "s.json", "red", "blue", keep=", ".join(keeps))
    for keep in keeps:
        path = tmp_path / f"s.{keep.replace(':', '-')}.json"
        alone = run(data, tmp_path / "one.json", "red", "blue", keep=keep)
        told = result["per_keep"][keep]
        assert told["out"] == str(path) and told["kept_samples"] == alone["kept_samples"]
        files = [[path, *told["per_target"].values()], [tmp_path / "one.json", *alone["per_target"].values()]]
        for mine, its in zip(*files, strict=True):
            a, b = Selection.load(mine), Selection.load(its)
            assert replace(a, seconds={}) == replace(b, seconds={}) and a.parameters["keep"] == keep
    assert not (tmp_path / "s.json").exists() and result["kept_classes"] == Selection.load(tmp_path / "s.0.5.json").kept_classes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "0.5,0.5"}, "has the same value twice"), ({"keep": "0.5,"}, "`keep=`"), ({"keep": "0.5,2.5"}, "`keep=2.5`"),
        ({"keep": "1,2", "materialize": "m.beton"}, "copies one selection"),
        ({"sample": "soft"}, "whole or weighted"), ({"shares": "equal"}, "`sample=weighted`"),
        ({"smooth": 0.1}, "`sample=weighted`"),
        ({**WEIGHTED, "smooth": 1.5}, "from 0 to 1"), ({**WEIGHTED, "reverse": True}, "`shares=equal`"),
        ({**WEIGHTED, "method": "random"}, "has no votes"), ({**WEIGHTED, "method": "moderate"}, "single records"),
        ({"per_class": 3, "method": "moderate"}, "single records"), ({"per_class": -1}, "at least 0"),
        ({**WEIGHTED, "merge": "turns", "target": ["a", "b"]}, "the sum of votes"),
    ],
)  # fmt: skip
def test_refused(data, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        run(data, tmp_path / "s.json", **options)
    assert not list(tmp_path.glob("*.json"))


# -- weights ---------------------------------------------------------------------------------------------------------


def test_shares_are_those_of_the_votes(data, tmp_path, source):
    result = run(data, tmp_path / "s.json", "red", "blue", keep="0.5", method="fm", **WEIGHTED)
    votes = np.array(result["scores"])
    assert votes.sum() == 14 and (votes > 0).sum() >= 2
    assert sum(result["weights"]) == 2 * PER_CLASS  # an epoch costs what the hard cut's costs
    np.testing.assert_allclose(result["weights"], 24 * votes / 14, atol=1)
    selection = Selection.load(tmp_path / "s.json")
    assert selection.kept_classes == np.flatnonzero(votes).tolist() and selection.epoch_size == 24
    assert all(share["share"] == 1 for share in result["votes_kept"].values())  # every class with a vote is drawn from
    assert result["parameters"]["sample"] == "weighted" and "smooth" in result["parameters"]
    everything = run(data, tmp_path / "s.json", keep="0.5", smooth=1.0, **WEIGHTED)
    assert everything["weights"] == [6, 6, 6, 6]
    capped = run(data, tmp_path / "s.json", keep="0.5", smooth=0.3, per_class=9, **WEIGHTED)
    assert sum(capped["weights"]) == 24 and max(capped["weights"]) == 9
    fresh = run(data, tmp_path / "s.json", keep="3", per_class=5)
    assert sorted(fresh["weights"]) == [0, 5, 5, 5] and fresh["kept_samples"] == 3 * PER_CLASS
    assert "weights" not in json.loads((tmp_path / "s.json").read_text()) or Selection.load(tmp_path / "s.json").schema == 2
    run(data, tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["schema"] == 1  # what earlier versions read


def test_the_page_says_what_is_drawn(data, tmp_path):
    run(data, tmp_path / "s.json", report=str(tmp_path / "r.html"), **WEIGHTED)
    assert "every epoch draws 24 of the samples" in (tmp_path / "r.html").read_text()


def batches(source, selection, epoch=2):
    how = {"batch_size": 5, "size": 16, "transform": "random_resized_crop", "flip": True, "shuffle": True, "with_index": True}
    with open_loader(source, selection, LoaderSpec(**how)) as loader:
        loader.set_epoch(epoch)
        return [(x.numpy().tobytes(), y.tolist(), i.tolist()) for x, y, i in loader]


@pytest.mark.parametrize("groups", [{}, {"method": "fm", "groups": "kmeans", "clusters": 5}])
def test_without_smoothing_equal_shares_are_the_hard_cut_to_the_bit(data, tmp_path, source, groups):
    run(data, tmp_path / "hard.json", **groups)
    run(data, tmp_path / "soft.json", shares="equal", **WEIGHTED, **groups)
    hard, soft = Selection.load(tmp_path / "hard.json"), Selection.load(tmp_path / "soft.json")
    assert soft.weights and soft.kept_classes == hard.kept_classes
    assert batches(source, soft) == batches(source, hard)


def test_clusters_are_drawn_by_their_shares(data, tmp_path, source):
    clusters = {"method": "fm", "groups": "kmeans", "clusters": 5}
    result = run(data, tmp_path / "s.json", "red", "blue", keep="0.4", smooth=0.2, **clusters, **WEIGHTED)
    selection = Selection.load(tmp_path / "s.json")
    index = np.load(tmp_path / "s.json.groups.npz")["index"]
    drawn = np.array([i for *_, numbers in batches(source, selection) for i in numbers])
    record = {i: r for r, i in enumerate(source.index.tolist())}
    assert np.bincount(index[[record[i] for i in drawn.tolist()]], minlength=5).tolist() == result["weights"]
    side = tmp_path / "s.json.indices.npy"
    assert np.load(side).shape == (2, selection.kept_samples)


def test_files_of_weights_are_not_trusted(data, tmp_path):
    path = tmp_path / "s.json"
    run(data, path, **WEIGHTED)
    body = json.loads(path.read_text())
    assert body["schema"] == 2
    for change, message in (
        ({"weights": [*body["weights"][:-1], -1]}, "whole numbers from 0"), ({"weights": []}, "whole numbers"),
        ({"weights": [0.5] * 4}, "whole numbers"), ({"weights": [10**9] * 4}, "1000 times"),
        ({"weights": [1, 0, 0, 1]}, "for no others"),
        ({"schema": 1}, "only those of schema 2 have weights"), ({"schema": 3}, "selection schema 3, but only 1 and 2 are known"),
    ):  # fmt: skip
        path.write_text(json.dumps(body | change))
        with pytest.raises(SelectionError, match=message):
            Selection.load(path)
    path.write_text(json.dumps({k: v for k, v in body.items() if k != "weights"}))
    with pytest.raises(SelectionError, match="only those of schema 2"):
        Selection.load(path)
    run(data, path, method="fm", groups="kmeans", clusters=5, **WEIGHTED)
    other = json.loads(path.read_text())
    path.write_text(json.dumps(other | {"weights": [w + 1 for w in other["weights"]]}))
    with pytest.raises(SelectionError, match="its groups are not those"):
        Selection.load(path)


def test_what_a_weighted_selection_cannot_do(data, tmp_path, source):
    run(data, tmp_path / "w.json", **WEIGHTED)
    run(data, tmp_path / "h.json")
    weighted, hard = Selection.load(tmp_path / "w.json"), Selection.load(tmp_path / "h.json")
    for attempt in (weighted.union, hard.intersect, lambda _, source: weighted.top(1, source)):
        with pytest.raises(SelectionError, match="cannot be cut or combined"):
            attempt(hard if attempt == weighted.union else weighted, source)
    split = weighted.for_split(source)
    assert not split.weights and len(batches(source, split)) == -(-split.kept_samples // 5)
    assert weighted.kept_sha256 != replace(weighted, weights=[w * 2 for w in weighted.weights]).kept_sha256


# -- the cut follows from the budget --------------------------------------------------------------------------------


def test_pretrain_takes_its_epochs_from_the_budget(data, tmp_path):
    pruned = run(data, tmp_path / "s.json", "red", "blue", method="fm", keep="auto", budget="2epochs")
    assert pruned["parameters"] | {"budget_images": 96, "keep": "auto within 2epochs"} == pruned["parameters"]
    kept = pruned["kept_samples"]
    assert 2 * PER_CLASS <= kept <= 48
    done = pretrain(data / "source.beton", tmp_path / "r", epochs=0, selection=str(tmp_path / "s.json"))
    assert done["epochs"] == 96 // kept and done["epochs"] * done["samples"] <= 96
    assert pretrain(data / "source.beton", tmp_path / "r", epochs=0, selection=str(tmp_path / "s.json"), resume=True) == done
    given = pretrain(data / "source.beton", tmp_path / "e", epochs=1, selection=str(tmp_path / "s.json"))
    assert given["epochs"] == 1
    both = pretrain(data / "source.beton", tmp_path / "c", epochs=0, compare=str(tmp_path / "s.json"))
    epochs = {Path(name).name: s["epochs"] for name, s in both["runs"].items()}
    assert epochs == {"full": 2, "s": 96 // kept}  # as many images
    weighted = run(data, tmp_path / "w.json", method="fm", keep="auto", budget="480images", sample="weighted")
    assert Selection.load(tmp_path / "w.json").epochs == 480 // sum(weighted["weights"])


@pytest.mark.parametrize(("images", "epochs", "note"), [(100, {"full": 2, "s": 2}, ""), (40, {"full": 1, "s": 1}, "40 images")])
def test_the_full_source_has_the_whole_budget(data, tmp_path, images, epochs, note, capsys):
    """36 of 48 records are kept: what an epoch of them leaves of the budget is not taken from the full source."""
    run(data, tmp_path / "s.json", keep="3")
    body = json.loads((tmp_path / "s.json").read_text())
    body["parameters"]["budget_images"] = images
    (tmp_path / "s.json").write_text(json.dumps(body))
    both = pretrain(data / "source.beton", tmp_path / "c", epochs=0, compare=str(tmp_path / "s.json"))
    assert {Path(name).name: s["epochs"] for name, s in both["runs"].items()} == epochs
    assert (f"s.json is for {note}; the full source trains on 48, one epoch" in capsys.readouterr().err) == bool(note)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "auto", "budget": "0"}, "`budget=0`"), ({"keep": "auto", "budget": "2hours"}, "`images_per_s`"),
        ({"keep": "auto", "budget": "20images"}, "less than one epoch of the first two classes, which have 24 records"),
        ({"keep": "0.5", "budget": "2epochs"}, "give one of them"), ({"keep": "", "budget": "2epochs"}, "`budget=2epochs`"),
        ({"keep": "auto", "budget": "2", "method": "random"}, "no votes"),
        ({"keep": "auto", "budget": "2hours", "images_per_s": float("inf")}, "`images_per_s=inf`"),
    ],
)  # fmt: skip
def test_budgets_refused(data, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        run(data, tmp_path / "s.json", **options)
    assert not (tmp_path / "s.json").exists()


def test_a_budget_in_a_file_is_not_trusted(data, tmp_path):
    path = tmp_path / "s.json"
    run(data, path)
    body = json.loads(path.read_text())
    for bad in ("many", -1, 1.5, True):
        path.write_text(json.dumps(body | {"parameters": body["parameters"] | {"budget_images": bad}}))
        with pytest.raises(SelectionError, match="budget_images a whole number"):
            Selection.load(path)


# -- training on it --------------------------------------------------------------------------------------------------


def weights_of(out):
    return {k: v.tobytes() for k, v in load_file(checkpoint.find_weights(out)).items()}


@pytest.mark.parametrize("how", ["weighted", "rs2"])
def test_a_run_on_drawn_epochs_resumes_exactly(data, tmp_path, how, monkeypatch):
    options = {"epoch_samples": 20}
    if how == "weighted":
        run(data, tmp_path / "s.json", "red", "blue", method="fm", smooth=0.2, **WEIGHTED)
        options = {"selection": str(tmp_path / "s.json")}
    size = 20 if how == "rs2" else 24
    whole = pretrain(data / "source.beton", tmp_path / "whole", **options)
    assert whole["samples"] == size
    rows = [json.loads(row) for row in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in rows] == [size // 8 * 8] * 3
    stop_after(monkeypatch, 3)  # steps: in the second epoch
    with pytest.raises(KeyboardInterrupt):
        pretrain(data / "source.beton", tmp_path / "halves", **options)
    monkeypatch.undo()
    pretrain(data / "source.beton", tmp_path / "halves", resume=True, **options)
    assert weights_of(tmp_path / "halves") == weights_of(tmp_path / "whole")


def stop_after(monkeypatch, steps):
    from contextlib import contextmanager

    from dp4tl_fast.training import loop

    @contextmanager
    def graceful(*signals):
        calls = iter(range(10**6))
        yield lambda: next(calls) + 1 >= steps

    monkeypatch.setattr(loop, "graceful_stop", graceful)


def test_epochs_of_a_run_that_cannot_be(data, tmp_path):
    run(data, tmp_path / "s.json", **WEIGHTED)
    for options, message in (
        ({"epoch_samples": 49}, "more than the 48 surviving records"),
        ({"epoch_samples": 7}, "larger than the 7 records of an epoch"), ({"epoch_samples": -1}, "at least 0"),
        ({"epoch_samples": 24, "forgetting": True}, "leaves some out"),
        ({"epoch_samples": 24, "selection": str(tmp_path / "s.json")}, "is weighted"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            pretrain(data / "source.beton", tmp_path / "r", **options)
        assert not (tmp_path / "r").exists()


def test_a_run_of_a_version_without_an_option_goes_on(data, tmp_path):
    import yaml

    done = pretrain(data / "source.beton", tmp_path / "r", epochs=1)
    config = tmp_path / "r/config.yaml"
    settings = yaml.safe_load(config.read_text())
    del settings["epoch_samples"]
    config.write_text(yaml.safe_dump(settings))
    assert pretrain(data / "source.beton", tmp_path / "r", epochs=1, resume=True) == done
    with pytest.raises(UsageError, match="epoch_samples was 0, now 24"):
        pretrain(data / "source.beton", tmp_path / "r", epochs=1, resume=True, epoch_samples=24)
