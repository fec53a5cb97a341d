"""The suites that train, on a few coloured pictures: the whole chain, and what they record."""

import json
from dataclasses import replace

import pytest
import torch
from pruning_data import images

from benchmarks import end_to_end, objectives, pruning, recipes, sensitivity
from benchmarks.harness import Suite
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping.registry import METHODS
from dp4tl_fast.pretraining.config import MocoConfig

SMALL = {"arch": "small-4", "size": 16, "batch_size": 8, "epochs": 2, "workers": 1}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Folders named like the real data, and settings that take seconds."""
    folder = tmp_path / "data"
    images(folder / "tiny-imagenet/train", range(4), 16, 0)
    images(folder / "tiny-imagenet/val", range(4), 4, 3)
    images(folder / "cifar10/train", [0, 2], 12, 1)
    images(folder / "cifar10/test", [0, 2], 8, 2)
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny(recipes.SMALL_16))
    return folder


def tiny(recipe):
    """The same with settings that take seconds."""
    short = {"lp": {"epochs": 2}, "ff": {"epochs": 2}, "knn": {}}
    return replace(
        recipe, name="tiny", network={**recipe.network, **SMALL}, surrogate={**recipe.surrogate, **SMALL, "epochs": 4},
        transfer={mode: {**recipe.transfer[mode], **how, "size": 16, "workers": 1} for mode, how in short.items()},
        moco_epochs=2, adversarial_epochs=2, seeds=(0,),
    )  # fmt: skip


def table(suite):
    return {(row.case, row.subject): row for row in suite.rows}


def test_end_to_end_compares_with_the_full_run(data, monkeypatch, tmp_path):
    monkeypatch.setattr(end_to_end, "KEEP", ("0.5",))
    monkeypatch.setattr(end_to_end, "LONGER", (("lm", "0.5"),))
    monkeypatch.setattr(end_to_end, "RULES", ("auto",))
    monkeypatch.setattr(end_to_end, "SEEDS", (0, 1))
    suite = Suite(name="end_to_end", recipe="tiny", data=data, work=tmp_path / "work")
    end_to_end.run(suite)
    rows = table(suite)
    subjects = {"full", "lm 50 %", "fm 50 %", "random 50 %", "lm auto", "lm 50 %, 4 epochs"}
    costs = {"classes", "images seen", "pretraining", "pretraining with pruning", "bytes read"}
    rates = {"images per second", "waiting for data", "cifar10 linear probe", "cifar10 full finetuning"}
    assert {key for key in rows if key[0] != "votes carried"} == {(c, s) for c in costs | rates for s in subjects}
    assert {row.rounds for key, row in rows.items() if key[0] != "votes carried"} == {2}
    assert [rows["classes", f"{m} 50 %"].value for m in ("lm", "fm", "random")] == [2, 2, 2]
    assert rows["images seen", "full"].value == 2 * 64 == rows["images seen", "lm 50 %, 4 epochs"].value
    assert rows["bytes read", "lm 50 %"].value < 0.6 * rows["bytes read", "full"].value
    assert rows["votes carried", "lm auto"].value >= 90
    assert rows["pretraining with pruning", "lm 50 %"].value > rows["pretraining", "lm 50 %"].value
    assert suite.settings["recipe"] == "tiny" and suite.settings["seeds"] == 2 and suite.settings["network"]["epochs"] == 2
    assert {r["name"] for r in suite.comparison} == {"full", "lm", "fm", "random"}
    goals = {goal.id: goal.measured for goal in suite.goals}
    assert goals.pop("end_to_end/speedup-at-50") == rows["pretraining with pruning", "lm 50 %"].ratio
    for method in ("lm", "fm"):
        lost = _mean(tmp_path, "full") - _mean(tmp_path, f"{method} 50 %")
        assert goals.pop(f"end_to_end/lossless-ratio-{method}") == (0.5 if lost <= end_to_end.LOSS else 0.0)
    assert not goals


def _mean(tmp_path, case):
    """Of the linear probes' own summaries, in percent."""
    folders = (tmp_path / "work/end_to_end/runs" / f"{case}-{seed}-lp" for seed in (0, 1))
    return sum(100 * json.loads((f / "summary.json").read_text())["top_1_mean"] for f in folders) / 2


def test_a_study_goes_on_where_it_was(data, monkeypatch, tmp_path):
    """What is finished in --work is read, not done again: the same numbers come out, seconds included."""
    monkeypatch.setattr(sensitivity, "CLUSTERS", (3,))
    known = {"surrogate": "small-4", "resnet18": "small-8"}
    monkeypatch.setattr(sensitivity, "surrogates", lambda r: {n: {**r.surrogate, "arch": a} for n, a in known.items()})
    monkeypatch.setattr(sensitivity, "KEEP", "samples:0.5")

    def run():
        suite = Suite(name="sensitivity", recipe="tiny", data=data, work=tmp_path / "work")
        sensitivity.run(suite)
        return table(suite)

    rows = run()
    subjects = ["lm by surrogate", "lm by resnet18", "lm reversed", "fm, class means", "fm, 3 clusters", "random"]
    assert [s for case, s in rows if case == "cifar10 linear probe"] == subjects
    assert rows["kept classes of lm by resnet18 that are kept", "resnet18"].value == 100
    assert rows["rank correlation of the votes with resnet18's", "resnet18"].value == pytest.approx(1)
    assert run() == rows


def test_objectives_without_labels_and_robust(data, monkeypatch, tmp_path):
    monkeypatch.setattr(objectives, "SEEDS", (0,))
    monkeypatch.setattr(objectives, "CLUSTERS", 4)
    monkeypatch.setattr(objectives, "MOCO", {**objectives.MOCO, "moco": MocoConfig(queue=16)})
    suite = Suite(name="objectives", recipe="tiny", data=data)
    objectives.run(suite)
    accuracies = {(row.suite, row.case): row.rounds for row in suite.rows if row.case.startswith("cifar10")}
    assert accuracies == {
        ("objectives/moco", "cifar10 linear probe"): 1,
        ("objectives/moco", "cifar10 nearest neighbours"): 1,
        ("objectives/adversarial", "cifar10 linear probe"): 1,
        ("objectives/adversarial", "cifar10 full finetuning"): 1,
    }
    assert suite.settings.keys() == {"moco", "adversarial"}
    images_seen = {(r.suite.split("/")[1], r.subject): r.value for r in suite.rows if r.case == "images seen"}
    assert images_seen["moco", "full"] == 128 and images_seen["adversarial", "random 50 %"] == 64


def test_pruning_measures_every_method(data, monkeypatch):
    monkeypatch.setattr(pruning, "UNTRAINED", (("small-4", 16),))
    monkeypatch.setattr(pruning, "trained", lambda recipe: {**recipe.surrogate, "forgetting": True})
    for name, how in pruning.VARIANTS.items():
        monkeypatch.setitem(pruning.VARIANTS, name, {**how, "clusters": 3} if "clusters" in how else how)
    suite = Suite(name="pruning", recipe="tiny", data=data)
    pruning.run(suite)
    rows = table(suite)
    assert {s for case, s in rows if case == "seconds per method"} == {*METHODS, "fm, kmeans"}
    assert rows["overhead of label mapping", "small-4 at 16 pixels"].rounds == 5
    assert {row.subject for row in suite.rows if row.case == "another ratio"} == {"lm", "fm"}
    assert {goal.id for goal in suite.goals} == {"pruning/overhead-small-4-at-16-pixels", "pruning/another-ratio-seconds"}
    assert {suite.settings["kept by lm"], suite.settings["kept by fm"]} <= {f"class{c}" for c in range(4)}


def test_the_recipe_is_chosen_by_the_device_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert recipes.find("auto") is recipes.SMALL_16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert recipes.find("auto") is recipes.RESNET18 and recipes.find("small-16") is recipes.SMALL_16
    with pytest.raises(UsageError, match="--recipe huge: known are auto, small-16"):
        recipes.find("huge")
