"""Runs side by side: rows, tables and figures from the files that runs leave."""

import csv
import html
import io
import itertools
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest

from dp4tl_fast.reporting import plots
from dp4tl_fast.reporting.compare import compare, recipe
from dp4tl_fast.reporting.finding import finding
from dp4tl_fast.reporting.page import report
from dp4tl_fast.reporting.runs import find_runs
from dp4tl_fast.reporting.tables import print_table, table_rows


def leave(root, method, seed, seconds, kept=10, tag="", **more):
    """A finished run of 10 classes and a linear probe of it, as ``pretrain`` and ``finetune`` leave them."""
    folder = root / f"{method}-{kept}-{seed}-{more.get('epochs', 2)}-{more.get('objective', '')}{tag}"
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
        (o, e, (), n) for o, e, n in [("moco", 2, "full"), ("moco", 2, "lm"), ("supervised", 2, "full"), ("supervised", 2, "lm"),
                                  ("supervised", 4, "lm")]
    }  # fmt: skip
    lm = rows["supervised", 2, (), "lm"]
    assert lm["runs"] == 3 and lm["speedup"] == 22 / 11 and lm["speedup_with_pruning"] == 22 / 16
    assert lm["pruning_stages_s"] == {"scoring": 1.0, "surrogate": 4.0} and lm["classes"] == 10
    assert (lm["samples_per_s"], lm["data_wait_share"], lm["energy_wh"], lm["gpu_hours"]) == (2000, 0.25, 1.5, None)
    assert lm["lp_mean"] == pytest.approx(0.81) and lm["lp_std"] == pytest.approx(0.01) and lm["ff_mean"] is None
    assert rows["moco", 2, (), "lm"]["speedup"] == 3
    assert rows["supervised", 4, (), "lm"]["speedup"] is None, "no full run of as many epochs"
    assert rows["supervised", 4, (), "lm"]["energy_wh"] is None


def settings(**more):
    """Of a run as ``pretrain`` tells them."""
    return {"settings": {"lr": 0.5, "size": 64, **more}, "source": "a/s.beton", "source_records_sha256": "5" * 64,
            "device": "cpu", "processes": 1}  # fmt: skip


def label_mapping(root, name, seed, seconds, **more):
    """A run on a selection of its own: another surrogate's, say."""
    of = {"selection": f"sel/{name}.json", "selection_sha256": name}
    leave(root, "lm", seed, seconds, kept=4, **{"tag": name} | of | more)


def test_selections_that_keep_as_many_classes_are_not_mixed(tmp_path):
    leave(tmp_path, "full", 0, 20.0, **settings())
    for name, seconds in (("lm", 10.0), ("lm-reversed", 8.0)):
        for seed in (0, 1):
            label_mapping(tmp_path, name, seed, seconds, **settings())
    for seed in (0, 1):  # drawn anew: as many classes, but of other sizes
        more = {"selection": f"sel/random-{seed}.json", "selection_sha256": str(seed), "samples": 400 + 2 * seed}
        leave(tmp_path, "random", seed, 5.0, kept=4, **more, **settings())
    rows = compare(find_runs([tmp_path]))
    assert [(r["name"], r["method"], r["runs"], r["speedup"]) for r in rows] == [
        ("full", "full", 1, 1), ("lm (lm)", "lm", 2, 2), ("lm (lm-reversed)", "lm", 2, 2.5), ("random", "random", 2, 4)
    ]  # fmt: skip
    assert rows[-1]["samples"] == 401
    (axes,) = plots.tradeoff(rows, "lp").axes
    lines = {c.get_label(): c.lines[0].get_color() for c in axes.containers}
    assert lines.keys() == {"full", "lm (lm)", "lm (lm-reversed)", "random"}
    assert lines["lm (lm)"] == lines["lm (lm-reversed)"] == plots.COLOURS["lm"]


@pytest.mark.parametrize(
    ("files", "names"),
    [(["a/lm.json", "b/lm.json"], ["lm (a/lm)", "lm (b/lm)"]), (["a/lm.json"] * 2, ["lm (first)", "lm (second)"])],
)
def test_selections_of_one_name_have_names(tmp_path, files, names):
    for file, digest in zip(files, ("first", "second"), strict=True):
        leave(tmp_path, "lm", 0, 10.0, kept=4, tag=digest, selection=file, selection_sha256=digest)
    rows = compare(find_runs([tmp_path]))
    assert [r["name"] for r in rows] == names
    report(dirs=[str(tmp_path)], out=str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    assert all(page.count(name) >= 3 for name in names)  # the table, where the time went, the curves


@pytest.mark.parametrize(
    "more",
    [settings(lr=0.1), settings() | {"device": "NVIDIA H100"}, settings() | {"source_records_sha256": "6" * 64},
     settings() | {"processes": 8}, settings() | {"source": "b/t.beton"}, settings(new_setting=1)],
)  # fmt: skip
def test_runs_of_other_settings_are_not_mixed_and_not_called_faster(tmp_path, more):
    leave(tmp_path, "full", 0, 20.0, **settings())
    label_mapping(tmp_path, "lm", 0, 10.0, **settings(), tag=1)
    label_mapping(tmp_path, "lm", 0, 4.0, **more, tag=2)
    rows = compare(find_runs([tmp_path]))
    assert sorted((r["pretrain_s"], r["speedup"] or 0) for r in rows) == [(4, 0), (10, 2), (20, 1)]
    other, _ = sorted((r for r in rows if r["method"] == "lm"), key=lambda r: r["pretrain_s"])
    ((key, value),) = other["settings"].items()
    header, cells = table_rows(rows, wide=True)
    place = header.index(key.replace("_", " "))
    assert str(value) in {row[place] for row in cells} and len({row[place] for row in cells}) == 2
    (axes,) = plots.tradeoff(rows, "lp").axes
    assert f"lm, {key.replace('_', ' ')} {value}" in {c.get_label() for c in axes.containers}


def test_runs_of_older_versions_are_a_recipe_of_their_own(tmp_path):
    """They do not tell their settings, so nothing newer is as fast as they make it look."""
    leave(tmp_path, "full", 0, 10.0, **settings(), tag="new")
    leave(tmp_path, "lm", 0, 5.0, kept=4, **settings(), tag="new")
    leave(tmp_path, "full", 0, 20.0, tag="old")
    leave(tmp_path, "lm", 0, 16.0, kept=4, tag="old")
    rows = compare(find_runs([tmp_path]))
    assert sorted((r["pretrain_s"], r["speedup"], str(r["settings"])) for r in rows) == [
        (5, 2, "{}"), (10, 1, "{}"), (16, 1.25, "{'settings': 'not recorded'}"), (20, 1, "{'settings': 'not recorded'}")
    ]  # fmt: skip
    assert len({recipe(r) for r in rows}) == 2


def test_the_same_source_may_lie_elsewhere(tmp_path):
    leave(tmp_path, "full", 0, 20.0, **settings())
    leave(tmp_path, "lm", 0, 10.0, kept=4, **settings() | {"source": "/scratch/17/s.beton"})
    assert [r["speedup"] for r in compare(find_runs([tmp_path]))] == [1, 2]


def probe(root, name, top_1, **more):
    """A further finetuning of the one full run."""
    (root / name).mkdir()
    body = {"kind": "finetune", "mode": "lp", "checkpoint": str(root / "full-10-0-2-"), "top_1": top_1, **more}
    (root / name / "summary.json").write_text(json.dumps(body))


@pytest.fixture
def full_run(tmp_path):
    leave(tmp_path, "full", 0, 20.0)
    (tmp_path / "full-10-0-2--lp/summary.json").unlink()
    return tmp_path


def test_targets_are_not_mixed(full_run):
    for name in ("cars", "pets"):
        probe(full_run, name, [0.5 if name == "cars" else 0.9], train=f"{name}/train.beton", train_records_sha256=name)
        probe(full_run, f"{name}-ff", [0.25], train=f"x/{name}/train.beton", train_records_sha256=name, mode="ff")
    rows = compare(find_runs([full_run]))
    assert [(r["target"], r["lp_mean"], r["ff_mean"], r["pretrain_s"]) for r in rows] == [
        ("cars/train", 0.5, 0.25, 20), ("pets/train", 0.9, 0.25, 20)
    ]  # fmt: skip
    header, cells = table_rows(rows, wide=True)
    assert [row[header.index("target")] for row in cells] == ["cars/train", "pets/train"]
    report(dirs=[str(full_run)], out=str(full_run / "r.html"))
    page = (full_run / "r.html").read_text()
    assert "linear probe on cars/train" in page and "full finetuning on pets/train" in page


def test_targets_of_one_name_are_not_mixed(full_run):
    for year in (2023, 2024):
        probe(full_run, str(year), [year / 10000], train=f"{year}/pets/train.beton", train_records_sha256=f"{year}0123456789")
    rows = compare(find_runs([full_run]))
    assert [(r["target"], r["lp_mean"]) for r in rows] == [
        ("pets/train 20230123", 0.2023), ("pets/train 20240123", 0.2024)
    ]  # fmt: skip


def test_finetunings_with_other_settings_are_not_averaged(full_run):
    like = {"train": "cars.beton", "train_records_sha256": "c", "flip": True, "shots": 0, "test": "d/test.beton",
            "test_records_sha256": "t" * 64}  # fmt: skip
    probe(full_run, "a", [0.5, 0.75], **like)
    probe(full_run, "b", [1.0], **like | {"shots": 5})
    probe(full_run, "c", [0.25], **like | {"test": "e/test.beton", "test_records_sha256": "u" * 64})
    probe(full_run, "d", [0.125], **like | {"flip": False})
    best = str(full_run / "full-10-0-2-/checkpoint/best/ema.safetensors")
    probe(full_run, "e", [0.0625], **like | {"checkpoint": best})
    assert {r["target"]: r["lp_mean"] for r in compare(find_runs([full_run]))} == {
        "cars, weights last, tested on test tttttttt, flip True, shots 0": 0.625,
        "cars, weights last, tested on test tttttttt, flip True, shots 5": 1.0,
        "cars, weights last, tested on test uuuuuuuu, flip True, shots 0": 0.25,
        "cars, weights last, tested on test tttttttt, flip False, shots 0": 0.125,
        "cars, weights checkpoint/best/ema.safetensors, tested on test tttttttt, flip True, shots 0": 0.0625,
    }


def test_the_wide_table_has_the_costs_that_are_known(runs, capsys):
    rows = compare(find_runs([runs]))
    header, cells = table_rows(rows, wide=True)
    assert ", ".join(header) == (
        "selection, objective, epochs, LP %, with pruning, speed-up, classes, samples, pretraining, pruning, images/s, data wait, "
        "bytes read, energy"
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
    assert header == ["selection", "LP %", "FF %", "with pruning", "speed-up", "classes", "samples", "pretraining", "bytes read"]
    assert cells == [["lm", "50.0", "", "", "", "4", "400", "11.0 s", "1.0 MB"]]
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
    text = page.read_text()
    shown = ("energy", "images/s", "data wait", "pruning")
    assert text.count("<svg") == 4 and all(f"<button>{name}</button>" in text for name in shown)
    assert "Validation accuracy over time" in text and "Where the time went" in text and "<button>GPU-hours" not in text
    assert text.index("over the time it took to get there") < text.index('id="main"') < text.index("Where the time went")


def test_the_csv_has_every_number_as_it_is(runs, tmp_path):
    report(dirs=[str(runs)], out=str(tmp_path / "r.html"))
    link = re.search(r'href="data:text/csv;charset=utf-8,([^"]*)"', (tmp_path / "r.html").read_text())[1]
    table = list(csv.DictReader(io.StringIO(unquote(html.unescape(link)))))
    rows = compare(find_runs([runs]))
    assert [r["name"] for r in table] == [r["name"] for r in rows]
    assert [float(r["lp_mean"] or "nan") for r in table] == pytest.approx([r["lp_mean"] for r in rows], nan_ok=True)
    assert table[3]["pruning_stages_s.surrogate"] == "4.0" and table[3]["energy_wh"] == "1.5" and table[3]["ff_mean"] == ""


def found(root):
    return finding(compare(find_runs([root])))


def test_the_finding_names_the_fastest_that_loses_nothing(tmp_path):
    """Probes of ``leave`` reach 80 % with seed 0, 81 % with seed 1, 95 % with seed 15."""
    leave(tmp_path, "full", 1, 40.0)
    assert found(tmp_path) == "1 pretraining run, none on a selection by the recipe of the full run: 81.0 % in the linear probe."
    leave(tmp_path, "lm", 0, 5.0, kept=2)
    assert found(tmp_path) == (
        "Pretraining on 20 % of the classes (lm) was 4.00x as fast as on all of them, everything counted, and reached 80.0 % "
        "in the linear probe, against 81.0 % with all classes (1 seed)."
    )
    leave(tmp_path, "lm", 1, 11.0, kept=4)
    leave(tmp_path, "lm", 15, 35.0, kept=8)  # more accurate, but slower than another that loses nothing
    leave(tmp_path, "random", 0, 3.0, kept=4)
    assert found(tmp_path) == (
        "Pretraining on 40 % of the classes (lm) was 2.50x as fast as on all of them, everything counted, and reached 81.0 % "
        "in the linear probe, against 81.0 % with all classes and 80.0 % with as many at random (1 seed)."
    )
    leave(tmp_path, "lm", 2, 11.0, kept=4)
    assert "reached 81.5 ± 0.7 % in the linear probe" in found(tmp_path) and found(tmp_path).endswith("(1 seed).")


def test_the_finding_claims_nothing_that_was_not_compared(tmp_path):
    leave(tmp_path, "lm", 0, 5.0, kept=2)
    assert found(tmp_path) == "1 pretraining run, none of them on the full source: nothing to compare with."
    leave(tmp_path, "full", 0, 40.0, epochs=4)
    assert found(tmp_path).startswith("2 pretraining runs, none on a selection by the recipe of the full run")
    assert finding([]) == ""


def linear(colour):
    """Linear RGB ``[3]`` of ``#rrggbb`` (IEC 61966-2-1)."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
# Dichromats' colours of linear RGB: Machado, Oliveira and Fernandes, 2009, severity 1.
SEEN = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}


def lab(rgb):
    """CIE Lab of linear RGB under D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], LUMINANCE, [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", SEEN)
def test_colours_of_methods_are_told_apart_by_all_eyes(eyes):
    """A difference of 10 is seen at a glance; of two that are closer the markers differ, too, as they always do."""
    for a, b in itertools.combinations(plots.COLOURS.values(), 2):
        assert np.linalg.norm(lab(SEEN[eyes] @ linear(a)) - lab(SEEN[eyes] @ linear(b))) > 10, (a, b)
    assert len({*plots.MARKERS.values(), *(marker for _, marker in plots.OTHERS)}) == len(plots.MARKERS) + len(plots.OTHERS)


def test_colours_are_readable_on_light_and_dark():
    """A contrast of 3, as WCAG 2.2 (1.4.11) wants of graphics, on the page's two backgrounds."""
    for colour in (*plots.COLOURS.values(), *(colour for colour, _ in plots.OTHERS)):
        for paper in ("#ffffff", "#161618"):
            bright, dark = sorted((LUMINANCE @ linear(colour), LUMINANCE @ linear(paper)), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 3, (colour, paper)


def test_weights_are_known_by_their_hash_wherever_they_lie(tmp_path):
    """A finetuning of what the run had halfway is none of its results; a copied folder keeps its columns."""
    kept = {"checkpoint/0000000012/weights.safetensors": "a" * 64, "checkpoint/0000000006/weights.safetensors": "b" * 64}
    leave(tmp_path / "made", "full", 0, 20.0, weights_sha256=kept)
    (tmp_path / "made/full-10-0-2--lp/summary.json").unlink()
    for name, sha256, top_1 in (("last", "a", 0.5), ("half", "c", 0.1), ("best", "b", 0.75)):
        probe(tmp_path / "made", name, [top_1], checkpoint_sha256=sha256 * 64, train="t.beton")
    shown = {"t, weights last": 0.5, "t, weights checkpoint/0000000006/weights.safetensors": 0.75}
    (tmp_path / "made").rename(tmp_path / "copied")
    assert {r["target"]: r["lp_mean"] for r in compare(find_runs([tmp_path / "copied"]))} == shown


def test_a_new_run_in_the_folder_of_an_old_one_gets_no_old_results(tmp_path):
    leave(tmp_path, "full", 0, 20.0, weights_sha256={"checkpoint/0000000012/weights.safetensors": "n" * 64})
    (tmp_path / "full-10-0-2--lp/summary.json").unlink()
    probe(tmp_path, "old", [0.9], checkpoint_sha256="o" * 64)
    (row,) = compare(find_runs([tmp_path]))
    assert row["lp_mean"] is None
