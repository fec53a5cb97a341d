"""subset, relayout, shards and merge: records are copied, never decoded, and end up where a conversion puts them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dp4tl_fast.__main__ import main as dispatch
from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton.copying import relayout, subset
from dp4tl_fast.beton.layout import label_mixing, record_order
from dp4tl_fast.beton.sidecars import sidecar
from dp4tl_fast.beton.verify import verify
from dp4tl_fast.common.errors import BetonError, RecordError, SelectionError, UsageError
from dp4tl_fast.common.files import partial_path
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.conversion.shards import merge_shards, parse_shard, shard_path
from dp4tl_fast.merge import main as merge_main
from dp4tl_fast.relayout import main as relayout_main
from dp4tl_fast.subset import main as subset_main


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    for i in range(30):
        folder = tmp_path / "tree" / f"class {i % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8))
        image.save(folder / f"{i:02}.jpg", comment=b"goes" if i % 5 == 0 else b"")
    (tmp_path / "tree" / "class 1" / "bad.jpg").write_bytes(b"bad")
    return tmp_path / "tree"


@pytest.mark.parametrize("parts", [1, 2, 5, 40])
@pytest.mark.parametrize("layout", ["class", "shuffled"])
def test_merged_shards_are_the_file_of_one_run(tree: Path, tmp_path: Path, layout: str, parts: int) -> None:
    whole, merged = tmp_path / "whole.beton", tmp_path / "merged.beton"
    convert(str(tree), str(whole), layout=layout, on_error="skip")
    seen: list[int] = []
    for part in range(parts):
        result = convert(str(tree), str(merged), layout=layout, on_error="skip", shard=f"{part}/{parts}")
        shard = Beton(shard_path(merged, part, parts))
        assert result["samples"] == shard.num_samples
        assert shard.num_classes == 4, "a shard can be trained from as it is"
        seen += shard.index.tolist()
    assert len(seen) == 30
    merge_shards(merged)
    assert merged.read_bytes() == whole.read_bytes()
    assert sidecar(merged).read_bytes() == sidecar(whole).read_bytes()


def test_merge_refuses_what_does_not_belong_together(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.beton"
    with pytest.raises(BetonError, match="none found"):
        merge_shards(out)
    convert(str(tree), str(out), on_error="skip", shard="0/3")
    convert(str(tree), str(out), on_error="skip", shard="2/3")
    with pytest.raises(BetonError, match=r"shard-1-of-3\.beton: missing; 1 of 3"):
        merge_shards(out)
    convert(str(tree), str(out), on_error="skip", shard="1/3", seed=1)
    with pytest.raises(BetonError, match="other input or flags"):
        merge_shards(out)
    convert(str(tree), str(out), on_error="skip", shard="1/3")
    assert merge_main([str(out), "--json"]) == 0


def test_merge_of_shards_without_an_image_is_refused_as_one_run_is(tmp_path: Path) -> None:
    for i in range(4):
        bad = tmp_path / f"tree/c{i % 2}/{i}.jpg"
        bad.parent.mkdir(parents=True, exist_ok=True)
        bad.write_bytes(b"\xff\xd8 not an image")
    out = tmp_path / "x.beton"
    for part in ("0/2", "1/2"):
        convert(str(tmp_path / "tree"), str(out), on_error="skip", shard=part, workers=1)
    for join in (lambda: merge_shards(out), lambda: convert(str(tmp_path / "tree"), str(out), on_error="skip", workers=1)):
        with pytest.raises(BetonError, match=r"x\.beton: none of 4 images could be stored\. Nothing is written"):
            join()
        assert not out.exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}, (2, 4)),
        ({"RANK": "1", "WORLD_SIZE": "3"}, (1, 3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (0, 2)),
    ],
)
def test_shard_from_the_environment(
    environment: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parse_shard("auto") == expected


def test_bad_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_shard("") is None
    for shard in ("3/3", "1", "-1/2", "a/b", "0/0"):
        with pytest.raises(UsageError, match="I/N"):
            parse_shard(shard)
    for name in ("RANK", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="neither"):
        parse_shard("auto")


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("layout", ["class", "shuffled"])
def test_relayout_gives_the_bytes_of_a_conversion(tree: Path, tmp_path: Path, layout: str, seed: int) -> None:
    (tree / "class 1" / "bad.jpg").unlink()
    convert(str(tree), str(tmp_path / "direct.beton"), layout=layout, seed=seed)
    convert(str(tree), str(tmp_path / "other.beton"), layout="shuffled", seed=9)
    relayout(Beton(tmp_path / "other.beton"), tmp_path / "copied.beton", layout, seed)
    assert (tmp_path / "copied.beton").read_bytes() == (tmp_path / "direct.beton").read_bytes()
    copied, direct = Beton(tmp_path / "copied.beton"), Beton(tmp_path / "direct.beton")
    assert copied.class_names == direct.class_names
    assert copied.checksums().tolist() == direct.checksums().tolist()


def test_relayout_of_a_file_by_ffcv(tmp_path: Path) -> None:
    """The way of an owner of .beton files into dp4tl_fast: every write mode, no index, an extra field."""
    from ffcv.fields import FloatField, IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (9 + i, 14, 3), np.uint8)) for i in range(20)]
    samples = [(image, i * 7 % 3, float(i)) for i, image in enumerate(images)]
    for mode in ("jpg", "raw", "smart", "proportion"):
        theirs, ours = tmp_path / f"{mode}.beton", tmp_path / f"{mode}.class.beton"
        image = RGBImageField(write_mode=mode, smart_threshold=800)
        fields = {"image": image, "label": IntField(), "weight": FloatField()}
        DatasetWriter(str(theirs), fields, num_workers=2).from_indexed_dataset(samples, chunksize=3)
        assert relayout_main([str(theirs), str(ours)]) == 0
        old, new = Beton(theirs), Beton(ours)
        assert new.layout == "class"
        assert sorted(new.index) == list(range(20))
        for record, i in enumerate(new.index):
            assert new.labels[record] == samples[i][1]
            assert (new.payload(record) == old.payload(i)).all()
            assert new.images[record][["mode", "width", "height"]] == old.images[i][["mode", "width", "height"]]


def test_relayout_adds_entry_points(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What convert would have written with entry points; a damaged JPEG is copied as it is."""
    Image.effect_noise((300, 200), 60).convert("RGB").save(tree / "class 2" / "large.jpg")
    plain, indexed, copy = (tmp_path / f"{n}.beton" for n in ("plain", "indexed", "copy"))
    convert(str(tree), str(plain), on_error="skip", entry_points="off")
    convert(str(tree), str(indexed), on_error="skip")
    assert relayout_main([str(plain), str(copy)]) == 0
    assert copy.read_bytes() == indexed.read_bytes() != plain.read_bytes()
    assert Beton(copy).checksums().tolist() == Beton(indexed).checksums().tolist()
    relayout(Beton(copy), tmp_path / "again.beton", entry_points=True)
    assert (tmp_path / "again.beton").read_bytes() == copy.read_bytes()

    damaged = bytearray((tree / "class 2" / "large.jpg").read_bytes())
    del damaged[-5000:-2]
    with BetonWriter(tmp_path / "damaged.beton", 1) as writer:
        writer.append(bytes(damaged), 0, 300, 200, 0, 0)
        writer.close()
    relayout(Beton(tmp_path / "damaged.beton"), tmp_path / "still.beton", entry_points=True)
    assert bytes(Beton(tmp_path / "still.beton").payload(0)) == damaged
    assert relayout_main([str(plain), str(copy), "--entry_points", "maybe"]) == 2
    assert "must be on or off" in capsys.readouterr().err


def test_files_of_one_stem_have_their_own_sidecars(tree: Path, tmp_path: Path) -> None:
    convert(str(tree), str(tmp_path / "pets.beton"), on_error="skip")
    beton = Beton(tmp_path / "pets.beton")
    for ending, records in (("train", [0, 1, 2]), ("test", [3, 4]), ("ffcv", [5])):
        subset(beton, np.array(records), tmp_path / f"pets.{ending}")
    for ending, count in (("beton", 30), ("train", 3), ("test", 2), ("ffcv", 1)):
        copy = Beton(tmp_path / f"pets.{ending}")
        assert copy.class_names == beton.class_names
        assert verify(copy) == {"records": count, "checksums": True, "decoded": False}
        assert (tmp_path / ("pets.info.zip" if ending == "beton" else f"pets.{ending}.info.zip")).exists()
    part = tmp_path / "all"  # no ending at all
    convert(str(tree), str(part), on_error="skip", shard="0/1")
    assert merge_shards(part)["samples"] == 30


@pytest.mark.parametrize("command", ["relayout", "subset", "merge"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    command: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(tree), str(tmp_path / "o.beton"), on_error="skip", shard="0/1")
    out, source = str(tmp_path / "o.beton"), str(shard_path(tmp_path / "o.beton", 0, 1))
    before = sorted(tmp_path.iterdir())

    def full(fd: int, buffers: list[bytes], offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    argv = {"relayout": [source, out], "subset": [source, out, "--classes", "1"], "merge": [out]}[command]
    assert dispatch([command, *argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dp4tl-fast ")]
    assert lines == [f"dp4tl-fast {command}: {out}: No space left on device"]
    assert sorted(tmp_path.iterdir()) == before


def test_subset_copies_records_and_keeps_labels(tree: Path, tmp_path: Path) -> None:
    convert(str(tree), str(tmp_path / "a.beton"), on_error="skip")
    beton = Beton(tmp_path / "a.beton")
    records = np.flatnonzero(np.isin(beton.labels, [1, 3]))
    result = subset(beton, records, tmp_path / "b.beton")
    copied = Beton(tmp_path / "b.beton")
    assert (result["samples"], copied.num_classes, copied.class_names) == (len(records), 4, beton.class_names)
    assert (copied.labels == beton.labels[records]).all()
    assert (copied.index == beton.index[records]).all()
    assert all((copied.payload(k) == beton.payload(i)).all() for k, i in enumerate(records))
    with pytest.raises(BetonError, match="overwrite"):
        subset(beton, records, tmp_path / "a.beton")
    assert subset(beton, records[:0], tmp_path / "none.beton")["samples"] == 0
    assert Beton(tmp_path / "none.beton").num_samples == 0


@pytest.mark.parametrize("records", [np.arange(30) < 2, [0.0, 1.0], [-1], [30]], ids=["a mask", "fractions", "below", "past"])
def test_what_are_no_record_numbers_is_not_copied(tree: Path, tmp_path: Path, records: object) -> None:
    convert(str(tree), str(tmp_path / "a.beton"), on_error="skip")
    with pytest.raises(SelectionError, match=r"a\.beton: record (numbers must be whole|-1 does not|30 does not)"):
        subset(Beton(tmp_path / "a.beton"), np.array(records), tmp_path / "b.beton")
    assert not list(tmp_path.glob("*b.beton*"))


def test_subset_command(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(tmp_path / "a.beton")
    convert(str(tree), source, on_error="skip")
    out = tmp_path / "b.beton"
    assert subset_main([source, str(out), "--classes", "class 1", "--classes", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == Beton(out).num_samples
    assert set(Beton(out).labels) == {1, 3}
    assert subset_main([source, str(out), "--classes", "no such"]) == 2
    assert subset_main([source, str(out)]) == 2


def test_copying_notices_a_changed_payload(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    convert(str(tree), str(path), on_error="skip")
    beton = Beton(path)
    data = bytearray(path.read_bytes())
    data[int(beton.images["data_ptr"][5]) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordError, match=r"record 5 .*checksum"):
        relayout(Beton(path), tmp_path / "b.beton", "shuffled")
    assert not list(tmp_path.glob("*b.beton*"))


# -- order ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=60), st.sampled_from(["class", "shuffled"]), st.integers(0, 2**63 - 1))
def test_record_order_is_a_permutation_in_layout(labels: list[int], layout: str, seed: int) -> None:
    order = record_order(np.array(labels, np.int64), layout, seed)
    assert sorted(order) == list(range(len(labels)))
    if layout == "class":
        assert (np.diff(np.array(labels, np.int64)[order]) >= 0).all()


def test_record_order_is_pinned() -> None:
    """Files must not differ between versions of NumPy or of this package."""
    assert record_order(np.zeros(8, np.int64), "shuffled", 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert record_order(np.array([1, 0] * 4), "class", 5).tolist() == [3, 1, 5, 7, 2, 4, 0, 6]


def test_label_mixing_against_simulation() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), rng.integers(1, 60, 40))
    result = label_mixing(labels, 32)
    simulated = np.mean([len(set(rng.permutation(labels)[:32])) for _ in range(3000)])
    # The mean of 3,000 draws of a number whose standard deviation is below 2.2 is within 0.2 with 5 sigma.
    assert abs(result["distinct_classes_if_shuffled"] - simulated) < 0.2
    windows = [len(set(labels[i : i + 32])) for i in range(0, len(labels) - 31, 32)]
    assert result["distinct_classes"] == pytest.approx(np.mean(windows))
    assert label_mixing(np.zeros(0, np.int64))["distinct_classes"] == 0
    assert label_mixing(np.zeros(3, np.int64))["distinct_classes_if_shuffled"] == 1


# -- writer -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3 * 2**20), max_size=8), st.lists(st.integers(1, 3), max_size=8))
def test_writer_never_lets_a_record_straddle_a_page(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], cuts: list[int]
) -> None:
    """Any sizes, appended in any groups: the same bytes, every payload intact and on one page."""
    folder = tmp_path_factory.mktemp("w")
    payloads = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    with BetonWriter(folder / "a.beton", len(sizes), page_size=2**21) as writer:
        for i, payload in enumerate(payloads):
            writer.append(payload, 0, 1, 1, i, i)
        writer.close()
    with BetonWriter(folder / "b.beton", len(sizes), page_size=2**21) as writer:
        start = 0
        while start < len(payloads):
            stop = start + (cuts.pop() if cuts else 2)
            part = np.arange(start, min(stop, len(payloads)))
            ones = np.ones(len(part), np.int64)
            writer.append_many(payloads[start:stop], 0 * ones, ones, ones, part, part)
            start = stop
        writer.close()
    assert (folder / "a.beton").read_bytes() == (folder / "b.beton").read_bytes()
    beton = Beton(folder / "a.beton")
    pointers = beton.images["data_ptr"].astype(int)
    assert (pointers // beton.page_size == (pointers + beton.sizes - 1) // beton.page_size).all()
    assert [bytes(beton.payload(i)) for i in range(len(sizes))] == payloads
    for file in folder.iterdir():
        file.unlink()


def test_a_file_put_in_place_just_before_it_was_locked_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process commits between our opening its partial file and our lock."""
    out, real = tmp_path / "a.beton", fcntl.flock
    partial_path(out).write_bytes(b"the other's, complete")

    def after_the_commit(fd: int, how: int) -> None:
        if not out.exists():
            partial_path(out).replace(out)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", after_the_commit)
    with BetonWriter(out, 1) as writer:
        assert out.read_bytes() == b"the other's, complete"
        writer.append(b"xyz", 1, 1, 1, 0, 0)
        writer.close()
    assert bytes(Beton(out).payload(0)) == b"xyz"


def test_writer_rejects_what_cannot_be_stored(tmp_path: Path) -> None:
    with BetonWriter(tmp_path / "a.beton", 1) as writer:
        for mode, width, height in ((0, 0, 5), (0, 5, 65536), (1, 2, 2)):
            with pytest.raises(BetonError):
                writer.append(b"xyz", mode, width, height, 0, 0)
        writer.append(b"xyz", 1, 1, 1, 0, 0)
        with pytest.raises(BetonError, match="room was reserved"):
            writer.append(b"xyz", 1, 1, 1, 0, 0)
    with pytest.raises(BetonError, match="power of two"):
        BetonWriter(tmp_path / "a.beton", 1, page_size=3 * 2**20)
    assert not list(tmp_path.iterdir())
