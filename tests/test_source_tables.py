"""CSV, Parquet, Arrow and WebDataset: columns, keys, labels, shards; every case with its right value or its refusal."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_cases import image, labels_of, make_tar, opened, put, samples

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.conversion.run import convert

IMAGES = [image(k * 30) for k in range(4)]
STRUCTS = [{"bytes": data, "path": f"{k}.jpg"} for k, data in enumerate(IMAGES)]


def parquet(path: Path, columns: dict[str, Any], **features: Any) -> Path:
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def csv_file(folder: Path, text: str, name: str = "x.csv") -> Path:
    put(folder, {f"{k}.jpg": data for k, data in enumerate(IMAGES)})
    (folder / name).write_text(text)
    return folder / name


# -- labels -----------------------------------------------------------------------------------------------------------

LABELS = {  # name -> (labels as they stand in a source, class names, class ids)
    "ids": (["2", "0", "1"], ["0", "1", "2"], [2, 0, 1]),
    "floats": (["2.0", "0.0", "1"], ["0", "1", "2"], [2, 0, 1]),
    "padded": ([" 2", "01", "+0 "], ["0", "1", "2"], [2, 1, 0]),
    "ten after two": (["10", "2", "0"], [str(i) for i in range(11)], [10, 2, 0]),
    "names": (["dog", "cat", "ant"], ["ant", "cat", "dog"], [2, 1, 0]),
    "large": (["20230101123456", "7", "1000000000000"], None, "above 1000000000000"),
    "renumbered": (["900000000000", "7", "1000000"], ["7", "1000000", "900000000000"], [2, 0, 1]),
    "negative": (
        ["2", "10", "-1"],
        None,
        r"the label -1 is not a class id: it is negative, as in test sets that hide their labels",
    ),
    "fraction": (["2", "0.5", "1"], None, r"the label 0\.5 is not a class id: it is not a whole number"),
    "nan": (["2", "nan", "1"], None, r"the label nan is not a class id: it is not a number"),
    "mixed": (["2", "cat", "1"], None, r"the label 'cat' is text, but that of .*, '2', is a number"),
}


@pytest.mark.parametrize("name", LABELS)
def test_one_rule_for_labels(tmp_path: Path, name: str) -> None:
    values, names, expected = LABELS[name]
    sources = [
        csv_file(tmp_path, "".join(["path,label\n", *(f"{k}.jpg,{v}\n" for k, v in enumerate(values))])),
        make_tar(
            tmp_path / "x.tar",
            [r for k, v in enumerate(values) for r in ((f"{k}.jpg", IMAGES[k]), (f"{k}.cls", v.encode()))],
        ),
        parquet(tmp_path / "x.parquet", {"image": IMAGES[:3], "label": values}),
    ]
    for src in sources:
        if names is None:
            with pytest.raises(SourceError, match=str(expected)) as error:
                opened(src, tmp_path)
            row = next(k for k, v in enumerate(values) if v not in ("2", "7", "10", "1"))
            assert any(where in str(error.value) for where in (f"line {row + 2}", f": {row}.jpg", f"row {row}"))
        else:
            assert labels_of(src) == (names, expected)


def test_labels_as_text_when_asked_for(tmp_path: Path) -> None:
    src = csv_file(tmp_path, "path,label\n0.jpg,10\n1.jpg,2\n2.jpg,cat\n")
    assert labels_of(src, label_type="text") == (["10", "2", "cat"], [0, 1, 2])
    assert labels_of(src, label_type="text", class_order="natural") == (["2", "10", "cat"], [1, 0, 2])
    with pytest.raises(SourceError, match=r"line 4: the label 'cat' is not a number, but labels are class ids here"):
        opened(src, label_type="id")


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        ([True, False, True, False], ["0", "1"], [1, 0, 1, 0]),
        (pa.array([0, 1, 0, 3], pa.uint8()), ["0", "1", "2", "3"], [0, 1, 0, 3]),
        ([0.0, 2.0, 1.0, 1.0], ["0", "1", "2"], [0, 2, 1, 1]),
        (["cat", "dog", "cat", "ant"], ["ant", "cat", "dog"], [1, 2, 1, 0]),
        (pa.array(["cat", "dog", "cat", "dog"]).dictionary_encode(), ["cat", "dog"], [0, 1, 0, 1]),
        (pa.array([b"cat", b"dog", b"cat", b"dog"], pa.large_binary()), ["cat", "dog"], [0, 1, 0, 1]),
    ],
    ids=["bool", "unsigned", "whole floats", "text", "dictionary", "bytes"],
)
def test_types_of_labels_in_parquet(tmp_path: Path, labels: Any, names: list[str], ids: list[int]) -> None:
    src = parquet(tmp_path / "x.parquet", {"image": STRUCTS, "label": labels})
    assert labels_of(src, image_column="image") == (names, ids)


# -- columns ----------------------------------------------------------------------------------------------------------


def test_several_columns_are_asked_about(tmp_path: Path) -> None:
    columns = {"thumbnail": STRUCTS[::-1], "picture": STRUCTS, "fine_label": [0, 1, 2, 3], "coarse_label": [0, 0, 1, 1]}
    src = parquet(tmp_path / "x.parquet", columns)
    with pytest.raises(
        SourceError, match=r"has images in the columns thumbnail, picture\. Choose one with `image_column`"
    ):
        opened(src, tmp_path)
    with pytest.raises(SourceError, match=r"has both 'fine_label' and 'coarse_label'\. Choose with `label_column`"):
        opened(src, tmp_path, image_column="picture")
    found = samples(src, tmp_path, image_column="picture", label_column="coarse_label")
    assert found == list(zip("0011", IMAGES, strict=True))
    with pytest.raises(SourceError, match=r"has no column 'no'\. It has 'thumbnail', 'picture'"):
        opened(src, tmp_path, image_column="no")
    table = csv_file(tmp_path, "file,path,label\nx,0.jpg,1\n")
    with pytest.raises(SourceError, match=r"has both 'file' and 'path'\. Choose with `image_column`"):
        opened(table)
    assert samples(table, image_column="path") == [("1", IMAGES[0])]


def test_columns_of_paths(tmp_path: Path) -> None:
    put(tmp_path, {f"{k}.jpg": data for k, data in enumerate(IMAGES)})
    for k, column in enumerate(
        ([{"bytes": None, "path": f"{k}.jpg"} for k in range(4)], [f"{k}.jpg" for k in range(4)])
    ):
        src = parquet(tmp_path / f"{k}.parquet", {"image": column, "label": [0, 1, 0, 1]})
        assert samples(src, tmp_path) == list(zip("0101", IMAGES, strict=True))


def test_an_empty_row_is_a_bad_record(tmp_path: Path) -> None:
    parquet(tmp_path / "pq" / "a.parquet", {"image": STRUCTS[:2], "label": [0, 1]})
    parquet(tmp_path / "pq" / "b.parquet", {"image": [None, *STRUCTS[:2]], "label": [0, 1, None]})
    table = csv_file(tmp_path, "path,label\n0.jpg,0\n1.jpg,1\n,0\n2.jpg,1\n3.jpg\n")
    rows = [("0.jpg", IMAGES[0]), ("0.cls", b"0"), ("1.jpg", IMAGES[1]), ("1.cls", b"1"), ("2.cls", b"0")]
    tar = make_tar(tmp_path / "x.tar", [*rows, ("3.jpg", IMAGES[3]), ("4.jpg", IMAGES[2]), ("4.cls", b"1")])
    cases = [
        (tmp_path / "pq", r"b\.parquet: row 0: it has no image"), (table, r"x\.csv: line 4: it has no path"),
        (tar, r"2\.cls: it has no image: its files are cls"),
    ]  # fmt: skip
    for src, message in cases:
        with pytest.raises(SourceError, match=message):
            convert(str(src), str(tmp_path / "o.beton"))
        result = convert(str(src), str(tmp_path / "o.beton"), on_error="skip")
        assert (result["samples"], result["skipped"]) == (3, 2), src
        assert sorted(Beton(tmp_path / "o.beton").labels.tolist()) == [0, 1, 1]


def test_files_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    names = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    columns = {"image": STRUCTS, "label": [0, 1, 0, 1]}
    parquet(tmp_path / "pq/a.parquet", columns, label=names)
    parquet(tmp_path / "pq/b.parquet", columns, label={**names, "names": ["dog", "cat"]})
    with pytest.raises(SourceError, match=r"b\.parquet: its schema names other classes than .*a\.parquet"):
        opened(tmp_path / "pq", tmp_path)
    parquet(tmp_path / "pq/b.parquet", {"picture": STRUCTS, "label": [0, 1, 0, 1]}, label=names)
    with pytest.raises(SourceError, match=r"b\.parquet: has no column 'image', but .*a\.parquet does"):
        opened(tmp_path / "pq", tmp_path)
    (tmp_path / "pq/b.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(SourceError, match=r"b\.parquet: cannot be read as Parquet"):
        opened(tmp_path / "pq", tmp_path)
    (tmp_path / "pq/b.parquet").unlink()
    assert labels_of(tmp_path / "pq") == (["cat", "dog"], [0, 1, 0, 1])
    with pytest.raises(SourceError, match="has no rows"):
        opened(
            parquet(tmp_path / "none.parquet", {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
            tmp_path,
        )


def test_labels_are_checked_before_images_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dp4tl_fast.sources import spool

    def copied(*_: object, **__: object) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr(spool.tempfile, "TemporaryFile", copied)
    src = parquet(tmp_path / "x.parquet", {"image": STRUCTS, "label": [0, 1, 0, -1]})
    with pytest.raises(SourceError, match=r"x\.parquet: row 3: the label -1 is not a class id: it is negative"):
        opened(src, tmp_path)


TABLES = {
    "no header": ("0.jpg,1\n1.jpg,0\n", r"has no column named path or file or filename\. .*It has '0\.jpg', '1'"),
    "two classes": (
        "path,label\n0.jpg,1\n0.jpg,0\n",
        r"line 3 gives 0\.jpg the label '0', but line 2 '1'\. Correct one",
    ),
    "a long field": ("path,label\n0.jpg," + "x" * 140_000 + "\n", r"x\.csv: line 2: field larger than field limit"),
    "nul": ("path,label\n0\0.jpg,1\n", r"(a NUL in a file's name|line 2: line contains NUL)"),
    "empty": ("", "is an empty file"),
    "only a header": ("path,label\n", "has no rows"),
}


@pytest.mark.parametrize("name", TABLES)
def test_odd_tables_are_one_line(tmp_path: Path, name: str) -> None:
    text, message = TABLES[name]
    with pytest.raises(SourceError, match=message):
        opened(csv_file(tmp_path, text))


def test_separators_of_tables(tmp_path: Path) -> None:
    for text in (
        "path;label\n0.jpg;1\n",
        "\ufeffpath,label\r\n0.jpg,1\r\n",
        'path,label\n"0.jpg","1"\n\n',
        "path\tlabel\n0.jpg\t1\n",
    ):
        assert samples(csv_file(tmp_path, text)) == [("1", IMAGES[0])]


# -- WebDataset -------------------------------------------------------------------------------------------------------


def wds(path: Path, *rows: tuple[str, bytes]) -> Path:
    return make_tar(path, rows)


def test_the_image_of_a_sample_is_found_by_content(tmp_path: Path) -> None:
    endings = ("jpg", "jfif", "avif", "img", "JPEG")
    src = wds(
        tmp_path / "x.tar",
        *(r for k, e in enumerate(endings) for r in ((f"s{k}.{e}", IMAGES[k % 4]), (f"s{k}.cls", b"0\n"))),
    )
    assert samples(src) == [("0", IMAGES[k % 4]) for k in range(5)]
    src = wds(
        tmp_path / "y.tar",
        *(r for k in range(2) for r in ((f"s{k}.seg.png", b"mask"), (f"s{k}.jpg", IMAGES[k]), (f"s{k}.cls", b"1"))),
    )
    assert samples(src) == [("1", IMAGES[0]), ("1", IMAGES[1])]
    src = wds(tmp_path / "z.tar", ("22.01.png", image(1, "PNG")), ("22.01.jpg", IMAGES[1]), ("22.cls", b"0"))
    with pytest.raises(
        SourceError, match=r"z\.tar: 22: has several images, 01\.png, 01\.jpg\. Choose with `image_key=01\.png` or"
    ):
        opened(src)
    assert samples(src, image_key="01.jpg") == [("0", IMAGES[1])]


def test_keys_of_labels(tmp_path: Path) -> None:
    body = json.dumps({"class_id": 3, "info": {"name": "cat"}}).encode()
    src = wds(tmp_path / "x.tar", ("s0.jpg", IMAGES[0]), ("s0.json", body), ("s0.txt", b"a caption"))
    assert samples(src, label_key="json:class_id") == [("3", IMAGES[0])]
    assert samples(src, label_key="json:info.name") == [("cat", IMAGES[0])]
    assert samples(src, label_key="txt") == [("a caption", IMAGES[0])]
    with pytest.raises(
        SourceError,
        match=r"its \.json file has no 'label' \(it has class_id, info\)\. Choose with `label_key=json:NAME`",
    ):
        opened(src, image_key="jpg")
    with pytest.raises(SourceError, match=r"x\.tar: s0\.json: its \.json file has no 'label' \(it has class_id, info\)"):
        opened(src)
    src = wds(tmp_path / "dots.tar", *(r for k in "12" for r in ((f"22.0{k}.jpg", IMAGES[0]), (f"22.0{k}.cls", b"1"))))
    with pytest.raises(SourceError, match=r"dots\.tar: 22\.01\.cls: in a WebDataset a sample's name ends at the first dot"):
        opened(src)
    src = wds(
        tmp_path / "y.tar",
        ("s0.jpg", IMAGES[0]),
        ("s0.json", b'{"label": "cat"}'),
        ("s1.jpg", IMAGES[1]),
        ("s1.json", b'{"label": 1.0}'),
    )
    with pytest.raises(
        SourceError, match=r"y\.tar: s0\.jpg: the label 'cat' is text, but that of .*s1\.jpg, 1\.0, is a number"
    ):
        opened(src)


def test_gaps_between_ids_stay(tmp_path: Path) -> None:
    src = wds(
        tmp_path / "x.tar", *(r for k in (0, 7, 999) for r in ((f"s{k}.jpg", IMAGES[0]), (f"s{k}.cls", b"%d\n" % k)))
    )
    names, labels = labels_of(src)
    assert (len(names), labels) == (1000, [0, 7, 999])


def test_json_beside_images_in_class_folders_is_no_label(tmp_path: Path) -> None:
    src = wds(
        tmp_path / "x.tar",
        ("a/1.jpg", IMAGES[0]),
        ("a/1.json", b'{"title": "holiday"}'),
        ("b/2.jpg", IMAGES[1]),
        ("b/2.json", b"{}"),
    )
    assert samples(src) == [("a", IMAGES[0]), ("b", IMAGES[1])]


# -- shards and containers --------------------------------------------------------------------------------------------


def test_shards_of_a_hub_folder(tmp_path: Path) -> None:
    names = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    for split, labels in (("train", [0, 1, 0, 1]), ("validation", [1, 1, 0, 0]), ("test", [-1] * 4)):
        parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet", {"image": STRUCTS, "label": labels}, label=names)
    put(tmp_path / "hub", {"README.md": b"card", ".gitattributes": b"x"})
    for src in (tmp_path / "hub", tmp_path / "hub/data", tmp_path / "hub/data/*.parquet"):
        with pytest.raises(
            SourceError, match=r"holds the splits test, train, validation\. Choose one with `split=test`"
        ):
            opened(src, tmp_path)
        assert [name for name, _ in samples(src, tmp_path, split="validation")] == ["dog", "dog", "cat", "cat"]
    with pytest.raises(SourceError, match="has no split 'dev'"):
        opened(tmp_path / "hub", tmp_path, split="dev")


def test_shards_in_a_folder_per_split(tmp_path: Path) -> None:
    """As the Hub converts data sets."""
    for split in ("train", "test"):
        parquet(tmp_path / f"hub/default/{split}/0000.parquet", {"image": STRUCTS, "label": [0, 1, 0, 1]})
    with pytest.raises(SourceError, match="holds the splits test, train"):
        opened(tmp_path / "hub", tmp_path)
    assert len(samples(tmp_path / "hub", tmp_path, split="train")) == 4
    put(tmp_path / "photos", {"data/a/1.jpg": IMAGES[0], "data/b/1.jpg": IMAGES[1]})
    assert samples(tmp_path / "photos") == [("a", IMAGES[0]), ("b", IMAGES[1])]


def test_arrow_folders_as_datasets_saves_them(tmp_path: Path) -> None:
    meta = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})}
    table = pa.table({"image": STRUCTS, "label": [1, 0, 1, 0]}).replace_schema_metadata(meta)
    for split in ("train", "test"):
        put(tmp_path / "saved" / split, {"state.json": b"{}", "dataset_info.json": b"{}"})
        for part in range(2):
            with pa.OSFile(str(tmp_path / f"saved/{split}/data-0000{part}-of-00002.arrow"), "wb") as sink:
                writer = (pa.ipc.new_stream if part else pa.ipc.new_file)(sink, table.schema)
                with writer:
                    writer.write_table(table.slice(2 * part, 2), max_chunksize=1)
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    expected = list(zip(("dog", "cat", "dog", "cat"), IMAGES, strict=True))
    assert samples(tmp_path / "saved/train", tmp_path) == expected
    with pytest.raises(SourceError, match="holds the splits test, train"):
        opened(tmp_path / "saved", tmp_path)
    assert samples(tmp_path / "saved", tmp_path, split="train") == expected


def test_patterns(tmp_path: Path) -> None:
    for k in range(3):
        for folder in ("a", "b"):
            put(tmp_path, {f"{folder}[1]": None})
            wds(
                tmp_path / f"{folder}[1]/w-{k:02}.tar", (f"{folder}{k}.jpg", IMAGES[k]), (f"{folder}{k}.cls", b"%d" % k)
            )
    assert [name for name, _ in samples(tmp_path / "{a,b}[1]/w-{00..02}.tar")] == list("012012")
    assert [name for name, _ in samples(tmp_path / "b[1]/w-*.tar")] == list("012")
    assert [name for name, _ in samples(tmp_path / "?[[]1]/w-0[01].tar")] == list("0101")
    with pytest.raises(SourceError, match=r"a\[1\]/w-03\.tar: no such file, but .* asks for it"):
        opened(tmp_path / "a[1]/w-{00..03}.tar")
    with pytest.raises(SourceError, match=r"\{9\.\.1\} must count up"):
        opened(tmp_path / "a[1]/w-{9..1}.tar")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.tar.gz", b"\x1f\x8b", "is packed. Unpack it with `gunzip -k .*x.tar.gz`"), ("x.tgz", b"\x1f\x8b", "gunzip -k -S .tgz"),
        ("x.tar.zst", b"\x28\xb5\x2f\xfd", "unzstd"), ("x.zip", b"PK\x03\x04", "unzip"),
        ("x.tar", b"version https://git-lfs.github.com/spec/v1\n" + bytes(600), "a Git LFS pointer, not the file itself"),
        ("x.tar", b"<!DOCTYPE html><html>" + b" " * 600, "an HTML page: a failed download"),
        ("x.tar", b"\x1f\x8b" + b"\1" * 600, "compressed with gzip"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("x.csv", b"<!DOCTYPE html><html>\n", "an HTML page"), ("x.tar.part", b"\1", "an unfinished download"),
        ("x.bin", b"%PDF-1.7", "a PDF document"),
    ],
)  # fmt: skip
def test_what_is_no_source_is_named_as_what_it_is(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        opened(tmp_path / name, tmp_path)


def test_concatenated_and_holed_tars_are_errors_with_the_byte(tmp_path: Path) -> None:
    first = make_tar(tmp_path / "1.tar", [("a/1.jpg", IMAGES[0]), ("b/1.jpg", IMAGES[1])])
    second = make_tar(tmp_path / "2.tar", [("c/1.jpg", IMAGES[2])])
    (tmp_path / "both.tar").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(
        SourceError, match=rf"both\.tar: ends at byte \d+, but data follow at byte {first.stat().st_size}\."
    ):
        opened(tmp_path / "both.tar")
    data = bytearray(first.read_bytes())
    with tarfile.open(first) as tar:
        hole = tar.getmembers()[1].offset
    data[hole : hole + 512] = bytes(512)
    (tmp_path / "hole.tar").write_bytes(data)
    with pytest.raises(SourceError, match=rf"hole\.tar: ends at byte {hole}, but data follow at byte {hole + 512}\."):
        opened(tmp_path / "hole.tar")


def test_urls_with_queries_patterns_and_without_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for k in range(2):
        src = wds(tmp_path / f"{k}.tar", (f"{k}.jpg", IMAGES[k]), (f"{k}.cls", b"%d" % k))
        fs.put_file(str(src), f"/shards/w-{k}.tar")
    expected = [("0", IMAGES[0]), ("1", IMAGES[1])]
    assert samples("memory://shards/w-{0..1}.tar", tmp_path) == expected
    assert samples("memory://shards/w-*.tar", tmp_path) == expected
    fs.put_file(str(tmp_path / "0.tar"), "/shards/s.tar?token=a.b")
    assert samples("memory://shards/s.tar?token=a.b", tmp_path) == expected[:1]
    put(tmp_path / "tree", {"a/1.jpg": IMAGES[0], "b/1.jpg": IMAGES[1]})
    fs.put(str(tmp_path / "tree"), "/sizeless", recursive=True)
    real = type(fs).find

    def find(*args: Any, **options: Any) -> Any:
        return {name: info | {"size": None} for name, info in real(*args, **options).items()}

    monkeypatch.setattr(type(fs), "find", find)
    with pytest.raises(SourceError, match=r"the server does not report the size of a/1\.jpg\. Download the folder first"):
        opened("memory://sizeless", tmp_path)


def test_whatever_a_reader_raises_is_one_line_about_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    class Broken:
        def __init__(self, root: str) -> None:
            raise KeyError(root)

    monkeypatch.setattr(torchvision.datasets, "Broken", Broken, raising=False)
    with pytest.raises(SourceError, match=r"torchvision:Broken\?root=x: cannot be read: KeyError: 'x'"):
        opened("torchvision:Broken?root=x", tmp_path)
