"""The benchmark harness: paired ratios, goals, JSON and the generated page."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import kernels, kernels_forced, scale
from benchmarks.__main__ import main
from benchmarks.harness import Suite, interleave, percentile, ratio
from benchmarks.summary import write_results
from dp4tl_fast.kernels import _native


def test_ratio_is_better_above_one_in_both_kinds_of_unit():
    assert ratio([1.0, 1.0, 1.0], [2.0, 3.0, 4.0], "s") == 3.0  # a third of the time
    assert ratio([2.0, 3.0, 4.0], [1.0, 1.0, 1.0], "samples/s") == 3.0


def test_interleave_pairs_rounds_and_rotates_who_starts():
    calls: list[str] = []
    samples = interleave({name: lambda name=name: calls.append(name) or 1.0 for name in "abc"}, rounds=5)
    assert {name: len(values) for name, values in samples.items()} == {"a": 5, "b": 5, "c": 5}
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc" + "bca"
    with pytest.raises(ValueError, match="at least 5"):
        interleave({"a": lambda: 1.0}, rounds=4)


def test_percentile_interpolates():
    assert percentile([4.0, 1.0, 3.0, 2.0, 5.0], 0.2) == pytest.approx(1.8)
    assert percentile([7.0], 0.8) == 7.0


def test_results_and_page(tmp_path):
    suite = Suite(name="demo")
    rows = suite.add("case", {"ours": [1.0, 2.0, 3.0], "peer": [2.0, 4.0, 6.0]}, "s", ratio_to="peer")
    assert rows["ours"].ratio == 2.0 and rows["peer"].ratio is None
    suite.goal("case", goal=3.0, measured=rows["ours"].ratio, unit="x peer")
    suite.goal("bytes", goal=0.1, measured=0.05, unit="fraction of file", at_most=True)
    suite.settings |= {"seeds": 3, "network": {"arch": "small-4", "epochs": 2}}
    difference = {"target": "food", "cell": "lm-25@0.25", "against": "full@0.25", "points": 3.0, "low": -0.5, "high": 6.5}
    differences = [{**difference, "seeds": 3}, {**difference, "low": None, "high": None, "seeds": 1}]
    suite.tables["differences"] = differences
    result: dict = {"rows": [], "goals": []}
    suite.add_to(result)
    result = json.loads(json.dumps(result))
    assert [goal["met"] for goal in result["goals"]] == [False, True]
    about = {"machine": "two cores", "os": "Linux", "python": "3", "versions": {"torch": "2"}, "commit": "abc"}
    about["instructions"] = ["avx2", "amx_bf16"]
    (tmp_path / "demo.json").write_text(json.dumps({"environment": about, **result}))
    page = write_results(tmp_path).read_text()
    assert "| `demo/case` | ≥ 3 x peer | 2 | **no** |" in page
    assert "| `demo/bytes` | ≤ 0.1 fraction of file | 0.05 | yes |" in page
    assert "2.00 x peer" in page and "two cores; avx2, amx_bf16; Linux" in page
    assert "`python -m benchmarks demo --data DATA --out demo.json`" in page
    assert "demo: seeds: 3; network: arch small-4, epochs 2." in page
    assert "| food | lm-25@0.25 | full@0.25 | +3.00 | [-0.50, +6.50] | 3 |" in page
    assert "| food | lm-25@0.25 | full@0.25 | +3.00 |  | 1 |" in page


def test_ctrl_c_says_how_to_continue(tmp_path, monkeypatch, capsys):
    def interrupted(suite):
        raise KeyboardInterrupt

    monkeypatch.setattr(scale, "run", interrupted)
    assert main(["scale", "--work", str(tmp_path), "--out", str(tmp_path / "scale.json")]) == 130
    assert capsys.readouterr().err == f"scale: interrupted; the same command continues what is in {tmp_path}\n"
    assert not (tmp_path / "scale.json").exists()


def test_ratio_to_must_be_measured():
    with pytest.raises(ValueError, match="none of the subjects"):
        Suite(name="demo").add("case", {"ours": [1.0]}, "s", ratio_to="peer")


@pytest.mark.slow
def test_scale_measures_every_subject_and_puts_the_rest_of_21k_on_paper(tmp_path, monkeypatch):
    sizes = {"FILES": 400, "RECORDS": 4000, "CLASSES": 100, "IMAGES_21K": 10_000, "CLASSES_21K": 200, "PHOTOS": 100}
    for name, value in sizes.items():
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr(scale, "interleave", lambda subjects, **_: {n: [f() and 1.0, f()] for n, f in subjects.items()})
    suite = Suite(name="scale", data=tmp_path)
    scale.run(suite)
    rows = {row.case: row.value for row in suite.rows}
    for what in ("verify {:,} records", "verify {:,} records, peak memory"):
        assert rows[what.format(400)] > 0 and rows[what.format(4000)] > 0
    assert {"convert 40 files", "convert 400 files", "open 4,000 records for loading"} <= rows.keys()
    assert {"select a fifth of the classes of 10,000 records", "first shuffled batch of 10,000 records"} <= rows.keys()
    assert "on paper, ImageNet-21k: verify 10,000 records" in rows and rows["images of every fifth class"] > 0
    assert rows["on paper, ImageNet-21k: tables in the file"] == (32 + 24) * 10_000 / 2**20  # FFCV aligns a row to 32 bytes
    assert list(tmp_path.iterdir()) == []


def test_21k_lies_on_the_line_through_both_points(monkeypatch):
    monkeypatch.setattr(scale, "IMAGES_21K", 1000)
    assert scale._at_21k([10, 100], [[1.0, 2.0], [10.0, 2.0]]) == [100.0, 2.0]


def test_a_peer_that_is_not_installed_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SystemExit) as stop:
        main(["kernels", "--out", str(tmp_path / "kernels.json")])
    assert stop.value.code == 2 and not (tmp_path / "kernels.json").exists()
    assert "suite 'kernels' compares with faiss, not installed here" in capsys.readouterr().err


@pytest.mark.parametrize("slow", kernels.PRODUCTS)
def test_both_precisions_are_held_against_the_faster_matrix_product(slow):
    times = dict.fromkeys(kernels.PRODUCTS, [1.0] * 5) | {slow: [2.0] * 5}
    assert kernels.matrix_share({**times, "dp4tl_fast": [1.25] * 5, "dp4tl_fast bf16": [1.1] * 5}) == 0.8


def test_linear_label_counts_stands_beside_its_peer_and_its_limit(monkeypatch):
    for name, value in {"ROWS": 60, "CLASSES": 20, "DEPTH": 8}.items():
        monkeypatch.setattr(kernels, name, value)
    suite = Suite(name="kernels")
    kernels._linear_label_counts(suite)
    assert [row.subject for row in suite.rows] == [*kernels.PRODUCTS, "torch linear+argmax", "dp4tl_fast"]
    assert [goal.id for goal in suite.goals] == ["kernels/linear_label_counts-cpu"]


def test_every_choice_of_the_cpu_kernels_is_measured(monkeypatch):
    for name, value in {"ROWS": 60, "CLASSES": 20, "SHAPES": ((50, 30, 8), (20, 40, 70))}.items():
        monkeypatch.setattr(kernels_forced, name, value)
    suite = Suite(name="kernels")
    kernels_forced.run(suite)
    subjects = {case: {row.subject for row in suite.rows if row.case == case} for case in {row.case for row in suite.rows}}
    sets = set(_native.isas())
    products = ("float32", "bfloat16") if _native.has_bf16_products() else ("float32",)
    ways = {f"{isa}, {kind}" for isa in sets for kind in products}
    assert subjects["label_counts-cpu-bf16-60x20-forced"] == {"read alone", *sets}
    assert subjects["linear_argmax-cpu-20x40x70-forced"] == {"chosen", "torch addmm+argmax", *ways}
    assert [goal.id for goal in suite.goals][-1] == "kernels/linear_argmax-cpu-every-choice"
