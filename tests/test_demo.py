"""The demo's images, the demo itself in miniature, and its report."""

import json
import re

import numpy as np
import pytest

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.demo import data as demo_data
from dp4tl_fast.demo.run import demo
from dp4tl_fast.reporting.page import report


def test_source_is_mixed_seeded_and_large():
    classes = demo_data.source_classes()
    glyphs = sum(map(demo_data.is_glyph, classes))
    assert len(classes) >= 250 and 0.2 < glyphs / len(classes) < 0.3
    assert len({name.split("-")[0] for name in classes}) > 10
    for name, make in classes.items():
        images = make(np.random.default_rng(5), 3)
        assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
        assert np.array_equal(images, make(np.random.default_rng(5), 3)), name
        assert images.std() > 5, f"{name} is empty"


def test_target_is_every_real_digit_once(tmp_path):
    demo_data.write_target(tmp_path, train_per_class=30, seed=0)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == 300
    assert len(list(tmp_path.glob("test/*/*.jpg"))) == 1797 - 300


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, demo(out=str(out), seeds=2, per_class=8, epochs=1)


def test_demo_in_miniature(small_demo):
    out, summary = small_demo
    assert json.loads((out / "summary.json").read_text()) == summary
    rows = {row["name"]: row for row in summary["rows"]}
    assert rows.keys() == {"full", "lm", "random"}
    promised = "classes_kept samples pretrain_s speedup speedup_with_pruning bytes_read lp_mean lp_std ff_mean ff_std"
    assert set(promised.split()) <= rows["lm"].keys()
    assert rows["lm"]["classes_kept"] == rows["random"]["classes_kept"] < rows["full"]["classes_kept"] == 297
    assert rows["lm"]["bytes_read"] < 0.5 * rows["full"]["bytes_read"]
    assert rows["lm"]["speedup_with_pruning"] < rows["lm"]["speedup"] and rows["full"]["speedup"] == 1
    assert all(0.1 < row["lp_mean"] <= 1 for row in rows.values())


def test_report_is_one_self_contained_page(small_demo):
    out, _ = small_demo
    html = (out / "report.html").read_text()
    assert html.count("<svg") >= 4 and html.count("data:image/jpeg;base64,") > 50
    outside = re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", html)
    assert not outside, "the page must work without a network"
    assert "glyph-U+" in html and "speed-up" in html


def test_report_command_on_run_folders(small_demo, tmp_path):
    out, summary = small_demo
    result = report(dirs=[str(out / "runs")], out=str(tmp_path / "r.html"), title="<b>mine</b>")
    assert result["rows"] == summary["rows"]
    assert "&lt;b&gt;mine&lt;/b&gt;" in (tmp_path / "r.html").read_text()


def test_demo_replaces_only_what_a_demo_made(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="was not made by the demo"):
        demo(out=str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "precious"
