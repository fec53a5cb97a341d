"""Where surrogates come from, and scores that come from elsewhere."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pruning_data import images, run

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import Dp4tlError, UsageError
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.pretraining.config import MocoConfig, PretrainConfig
from dp4tl_fast.pretraining.run import pretrain
from dp4tl_fast.selection import Selection
from dp4tl_fast.training import checkpoint, models


def test_train_surrogate_counts_its_cost_and_is_reused(data, tmp_path):
    options = {"surrogate": None, "train_surrogate": str(tmp_path / "net"), "arch": "small-4", "size": 16, "surrogate_epochs": 1,
               "accept_surrogate": True}  # fmt: skip
    result = run(data, tmp_path / "a.json", method="forgetting", keep="0.5", **options)
    assert result["seconds"]["surrogate"] > 0 and len(np.load(tmp_path / "net/forgetting.npy")) == 48
    stamp = checkpoint.find_weights(tmp_path / "net").stat().st_mtime_ns
    run(data, tmp_path / "b.json", method="lm", **options)
    assert checkpoint.find_weights(tmp_path / "net").stat().st_mtime_ns == stamp


def test_a_surrogate_of_what_the_source_was_before_is_not_reused(data, tmp_path):
    images(tmp_path / "source", range(4), 12, 7)
    options = {"surrogate": None, "train_surrogate": str(tmp_path / "net"), "arch": "small-4", "size": 16, "surrogate_epochs": 1,
               "source": str(tmp_path / "source.beton")}  # fmt: skip
    run(data, tmp_path / "a.json", method="fm", **options)
    images(tmp_path / "new/source", range(4), 12, 8)  # as many images of each class
    for name in ("source.beton", "source.info.zip"):
        (tmp_path / "new" / name).replace(tmp_path / name)
    with pytest.raises(UsageError, match="now holds other images"):
        run(data, tmp_path / "b.json", method="fm", **options)


def test_an_untrained_classifier_does_not_vote(data, tmp_path):
    """Pretraining without labels leaves the network's last layer as it was initialised."""
    from small_runs import run as pretrain

    pretrain(data / "source.beton", tmp_path / "moco", objective="moco", epochs=1, moco=MocoConfig(queue=16))
    for method in ("lm", "grand", "el2n"):
        with pytest.raises(UsageError, match="its classifier was never trained"):
            run(data, tmp_path / "a.json", method=method, surrogate=str(tmp_path / "moco"))
    assert sum(run(data, tmp_path / "a.json", method="fm", surrogate=str(tmp_path / "moco"))["scores"]) == 9


def test_clusters_are_of_one_surrogates_features(data, tmp_path):
    options = {"method": "fm", "clusters": 5}
    first = run(data, tmp_path / "a.json", groups="kmeans", **options)
    again = run(data, tmp_path / "b.json", groups=str(tmp_path / "a.json.groups.npz"), **options)
    assert again["parameters"]["cluster_votes"] == first["parameters"]["cluster_votes"]
    for other in ({"size": 24}, {"surrogate": str(tmp_path / "w.pt"), "arch": "small-4", "size": 16}):
        torch.save(models.build("small-4", 4).state_dict(), tmp_path / "w.pt")
        with pytest.raises(UsageError, match="of other features"):
            run(data, tmp_path / "c.json", groups=str(tmp_path / "a.json.groups.npz"), **options, **other)


def test_forgetting_counts_are_of_one_order_of_one_file(data, tmp_path):
    convert(str(data / "source"), str(tmp_path / "other.beton"), layout="shuffled", seed=3)
    with pytest.raises(UsageError, match="of this one in another order"):
        run(data, tmp_path / "a.json", method="forgetting", source=str(tmp_path / "other.beton"))


def test_forgetting_counts_are_of_one_order_of_classes(data, tmp_path):
    """Pixels, as many of each class: the tables of two orders are equal, byte for byte."""
    (tmp_path / "order.txt").write_text("class3\nclass2\nclass1\nclass0\n")
    for name, order in (("one", "text"), ("other", str(tmp_path / "order.txt"))):
        convert(str(data / "source"), str(tmp_path / f"{name}.beton"), write_mode="raw", class_order=order)
    pretrain(PretrainConfig(
        source=str(tmp_path / "one.beton"), out=str(tmp_path / "run"), arch="small-4", size=16, batch_size=8, epochs=2, lr=0.1,
        tensorboard=False, precision="fp32", workers=1, forgetting=True,
    ))  # fmt: skip
    run(data, tmp_path / "a.json", method="forgetting", source=str(tmp_path / "one.beton"), surrogate=str(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"counts the records of another file|in another order"):
        run(data, tmp_path / "b.json", method="forgetting", source=str(tmp_path / "other.beton"), surrogate=str(tmp_path / "run"))


def test_published_and_timm_surrogates(data, tmp_path, monkeypatch):
    """Weights as torchvision publishes them, from its download cache (filled here with a random network)."""
    from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = MobileNet_V3_Small_Weights.IMAGENET1K_V1
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save(mobilenet_v3_small().state_dict(), folder / weights.url.rpartition("/")[2])
    published = {"surrogate": "torchvision:DEFAULT", "method": "fm"}  # its 1000 classes are not the source's: fm may
    result = run(data, tmp_path / "a.json", arch="mobilenet_v3_small", **published)
    assert result["surrogate"]["size"] == 224 and sum(result["scores"]) == 9
    with pytest.raises(UsageError, match="knows 1000 classes"):
        run(data, tmp_path / "b.json", arch="mobilenet_v3_small", surrogate="torchvision:DEFAULT")
    with pytest.raises(UsageError, match="are IMAGENET1K_V1"):
        run(data, tmp_path / "b.json", arch="mobilenet_v3_small", surrogate="torchvision:BEST")
    with pytest.raises(Dp4tlError, match="`arch`"):
        run(data, tmp_path / "b.json", surrogate="torchvision:DEFAULT")

    network = models.build("timm:test_resnet", 4)
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "w.pt")
    timm = run(data, tmp_path / "t.json", surrogate=str(tmp_path / "w.pt"), arch="timm:test_resnet", size=32, accept_surrogate=True)
    assert sum(timm["scores"]) == 9
    with pytest.raises(UsageError, match="unknown architecture timm:nothing"):
        run(data, tmp_path / "b.json", surrogate=str(tmp_path / "w.pt"), arch="timm:nothing")


def test_a_surrogate_of_another_file_is_said_to_be_one(data, tmp_path, capsys):
    """With as many classes it may be right (a copy in another order) or quite wrong."""
    images(tmp_path / "other", range(4), 3, 5)
    for method, source, noted in (("lm", "", False), ("lm", "other", True), ("fm", "other", False)):
        where = {"source": str(tmp_path / f"{source}.beton")} if source else {}
        run(data, tmp_path / "s.json", method=method, **where)
        assert ("was not trained on" in capsys.readouterr().err) == noted


def test_a_surrogate_of_other_classes_is_refused(data, tmp_path):
    """As many, and images that look the same, but the ids stand for other classes."""
    images(tmp_path / "other", range(4), 3, 5)
    (tmp_path / "other/class0").rename(tmp_path / "other/class9")
    convert(str(tmp_path / "other"), str(tmp_path / "other.beton"))
    with pytest.raises(UsageError, match="was trained on classes of other names or in another order"):
        run(data, tmp_path / "s.json", method="lm", source=str(tmp_path / "other.beton"))
    assert sum(run(data, tmp_path / "s.json", method="fm", source=str(tmp_path / "other.beton"))["scores"]) == 9


def test_forgetting_was_counted_for_every_record(data):
    counts = np.load(data / "surrogate/forgetting.npy")
    assert counts.shape == (48,) and counts.min() == 0  # four plain colours: some record is never forgotten


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_imported_scores_of_records(data, tmp_path, kind):
    source = Beton(data / "source.beton")
    rows = {"index": source.index.tolist()[::-1], "score": list(range(48))}
    path = tmp_path / f"s.{kind}"
    if kind == "csv":
        path.write_text("index,score\n" + "".join(f"{i},{s}\n" for i, s in zip(*rows.values(), strict=True)))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(rows), path)
    run(data, tmp_path / "a.json", method="influence", scores=str(path), keep="10")
    assert Selection.load(tmp_path / "a.json").indices(source).tolist() == list(range(10))


TABLES = {
    "no-score": ("class,value\nclass0,1\n", "needs a column score"),
    "missing": ("class,score\nclass0,1\n", "3 of 4 are missing"),
    "repeated": ("record,score\n" + "".join(f"{i // 2},1\n" for i in range(96)), "48 are repeated"),
    "unknown": ("class,score\nclass9,1\n", "class9"),
    "nan": ("class,score\nclass0,nan\n", "'nan'"),
    "ragged": ("class,score\nclass0,1,2\n", "row 0 has 3 fields"),
}


@pytest.mark.parametrize("case", TABLES)
def test_bad_score_tables(data, tmp_path, case):
    text, message = TABLES[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        run(data, tmp_path / "s.json", method="influence", scores=str(tmp_path / "t.csv"))


# -- rounds until it is enough ---------------------------------------------------------------------------------------

NET = {"surrogate": None, "arch": "small-4", "size": 16, "keep": "1"}


def test_rounds_go_on_until_two_agree_and_serve_other_targets(data, tmp_path, capsys):
    net = {**NET, "train_surrogate": str(tmp_path / "net")}
    first = run(data, tmp_path / "a.json", "red", **net)
    rounds = sorted(int(p.name.removeprefix("epochs-")) for p in (tmp_path / "net").iterdir())
    assert rounds == [2**i for i in range(len(rounds))] and 2 <= len(rounds) <= 5
    told = capsys.readouterr().err
    assert told.count("surrogate after ") == len(rounds) and f"surrogate {tmp_path}/net/epochs-{rounds[-1]}" in told
    accuracy = first["surrogate"]["accuracy"]
    assert rounds[-1] == 16 or accuracy["top_1"] >= 0.625  # of four classes: not weak
    summaries = [json.loads((tmp_path / f"net/epochs-{e}/summary.json").read_text()) for e in rounds]
    assert first["seconds"]["surrogate"] == pytest.approx(sum(s["pretrain_s"] for s in summaries))
    assert [s["epochs"] for s in summaries] == rounds
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "net").rglob("weights.safetensors")}
    again = run(data, tmp_path / "b.json", "red", **net)
    assert again["kept_classes"] == first["kept_classes"] and again["surrogate"] == first["surrogate"]
    both = run(data, tmp_path / "c.json", "red", "blue", **net)
    assert stamps.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "net").rglob("weights.safetensors")}.items()
    assert both["surrogate"]["shared_by"] == 2 and "s for each of 2 targets" in capsys.readouterr().err
    for path in both["per_target"].values():
        one = Selection.load(path)
        assert one.surrogate["shared_by"] == 2 and one.seconds["surrogate"] == both["seconds"]["surrogate"]


def test_rounds_that_never_agree_are_said_to(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dp4tl_fast.pruning.train_surrogate.STABLE", 1.1)
    run(data, tmp_path / "a.json", "red", **{**NET, "train_surrogate": str(tmp_path / "net")})
    told = capsys.readouterr().err
    assert "surrogate after 1 epoch: first votes" in told and "warning: surrogate" in told
    assert "epochs-16: the last two rounds disagree on what to keep" in told and "for longer (`surrogate_epochs`)" in told


def test_a_trained_surrogate_that_cannot_choose_is_refused_with_another_remedy(data, tmp_path):
    """All classes look alike, and the remedy is not what was just done."""
    for c in range(4):
        (tmp_path / f"grey/{c}").mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (20, 24), (100 + i,) * 3).save(tmp_path / f"grey/{c}/{i}.png")
    convert(str(tmp_path / "grey"), str(tmp_path / "grey.beton"))
    net = {**NET, "train_surrogate": str(tmp_path / "net"), "surrogate_epochs": 1, "source": str(tmp_path / "grey.beton")}
    with pytest.raises(UsageError, match=r"hardly better than guessing.*Train a better one in another folder: for longer"):
        run(data, tmp_path / "a.json", **net)
    assert not (tmp_path / "a.json").exists()


def test_without_a_target_accuracy_decides(data, tmp_path):
    run(data, tmp_path / "a.json", **{**NET, "train_surrogate": str(tmp_path / "net"), "method": "el2n"})
    assert {p.name for p in (tmp_path / "net").iterdir()} >= {"epochs-1", "epochs-2", "epochs-4"}


def test_a_run_folder_is_not_filled_with_rounds(data, tmp_path):
    with pytest.raises(UsageError, match="holds a run of its own"):
        run(data, tmp_path / "a.json", **{**NET, "train_surrogate": str(data / "surrogate")})


def test_agreement_is_what_stays_beyond_chance():
    """Of 8 classes with records 4 are kept: 2 in common is chance, 3 is half of the way, whatever the others say."""
    from types import SimpleNamespace

    from dp4tl_fast.mapping.keep import Keep
    from dp4tl_fast.mapping.registry import Scores
    from dp4tl_fast.pruning.train_surrogate import agreement

    def scores(*first):
        return Scores(np.array([10 - first.index(c) if c in first else 0 for c in range(9)], float))

    sizes = np.array([5] * 8 + [0])
    config = SimpleNamespace(rules=[Keep.parse("1.0"), Keep.parse("4")], groups="classes", reverse=False, seed=0)
    before = scores(0, 1, 2, 3)
    for after, found in (((3, 2, 1, 0), 1.0), ((0, 1, 2, 7), 0.5), ((0, 1, 6, 7), 0.0), ((4, 5, 6, 7), -1.0)):
        assert agreement([before], [scores(*after)], sizes, config) == pytest.approx(found)
    assert agreement([before, before], [before, scores(0, 1, 6, 7)], sizes, config) == 0  # the worst target
    config.rules = [Keep.parse("1.0")]
    assert agreement([before], [scores(4, 5, 6, 7)], sizes, config) == 1


SIDES = [(20, 0, (16, 16)), (64, 0, (16, 32)), (500, 0, (64, 128)), (64, 24, (12, 24))]


@pytest.mark.parametrize(("side", "size", "wanted"), SIDES)
def test_resolution_follows_the_images(side, size, wanted):
    from types import SimpleNamespace

    from dp4tl_fast.pruning.train_surrogate import sides

    pictures = {"height": np.array([side, side + 9]), "width": np.array([side + 5, side])}
    assert sides(SimpleNamespace(images=pictures), SimpleNamespace(size=size)) == wanted
