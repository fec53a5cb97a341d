"""convert: every kind of source gives the same samples as the folder of class folders that they were made from."""

from __future__ import annotations

import bz2
import io
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from source_cases import opened, samples

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.sources import open_source
from dp4tl_fast.sources.tar_members import members


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    for i in range(14):
        folder = tmp_path / "tree" / ["n03", "n01", "n02"][i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9 + i, 30, 3), np.uint8)).save(folder / f"{folder.name}_{i:02}.JPEG")
    return tmp_path / "tree"


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def tar_of_tars(tree: Path, path: Path, **options: object) -> None:
    with tarfile.open(path, "w", **options) as outer:  # type: ignore[call-overload]
        for folder in sorted(tree.iterdir(), reverse=True):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", **options) as tar:  # type: ignore[call-overload]
                for file in sorted(folder.iterdir(), reverse=True):
                    add(tar, file.name, file.read_bytes())
            add(outer, f"{folder.name}.tar", inner.getvalue())


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_of_tars_gives_the_bytes_of_the_folder(tree: Path, tmp_path: Path, tar_format: int) -> None:
    """As ILSVRC2012_img_train.tar is built."""
    tar_of_tars(tree, tmp_path / "train.tar", format=tar_format)
    convert(str(tree), str(tmp_path / "a.beton"))
    convert(str(tmp_path / "train.tar"), str(tmp_path / "b.beton"))
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    assert Beton(tmp_path / "b.beton").class_names == ["n01", "n02", "n03"]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_of_class_folders_with_long_names(tree: Path, tmp_path: Path, tar_format: int) -> None:
    long = "d" * 120
    with tarfile.open(tmp_path / "x.tar", "w", format=tar_format) as tar:
        tar.add(tree, f"./{long}/train")
        add(tar, "README.txt", b"left out")
    assert samples(str(tmp_path / "x.tar")) == samples(str(tree))
    with tarfile.open(tmp_path / "y.tar", "w", format=tar_format) as tar:
        tar.add(tree, "all/train")
        tar.add(tree, "all/val")
    with pytest.raises(SourceError, match=r"y\.tar: holds the splits train, val\. Choose one with `split=train`"):
        opened(tmp_path / "y.tar")
    assert samples(tmp_path / "y.tar", split="val") == samples(tree)
    for spelling in ("all/train", "./all/train/", "/all//train", "all/x/../train"):
        assert samples(f"{tmp_path}/y.tar#{spelling}") == samples(tree)
    with pytest.raises(SourceError, match=r"y\.tar: has no folder all/test\. It holds all$"):
        opened(f"{tmp_path}/y.tar#all/test")


def link(tar: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    tar.addfile(info)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_in_a_tar_are_the_files_they_lead_to(tmp_path: Path, tar_format: int) -> None:
    """As ``tar`` packs a tree whose class ``b`` shares its images with ``a``."""
    long = "d" * (80 if tar_format == tarfile.USTAR_FORMAT else 120)
    with tarfile.open(tmp_path / "x.tar", "w", format=tar_format) as tar:
        link(tar, "b/4.jpg", "../a/5.jpg")  # of what comes later
        add(tar, "a/1.jpg", b"one")
        add(tar, f"a/{long}.jpg", b"long")
        link(tar, "b/1.jpg", "a/1.jpg", tarfile.LNKTYPE)
        link(tar, "b/2.jpg", f"a/{long}.jpg", tarfile.LNKTYPE)
        link(tar, "b/3.jpg", f"./../a//{long}.jpg")
        add(tar, "a/5.jpg", b"five")
        link(tar, "b/5.jpg", "4.jpg")  # to a link
        link(tar, "b/6.jpg", "b/3.jpg", tarfile.LNKTYPE)  # the same link under another name
        link(tar, "b/.hidden.jpg", "/nowhere")
    a, b = [b"one", b"five", b"long"], [b"one", b"long", b"long", b"five", b"five", b"long"]
    assert samples(str(tmp_path / "x.tar")) == [("a", x) for x in a] + [("b", x) for x in b]


@pytest.mark.parametrize(
    ("name", "target", "kind"),
    [
        ("b/2.jpg", "../gone.jpg", tarfile.SYMTYPE), ("b/2.jpg", "2.jpg", tarfile.SYMTYPE),
        ("b/2.jpg", "/a/1.jpg", tarfile.SYMTYPE), ("b/2.jpg", "b/9.jpg", tarfile.LNKTYPE), ("c", "a", tarfile.SYMTYPE),
        ("b/noending", "../../outside", tarfile.SYMTYPE),
    ],
)  # fmt: skip
def test_links_out_of_a_tar_are_refused_not_dropped(tmp_path: Path, name: str, target: str, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a/1.jpg", b"one")
        add(tar, "b/1.jpg", b"two")
        link(tar, name, target, kind)
        add(tar, "b/9.jpg", b"three")  # no hard link leads to what comes after it
        add(tar, "other/c/1.jpg", b"four")
    with pytest.raises(SourceError, match=f"x.tar: {name} is a link to {target}, which is no file in the tar"):
        open_source(str(tmp_path / "x.tar"))
    assert samples(f"{tmp_path / 'x.tar'}#other") == [("c", b"four")], "what is not asked for is not refused"


def test_pax_headers_that_no_reader_here_understands(tmp_path: Path) -> None:
    for records, message in (({"size": "abc"}, "b'abc' is not a size"), ({"GNU.sparse.major": "1"}, "stored as a sparse file")):
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo("a/1.jpg")
            info.pax_headers = records
            tar.addfile(info)
        with pytest.raises(SourceError, match=message):
            open_source(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("stray", ["index.json", "n01/classes.json", "n01.json", "labels.cls"])
def test_a_stray_list_makes_no_webdataset(tree: Path, tmp_path: Path, stray: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, stray, b"{}")
        tar.add(tree, ".")
    assert samples(str(tmp_path / "x.tar")) == samples(str(tree))


def test_validation_tar_with_the_devkit(tree: Path, tmp_path: Path) -> None:
    """The devkit's class ids are not in wnid order, and its table also lists inner nodes."""
    from scipy.io import savemat

    wnid_of = {1: "n03", 2: "n01", 3: "n02", 4: "n00"}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    rows = [(i, wnid, 3 if wnid == "n00" else 0) for i, wnid in wnid_of.items()]
    devkit = tmp_path / "devkit" / "data"
    devkit.mkdir(parents=True)
    savemat(devkit / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    files = [file for folder in sorted(tree.iterdir()) for file in sorted(folder.iterdir())]
    order = np.random.default_rng(0).permutation(len(files))
    id_of = {wnid: i for i, wnid in wnid_of.items()}
    truth = "\n".join(str(id_of[files[k].parent.name]) for k in order)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth + "\n")
    with tarfile.open(tmp_path / "devkit.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "devkit", "ILSVRC2012_devkit_t12")
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for place, k in reversed(list(enumerate(order))):
            add(tar, f"ILSVRC2012_val_{place + 1:08}.JPEG", files[k].read_bytes())
    with tarfile.open(tmp_path / "val.tar") as tar:
        tar.extractall(tmp_path / "val", filter="data")
    for labels in (tmp_path / "devkit.tar.gz", tmp_path / "devkit"):
        for src in (tmp_path / "val.tar", tmp_path / "val"):
            found = samples(src, labels=str(labels))
            assert found == [(files[k].parent.name, files[k].read_bytes()) for k in order]
    with pytest.raises(SourceError, match="devkit"):
        open_source(str(tmp_path / "val.tar"))
    (tmp_path / "val/notes.txt").write_text("no image")
    assert samples(tmp_path / "val", labels=str(tmp_path / "devkit")) == found
    order = tmp_path / "order.txt"
    order.write_text("n02\nn03\nn01\n")
    source = opened(tmp_path / "val", labels=str(tmp_path / "devkit"), class_order=str(order))
    assert source.class_names == ["n02", "n03", "n01"]
    assert [source.class_names[k] for k in source.labels] == [name for name, _ in found]
    source.close()
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")
    with pytest.raises(SourceError, match="2 labels for 14 images"):
        opened(tmp_path / "val.tar", labels=str(tmp_path / "devkit"))
    result = convert(str(tmp_path / "val.tar"), str(tmp_path / "v.beton"), labels=str(tmp_path / "devkit.tar.gz"))
    assert (result["samples"], result["classes"]) == (14, 3)


def test_webdataset_shards(tree: Path, tmp_path: Path) -> None:
    expected = samples(str(tree))
    names = ["n01", "n02", "n03"]
    for shard in range(2):
        with tarfile.open(tmp_path / f"w-{shard:03}.tar", "w") as tar:
            for i, (name, data) in list(enumerate(expected))[shard * 7 : shard * 7 + 7]:
                add(tar, f"{i:06}.jpg", data)
                if i % 2:
                    add(tar, f"{i:06}.cls", str(names.index(name)).encode())
                else:
                    add(tar, f"{i:06}.json", json.dumps({"label": names.index(name)}).encode())
    (tmp_path / "folder").mkdir()
    for pattern in (str(tmp_path / "w-{000..001}.tar"), str(tmp_path / "w-*.tar")):
        found = samples(pattern)
        assert [(names[int(label)], data) for label, data in found] == expected
    with pytest.raises(SourceError, match=r"w-002\.tar: no such file"):
        open_source(str(tmp_path / "w-{000..002}.tar"))
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for key, label in (("a", b"cat"), ("b", b"1")):
            add(tar, f"{key}.jpg", expected[0][1])
            add(tar, f"{key}.cls", label)
    with pytest.raises(SourceError, match=r"bad\.tar: a\.jpg: the label 'cat' is text, but that of .*b\.jpg, '1', is a number"):
        open_source(str(tmp_path / "bad.tar"))
    assert [name for name, _ in samples(tmp_path / "bad.tar", label_type="text")] == ["cat", "1"]


def test_damaged_tars_are_named(tree: Path, tmp_path: Path) -> None:
    tar_of_tars(tree, tmp_path / "t.tar")
    data = (tmp_path / "t.tar").read_bytes()
    for cut, message in ((5000, "Truncated"), (0, "an empty file"), (511, "no files")):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(SourceError, match=message):
            open_source(str(tmp_path / "cut.tar"))
    (tmp_path / "cut.tar").write_bytes(b"\x1f\x8b" + bytes(range(256)) * 8)
    with pytest.raises(SourceError, match="compressed with gzip"):
        open_source(str(tmp_path / "cut.tar"))
    (tmp_path / "cut.tar").write_bytes(b"\x1e\x8b" + bytes(range(256)) * 8)
    with pytest.raises(SourceError, match="no tar header at byte 0"):
        open_source(str(tmp_path / "cut.tar"))


@given(st.data())
def test_any_damage_to_a_tar_header_is_an_error_or_harmless(data: st.DataObject) -> None:
    import os
    import tempfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "n" * 150, b"x" * 600)
        add(tar, "b", b"y")
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            found = members(file.fileno(), 0, os.fstat(file.fileno()).st_size, "t").files
        except SourceError:
            return
    assert all(0 <= m.start <= m.start + m.size <= len(content) for m in found)


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_parquet(tree: Path, tmp_path: Path, struct: bool, named: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected, names = samples(str(tree)), ["n01", "n02", "n03"]
    (tmp_path / "pq").mkdir()
    for part in range(2):
        rows = expected[part * 7 : part * 7 + 7]
        images: list = [{"bytes": data, "path": None} if struct else data for _, data in rows]
        table = pa.table({"image": images, "label": [names.index(name) for name, _ in rows]})
        if named:
            feature = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(feature)})
        pq.write_table(table, tmp_path / "pq" / f"train-{part:05}.parquet", row_group_size=3)
    found = samples(str(tmp_path / "pq"), scratch=tmp_path)
    assert found == [(name if named else str(names.index(name)), data) for name, data in expected]
    message = "row 0: the label 2 is not a class id: there are names for 1 classes" if named else "no column named label"
    with pytest.raises(SourceError, match=message):
        broken = pa.table({"image": images, "label": [2] * 7} if named else {"image": images, "y": [0] * 7})
        feature = {"info": {"features": {"label": {"names": ["one"]}}}}
        pq.write_table(broken.replace_schema_metadata({"huggingface": json.dumps(feature)}), tmp_path / "b.parquet")
        open_source(str(tmp_path / "b.parquet"), scratch=tmp_path)


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_csv_and_tsv(tree: Path, tmp_path: Path, delimiter: str) -> None:
    files = [file for folder in sorted(tree.iterdir()) for file in sorted(folder.iterdir())]
    table = tmp_path / ("t.csv" if delimiter == "," else "t.tsv")
    rows = [f"{file.relative_to(tmp_path)}{delimiter}{file.parent.name}" for file in files]
    table.write_text("\n".join([f"Path{delimiter}label", *rows]))
    assert samples(str(table)) == samples(str(tree))
    table.write_text(f"file{delimiter}label\n{files[0].relative_to(tmp_path)}{delimiter}7\n")
    assert open_source(str(table)).labels.tolist() == [7]
    table.write_text(f"path{delimiter}label\nnowhere.jpg{delimiter}a\n")
    source = open_source(str(table))
    assert source.bad == {0: "No such file or directory"} and source.name(0) == f"{table}: line 2: nowhere.jpg"
    table.write_text(f"a{delimiter}b\n")
    with pytest.raises(SourceError, match="has no column named path or file or filename"):
        open_source(str(table))


def test_torchvision_folder_keeps_bytes_and_pixels_keep_values(tree: Path, tmp_path: Path) -> None:
    assert samples(f"torchvision:ImageFolder?root={tree}") == samples(str(tree))
    with pytest.raises(SourceError, match="no 'Nothing'"):
        open_source("torchvision:Nothing")
    with pytest.raises(SourceError, match="torchvision:CIFAR10"):
        open_source(f"torchvision:CIFAR10?root={tmp_path}")


def test_torchvision_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    picture = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), np.uint8)

    class Pixels:
        classes = ("cat", "dog")
        _samples = [(picture[i], 1 - i) for i in range(2)]  # noqa: RUF012  # as FER2013 has them: pixels, not paths

        def __init__(self, root: str, train: bool) -> None:
            assert (root, train) == ("here", False)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            return Image.fromarray(picture[i]), 1 - i

    monkeypatch.setattr(torchvision.datasets, "Pixels", Pixels, raising=False)
    convert("torchvision:Pixels?root=here&train=false", str(tmp_path / "o.beton"), write_mode="raw")
    beton = Beton(tmp_path / "o.beton")
    assert beton.class_names == ["cat", "dog"]
    for record, i in enumerate(beton.index):
        assert beton.labels[record] == 1 - i
        assert (beton.payload(record).reshape(8, 9, 3) == picture[i]).all()


def usps(folder: Path) -> str:
    """Three images in its format, as torchvision reads it: labels from 1 to 10, and no names."""
    pixels = " ".join(f"{i + 1}:{i / 128 - 1}" for i in range(256))
    with bz2.open(folder / "usps.t.bz2", "wt") as file:
        file.write("".join(f"{label} {pixels}\n" for label in (3, 1, 10)))
    return f"torchvision:USPS?root={folder}&train=false"


def test_a_full_scratch_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = usps(tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "w+b"))  # noqa: SIM115
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        open_source(source, scratch=tmp_path)


def test_torchvision_without_class_names(tmp_path: Path) -> None:
    source = open_source(usps(tmp_path), scratch=tmp_path)
    assert source.class_names == [str(i) for i in range(10)]
    assert source.labels.tolist() == [2, 0, 9]
    with Image.open(io.BytesIO(source.read(1))) as image:
        assert image.size == (16, 16)
    source.close()

    # Caltech101 calls them categories.
    for name in ("BACKGROUND_Google", "crab", "ant"):
        folder = tmp_path / "caltech101" / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 9)).save(folder / "image_0001.jpg")
    source = open_source(f"torchvision:Caltech101?root={tmp_path}", scratch=tmp_path)
    assert (source.class_names, source.labels.tolist()) == (["ant", "crab"], [0, 1])
    source.close()


def test_urls(tree: Path, tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(str(tree), "/bucket/train", recursive=True)
    assert samples("memory://bucket/train") == samples(str(tree))
    tar_of_tars(tree, tmp_path / "t.tar")
    fs.put_file(str(tmp_path / "t.tar"), "/bucket/t.tar")
    before = set(tmp_path.iterdir())
    assert samples("memory://bucket/t.tar", scratch=tmp_path) == samples(str(tree))
    assert set(tmp_path.iterdir()) == before
    for url, message in (
        ("memory://bucket/none.tar", "fetched"), ("memory://bucket/none", "holds no images"), ("nosuch://x/y", "nosuch"),
    ):  # fmt: skip
        with pytest.raises(SourceError, match=message):
            open_source(url, scratch=tmp_path)


def test_unknown_kinds(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x01\x02")
    with pytest.raises(SourceError, match="is not of a known kind"):
        open_source(str(tmp_path / "x.bin"))
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(str(tmp_path / "nothing*.tar"))
