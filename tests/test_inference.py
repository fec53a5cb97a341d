"""evaluate, predict, export and inspect: what one does with a finetuned network."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss, top_k_accuracy_score
from small_runs import noisy_colours, run

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import CheckpointError, UsageError
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.evaluate import main as evaluate_main
from dp4tl_fast.export import main as export_main
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.inference import evaluate as evaluation
from dp4tl_fast.inference import export as exporting
from dp4tl_fast.inference import predict as predicting
from dp4tl_fast.inference import scores as score
from dp4tl_fast.inference.config import EvaluateConfig, ExportConfig, NetworkConfig, PredictConfig
from dp4tl_fast.inference.network import open_network
from dp4tl_fast.inspect import main as inspect_main
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.predict import main as predict_main
from dp4tl_fast.pretraining.config import AttackConfig
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.adversarial import Adversarial


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A pretrained and a finetuned network, an adversarial and a self-supervised one, and images to look at."""
    root = tmp_path_factory.mktemp("inference")
    noisy_colours(root, "train", (16,) * 4)
    noisy_colours(root, "test", (5, 6, 4, 7))
    run(root / "train.beton", root / "run", epochs=1)
    run(root / "train.beton", root / "adv", epochs=1, objective="adversarial", adv=AttackConfig(eps=8, norm="l2"))
    run(root / "train.beton", root / "moco", epochs=1, objective="moco")
    files = {"checkpoint": str(root / "run"), "train": str(root / "train.beton"), "test": str(root / "test.beton")}
    settings = {"batch_size": 8, "epochs": 1, "seeds": 1, "lr": 0.001, "precision": "fp32", "tensorboard": False}
    summary = finetune(FinetuneConfig(out=str(root / "ft"), mode="ff", **files, **settings))
    (root / "summary.json").write_text(json.dumps(summary))
    return root


def opened(place):
    return open_network(NetworkConfig(checkpoint=str(place)), "cpu")


def evaluate(place, data, **more):
    return evaluation.evaluate(EvaluateConfig(checkpoint=str(place), data=str(data), **more))


def predict(place, photos, *, out, **more):
    return predicting.predict(PredictConfig(checkpoint=str(place), photos=photos, out=out, **more))


def export(place, out):
    return exporting.export(ExportConfig(checkpoint=str(place), out=str(out)))


def logits(root, where="ft", data="test.beton", **spec):
    """The network on a file, as torch runs it: float32 ``[n, 4]`` and labels ``[n]``."""
    network = opened(root / where)
    with open_loader(root / data, None, LoaderSpec(batch_size=64, size=16, crop_ratio=1.0, **spec)) as loader:
        images, labels = next(iter(loader))
    with torch.no_grad():
        return network.model(network.pixels.normalise(network.device)(images)), labels


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_agrees_with_finetune_and_with_the_logits(root, tmp_path):
    groups = tmp_path / "g.csv"
    groups.write_text("index,group\n" + "".join(f"{i},{'even' if i % 2 == 0 else 'odd'}\n" for i in range(22)))
    found = evaluate(root / "ft", root / "test.beton", groups=str(groups), out=str(tmp_path / "e"), device="cpu")
    summary = json.loads((root / "summary.json").read_text())
    assert found["top_1"] == summary["top_1"][0] and found["per_class"] == pytest.approx(summary["per_class"])
    values, labels = logits(root)
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(values, labels).item(), rel=1e-5)
    assert found["top_5"] == 1 and found["images"] == 22 and found["left_out"] == 0
    p = values.double().softmax(1).numpy()
    error = calibration_error(p.max(1), p.argmax(1) == labels.numpy())
    assert found["calibration_error"] == pytest.approx(error, abs=1e-6)  # float32 logits, of other batches
    right, beton = (values.argmax(1) == labels).numpy(), Beton(root / "test.beton")
    assert found["per_group"] == {g: right[beton.index % 2 == k].mean() for k, g in enumerate(("even", "odd"))}
    assert found["worst_group"] == min(found["per_group"].values())
    assert json.loads((tmp_path / "e/evaluation.json").read_text()) == found
    header, *rows = csv.reader((tmp_path / "e/confusion.csv").read_text().splitlines())
    assert header[1:] == [row[0] for row in rows] == [f"class{c}" for c in range(4)]
    table = np.array([row[1:] for row in rows], int)
    assert table.sum() == 22 and np.trace(table) == right.sum() and table.sum(1).tolist() == [5, 6, 4, 7]
    assert sum(p["images"] for p in found["most_confused"]) == 22 - right.sum()


def calibration_error(confidence, right):
    """Bin by bin, as Guo et al. write it."""
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15) | ((b == 0) & (confidence == 0))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return expected


def test_calibration_error_against_a_loop():
    rng = np.random.default_rng(0)
    confidence, right = rng.random(500), rng.random(500) < 0.6
    confidence[:2] = 0, 1
    assert score.calibration_error(confidence, right) == pytest.approx(calibration_error(confidence, right), rel=1e-12)


def test_scores_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 12, generator=generator), torch.randint(0, 12, (300,), generator=generator).numpy()
    found, every = score.scores(logits, labels), np.arange(12)
    for k in (1, 5):
        assert found[f"top_{k}"] == pytest.approx(top_k_accuracy_score(labels, logits.numpy(), k=k, labels=every))
    p = logits.double().softmax(1).numpy()
    assert found["loss"] == pytest.approx(log_loss(labels, p, labels=every), rel=1e-9)
    # float32 probabilities
    assert found["calibration_error"] == pytest.approx(calibration_error(p.max(1), p.argmax(1) == labels), abs=1e-6)


def test_classes_are_matched_by_name(root, tmp_path):
    """A test set without the first class numbers the others anew; one with a class too many is refused, or cut."""
    for name in ("gap", "more"):
        shutil.copytree(root / "test", tmp_path / name)
    shutil.rmtree(tmp_path / "gap/class0")
    shutil.copytree(tmp_path / "more/class0", tmp_path / "more/banana")
    for name in ("gap", "more"):
        convert(str(tmp_path / name), str(tmp_path / f"{name}.beton"))
    whole = evaluate(root / "ft", root / "test.beton")
    gap = evaluate(root / "ft", tmp_path / "gap.beton")
    assert gap["per_class"] == {k: v for k, v in whole["per_class"].items() if k != "class0"} and gap["images"] == 17
    with pytest.raises(UsageError, match=r"knows 4 classes, but not 1 of the 5 .* such as 'banana'\. Give `known_only`"):
        evaluate(root / "ft", tmp_path / "more.beton")
    cut = evaluate(root / "ft", tmp_path / "more.beton", known_only=True)
    assert cut["per_class"] == whole["per_class"] and cut["left_out"] == 5


def test_classes_of_quite_other_names_are_matched_by_number_and_said(root, tmp_path, capsys):
    for c in range(4):
        shutil.copytree(root / f"test/class{c}", tmp_path / f"other/n0000{c}")
    convert(str(tmp_path / "other"), str(tmp_path / "other.beton"))
    found = evaluate(root / "ft", tmp_path / "other.beton")
    assert found["top_1"] == evaluate(root / "ft", root / "test.beton")["top_1"]
    assert "matched by number" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "other/n00003")
    convert(str(tmp_path / "other"), str(tmp_path / "three.beton"))
    with pytest.raises(UsageError, match="It was trained for other classes"):
        evaluate(root / "ft", tmp_path / "three.beton")


def test_robust_accuracy_is_that_of_the_trainings_own_attack(root, capsys):
    """The checkpoint says what it was trained against; a ball of no radius changes nothing, a huge one everything."""
    found = evaluate(root / "adv", root / "test.beton", device="cpu", attack_steps=4)
    assert found["attack"] == {"eps": 8.0, "steps": 4, "norm": "l2"} and found["robust_top_1"] <= found["top_1"]
    assert "robust top-1" in capsys.readouterr().err
    network = opened(root / "adv")
    pgd = Adversarial(eps=8 / 255, steps=4, norm="l2", mean=network.pixels.mean, std=network.pixels.std)
    with open_loader(root / "test.beton", None, LoaderSpec(batch_size=64, size=16, crop_ratio=1.0)) as loader:
        images, labels = next(iter(loader))
    x = network.pixels.normalise(network.device)(images)
    torch.manual_seed(0)
    worst = x + pgd.attack(network.model, x, labels) / pgd.std
    assert found["robust_top_1"] == (network.model(worst).argmax(1) == labels).double().mean().item()
    tiny, huge = (evaluate(root / "ft", root / "test.beton", attack_eps=eps) for eps in (1e-4, 128.0))
    assert tiny["robust_top_1"] == tiny["top_1"] > huge["robust_top_1"]
    assert "robust_top_1" not in evaluate(root / "ft", root / "test.beton")


def test_a_network_without_a_classifier_is_refused(root, tmp_path, capsys):
    for main, arguments in (
        (evaluate_main, [str(root / "test.beton")]),
        (export_main, [str(tmp_path / "x.onnx")]),
        (predict_main, [str(root / "test"), f"--out={tmp_path / 'p.csv'}"]),
    ):
        assert main([str(root / "moco"), *arguments]) == 2
        assert "was trained without labels (moco)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- predict ----------------------------------------------------------------------------------------------------------


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def photos(tmp_path):
    """Nested, of several kinds; one of them broken, one empty, two a text; and what a system left there."""
    folder = tmp_path / "photos"
    (folder / "a/b").mkdir(parents=True)
    rng = np.random.default_rng(1)
    pixels = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(5)]
    pixels[0].save(folder / "0.jpg", quality=95)
    pixels[1].save(folder / "a/1.png")
    pixels[2].convert("CMYK").save(folder / "a/b/2.jpg")
    pixels[3].convert("L").save(folder / "a/b/3.webp", lossless=True)
    whole = io.BytesIO()
    pixels[4].save(whole, "JPEG")
    (folder / "a/broken.jpg").write_bytes(whole.getvalue()[:400])
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("not for us")
    (folder / ".hidden.jpg").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    return folder


def test_predict_gives_a_row_for_each_photo(root, photos, tmp_path, capsys):
    found = predict(root / "ft", [str(photos)], out=str(tmp_path / "p.csv"), top=2, probabilities=True, batch_size=2)
    rows = {row["path"]: row for row in rows_of(tmp_path / "p.csv")}
    names = ["0.jpg", "empty.jpg", "notes.txt", "text.png", "a/1.png", "a/broken.jpg", "a/b/2.jpg", "a/b/3.webp"]
    assert [path.removeprefix(f"{photos}/") for path in rows] == names
    bad = {name for name in names if rows[f"{photos}/{name}"]["error"]}
    assert bad == {"empty.jpg", "notes.txt", "text.png", "a/broken.jpg"} and (found["images"], found["failed"]) == (8, 4)
    assert "an empty file" in rows[f"{photos}/empty.jpg"]["error"] and not rows[f"{photos}/empty.jpg"]["class_1"]
    assert "a text file" in rows[f"{photos}/text.png"]["error"]
    network = opened(root / "ft")
    for name in sorted(set(names) - bad):  # PIL and torch, image by image
        image = Image.open(photos / name).convert("RGB").crop((5, 0, 45, 40)).resize((16, 16), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = network.model(network.pixels.normalise(network.device)(x)).softmax(1)[0]
        row = rows[f"{photos}/{name}"]
        given = torch.tensor([float(row[f"p(class{c})"]) for c in range(4)])
        torch.testing.assert_close(given, expected, atol=0.02, rtol=0)  # decoders differ by a level or two
        assert row["class_1"] == network.names[int(given.argmax())] and float(row["p_1"]) == pytest.approx(given.max().item())
        assert float(row["p_1"]) >= float(row["p_2"]) and "class_3" not in row


def test_lossless_photos_are_seen_without_loss(root, photos, tmp_path):
    """Against the exact decoder on a file of raw pixels: the same numbers."""
    (tmp_path / "c/x").mkdir(parents=True)
    shutil.copy(photos / "a/1.png", tmp_path / "c/x/1.png")
    convert(str(tmp_path / "c"), str(tmp_path / "c.beton"), write_mode="raw")
    for out, what in (("a", photos / "a/1.png"), ("b", tmp_path / "c.beton")):
        predict(root / "ft", [str(what)], out=str(tmp_path / f"{out}.csv"), features=True)
    a, b = (rows_of(tmp_path / f"{out}.csv")[0] for out in "ab")
    assert b.pop("path") == f"{tmp_path / 'c.beton'}#0" and a.pop("path") and a == b and len(a) == 1 + 16


def test_every_way_in_and_out_says_the_same(root, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    folder = root / "test"
    files = sorted(str(p) for p in folder.rglob("*.jpg"))
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(folder, arcname="photos")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*files, "", str(tmp_path / "gone.jpg")]) + "\n"))
    for name, places in (("folder", [str(folder)]), ("files", files), ("tar", [str(tmp_path / "t.tar")]), ("list", ["-"]),
                         ("beton", [str(root / "test.beton")])):  # fmt: skip
        predict(root / "ft", places, out=str(tmp_path / f"{name}.csv"))
    tables = {name: rows_of(tmp_path / f"{name}.csv") for name in ("folder", "files", "tar", "list", "beton")}
    assert tables["list"].pop()["error"] == "No such file or directory" and len(tables["files"]) == 22
    assert [r["path"] for r in tables["folder"]] == [r["path"] for r in tables["files"]] == files
    assert tables["tar"][0]["path"] == f"{tmp_path / 't.tar'}#photos/{files[0].removeprefix(f'{folder}/')}"
    contents = {name: [{k: v for k, v in row.items() if k != "path"} for row in rows] for name, rows in tables.items()}
    assert contents["folder"] == contents["files"] == contents["tar"] == contents["list"]
    order = Beton(root / "test.beton").index  # its records lie in a random order
    assert [contents["folder"][i] for i in order] == contents["beton"]
    predict(root / "ft", files, out=str(tmp_path / "p.jsonl"), probabilities=True)
    predict(root / "ft", files, out=str(tmp_path / "p.parquet"), probabilities=True)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "p.parquet")
    assert json.loads(table.schema.metadata[b"probabilities"]) == [f"p(class{c})" for c in range(4)]
    for line, row, text in zip(lines, table.to_pylist(), tables["files"], strict=True):
        assert line["path"] == row["path"] == text["path"] and line["class_1"] == row["class_1"] == text["class_1"]
        assert row["probabilities"] == pytest.approx(line["probabilities"]) and sum(line["probabilities"]) == pytest.approx(1)


def test_chunks_do_not_change_what_is_seen(root, tmp_path, monkeypatch):
    from dp4tl_fast.inference import stream

    predict(root / "moco", [str(root / "test")], out=str(tmp_path / "a.csv"), features=True, batch_size=22)
    monkeypatch.setattr(stream, "CHUNK_PHOTOS", 3)
    predict(root / "moco", [str(root / "test")], out=str(tmp_path / "b.csv"), features=True, batch_size=2)
    a, b = (np.array([list(r.values())[2:] for r in rows_of(tmp_path / f"{n}.csv")], float) for n in "ab")
    assert a.shape == (22, 16)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # float32 sums of another batch size


def test_predict_on_nothing_and_other_bad_input(root, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    cases = {
        (): "required",
        (str(tmp_path / "empty"),): "no images there",
        (str(root / "test"), f"--out={tmp_path / 'p.txt'}"): "must end in one of",
        (str(root / "test"), str(tmp_path / "gone.jpg")): "gone.jpg: no such file or folder",
        (str(root / "test"), "--top=0"): "--top 0: must be at least 1",
        (str(root / "test.beton"), str(root / "test")): "in a separate call",
        (str(root / "test"), "--features", "--probabilities"): "replaces the classes in the output",
    }
    for arguments, message in cases.items():
        out = () if any(a.startswith("--out") for a in arguments) else (f"--out={tmp_path / 'p.csv'}",)
        assert predict_main([str(root / "ft"), *arguments, *out]) == 2
        assert message in capsys.readouterr().err, arguments
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


# -- export and inspect -----------------------------------------------------------------------------------------------


def test_onnx_gives_the_networks_outputs(root, tmp_path):
    import onnxruntime

    result = export(root / "ft", tmp_path / "n.onnx")
    assert result["to"] == "onnx" and result["largest_difference"] < 1e-5 and [p.name for p in tmp_path.iterdir()] == ["n.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["dp4tl"])
    assert about["class_names"] == [f"class{c}" for c in range(4)] and about["preprocessing"]["size"] == 16
    with open_loader(root / "test.beton", None, LoaderSpec(batch_size=22, size=16, crop_ratio=1.0)) as loader:
        images, _ = next(iter(loader))
    for n in (1, 5, 22):
        (found,) = session.run(None, {"images": images[:n].contiguous().numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits(root)[0][:n], rtol=1e-4, atol=1e-4)


def test_torch_export_gives_the_networks_outputs(root, tmp_path):
    export(root / "ft", tmp_path / "n.pt2")
    extra = {"dp4tl": ""}
    program = torch.export.load(tmp_path / "n.pt2", extra_files=extra)
    assert json.loads(extra["dp4tl"])["preprocessing"]["crop_ratio"] == 1.0
    with open_loader(root / "test.beton", None, LoaderSpec(batch_size=22, size=16, crop_ratio=1.0)) as loader:
        images, _ = next(iter(loader))
    for n in (1, 22):
        torch.testing.assert_close(program.module()(images[:n]), logits(root)[0][:n], rtol=1e-5, atol=1e-5)


def test_torchvision_weights_load_there(root, tmp_path):
    from torchvision.models import resnet18

    run(root / "train.beton", tmp_path / "r", arch="resnet18", epochs=1, size=32)
    export(tmp_path / "r", tmp_path / "n.pth")
    body = torch.load(tmp_path / "n.pth", weights_only=True)
    assert body["class_names"] == [f"class{c}" for c in range(4)] and body["arch"] == "resnet18"
    model = resnet18(num_classes=4).eval()
    model.load_state_dict(body["state_dict"])
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x), checkpoint.load_model(tmp_path / "r")[0](x), rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="torchvision has no network small-4"):
        export(root / "ft", tmp_path / "x.pth")


def test_an_export_with_other_outputs_is_not_written(root, tmp_path, monkeypatch):
    from dp4tl_fast.inference import forms

    monkeypatch.setattr(forms.FromPixels, "forward", lambda self, images: self.model(images.float() * self.scale))
    plain = forms.difference
    monkeypatch.setattr(forms, "difference", lambda ours, theirs: plain(2 * ours, theirs))
    with pytest.raises(CheckpointError, match="not written: the exported network's logits differ"):
        export(root / "ft", tmp_path / "n.pt2")
    with pytest.raises(UsageError, match="its ending names no format"):
        export(root / "ft", tmp_path / "n.xyz")
    assert not list(tmp_path.iterdir())


def test_inspect_shows_what_a_checkpoint_is(root, capsys):
    assert inspect_main([str(root / "ft"), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["arch"] == "small-4" and found["class_names"] == [f"class{c}" for c in range(4)]
    assert found["preprocessing"] == {"size": 16, "crop_ratio": 1.0, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                                      "interpolation": "bilinear"}  # fmt: skip
    assert "small-4" in err and "class0, class1, class2, class3" in err and "16 pixels" in err
    assert found["from"]["start_sha256"] == checkpoint.weights_hash(root / "run")
    assert inspect_main([str(root / "ft"), "--verify"]) == 2 and "are for .beton files" in capsys.readouterr().err
    assert inspect_main([str(root / "test")]) == 2 and "no checkpoint there" in capsys.readouterr().err
