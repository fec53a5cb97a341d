"""A surrogate that cannot choose is refused, with the reason; a weak one is warned of; what it can do is written down."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pruning_data import images, run
from safetensors.torch import load_file, save_file
from small_runs import run as pretrain

from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.common.errors import BetonError, UsageError
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.pruning.quality import Accuracy, of_classifier, spread
from dp4tl_fast.selection import Selection
from dp4tl_fast.training import checkpoint

CLASSES = 12  # 1 to 12, which sort as 1, 10, 11, 12, 2, ...


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Twelve plain colours in folders 1 to 12, a target of one of them, and a surrogate."""
    root, random = tmp_path_factory.mktemp("numbered"), np.random.default_rng(0)
    grid = np.array([(r, g, b) for r in (40, 220) for g in (40, 220) for b in (30, 130, 230)])
    for name, classes, count in (("source", range(1, CLASSES + 1), 12), ("target", [10], 8)):
        for c in classes:
            (root / name / str(c)).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(grid[c - 1] + random.normal(0, 12, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / name / f"{c}/{i}.png")
        convert(str(root / name), str(root / f"{name}.beton"))
    pretrain(root / "source.beton", root / "surrogate", arch="small-16", epochs=12, batch_size=16, lr=0.1)
    return root


def prune(root, out, surrogate, **more):
    given = {"source": str(root / "source.beton"), "target": [str(root / "target.beton")], "keep": "3"}
    return run(root, out, **given, surrogate=str(surrogate), arch="small-16", size=16, **more)


def test_weights_in_natural_order_of_the_class_folders_are_refused(numbered, tmp_path, capsys):
    """The source numbers its folders in text order; weights from elsewhere, without a word on it, in natural order."""
    tensors = load_file(checkpoint.find_weights(numbered / "surrogate"))
    names = Beton(numbered / "source.beton").class_names
    assert names[:3] == ["1", "10", "11"]
    natural = [names.index(str(c)) for c in range(1, CLASSES + 1)]  # output i is class i + 1
    save_file({k: v[natural] if k.startswith("fc.") else v for k, v in tensors.items()}, tmp_path / "natural.safetensors")
    save_file(tensors, tmp_path / "text.safetensors")

    good = prune(numbered, tmp_path / "good.json", tmp_path / "text.safetensors")
    assert names[int(np.argmax(good["scores"]))] == "10"
    assert good["surrogate"]["accuracy"]["top_1"] > 0.9
    with pytest.raises(UsageError, match=r"once its outputs are renumbered.*in another order"):
        prune(numbered, tmp_path / "bad.json", tmp_path / "natural.safetensors")
    assert not (tmp_path / "bad.json").exists()
    capsys.readouterr()
    bad = prune(numbered, tmp_path / "bad.json", tmp_path / "natural.safetensors", accept_surrogate=True)
    assert "warning: `surrogate=" in capsys.readouterr().err
    assert names[int(np.argmax(bad["scores"]))] != "10"  # what it would have kept without a word
    assert sum(prune(numbered, tmp_path / "fm.json", tmp_path / "natural.safetensors", method="fm")["scores"]) == 8  # features only


def test_the_accuracy_is_in_the_selection_and_on_the_page(data, tmp_path, capsys):
    seen = run(data, tmp_path / "a.json", report=str(tmp_path / "r.html"))["surrogate"]["accuracy"]
    assert Selection.load(tmp_path / "a.json").surrogate["accuracy"] == seen
    assert seen["on"] == "trained on" and seen["images"] == 48 and seen["chance"] == 0.25 and seen["measure"] == "classifier"
    assert f"{100 * seen['top_1']:.1f} % top-1 on 48 images it was trained on" in capsys.readouterr().err
    assert f"surrogate: {100 * seen['top_1']:.1f} % top-1" in (tmp_path / "r.html").read_text()
    last = json.loads((data / "surrogate/metrics.jsonl").read_text().splitlines()[-1])
    assert seen["top_1"] == pytest.approx(last["top_1"], abs=0.15)  # which was of augmented images, while it went on learning
    same = run(data, tmp_path / "b.json", surrogate_val=str(data / "source.beton"))["surrogate"]["accuracy"]
    assert same == seen  # held out is another file
    images(tmp_path / "other", range(4), 5, 8)
    for method, measure in (("lm", "classifier"), ("fm", "class means")):
        held = run(data, tmp_path / "b.json", surrogate_val=str(tmp_path / "other.beton"), method=method)["surrogate"]["accuracy"]
        assert held["on"] == "held out" and held["measure"] == measure and held["images"] == 20
    with pytest.raises(BetonError, match="calls class 0"):
        run(data, tmp_path / "c.json", surrogate_val=str(data / "blue.beton"))
    with BetonWriter(tmp_path / "empty.beton", capacity=0) as writer:
        writer.close()
    for method in ("lm", "fm"):
        with pytest.raises(UsageError, match=r"`surrogate_val=.*empty.beton`: has no images"):
            run(data, tmp_path / "c.json", surrogate_val=str(tmp_path / "empty.beton"), method=method)
    assert not (tmp_path / "c.json").exists()


def test_a_union_of_methods_pays_for_its_surrogate_once(data, tmp_path):
    lm, fm = (run(data, tmp_path / f"{m}.json", method=m) for m in ("lm", "fm"))
    both = Selection.load(tmp_path / "lm.json").union(Selection.load(tmp_path / "fm.json"), Beton(data / "source.beton"))
    assert lm["surrogate"] != fm["surrogate"] and both.seconds["surrogate"] == lm["seconds"]["surrogate"]


@pytest.mark.parametrize(
    ("classes", "top_1", "verdict"),
    [(202, 0.01, "useless"), (202, 0.05, "weak"), (202, 0.12, "good"), (1000, 0.004, "useless"), (1000, 0.019, "weak"),
     (1000, 0.3, "good"), (10, 0.15, "useless"), (10, 0.4, "weak"), (10, 0.6, "good"), (2, 0.53, "useless"), (2, 0.8, "good")],
)  # fmt: skip
def test_the_bars(classes, top_1, verdict):
    a = Accuracy("classifier", top_1, 1 / classes, 2000, "unknown", top_1)
    assert ("useless" if a.useless else "weak" if a.weak else "good") == verdict and not a.misnumbered


@given(st.integers(0, 10**6), st.integers(4, 300), st.floats(0.7, 1))
def test_renumbering_is_noticed_and_nothing_else_is(seed, classes, accuracy):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), max(8, 2000 // classes))
    guesses = random.integers(0, classes, len(labels))
    found = np.where(random.random(len(labels)) < accuracy, labels, guesses)
    other = np.roll(np.arange(classes), 1)
    assert not of_classifier(found, labels, "unknown").misnumbered
    assert not of_classifier(guesses, labels, "unknown").misnumbered
    assert not of_classifier(np.full_like(labels, 3), labels, "unknown").misnumbered
    assert of_classifier(other[found], labels, "unknown").misnumbered


def test_a_weak_network_with_renumbered_outputs_is_told_from_an_untrained_one():
    """38 % on 12 classes is weak; the remedy of 7 % is another order, and no longer training."""
    labels = np.repeat(np.arange(12), 60)
    found = np.where(np.arange(720) % 3 == 0, labels, np.random.default_rng(0).integers(0, 12, 720))
    weak, other = (of_classifier(f, labels, "unknown") for f in (found, 11 - found))
    assert weak.weak and not weak.misnumbered and other.useless and other.misnumbered


def test_a_sample_is_spread_over_every_class():
    labels = np.array([2] * 9 + [0] * 3 + [4])
    assert spread(labels, 3).tolist() == [0, 4, 8, 9, 10, 11, 12]
    assert spread(labels, 1).tolist() == [0, 9, 12] and len(spread(labels, 99)) == 13
