"""The prune command on small real files: every method, the cache, several targets, imports, reports, refusals."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dp4tl_fast import embedding
from dp4tl_fast.__main__ import main as dispatch
from dp4tl_fast.beton import Beton
from dp4tl_fast.convert import convert
from dp4tl_fast.errors import Dp4tlError, SelectionError, UsageError
from dp4tl_fast.mapping.registry import METHODS
from dp4tl_fast.pretrain import PretrainConfig, pretrain
from dp4tl_fast.prune import prune
from dp4tl_fast.selection import Selection
from dp4tl_fast.training import checkpoint

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (200, 200, 60))
PER_CLASS = 12


def images(folder, colours, count, seed):
    random = np.random.default_rng(seed)
    for c in colours:
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(np.array(COLOURS[c]) + random.normal(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}/{i}.jpg")
    convert(str(folder), f"{folder}.beton")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A source of four colours, a red and a blue target, and a surrogate trained while forgetting was counted."""
    root = tmp_path_factory.mktemp("data")
    images(root / "source", range(4), PER_CLASS, 0)
    images(root / "red", [0], 9, 1)
    images(root / "blue", [2], 5, 2)
    pretrain(
        PretrainConfig(
            source=str(root / "source.beton"), out=str(root / "surrogate"), arch="small-4", size=16, batch_size=8, epochs=8,
            lr=0.1, tensorboard=False, precision="fp32", workers=1, forgetting=True, flip=False,
        )
    )  # fmt: skip
    return root


def run(data, out, *targets, **options):
    defaults = {
        "source": str(data / "source.beton"), "surrogate": str(data / "surrogate"), "keep": "2", "workers": 1,
        "cache": str(out.parent / "cache"), "target": [str(data / f"{t}.beton") for t in targets or ("red",)],
    }  # fmt: skip
    return prune(**{**defaults, "out": str(out), **options})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_by_one_command(data, tmp_path, method):
    (tmp_path / "scores.csv").write_text("class,score\nclass0,3\nclass1,1\n2,7\nclass3,2\n")
    options = {"classes": ["class1", "3"]} if method == "handpicked" else {}
    options |= {"scores": str(tmp_path / "scores.csv")} if method == "influence" else {}
    result = run(data, tmp_path / "s.json", method=method, keep="0.5", clusters=6, **options)
    source, selection = Beton(data / "source.beton"), Selection.load(tmp_path / "s.json")
    assert len(selection.indices(source)) == selection.kept_samples == result["kept_samples"] == 2 * PER_CLASS
    assert result["method"] == method and result["profile"]["total"] > 0
    if method in ("lm", "fm"):
        assert selection.kept_classes[0] == 0 and sum(selection.scores) == 9  # red pictures are nearest to red
    if method == "handpicked":
        assert selection.kept_classes == [1, 3]
    if method == "influence":
        assert selection.kept_classes == [0, 2]
    reverse = run(data, tmp_path / "r.json", method=method, keep="0.5", clusters=6, reverse=True, **options)
    assert reverse["kept_samples"] == 2 * PER_CLASS
    other = Selection.load(tmp_path / "r.json").indices(source)
    assert not np.isin(other, selection.indices(source)).any()  # the halves are complements


def test_fm_equals_ten_lines_of_numpy(data, tmp_path):
    """From images to votes: the features are the network's own, the rest is NumPy."""
    result = run(data, tmp_path / "fm.json", "red", "blue", method="fm")
    model, _ = checkpoint.load_model(data / "surrogate")
    model.fc = torch.nn.Identity()
    votes = np.zeros(4, int)
    x, y = features(model, data / "source.beton")
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    for target in ("red", "blue"):
        t, _ = features(model, data / f"{target}.beton")
        votes += np.bincount(((t[:, None] - means[None]) ** 2).sum(2).argmin(1), minlength=4)
    assert result["scores"] == votes.tolist()


def features(model, path):
    from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD, LoaderSpec, open_loader

    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with open_loader(path, None, LoaderSpec(size=16, crop_ratio=1.0, workers=1)) as loader, torch.inference_mode():
        pairs = [(model(torch.from_numpy((i.numpy() / 255 - mean) / std).float()), y) for i, y in loader]
    return np.concatenate([f.numpy() for f, _ in pairs]).astype(float), np.concatenate([y.numpy() for _, y in pairs])


# -- clusters ---------------------------------------------------------------------------------------------------------


def test_clusters_are_kept_whole_saved_and_reused(data, tmp_path):
    result = run(data, tmp_path / "a.json", method="fm", groups="kmeans", clusters=5, keep="1")
    selection, source = Selection.load(tmp_path / "a.json"), Beton(data / "source.beton")
    saved = np.load(tmp_path / "a.json.groups.npz", allow_pickle=False)
    assert saved["centroids"].shape == (5, 16) and saved["index"].shape == (48,) and saved["votes"].sum() == 9
    best = int(saved["votes"].argmax())
    assert result["parameters"]["kept_clusters"] == [best]
    assert selection.indices(source).tolist() == np.flatnonzero(saved["index"] == best).tolist()
    again = run(data, tmp_path / "b.json", "blue", method="fm", groups=str(tmp_path / "a.json.groups.npz"), keep="1")
    reused = np.load(tmp_path / "b.json.groups.npz", allow_pickle=False)
    assert np.array_equal(saved["centroids"], reused["centroids"]) and np.array_equal(saved["index"], reused["index"])
    assert again["parameters"]["kept_clusters"] != [best]
    for bad in ("nonsense", str(tmp_path / "a.json")):
        with pytest.raises(UsageError, match="--groups"):
            run(data, tmp_path / "c.json", method="fm", groups=bad)


# -- the cache --------------------------------------------------------------------------------------------------------


def forward_passes(monkeypatch):
    calls = []
    real = embedding.Surrogate.batches
    monkeypatch.setattr(embedding.Surrogate, "batches", lambda self, b, w: calls.append(b.path.name) or real(self, b, w))
    return calls


def test_a_second_method_or_ratio_reads_no_image(data, tmp_path, monkeypatch):
    calls = forward_passes(monkeypatch)
    run(data, tmp_path / "a.json", method="fm")
    assert sorted(calls) == ["red.beton", "source.beton"]
    first = run(data, tmp_path / "b.json", method="fm", keep="1")
    run(data, tmp_path / "c.json", method="moderate")
    run(data, tmp_path / "d.json", method="lm")
    assert sorted(calls) == ["red.beton", "source.beton"]
    assert first["seconds"]["cached"] > 0  # what the first run spent counts towards the selection's cost
    run(data, tmp_path / "e.json", "blue", method="lm")
    assert calls[2:] == ["blue.beton"]
    run(data, tmp_path / "f.json", method="lm", cache="none")
    assert calls[3:] == ["red.beton"]


def test_other_weights_or_data_are_not_found_in_the_cache(data, tmp_path, monkeypatch):
    calls = forward_passes(monkeypatch)
    before = run(data, tmp_path / "a.json")
    tensors = load_file(checkpoint.find_weights(data / "surrogate"))
    tensors["fc.bias"] = tensors["fc.bias"].clone()
    tensors["fc.bias"][3] += 1000
    save_file(tensors, tmp_path / "other.safetensors")
    after = run(data, tmp_path / "b.json", surrogate=str(tmp_path / "other.safetensors"), arch="small-4", size=16)
    assert len(calls) == 2 and after["scores"] == [0, 0, 0, 9] != before["scores"]
    copy = tmp_path / "red.beton"
    copy.write_bytes((data / "blue.beton").read_bytes())
    run(data, tmp_path / "c.json", target=[str(copy)])
    copy.write_bytes((data / "red.beton").read_bytes())
    run(data, tmp_path / "d.json", target=[str(copy)])
    assert len(calls) == 4 and json.loads((tmp_path / "d.json").read_text())["scores"] == before["scores"]


def test_damaged_cache_files_are_computed_again(data, tmp_path, capsys):
    before = run(data, tmp_path / "a.json")
    (file,) = (tmp_path / "cache").glob("features-*.npy")
    for damage in (file.read_bytes()[:100], b"", b"garbage" * 99):
        file.write_bytes(damage)
        assert run(data, tmp_path / "b.json")["scores"] == before["scores"]
        assert "computing it again" in capsys.readouterr().err


def killed_while_filling(path):
    def fill(out):
        out[0] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    embedding.cached(path, (4,), np.dtype("<f4"), fill)


def fill_and_count(path, log):
    def fill(out):
        with open(log, "a") as file:
            file.write("x")
        out[:] = 7

    assert embedding.cached(path, (1000,), np.dtype("<f4"), fill).array[999] == 7


def test_cache_survives_a_kill_and_concurrent_runs(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    path = tmp_path / "a.npy"
    process = spawn.Process(target=killed_while_filling, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not path.exists()
    assert embedding.cached(path, (4,), np.dtype("<f4"), lambda out: out.fill(2)).array.tolist() == [2] * 4
    assert not list(tmp_path.glob(".*partial"))
    many = [spawn.Process(target=fill_and_count, args=(tmp_path / "b.npy", tmp_path / "log")) for _ in range(3)]
    for process in many:
        process.start()
    for process in many:
        process.join()
    assert [p.exitcode for p in many] == [0] * 3 and (tmp_path / "log").read_text() == "x"  # the others waited


def test_two_processes_choose_what_one_does(data, tmp_path):
    """Under torchrun, with batches that do not divide the records, cold and from the cache."""

    def under_torchrun(out, *more):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "dp4tl_fast.prune"]
        flags = [f"--source={data / 'source.beton'}", f"--target={data / 'red.beton'}", f"--surrogate={data / 'surrogate'}",
                 f"--out={out}", "--workers=1", "--batch-size=5", "--json", *more]  # fmt: skip
        done = subprocess.run(command + flags, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 1  # one process speaks
        return json.loads(lines[0])

    alone = run(data, tmp_path / "a.json", method="fm", groups="kmeans", clusters=5, keep="2", cache="none")
    flags = ("--method=fm", "--groups=kmeans", "--clusters=5", "--keep=2")
    cold = under_torchrun(tmp_path / "two/b.json", *flags)
    warm = under_torchrun(tmp_path / "two/c.json", *flags)
    assert warm["seconds"]["cached"] > 0 and "cached" not in cold["seconds"]
    source = Beton(data / "source.beton")
    records = [Selection.load(tmp_path / p).indices(source).tolist() for p in ("a.json", "two/b.json", "two/c.json")]
    assert records[0] == records[1] == records[2]
    assert alone["parameters"]["cluster_votes"] == cold["parameters"]["cluster_votes"]
    # The same network in batches of another size: float32 sums in another order.
    a, b = (np.load(tmp_path / p)["centroids"] for p in ("a.json.groups.npz", "two/b.json.groups.npz"))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# -- several targets --------------------------------------------------------------------------------------------------


def test_several_targets_in_one_pass(data, tmp_path, monkeypatch):
    calls = forward_passes(monkeypatch)
    result = run(data, tmp_path / "s.json", "red", "blue", method="fm", merge="turns")
    assert sorted(calls) == ["blue.beton", "red.beton", "source.beton"]
    assert result["kept_classes"] == [0, 2] and [t["name"] for t in result["targets"]] == ["red.beton", "blue.beton"]
    each = {k: Selection.load(v) for k, v in result["per_target"].items()}
    assert each[str(data / "red.beton")].kept_classes[0] == 0 and len(each) == 2
    alone = run(data, tmp_path / "alone.json", "blue", method="fm")
    assert alone["scores"] == each[str(data / "blue.beton")].scores
    (tmp_path / "other").mkdir()
    for name in ("red.beton", "red.classes.json"):
        (tmp_path / "other" / name).write_bytes((data / name.replace("red", "blue")).read_bytes())
    twins = run(data, tmp_path / "t.json", method="fm", target=[str(data / "red.beton"), str(tmp_path / "other/red.beton")])
    assert [Selection.load(p).scores for p in twins["per_target"].values()] == [s.scores for s in each.values()]
    with pytest.raises(UsageError, match="given twice"):
        run(data, tmp_path / "t.json", "red", "red")
    union = run(data, tmp_path / "u.json", "red", "blue", method="fm", merge="union", keep="1")
    assert union["kept_classes"] == [0, 2]


# -- rules, surrogates, outputs ---------------------------------------------------------------------------------------


def test_budget_auto_and_materialize(data, tmp_path):
    result = run(data, tmp_path / "b.json", keep="", budget=0.5, materialize=str(tmp_path / "m.beton"))
    copy, source = Beton(tmp_path / "m.beton"), Beton(data / "source.beton")
    assert result["kept_samples"] == copy.num_samples == 24
    records = Selection.load(tmp_path / "b.json").indices(source)
    assert copy.labels.tolist() == source.labels[records].tolist()
    assert all(copy.payload(i).tobytes() == source.payload(r).tobytes() for i, r in enumerate(records))
    assert run(data, tmp_path / "a.json", keep="auto")["kept_classes"][0] == 0


def test_train_surrogate_counts_its_cost_and_is_reused(data, tmp_path, monkeypatch):
    options = {"surrogate": None, "train_surrogate": str(tmp_path / "net"), "arch": "small-4", "size": 16, "surrogate_epochs": 1}
    result = run(data, tmp_path / "a.json", method="forgetting", keep="0.5", **options)
    assert result["seconds"]["surrogate"] > 0 and len(np.load(tmp_path / "net/forgetting.npy")) == 48
    stamp = checkpoint.find_weights(tmp_path / "net").stat().st_mtime_ns
    run(data, tmp_path / "b.json", method="lm", **options)
    assert checkpoint.find_weights(tmp_path / "net").stat().st_mtime_ns == stamp


def test_published_and_timm_surrogates(data, tmp_path, monkeypatch):
    """Weights as torchvision publishes them, from its download cache (filled here with a random network)."""
    from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small

    from dp4tl_fast import models

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
    with pytest.raises(Dp4tlError, match="--arch"):
        run(data, tmp_path / "b.json", surrogate="torchvision:DEFAULT")

    network = models.build("timm:test_resnet", 4)
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "w.pt")
    timm = run(data, tmp_path / "t.json", surrogate=str(tmp_path / "w.pt"), arch="timm:test_resnet", size=32)
    assert sum(timm["scores"]) == 9
    with pytest.raises(UsageError, match="unknown architecture timm:nothing"):
        run(data, tmp_path / "b.json", surrogate=str(tmp_path / "w.pt"), arch="timm:nothing")


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


def test_pretraining_on_single_records(data, tmp_path):
    """Only the surviving records are read, and the run is tied to them, not to their classes alone."""

    def train(selection, **more):
        return pretrain(
            PretrainConfig(
                source=str(data / "source.beton"), val=str(data / "source.beton"), selection=str(selection), arch="small-4",
                size=16, batch_size=4, epochs=1, out=str(tmp_path / "r"), tensorboard=False, workers=1, **more,
            )
        )  # fmt: skip

    run(data, tmp_path / "a.json", method="moderate", keep="0.5")
    run(data, tmp_path / "b.json", method="moderate", keep="0.5", reverse=True)
    assert Selection.load(tmp_path / "a.json").kept_classes == Selection.load(tmp_path / "b.json").kept_classes
    assert train(tmp_path / "a.json")["samples"] == 24
    assert json.loads((tmp_path / "r/metrics.jsonl").read_text())["samples"] == 24
    with pytest.raises(UsageError, match="selection_records_sha256"):
        train(tmp_path / "b.json", resume=True)


# -- the selection command --------------------------------------------------------------------------------------------


def test_selection_command(data, tmp_path, capsys):
    source = str(data / "source.beton")
    run(data, tmp_path / "a.json", method="handpicked", classes=["class0", "0", "class1"], keep="")
    run(data, tmp_path / "b.json", method="handpicked", classes=["class1", "class3"], keep="")

    def command(*words):
        code = dispatch(["selection", *map(str, words)])
        return code, capsys.readouterr()

    a, b, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "out.json"
    code, text = command("show", a, "--source", source)
    assert code == 0 and "handpicked, 2 of 4 classes" in text.err and re.search(r"kept +class1", text.err)
    code, text = command("diff", a, b, "--source", source, "--json")
    assert code == 0 and json.loads(text.out)["only"] == [[0], [3]] and "class3" in text.err
    assert command("union", a, b, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).kept_classes == [0, 1, 3]
    assert command("intersect", a, b, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).kept_classes == [1]
    indices = tmp_path / "s.indices"
    assert command("export", a, "--source", source, "--out", indices)[0] == 0
    assert torch.load(indices, weights_only=True).tolist() == Selection.load(a).indices(Beton(source)).tolist()
    assert command("import", indices, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).kept_classes == [0, 1] and Selection.load(out).records is None
    torch.save(torch.tensor([5, 1, 30]), indices)
    assert command("import", indices, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).indices(Beton(source)).tolist() == [1, 5, 30]
    assert command("intersect", a, out, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).indices(Beton(source)).tolist() == [1, 5]
    for bad in ("frobnicate", "union", "show"):
        assert command(bad)[0] == 2
    assert command("union", a, b)[0] == 2  # without --source and --out


@pytest.mark.parametrize(
    "value", [torch.tensor([0.5]), torch.tensor([[1]]), torch.tensor([48]), torch.tensor([-1]), torch.tensor([3, 3]),
              torch.zeros(0, dtype=torch.int64), {"a": torch.tensor([1])}, "code"],
)  # fmt: skip
def test_indices_are_not_trusted(data, tmp_path, value):
    from dp4tl_fast.selection.upstream import import_indices

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    torch.save(Evil() if isinstance(value, str) else value, tmp_path / "x.indices")
    with pytest.raises(SelectionError, match=r"x\.indices"):
        import_indices(tmp_path / "x.indices", Beton(data / "source.beton"))
    assert not (tmp_path / "owned").exists()


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(data, tmp_path_factory):
    """Weights that cannot work."""
    root = tmp_path_factory.mktemp("bad")
    tensors = load_file(checkpoint.find_weights(data / "surrogate"))
    grey = {k: v.mean(1, keepdim=True).contiguous() if k == "stem.0.weight" else v for k, v in tensors.items()}
    save_file(grey, root / "grey.safetensors")
    save_file({k: v * torch.nan if k == "stem.0.weight" else v for k, v in tensors.items()}, root / "nan.safetensors")
    wide = {k: torch.cat([v, v[:1]]) if k.startswith("fc.") else v for k, v in tensors.items()}
    save_file(wide, root / "wide.safetensors")
    return root


REFUSED = {
    "class-counts": (["--surrogate={b}/wide.safetensors"], "knows 5 classes, but"),
    "channels": (["--surrogate={b}/grey.safetensors"], "1 of another shape (e.g. stem.0.weight)"),
    "nan-features": (["--surrogate={b}/nan.safetensors"], "not finite"),
    "clusters": (["--surrogate={d}/surrogate", "--method=fm", "--groups=kmeans", "--clusters=49"], "--clusters 49"),
    "keeps-nothing": (["--surrogate={d}/surrogate", "--budget=0.01"], "keeps nothing"),
    "keep-and-budget": (["--surrogate={d}/surrogate", "--keep=1", "--budget=0.1"], "give one of them"),
    "neither": (["--surrogate={d}/surrogate"], "Give --keep"),
    "no-surrogate": (["--keep=1"], "needs --surrogate"),
    "keep-zero": (["--surrogate={d}/nothing", "--keep=0"], "--keep 0"),
    "budget-above-1": (["--surrogate={d}/nothing", "--budget=1.5"], "budget:1.5"),
    "merge": (["--surrogate={d}/surrogate", "--keep=1", "--merge=magic"], "sum, union, turns"),
    "handpicked": (["--method=handpicked", "--classes=unicorn"], "--classes unicorn"),
    "auto": (["--method=random", "--keep=auto"], "no votes"),
    "no-forgetting": (["--method=forgetting", "--surrogate={b}/wide.safetensors", "--keep=1"], "--forgetting"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_clear_line(data, bad, tmp_path, capsys, case):
    flags, needle = REFUSED[case]
    arguments = [f.format(d=data, b=bad) for f in flags]
    if case in ("class-counts", "channels", "nan-features", "clusters"):
        arguments.append("--keep=1")
    if "{b}" in flags[0] or case == "no-forgetting":
        arguments += ["--arch=small-4", "--size=16"]
    common = [f"--source={data / 'source.beton'}", f"--target={data / 'red.beton'}", f"--out={tmp_path / 'o.json'}"]
    assert dispatch(["prune", *common, *arguments]) == 2
    text = capsys.readouterr().err.replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.startswith("dp4tl-fast ")]
    assert len(lines) == 1 and needle in lines[0] and "Traceback" not in text
    assert not (tmp_path / "o.json").exists()


def test_an_empty_target_is_refused(data, tmp_path):
    from dp4tl_fast.beton import BetonWriter

    with BetonWriter(tmp_path / "empty.beton", capacity=0) as writer:
        writer.close()
    with pytest.raises(UsageError, match="no images"):
        run(data, tmp_path / "s.json", target=[str(tmp_path / "empty.beton")])


# -- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_file(data, tmp_path_factory):
    """The report of a selection for two targets, by clusters (so that every section is there)."""
    root = tmp_path_factory.mktemp("page")
    run(data, root / "s.json", "red", "blue", method="fm", merge="turns", report=str(root / "r.html"))
    run(data, root / "k.json", "red", "blue", method="fm", groups="kmeans", clusters=5, report=str(root / "k.html"))
    return root


def test_report_is_one_file_with_plots_beside(page_file):
    html = (page_file / "r.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", html), "the page must work without a network"
    assert html.count("data:image/jpeg;base64,") == 3 * 4  # every class of each selection
    assert "Overlap" in html and "s.red" in html and "labels_sha256" in html and "clusters kept" not in html
    assert "clusters kept" in (page_file / "k.html").read_text()
    for name in ("r-s-scores.svg", "r-s-scores.png", "r-s.red-scores.svg", "k-k-clusters.png"):
        assert (page_file / name).stat().st_size > 1000
    assert (page_file / "r-s-scores.png").read_bytes().startswith(b"\x89PNG")


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="needs a chromium on the PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_in_a_browser(page_file, scheme):
    """Headless Chromium on file://, as wide as a phone: no request, no error, nothing overflows, the table sorts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
        requests, errors = [], []
        page.on("request", lambda r: requests.append(r.url))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto((page_file / "r.html").as_uri())
        assert [r for r in requests if not r.startswith("data:")] == [(page_file / "r.html").as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        ink, paper = (
            sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
            for name in ("color", "backgroundColor")
        )
        assert (ink > paper) == (scheme == "dark") and abs(ink - paper) > 500  # of 765: readable
        page.click("summary >> nth=0")
        names = "[...document.querySelector('table.sortable').tBodies[0].rows].map(r => r.cells[%d].textContent)"
        assert page.evaluate(names % 2) == ["1", "2", "3", "4"]
        for _ in range(2):
            page.click("table.sortable >> nth=0 >> button:has-text('id')")
        assert page.evaluate(names % 1) == ["3", "2", "1", "0"]
        page.click("table.sortable >> nth=0 >> button:has-text('class')")
        assert page.evaluate(names % 0) == ["class0", "class1", "class2", "class3"]
        assert not errors
        browser.close()
