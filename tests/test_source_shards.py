"""Data sets in several files, in folders and behind URLs: which files are theirs, of which split, and what they are called."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_cases import image, make_tar, names_of, opened, put, samples

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.conversion.run import convert

IMAGES = [image(k * 30) for k in range(4)]
EXPECTED = [("0", IMAGES[0]), ("1", IMAGES[1])]


def shard(path: Path, k: int) -> Path:
    return make_tar(path, [(f"{k}.jpg", IMAGES[k]), (f"{k}.cls", b"%d" % k)])


def remote(folder: Path) -> str:
    """The folder's copy in memory, as a URL."""
    name = uuid.uuid4().hex
    fsspec.filesystem("memory").put(str(folder), f"/{name}", recursive=True)
    return f"memory://{name}"


def test_a_folder_of_shards_may_hold_what_is_no_image(tmp_path: Path) -> None:
    notes = {"LICENSE": b"free", "SHA256SUMS": b"0", "Thumbs.db": b"x", "desktop.ini": b"x", "index.csv": b"x", "README.md": b"x"}
    put(tmp_path / "w", {**notes, "__MACOSX/._w-0.tar": b"x", ".cache/x": b"x"})
    for k in range(2):
        shard(tmp_path / f"w/w-{k}.tar", k)
    for src in (tmp_path / "w", remote(tmp_path / "w")):
        assert samples(src, tmp_path) == EXPECTED
    put(tmp_path / "w", {"loose.jpg": IMAGES[2]})
    for src in (tmp_path / "w", remote(tmp_path / "w")):
        with pytest.raises(SourceError, match=r"loose\.jpg is in no class folder"):
            opened(src, tmp_path)


@pytest.mark.parametrize("packed", ["w-1.tar.gz", "w-1.zip", "w-1.tar.part"])
def test_a_folder_with_packed_shards_is_refused(tmp_path: Path, packed: str) -> None:
    """And not converted without them."""
    for files in ({packed: b"\x1f\x8b"}, {packed: b"\x1f\x8b", "w-0.tar": shard(tmp_path / "w-0.tar", 0).read_bytes()}):
        folder = put(tmp_path / str(len(files)), files)  # type: ignore[arg-type]
        with pytest.raises(SourceError, match=rf"{packed}: is (packed\. Unpack it with|an unfinished download)"):
            opened(folder)
        with pytest.raises(SourceError, match=rf"{packed}: (cannot be read from a URL\. Download it|is an unfinished download)"):
            opened(remote(folder), tmp_path)


def parquet(path: Path, labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": IMAGES[: len(labels)], "label": labels}), path)


def test_a_hub_folder_behind_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, labels in (("train", [0, 1, 0, 1]), ("validation", [1, 0]), ("test", [-1] * 4)):
        parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet", labels)
    put(tmp_path / "hub", {"README.md": b"card", ".gitattributes": b"x"})
    fetched = []
    fs = type(fsspec.filesystem("memory"))
    real = fs.get_file
    monkeypatch.setattr(fs, "get_file", lambda self, path, *a, **k: fetched.append(path) or real(self, path, *a, **k))
    url = remote(tmp_path / "hub")
    for src in (url, f"{url}/data", f"{url}/data/*.parquet"):
        with pytest.raises(SourceError, match=r"holds the splits test, train, validation\. Choose one with `split=test`"):
            opened(src, tmp_path)
        assert not fetched, "nothing is fetched before the split is known"
        assert samples(src, tmp_path, split="validation") == [("1", IMAGES[0]), ("0", IMAGES[1])]
        assert [path.rpartition("/")[2] for path in fetched] == ["validation-00000-of-00001.parquet"]
        fetched.clear()


def test_splits_of_webdataset_shards(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for k in range(2):
            shard(put(tmp_path / "w", {"README.md": b"x"}) / f"set-{split}-{k:03}.tar", k + 2 * (split == "val"))
    for src in (tmp_path / "w", tmp_path / "w/*.tar", tmp_path / "w/set-{train,val}-{000..001}.tar", remote(tmp_path / "w")):
        with pytest.raises(SourceError, match=r"holds the splits train, val\. Choose one with `split=train`"):
            opened(src, tmp_path)
        assert samples(src, tmp_path, split="val") == [("2", IMAGES[2]), ("3", IMAGES[3])]
        with pytest.raises(SourceError, match=r"has no split 'test'\. It holds train, val"):
            opened(src, tmp_path, split="test")
    assert samples(tmp_path / "w/set-train-*.tar") == EXPECTED


def test_arrow_files_behind_a_url(tmp_path: Path) -> None:
    table = pa.table({"image": IMAGES, "label": [0, 1, 0, 1]})
    put(tmp_path / "saved", {"state.json": b"{}", "dataset_info.json": b"{}"})
    for part in range(2):
        with (
            pa.OSFile(str(tmp_path / f"saved/data-0000{part}-of-00002.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table.slice(2 * part, 2))
    expected = list(zip("0101", IMAGES, strict=True))
    for src in (tmp_path / "saved", remote(tmp_path / "saved")):
        assert samples(src, tmp_path) == expected


def test_what_was_fetched_is_called_by_its_url(tmp_path: Path) -> None:
    """Without what signs it; and a second copy is the same input."""
    put(tmp_path / "w", {"lfs.tar": b"version https://git-lfs.github.com/spec/v1\n" + bytes(600)})
    make_tar(tmp_path / "w/t.tar", [("a/1.jpg", IMAGES[0]), ("b/1.jpg", b"not an image"), ("b/2.jpg", IMAGES[1])])
    parquet(tmp_path / "w/p.parquet", [0, -1])
    (tmp_path / "w/t.tar?token=secret").write_bytes((tmp_path / "w/t.tar").read_bytes())
    url = remote(tmp_path / "w")
    out = str(tmp_path / "o.beton")
    for src, message in (
        (f"{url}/lfs.tar", f"^{url}/lfs.tar: is a Git LFS pointer"), (f"{url}/p.parquet", f"^{url}/p.parquet: row 1: the label -1"),
        (f"{url}/t.tar?token=secret", f"^{url}/t.tar: b/1.jpg: it is a text file"),
        (f"{url}/none.tar?token=secret", f"^{url}/none.tar: cannot be fetched: there is no such file$"),
    ):  # fmt: skip
        with pytest.raises(SourceError, match=message) as error:
            convert(src, out)
        assert "secret" not in str(error.value)
    first = opened(f"{url}/t.tar", tmp_path / "1")
    second = opened(f"{url}/t.tar", tmp_path / "2")
    assert first.identity() == second.identity()
    first.close()
    second.close()
    convert(f"{url}/t.tar?token=secret", out, on_error="skip")
    (row,) = [row for row in Beton(out).sidecar.audit() if not row["record"]]
    assert row["source"] == f"{url}/t.tar: b/1.jpg"


def test_a_folder_in_a_tar_behind_a_url(tmp_path: Path) -> None:
    put(tmp_path / "w", {"t": None})
    make_tar(tmp_path / "w/x.tar", [("t/a/1.jpg", IMAGES[0]), ("t/b/1.jpg", IMAGES[1]), ("u/c/1.jpg", IMAGES[2])])
    url = remote(tmp_path / "w")
    for src in (f"{tmp_path}/w/x.tar#t", f"{url}/x.tar#t", f"{url}/x.tar#./t/"):
        assert samples(src, tmp_path) == [("a", IMAGES[0]), ("b", IMAGES[1])]


def test_classes_without_images_behind_a_url(tmp_path: Path) -> None:
    """Of litter alone; empty folders where the file system has such."""
    put(tmp_path / "t", {"a/1.jpg": IMAGES[0], "b/Thumbs.db": b"litter", "c/.gitkeep": b"", "d/1.jpg": IMAGES[1], "e": None})
    url = remote(tmp_path / "t")
    fs = fsspec.filesystem("memory")
    fs.makedirs(url.removeprefix("memory:/") + "/e", exist_ok=True)
    for src in (tmp_path / "t", url):
        with pytest.raises(SourceError, match=r"class folder 'b' has no images\."):
            opened(src)
        assert names_of(src, allow_empty=True) == {"a": ["1.jpg"], "b": [], "c": [], "d": ["1.jpg"], "e": []}


def test_a_dry_run_copies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though Parquet cannot be read at random; nor does it make the output's folder."""
    from dp4tl_fast.sources import spool

    def copied(*_: object, **__: object) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr(spool.tempfile, "TemporaryFile", copied)
    parquet(tmp_path / "x.parquet", [0, 1, 1])
    result = convert(str(tmp_path / "x.parquet"), str(tmp_path / "deep/o.beton"), dry_run=True)
    assert (result["samples"], [c["samples"] for c in result["classes"]]) == (3, [1, 2])
    assert result["bytes"] == sum(map(len, IMAGES[:3]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.parquet"]


# -- WebDataset -------------------------------------------------------------------------------------------------------


def test_what_lies_in_place_of_an_image_is_named(tmp_path: Path) -> None:
    instead = {
        "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "its .jpg file is a Git LFS pointer"),
        "html": (b"<!DOCTYPE html><html>", "its .jpg file is an HTML page"), "empty": (b"", "its .jpg file is an empty file"),
        "heic": (b"\0\0\0\x18ftypheic" + bytes(99), "its .jpg file is HEIC, which cannot be decoded here"),
        "text": (b"not an image", "it has no image: its files are jpg, cls"),
    }  # fmt: skip
    for name, (data, message) in instead.items():
        for label in ([("s1.cls", b"1")], [])[: 1 if name == "text" else 2]:  # text without a label is a note
            src = make_tar(tmp_path / f"{name}.tar", [("s0.jpg", IMAGES[0]), ("s0.cls", b"0"), ("s1.jpg", data), *label])
            with pytest.raises(SourceError, match=message):
                convert(str(src), str(tmp_path / "o.beton"))
            assert convert(str(src), str(tmp_path / "o.beton"), on_error="skip")["skipped"] == 1


def test_endings_that_differ_in_case_are_two_files(tmp_path: Path) -> None:
    src = make_tar(tmp_path / "x.tar", [("s.jpg", IMAGES[0]), ("s.JPG", IMAGES[1]), ("s.cls", b"0")])
    with pytest.raises(SourceError, match="has several images, jpg, JPG"):
        opened(src)
    for key, k in (("jpg", 0), (".jpg", 0), ("JPG", 1)):
        assert samples(src, image_key=key) == [("0", IMAGES[k])]
    src = make_tar(tmp_path / "y.tar", [("s.JPG", IMAGES[0]), ("s.png", image(1, "PNG")), ("s.cls", b"0")])
    for key in ("jpg", "JPG", ".jpg"):
        assert samples(src, image_key=key) == [("0", IMAGES[0])]


def test_labels_in_json_beside_images_in_class_folders_are_asked_about(tmp_path: Path) -> None:
    """As a folder, the same tree has the folders as classes."""
    files = {f"{c}/{k}.{e}": d for c in "ab" for k in range(2) for e, d in (("jpg", IMAGES[k]), ("json", b'{"label": "x"}'))}
    put(tmp_path / "t", files)  # type: ignore[arg-type]
    src = make_tar(tmp_path / "t.tar", [("README", b"x"), *files.items()])
    with pytest.raises(SourceError, match=r"a/0\.json has a label\. Say which .*: `label_key=json:label` or `classes_from=top`"):
        opened(src)
    assert samples(src, classes_from="top") == samples(tmp_path / "t") == [(c, IMAGES[k]) for c in "ab" for k in range(2)]
    assert [name for name, _ in samples(src, label_key="json:label")] == ["x"] * 4


def test_a_table_of_classes_for_images_with_json_or_cls(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("1.jpg,cat\n2.jpg,dog\n")
    for note in ({"1.json": b'{"title": 1}'}, {"1.json": b'{"label": 1}'}, {"1.cls": b"1"}):
        files = {"1.jpg": IMAGES[1], "2.jpg": IMAGES[2], **note}
        folder = put(tmp_path / next(iter(note.values())).hex(), files)  # type: ignore[arg-type]
        tar = make_tar(tmp_path / "t.tar", files.items())
        for src in (folder, tar):
            assert samples(src, classes_from=str(table)) == [("cat", IMAGES[1]), ("dog", IMAGES[2])]


def test_a_tar_in_a_tar_that_is_none_is_named(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.size = len(IMAGES[0])
        tar.addfile(info, io.BytesIO(IMAGES[0]))
    rows = [("n01.tar", out.getvalue()), ("n02.tar", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")]
    with pytest.raises(SourceError, match=r"x\.tar: n02\.tar is a Git LFS pointer"):
        opened(make_tar(tmp_path / "x.tar", rows))
    src = make_tar(tmp_path / "y.tar", [("a/1.tar", IMAGES[0]), ("b/1.jpg", IMAGES[1])])
    assert samples(src) == [("a", IMAGES[0]), ("b", IMAGES[1])], "an image, whatever it is called"


def test_json_dumps_are_labels_of_any_type(tmp_path: Path) -> None:
    rows: list[tuple[str, Any]] = [("0", True), ("1", False), ("2", 2.0)]
    src = make_tar(
        tmp_path / "x.tar",
        [r for k, v in rows for r in ((f"{k}.jpg", IMAGES[0]), (f"{k}.json", json.dumps({"label": v}).encode()))],
    )
    assert [name for name, _ in samples(src)] == ["1", "0", "2"]
