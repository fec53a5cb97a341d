"""The suites that train, on a few coloured pictures: the whole chain, and what they record."""

import json
from dataclasses import replace

import pytest
import torch
from pruning_data import images

from benchmarks import cells, end_to_end, end_to_end_page, objectives, pruning, recipes, sensitivity, study, targets
from benchmarks.__main__ import main
from benchmarks.harness import Part, Suite
from benchmarks.paired import Outcomes, difference
from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping.registry import METHODS
from dp4tl_fast.selection import Selection

pytestmark = pytest.mark.slow

SMALL = {"arch": "small-4", "size": 16, "batch_size": 4, "workers": 1}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Folders named like the real data, and settings that take seconds. The source has 4 classes of 16 images."""
    folder = tmp_path / "data"
    images(folder / "tiny-imagenet/train", range(4), 22, 0)
    images(folder / "tiny-imagenet/val", range(4), 3, 3)
    images(folder / "flowers17/train", [1, 3], 6, 1)
    images(folder / "flowers17/test", [1, 3], 5, 2)
    monkeypatch.setattr(targets, "HELD_OUT", 6)
    monkeypatch.setattr(targets, "TRAIN", 4)
    near = targets.Target(classes=("class0", "class2"))
    monkeypatch.setattr(targets, "TARGETS", {"near": near, "flowers": targets.TARGETS["flowers"]})
    for suite in (end_to_end, objectives, sensitivity):
        monkeypatch.setattr(suite, "TARGETS", ("near", "flowers"))
        monkeypatch.setattr(suite, "SEEDS", (0, 1))
    monkeypatch.setattr(study, "TRIAL_RECORDS", 8)
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny(recipes.SMALL_16))
    return folder


def tiny(recipe):
    """The same with settings that take seconds."""
    short = {"lp": {"epochs": 2, "seeds": 1}, "ff": {"epochs": 1}, "knn": {}}
    return replace(
        recipe, name="tiny", network={**recipe.network, **SMALL, "epochs": 4}, surrogate={**recipe.surrogate, **SMALL, "epochs": 4},
        transfer={mode: {**recipe.transfer[mode], **how, "size": 16, "workers": 1} for mode, how in short.items()},
        objective_epochs=4, strong={**recipe.strong, **SMALL, "arch": "small-8", "epochs": 2},
    )  # fmt: skip


def table(suite):
    return {(row.case, row.subject): row for row in suite.rows}


def test_no_image_is_in_the_source_and_in_a_target(data, tmp_path):
    files = targets.build(data, tmp_path / "files", ["near", "flowers"])
    betons = {name: Beton(path) for name, path in files.items()}
    bytes_of = {name: {b.payload(i).tobytes() for i in range(b.num_samples)} for name, b in betons.items()}
    assert {name: b.num_samples for name, b in betons.items()} == {
        "source": 4 * 16, "val": 12, "near-train": 2 * 4, "near-test": 2 * (2 + 3), "flowers-train": 12, "flowers-test": 10,
    }  # fmt: skip
    assert betons["near-test"].class_names == ["class0", "class2"]
    for a, b in [("source", "near-train"), ("source", "near-test"), ("near-train", "near-test")]:
        assert not bytes_of[a] & bytes_of[b]
    assert [path.suffix for path in (tmp_path / "files").iterdir() if path.is_dir()] == []  # the links are gone
    with pytest.raises(UsageError, match="target dogs: known are near, flowers"):
        targets.build(data, tmp_path / "files", ["dogs"])
    with pytest.raises(UsageError, match=r"no such folder\. Unpack the data set below --data"):
        targets.build(tmp_path, tmp_path / "other", ["near"])


@pytest.fixture
def halves(monkeypatch):
    """Cells that four classes can be cut for."""
    monkeypatch.setattr(end_to_end, "LARGE", 0.5)
    monkeypatch.setattr(end_to_end, "MIDDLE", 0.25)
    monkeypatch.setattr(end_to_end, "SMALL", 0.25)


def test_the_clock_takes_out_how_fast_the_machine_was_in_a_round():
    seconds, pace = {"a": 2.0, "b": 4.0, "c": 5.0}, [1, 2, 3, 4, 2.5]
    assert study.typical({name: [x * p for p in pace] for name, x in seconds.items()}) == {n: 2.5 * x for n, x in seconds.items()}
    one_late = study.typical({"a": [2, 4, 6, 80, 5], "b": [4, 8, 12, 16, 10], "c": [5, 10, 15, 20, 12.5]})
    assert one_late == pytest.approx({"a": 5, "b": 10, "c": 12.5})


def test_end_to_end_in_parts(data, halves, tmp_path, monkeypatch, capsys):
    """What is finished in --work counts in every later result; everything is counted, nothing done twice."""

    def run(**part):
        suite = Suite(name="end_to_end", recipe="tiny", data=data, work=tmp_path / "work", part=Part(**part))
        end_to_end.run(suite)
        return suite

    run(cells=("full@*", "random-50@0.25"), seeds=(0,))
    assert "4 runs to do, about " in capsys.readouterr().err
    short = run(targets=("near",), seeds=(0,), cells=("lm-50@0.25",))
    assert {goal.id for goal in short.goals} == {"end_to_end/vs-random-near", "end_to_end/vs-full-equal-time-near"}
    beyond = ("lm-25@0.25", "lm-50-infobatch@0.5", "lm-50@0.5")
    suite = run(cells=("full@*", "random-50@0.25", "lm-50@0.25", "lm-reversed*", "fm-50@0.25", "soft@0.25", "rs2@0.25", *beyond))
    told = capsys.readouterr().err
    assert "full@1 for all targets, seed 0" not in told and "full@1 for all targets, seed 1" in told
    rows = table(suite)
    quarter = {s for case, s in rows if case == "near, a quarter of the full run's steps"}
    assert quarter == {"full", "random 50 %", "lm 50 %", "lm reversed 50 %", "fm 50 %", "soft", "rs2", "lm 25 %"}
    assert {row.rounds for row in suite.rows if "steps" in row.case and row.unit in ("s", "% top-1")} == {2}
    outcomes = {(o["cell"], o["target"], o["seed"]): o for o in suite.tables["outcomes"]}
    whole, mapped = outcomes["full@1", "near", 0], outcomes["lm-50@0.25", "near", 0]
    assert whole["images"] == 4 * 64 and whole["surrogate_s"] == whole["scoring_s"] == 0
    assert mapped["images"] == 64 and mapped["classes"] == 2 and mapped["surrogate_s"] > 0 and mapped["scoring_s"] > 0
    assert outcomes["rs2@0.25", "near", 0]["images"] == outcomes["soft@0.25", "near", 0]["images"] == 64
    assert outcomes["full@0.25", "near", 1]["pretrain_s"] == outcomes["full@0.25", "flowers", 1]["pretrain_s"]  # shared

    found = Outcomes([cells.Outcome(**o) for o in suite.tables["outcomes"]], 2)
    goals = {goal.id: goal.measured for goal in suite.goals}
    for target in ("near", "flowers"):
        points = [outcomes[c, target, s]["top_1"]["lp"] for s in (0, 1) for c in ("lm-50@0.25", "random-50@0.25")]
        assert goals.pop(f"end_to_end/vs-random-{target}") == pytest.approx((points[0] + points[2] - points[1] - points[3]) / 2)
        lossless = found.first_within(0.5, "full@1", end_to_end.pruned(end_to_end.cells()), target, 1 / 2)
        assert goals.pop(f"end_to_end/lossless-speedup-{target}") == lossless[1]
        goals.pop(f"end_to_end/vs-full-equal-time-{target}")
    close = 0
    for target in ("near", "flowers"):
        picked = []
        for seed in (0, 1):
            made = Selection.load(tmp_path / f"work/end_to_end/tiny/selections/{target}/auto-1-{seed}.json")
            picked.append(outcomes[f"lm-{25 * len(made.kept_classes)}@0.25", target, seed]["top_1"]["lp"])
        close += sum(picked) / 2 - max(found.accuracy(cell, target) for cell in ("lm-50@0.25", "lm-25@0.25")) >= -1
    assert goals.pop("end_to_end/auto-0.25") == close
    fewer = rows["infobatch, half of the full run's steps: images without over images with", "all targets"].value
    both = [(t, s) for t in ("near", "flowers") for s in (0, 1)]
    read = [sum(outcomes[c, t, s]["images"] for t, s in both) for c in ("lm-50@0.5", "lm-50-infobatch@0.5")]
    assert fewer == pytest.approx(read[0] / read[1]) and fewer > 1
    points = rows["infobatch, half of the full run's steps: accuracy less that without", "all targets"].value
    assert goals.pop("end_to_end/infobatch-0.5") == (fewer if points >= -0.5 else 1)
    assert not goals
    against = {(d["cell"], d["against"]) for d in suite.tables["differences"] if d["target"] == "near"}
    assert against == {
        *((f"{name}@0.25", "full@0.25") for name in ("soft", "rs2", "random-50", "lm-50", "lm-25", "fm-50", "lm-reversed-50")),
        ("lm-50@0.5", "full@0.5"), ("lm-50-infobatch@0.5", "lm-50@0.5"),
        *((f"{name}@0.25", "random-50@0.25") for name in ("lm-50", "fm-50")), ("lm-reversed-50@0.25", "lm-50@0.25"),
        ("lm-50@0.25", "full, equal time"),
    }  # fmt: skip

    monkeypatch.setattr(study, "CLOCK_IMAGES", 64)
    monkeypatch.setattr(study, "interleave", lambda subjects: {name: [subject(), subject()] for name, subject in subjects.items()})
    timed = {(o["cell"], o["target"], o["seed"]): o for o in run(cells=("clock",)).tables["outcomes"]}
    clock = json.loads((tmp_path / "work/end_to_end/tiny/clock.json").read_text())
    assert clock.keys() == {*(cell.split("@")[0] for cell, _, _ in outcomes), "surrogate surrogate"}  # of what has been run
    seconds = study.typical(clock)
    one = timed["lm-50@0.25", "near", 1]
    assert one["pretrain_s"] == pytest.approx(64 * seconds["lm-50"])
    assert one["scoring_s"] == outcomes["lm-50@0.25", "near", 1]["scoring_s"]
    assert one["surrogate_s"] == pytest.approx(4 * 64 * seconds["surrogate surrogate"])
    assert timed.keys() == outcomes.keys() and timed["full@1", "near", 0]["pretrain_s"] == pytest.approx(4 * 64 * seconds["full"])

    result = {"environment": {"machine": "2 cores"}, "rows": [], "goals": []}
    suite.add_to(result)
    result = json.loads(json.dumps(result))
    (tmp_path / "earlier.json").write_text(json.dumps(result))
    elsewhere = Suite(
        name="end_to_end", recipe="tiny", data=data, work=tmp_path / "elsewhere", earlier=tmp_path / "earlier.json",
        part=Part(cells=("full@*", "fm-50@0.5"), seeds=(0,)),
    )  # fmt: skip
    end_to_end.run(elsewhere)
    assert capsys.readouterr().err.count("\nrun ") == 2  # fm-50@0.5, for two targets
    gone_on = {(o["cell"], o["target"], o["seed"]): o for o in elsewhere.tables["outcomes"]}
    assert gone_on.keys() - outcomes.keys() == {("fm-50@0.5", "near", 0), ("fm-50@0.5", "flowers", 0)}
    for kept in ("top_1", "pretrain_s", "surrogate_s"):  # not those of the surrogates that were trained here
        assert all(gone_on[key][kept] == outcomes[key][kept] for key in outcomes)
    assert {g.id: g.measured for g in elsewhere.goals}["end_to_end/auto-0.25"] == close
    elsewhere.part = Part(cells=("clock",))
    elsewhere.tables = {}
    end_to_end.run(elsewhere)
    there = json.loads((tmp_path / "elsewhere/end_to_end/tiny/clock.json").read_text())
    assert there.keys() == clock.keys()  # of what was run before, too
    whole = next(o for o in elsewhere.tables["outcomes"] if (o["cell"], o["target"], o["seed"]) == ("full@1", "near", 1))
    assert whole["pretrain_s"] == pytest.approx(4 * 64 * study.typical(there)["full"])

    text = end_to_end_page.markdown(result)
    assert text.count("\n| near |") == text.count("\n| flowers |") == 2 and "![Linear-probe" in text
    assert "Means of 2 pretraining seeds" in text and "shared by 2 targets" in text
    more = end_to_end_page.wider(result)
    assert more.count("\n| near |") == 1 and "means of 2 seeds" in more
    assert f"of those tried on {close:.0f} of 2 targets at a quarter of the steps" in more
    header, _, *lines = [line.split(" | ") for line in more.splitlines() if line.startswith("|")]
    assert "random 50 %" in header and "rs2" not in more and len(lines) == 2 and {len(line) for line in lines} == {len(header)}
    assert f"{found.accuracy('lm-25@0.25', 'near'):.1f}" in lines[0][header.index("LM 25 %")]
    end_to_end_page.draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_there_cannot_be_asked_for(data, halves, tmp_path, capsys):
    command = ["end_to_end", "--data", str(data), "--work", str(tmp_path / "work"), "--recipe", "tiny"]
    assert main([*command, "--cells", "lm-99*"]) == 2
    assert "--cells lm-99*: suite 'end_to_end' has full@1, full@0.25" in capsys.readouterr().err
    assert main([*command, "--targets", "dogs"]) == 2
    assert "--targets dogs: suite 'end_to_end' has near, flowers" in capsys.readouterr().err


def test_only_results_of_the_same_study_count_as_earlier_ones(data, tmp_path, capsys):
    earlier = tmp_path / "earlier.json"
    command = ["end_to_end", "--data", str(data), "--work", str(tmp_path / "work"), "--recipe", "tiny", "--earlier", str(earlier)]
    assert main(command) == 2 and f"--earlier {earlier}: No such file or directory" in capsys.readouterr().err
    for text in ("{", "[]", '{"settings": {"end_to_end": {}}, "tables": {"end_to_end": {"outcomes": [{"cell": "full@1"}]}}}'):
        earlier.write_text(text)
        assert main(command) == 2
        assert f"--earlier {earlier}: no result file of 'end_to_end': give what its --out wrote" in capsys.readouterr().err
    earlier.write_text('{"settings": {"end_to_end": {"recipe": "small-16"}}, "tables": {"end_to_end": {"outcomes": []}}}')
    assert main(command) == 2
    assert f"--earlier {earlier}: a study of something else: recipe, source, targets, network" in capsys.readouterr().err


def test_cells_take_no_more_steps_than_the_full_run_does():
    """With the real source's 202 classes of 200 images and batches of 128."""
    steps = {}
    for cell in end_to_end.cells():
        if cell.train:
            continue
        share = float(cell.prune["keep"].removeprefix("budget:")) if cell.prune else 1.0
        records = int(cell.fresh * 40_400) if cell.fresh else int(share * 202) * 200
        epochs = study.epochs_within(cell.budget, 8, 40_400, records, 128)
        steps[cell.id] = epochs * (records // 128)
        assert 0.97 * cell.budget <= steps[cell.id] / (8 * 315) <= cell.budget
    assert len(steps) == 25 and steps["full@0.25"] == 630 and steps["lm-6@0.25"] == 630


def test_sensitivity_to_the_surrogate(data, monkeypatch, tmp_path):
    monkeypatch.setattr(sensitivity, "KEEP", 0.5)
    monkeypatch.setattr(sensitivity, "CLUSTERS", (4,))
    known = sensitivity.surrogates
    monkeypatch.setattr(sensitivity, "surrogates", lambda r: {n: known(r)[n] for n in ("1 epoch", sensitivity.STRONG)})
    suite = Suite(name="sensitivity", recipe="tiny", data=data, work=tmp_path / "work", part=Part(seeds=(0,)))
    sensitivity.run(suite)
    rows = table(suite)
    subjects = ["lm by 1 epoch", "lm by strong", "fm, classes", "fm, 4 clusters", "random 50 %"]
    for target in ("near", "flowers"):
        assert [s for case, s in rows if case == f"{target}: linear probe"] == subjects
        assert rows[f"{target}: kept classes of the strong surrogate that are kept", "strong"].value == 100
    assert rows["surrogate's training", "1 epoch"].value > 0
    assert 0 <= rows["surrogate on the source's validation images", "strong"].value <= 100
    assert {d["cell"] for d in suite.tables["differences"]} == {
        "lm-by-1-epoch@0.25", "lm-by-strong@0.25", "fm-classes@0.25", "fm-4-clusters@0.25",
    }  # fmt: skip


def test_objectives_without_labels_and_robust(data, monkeypatch):
    monkeypatch.setattr(objectives, "SEEDS", (0,))
    monkeypatch.setattr(objectives, "KEEP", 0.5)
    monkeypatch.setattr(objectives, "CLUSTERS", 8)
    monkeypatch.setattr(objectives, "MOCO", {**objectives.MOCO, "moco": {"queue": 16}})
    suite = Suite(name="objectives", recipe="tiny", data=data)
    objectives.run(suite)
    judged = {(row.suite, row.case.split(": ")[1]) for row in suite.rows if "time" not in row.case}
    moco, adversarial = "objectives/moco", "objectives/adversarial"
    assert judged == {
        (moco, "linear probe"), (moco, "nearest neighbours"), (adversarial, "linear probe"), (adversarial, "full finetuning"),
    }  # fmt: skip
    assert {row.case.split(":")[0] for row in suite.rows} == {"near", "flowers"} and {row.rounds for row in suite.rows} == {1}
    assert suite.settings.keys() == {"moco", "adversarial"} and json.dumps(suite.settings)
    images_seen = {(name, o["cell"]): o["images"] for name, rows in suite.tables.items() if "outcomes" in name for o in rows}
    assert images_seen["moco/outcomes", "full@1"] == 4 * 64
    assert images_seen["adversarial/outcomes", "lm-50@0.25"] == 64
    assert {d["cell"] for d in suite.tables["moco/differences"]} == {"fm-50@0.25"}


def test_pruning_measures_every_method(data, monkeypatch):
    monkeypatch.setattr(pruning, "TARGET", "flowers")
    monkeypatch.setattr(pruning, "UNTRAINED", (("small-4", 16),))
    monkeypatch.setattr(pruning, "interleave", lambda subjects: {name: [run()] for name, run in subjects.items()})
    monkeypatch.setattr(pruning, "trained", lambda recipe: {**recipe.surrogate, "forgetting": True})
    for name, how in pruning.VARIANTS.items():
        monkeypatch.setitem(pruning.VARIANTS, name, {**how, "clusters": 3} if "clusters" in how else how)
    suite = Suite(name="pruning", recipe="tiny", data=data)
    pruning.run(suite)
    rows = table(suite)
    assert {s for case, s in rows if case == "seconds per method"} == {*METHODS, "fm, kmeans"}
    assert rows["overhead of label mapping", "small-4 at 16 pixels"].rounds == 1
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


def test_the_interval_of_a_difference_is_students():
    found = difference([1.0, 2.0, 4.0])  # mean 7/3, standard error sqrt(7/3 / 3) = 0.8819, t(0.975, 2) = 4.3027
    assert (found.points, found.low, found.high) == pytest.approx((7 / 3, 7 / 3 - 3.7946, 7 / 3 + 3.7946), abs=1e-3)
    assert difference([3.0]).low is None and (difference([2.0, 2.0]).low, difference([2.0, 2.0]).high) == (2.0, 2.0)


def outcome(cell, seed, top_1, pretrain_s, surrogate_s=0.0, scoring_s=0.0):
    return cells.Outcome(
        cell=cell, name=cell.split("@")[0], budget=float(cell.split("@")[1]), target="t", seed=seed, top_1={"lp": top_1},
        classes=1, samples=1, images=1, pretrain_s=pretrain_s, scoring_s=scoring_s, surrogate_s=surrogate_s,
    )  # fmt: skip


def test_equal_time_counts_everything_and_reads_the_full_runs_line():
    fulls = [outcome(f"full@{b:g}", s, a + s, t) for s in (0, 1) for b, a, t in ((0.25, 20, 16), (0.5, 26, 32), (1, 30, 64))]
    mapped = [outcome("lm@0.25", s, 27 + 2 * s, 16, surrogate_s=12, scoring_s=4 * 2**0.5 - 4 + 2.627417) for s in (0, 1)]
    found = Outcomes([*fulls, *mapped], sharing=4)
    assert found.seconds("lm@0.25", "t", 1 / 4) == pytest.approx(16 * 2**0.5 + 0.6569, abs=1e-3)
    halfway = replace(mapped[0], scoring_s=16 * 2**0.5 - 16 - 3), replace(mapped[1], scoring_s=16 * 2**0.5 - 16 - 3)
    found = Outcomes([*fulls, *halfway], sharing=4)  # at 16 * sqrt(2) s: halfway between 20 and 26, of each seed
    over = found.over_equal_time("lm@0.25", ["full@0.25", "full@0.5", "full@1"], "t", 1 / 4)
    assert over.points == pytest.approx((27 - 23 + 29 - 24) / 2) and over.seeds == 2
    assert found.paired("lm@0.25", "full@0.25", "t").points == (7 + 8) / 2
    assert found.paired("lm@0.25", "none@1", "t") is None


def test_the_first_within_the_full_runs_accuracy():
    rows = [
        outcome("full@1", 0, 50, 60), outcome("slow@1", 0, 52, 30, surrogate_s=10), outcome("fast@1", 0, 49.5, 12, surrogate_s=10),
        outcome("worse@1", 0, 49.4, 1),
    ]  # fmt: skip
    found, every = Outcomes(rows, sharing=5), ["slow@1", "fast@1", "worse@1", "absent@1"]
    assert found.first_within(0.5, "full@1", every, "t", 0.0) == ("fast@1", 5.0)
    assert found.first_within(0.5, "full@1", every, "t", 1 / 5) == ("fast@1", pytest.approx(60 / 14))
    assert found.first_within(-5, "full@1", every, "t", 0.0) == ("", 0.0)
