"""The programs in ``examples/`` on a part of the demo's data: they run as they stand, and do what their first lines say."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dp4tl_fast import Beton, Selection, convert
from dp4tl_fast.demo import data as demo_data

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ("--size", "16", "--batch-size", "8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A demo's folder in miniature: digits; 4 classes of glyphs and 6 of textures, 12 images each; a selection of 3 classes."""
    root = tmp_path_factory.mktemp("examples")
    classes = list(demo_data.source_classes())
    glyphs = [name for name in classes if demo_data.is_glyph(name)][:4]
    families = {name.split("-")[0]: name for name in classes if not demo_data.is_glyph(name)}
    for name in [*glyphs, *list(families.values())[:6]]:
        demo_data._write_class((root / "images/source", name, classes.index(name), 12, 0))
    demo_data.write_target(root / "images/digits", train_per_class=4, seed=0)
    for name, folder in {"source": "source", "train": "digits/train"}.items():
        convert(str(root / "images" / folder), str(root / f"{name}.beton"))
    source = Beton(root / "source.beton")
    kept = [source.class_names.index(name) for name in glyphs[:3]]
    Selection.of_classes(source, np.array(kept), method="lm", scores=np.zeros(10)).save(root / "lm.json")
    return root


def run(name, *arguments):
    """The example as ``python examples/NAME ARGUMENTS`` runs it, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_examples_are_short_and_told_of():
    text = (EXAMPLES.parent / "docs/own-code.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60 and f"examples/{path.name}" in text, path.name


class Killed(BaseException):
    pass


def killing(patch, owner, name, call):
    """``owner.name`` ends the program after its ``call``-th call, as a time limit would."""
    real, calls = getattr(owner, name), []

    def once(*arguments, **options):
        result = real(*arguments, **options)
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return result

    patch.setattr(owner, name, once)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_plain_loop_resumes_in_mid_epoch(data, tmp_path, monkeypatch):
    """An epoch has 4 batches, saved after every second and at its end: killed after 6, in the middle of the second."""
    files = (data / "source.beton", data / "lm.json")
    whole = run("plain_loop.py", *files, tmp_path / "whole.pt", *SMALL, "--save-every", 2)["model"].state_dict()
    with monkeypatch.context() as patch:
        killing(patch, Path, "replace", 4)
        with pytest.raises(Killed):
            run("plain_loop.py", *files, tmp_path / "cut.pt", *SMALL, "--save-every", 2)
    saved = torch.load(tmp_path / "cut.pt", weights_only=True)
    assert (saved["loader"]["epoch"], saved["loader"]["batch"]) == (1, 2)
    assert same(run("plain_loop.py", *files, tmp_path / "cut.pt", *SMALL)["model"].state_dict(), whole)


def test_accelerate_resumes_in_mid_epoch(data, tmp_path, monkeypatch):
    from accelerate import Accelerator

    files = (data / "source.beton", data / "lm.json")
    whole = run("with_accelerate.py", *files, "--out", tmp_path / "whole", *SMALL)["model"].state_dict()
    with monkeypatch.context() as patch:
        killing(patch, Accelerator, "save_state", 4)
        with pytest.raises(Killed):
            run("with_accelerate.py", *files, "--out", tmp_path / "cut", *SMALL, "--save-every", 2)
    resumed = run("with_accelerate.py", *files, "--out", tmp_path / "cut", *SMALL)
    assert resumed["step"] == 2 and same(resumed["model"].state_dict(), whole)


def test_lightning_resumes_in_mid_epoch(data, tmp_path):
    files = (data / "source.beton", data / "lm.json")

    def final(name):
        return torch.load(tmp_path / name / "final.ckpt", weights_only=True)["state_dict"]

    run("with_lightning.py", *files, "--out", tmp_path / "whole", *SMALL)
    run("with_lightning.py", *files, "--out", tmp_path / "cut", *SMALL, "--max-steps", 7, "--save-every", 3)
    assert torch.load(tmp_path / "cut/last.ckpt", weights_only=True)["global_step"] == 6
    run("with_lightning.py", *files, "--out", tmp_path / "cut", *SMALL, "--save-every", 3, "--resume")
    assert same(final("cut"), final("whole"))


def test_timm_style(data, capsys):
    run("timm_style.py", data / "source.beton", data / "lm.json", "--val", data / "source.beton", *SMALL, "--model", "test_resnet")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("epoch 1: loss ") and lines[1].endswith(" % of 36 images")


def test_own_scores(data, tmp_path):
    """The mean colour of the glyphs is as grey as that of the digits; what is kept is what lies nearest to it."""
    run("own_scores.py", data / "source.beton", data / "train.beton", tmp_path / "own.json", "--keep", 4)
    source, selection = Beton(data / "source.beton"), Selection.load(tmp_path / "own.json")
    assert selection.method == "mean colour" and len(selection.indices(source)) == 48
    assert set(selection.kept_classes) == set(np.argsort(selection.scores)[-4:].tolist())


def test_own_surrogate(data, tmp_path):
    run("own_surrogate.py", data / "source.beton", data / "train.beton", tmp_path / "own.json", "--keep", 3, "--epochs", 30)
    source, selection = Beton(data / "source.beton"), Selection.load(tmp_path / "own.json")
    assert sum(selection.scores) == 40 and len(selection.indices(source)) == 36
    kept = [source.class_names[c] for c in selection.ranking()[:1]]
    assert demo_data.is_glyph(kept[0]), "digits look like glyphs, not like textures"


def test_hugging_face_datasets(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    images = data / "images"
    folders = (images / "source", images / "digits/train")
    names = run("hf_datasets.py", *folders, tmp_path / "kept.parquet", "--keep", 3, "--surrogate-epochs", 60)
    table = pq.read_table(tmp_path / "kept.parquet")
    kept = {names["beton"].class_names[c] for c in names["selection"].kept_classes}
    assert len(kept) == 3 and table.num_rows == 36
    everything = sorted(p.name for p in (images / "source").iterdir())  # as load_dataset numbers them
    assert {everything[label] for label in table["label"].to_pylist()} == kept
    original = {path.read_bytes() for name in kept for path in (images / "source" / name).iterdir()}
    assert {row["bytes"] for row in table["image"].to_pylist()} == original
