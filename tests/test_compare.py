"""Runs side by side: rows, tables and figures from the files that runs leave."""

import json

import pytest

from dp4tl_fast import plots
from dp4tl_fast.compare import compare, find_runs, print_table, recipe, table_rows
from dp4tl_fast.report import report


def leave(root, method, seed, seconds, kept=10, **more):
    """A finished run of 10 classes and a linear probe of it, as ``pretrain`` and ``finetune`` leave them."""
    folder = root / f"{method}-{kept}-{seed}-{more.get('epochs', 2)}-{more.get('objective', '')}"
    folder.mkdir(parents=True)
    summary = {
        "kind": "pretrain", "arch": "small-4", "objective": "supervised", "method": method, "classes_kept": kept, "classes": 10,
        "samples": 100 * kept, "epochs": 2, "seed": seed, "selection": None, "pretrain_s": seconds,
        "pruning_s": 0.0 if method == "full" else 5.0,
        "pruning_stages_s": {} if method == "full" else {"surrogate": 4.0, "scoring": 1.0}, "samples_per_s": 1000.0 * (seed + 1),
        "data_wait_share": 0.25, "bytes_read": 10**6, "gpu_hours": None, "energy_wh": 3.0, **more,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    epochs = [{"epoch": e, "seconds": seconds / 2, "loss": 2.0 - e, "val_top_1": 0.3 + 0.1 * e} for e in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs))
    probe = {"kind": "finetune", "mode": "lp", "checkpoint": str(folder), "top_1": [0.8 + 0.01 * seed]}
    (root / f"{folder.name}-lp").mkdir()
    (root / f"{folder.name}-lp/summary.json").write_text(json.dumps(probe))


@pytest.fixture
def runs(tmp_path):
    """Full, and label mapping at 40 % for as many epochs and for twice as many; full and pruned MoCo."""
    for seed, seconds in enumerate((20.0, 24.0, 22.0)):
        leave(tmp_path, "full", seed, seconds)
        leave(tmp_path, "lm", seed, seconds / 2, kept=4, energy_wh=[1.0, 2.0, 1.5][seed])
    leave(tmp_path, "lm", 0, 18.0, kept=4, epochs=4, energy_wh=None)
    leave(tmp_path, "full", 0, 90.0, objective="moco")
    leave(tmp_path, "lm", 0, 30.0, kept=4, objective="moco")
    return tmp_path


def test_rows_compare_like_with_like(runs):
    rows = {(*recipe(r)[1:], r["name"]): r for r in compare(find_runs([runs]))}
    assert rows.keys() == {
        (o, e, n) for o, e, n in [("moco", 2, "full"), ("moco", 2, "lm"), ("supervised", 2, "full"), ("supervised", 2, "lm"),
                                  ("supervised", 4, "lm")]
    }  # fmt: skip
    lm = rows["supervised", 2, "lm"]
    assert lm["runs"] == 3 and lm["speedup"] == 22 / 11 and lm["speedup_with_pruning"] == 22 / 16
    assert lm["pruning_stages_s"] == {"scoring": 1.0, "surrogate": 4.0} and lm["classes"] == 10
    assert (lm["samples_per_s"], lm["data_wait_share"], lm["energy_wh"], lm["gpu_hours"]) == (2000, 0.25, 1.5, None)
    assert lm["lp_mean"] == pytest.approx(0.81) and lm["lp_std"] == pytest.approx(0.01) and lm["ff_mean"] is None
    assert rows["moco", 2, "lm"]["speedup"] == 3
    assert rows["supervised", 4, "lm"]["speedup"] is None, "no full run of as many epochs"
    assert rows["supervised", 4, "lm"]["energy_wh"] is None


def test_the_wide_table_has_the_costs_that_are_known(runs, capsys):
    rows = compare(find_runs([runs]))
    header, cells = table_rows(rows, wide=True)
    assert ", ".join(header) == (
        "selection, objective, epochs, classes, samples, pruning, pretraining, speed-up, with pruning, images/s, data wait, "
        "bytes read, energy, LP %"
    )
    lm = dict(zip(header, cells[3], strict=True))
    assert lm == {
        "selection": "lm", "objective": "supervised", "epochs": "2", "classes": "4", "samples": "400", "pruning": "5.0 s",
        "pretraining": "11.0 s", "speed-up": "2.00x", "with pruning": "1.38x", "images/s": "2,000", "data wait": "25.0 %",
        "bytes read": "1.0 MB", "energy": "1.5 Wh", "LP %": "81.0 ± 1.0",
    }  # fmt: skip
    assert dict(zip(header, cells[4], strict=True))["energy"] == ""
    print_table(rows, "Costs", wide=True)
    shown = capsys.readouterr().err
    assert "81.0 ± 1.0" in shown and "with pruning" in shown and "…" not in shown


def test_rows_made_before_costs_were_recorded_still_make_a_table():
    old = {"name": "lm", "arch": "small-4", "classes_kept": 4, "samples": 400, "runs": 1, "pretrain_s": 11.0, "pruning_s": 5.0,
           "speedup": None, "speedup_with_pruning": None, "bytes_read": 10**6, "lp_mean": 0.5, "lp_std": None, "ff_mean": None,
           "ff_std": None}  # fmt: skip
    header, cells = table_rows([old])
    assert header == ["selection", "classes", "samples", "pretraining", "speed-up", "with pruning", "bytes read", "LP %", "FF %"]
    assert cells == [["lm", "4", "400", "11.0 s", "", "", "1.0 MB", "50.0", ""]]
    assert "energy" not in table_rows([old], wide=True)[0]
    for figure in (plots.tradeoff([old], "lp"), plots.where_time_went([old])):
        assert "4 classes" in plots.svg(figure) or figure.axes[0].get_yticklabels()[0].get_text() == "lm 4 classes"


def test_accuracy_over_time_has_a_line_a_method_and_the_full_run_across(runs):
    rows = [r for r in compare(find_runs([runs])) if r["objective"] == "supervised"]
    (axes,) = plots.tradeoff(rows, "lp").axes
    lines = {c.get_label(): c.lines[0] for c in axes.containers}
    assert lines.keys() == {"full", "lm", "lm, 4 epochs"}
    assert lines["lm"].get_xydata().tolist() == [[16.0, pytest.approx(81)]]  # seconds, the selection's five included
    assert lines["lm"].get_color() == lines["lm, 4 epochs"].get_color() == plots.COLOURS["lm"]
    assert any(list(line.get_ydata()) == pytest.approx([81, 81]) and line.get_linestyle() == "--" for line in axes.lines)
    assert sorted(t.get_text() for t in axes.texts) == ["40 %", "40 %"]


def test_where_the_time_went_is_in_percent_of_the_full_run(runs):
    rows = [r for r in compare(find_runs([runs])) if r["objective"] == "supervised" and r["epochs"] == 2]
    (axes,) = plots.where_time_went(rows).axes
    bars = [(round(b.get_y() + 0.35), b.get_x(), b.get_width()) for c in axes.containers for b in c]
    stages = [(0.0, 400 / 22), (400 / 22, 100 / 22), (500 / 22, 50.0)]  # surrogate, scoring, pretraining
    assert [bar for bar in bars if bar[0] == 1] == [(1, pytest.approx(x), pytest.approx(w)) for x, w in stages]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["full 100 %", "lm 40 %"]
    assert [t.get_text().strip() for t in axes.texts] == ["100 %, 1.00x", "73 %, 1.38x"]


def test_curves_start_after_the_selection_was_made():
    epochs = [{"seconds": 10.0, "loss": 2.0, "val_top_1": 0.25}, {"seconds": 10.0, "loss": 1.0}]
    curves = [plots.Curve(m, n, before, epochs) for m, n, before in (("lm", "lm 40 %", 5.0),) * 2 + (("el2n", "e", 0.0),)]
    (axes,) = plots.learning_curves(curves).axes
    assert axes.lines[0].get_xydata().tolist() == [[15, 2], [25, 1]]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["lm 40 %", "e"]
    (axes,) = plots.learning_curves(curves, "val_top_1").axes  # not every epoch is validated
    assert axes.lines[0].get_xydata().tolist() == [[15, 25]]


def test_report_of_run_folders_shows_costs_and_figures(runs, tmp_path):
    page = tmp_path / "r.html"
    report(dirs=[str(runs)], out=str(page))
    html = page.read_text()
    assert html.count("<svg") == 4 and all(f"<th>{name}</th>" in html for name in ("energy", "images/s", "data wait", "pruning"))
    assert "Validation accuracy over time" in html and "Where the time went" in html and "GPU-hours</th>" not in html
