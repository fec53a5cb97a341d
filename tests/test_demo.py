"""The demo's images, the demo itself in miniature, and its report."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dp4tl_fast.common.cli import Terminated
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.demo import data as demo_data
from dp4tl_fast.demo import run
from dp4tl_fast.demo.run import demo
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.finetuning.tuning import Tuning
from dp4tl_fast.inference.config import EvaluateConfig, ExportConfig, PredictConfig
from dp4tl_fast.inference.evaluate import evaluate
from dp4tl_fast.inference.export import export
from dp4tl_fast.inference.predict import predict
from dp4tl_fast.loaders import open_loader
from dp4tl_fast.reporting.page import report
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.preprocessing import Preprocessing


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
    with pytest.MonkeyPatch.context() as patch:  # of so few images it must see each more often to be worth asking
        patch.setattr(run, "SURROGATE", {**run.SURROGATE, "epochs": 10})
        return out, demo(out=str(out), seeds=2, per_class=8, epochs=1)


@pytest.mark.slow
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


@pytest.mark.slow
def test_report_is_one_self_contained_page(small_demo):
    out, _ = small_demo
    html = (out / "report.html").read_text()
    assert html.count("<svg") >= 4 and html.count("data:image/jpeg;base64,") > 50
    outside = re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", html)
    assert not outside, "the page must work without a network"
    assert "glyph-U+" in html and "speed-up" in html


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_the_readme_goes_on_with(small_demo, tmp_path, monkeypatch):
    """Finetune from a pruned pretraining, stopped twice; then evaluate, predict the test photos, export: all one network."""
    import onnxruntime

    out, _ = small_demo
    files = {"checkpoint": str(out / "runs/lm-0"), "train": str(out / "train.beton"), "test": str(out / "test.beton")}

    def tune(name, resume=False):
        settings = {"mode": "ff", "epochs": 6, "lr": 2e-3, "seeds": 1, "batch_size": 64, "precision": "fp32", "flip": False}
        return finetune(FinetuneConfig(out=str(tmp_path / name), resume=resume, tensorboard=False, **files, **settings))

    whole = tune("whole")
    assert whole["top_1_mean"] > 0.5  # ten digits
    plain = Tuning._on_step
    monkeypatch.setattr(Tuning, "_on_step", lambda self, run: plain(self, run) or run.step in (3, 17))
    for resume in (False, True):
        with pytest.raises(Terminated):
            tune("cut", resume)
    monkeypatch.undo()
    assert tune("cut", resume=True)["top_1"] == whole["top_1"]
    one, other = (checkpoint.read_weights(tmp_path / name)[0] for name in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    network = str(tmp_path / "cut")
    assert evaluate(EvaluateConfig(checkpoint=network, data=files["test"]))["top_1"] == whole["top_1"][0]
    photos = [str(out / "images/digits/test")]
    made = predict(PredictConfig(checkpoint=network, photos=photos, out=str(tmp_path / "p.csv"), top=1))
    with open(tmp_path / "p.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    right = sum(Path(row["path"]).parent.name == row["class_1"] for row in rows)
    assert made["failed"] == 0 and right / len(rows) == pytest.approx(whole["top_1"][0])
    export(ExportConfig(checkpoint=network, out=str(tmp_path / "n.onnx")))
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    model, meta = checkpoint.load_model(network)
    pixels = Preprocessing.of(meta)
    with open_loader(files["test"], None, pixels.spec(batch_size=16)) as loader, torch.no_grad():
        images = next(iter(loader)).images
        expected = model(pixels.normalise(torch.device("cpu"))(images))
    found = torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # float32 sums in another order
