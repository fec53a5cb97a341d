"""The same tree gives the same data set through every kind of source that can hold it."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from source_cases import image, make_tar, opened, put, samples

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.conversion.run import convert

KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
IMAGES = [image(k * 40, kind) for k, kind in enumerate(KINDS)]
NAMES = st.text("ab1 é漢.-_#,\"'", min_size=1, max_size=6).map(str.strip).filter(
    lambda name: any(map(str.isalpha, name)) and not name.startswith(".")  # numbers in a table would be ids
)  # fmt: skip
ENDINGS = st.sampled_from(["", ".jpg", ".JPEG", ".jfif", ".avif", ".png", ".img", ".jpg.1"])
LITTER = st.sampled_from(["Thumbs.db", ".DS_Store", "x.json", "x.xml", "desktop.ini", "x_boxes.txt"])
FILE_NAMES = st.tuples(st.integers(0, 99), ENDINGS).map(lambda t: f"{t[0]}{t[1]}")
FILES = st.dictionaries(FILE_NAMES, st.sampled_from(IMAGES), min_size=1, max_size=4)
TREES = st.dictionaries(NAMES, FILES, min_size=2, max_size=4).filter(
    lambda tree: len({n.casefold() for n in tree}) == len(tree)
)


@settings(max_examples=40)
@given(TREES, st.lists(LITTER, max_size=2), st.sampled_from(["text", "natural"]))
def test_every_kind_of_source_gives_the_same_samples(
    tree: dict[str, dict[str, bytes]], litter: list[str], order: str
) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        _check(root, tree, litter, order)
    finally:
        shutil.rmtree(root)


def _check(root: Path, tree: dict[str, dict[str, bytes]], litter: list[str], order: str) -> None:
    files = {f"{name}/{file}": data for name, inner in tree.items() for file, data in inner.items()}
    junk = {f"{name}/{file}": b"not an image" for name in tree for file in litter}
    put(root / "tree", files | junk)
    expected = samples(root / "tree", class_order=order)
    assert sorted(expected) == sorted((path.partition("/")[0], data) for path, data in files.items())
    sources = [
        make_tar(root / "folders.tar", [*junk.items(), *reversed(files.items())]),
        _tar_of_tars(root / "tars.tar", tree, litter),
    ]
    sources += [
        _webdataset(root / "wds.tar", expected),
        _parquet(root / "x.parquet", expected),
        _csv(root / "x.csv", root, expected),
        _remote(root / "tree"),
    ]
    for src in sources:
        assert samples(src, root, class_order=order) == expected, src
    for k, src in enumerate([root / "tree", *sources]):
        convert(str(src), str(root / f"{k}.beton"), class_order=order, entry_points="off")
    beton, data = Beton(root / "0.beton"), (root / "0.beton").read_bytes()
    for k in range(1, len(sources) + 1):
        assert (root / f"{k}.beton").read_bytes() == data
        assert Beton(root / f"{k}.beton").fingerprint == beton.fingerprint


def _tar_of_tars(path: Path, tree: dict[str, dict[str, bytes]], litter: list[str]) -> Path:
    rows = []
    for name, inner in tree.items():
        out = io.BytesIO()
        make_tar(path, [*inner.items(), *((file, b"not an image") for file in litter)], fileobj=out)
        rows.append((f"{name}.tar", out.getvalue()))
    return make_tar(path, rows)


def _webdataset(path: Path, expected: list[tuple[str, bytes]]) -> Path:
    rows = [
        row
        for i, (name, data) in enumerate(expected)
        for row in ((f"{i:04}.img", data), (f"{i:04}.cls", name.encode()))
    ]
    return make_tar(path, rows)


def _remote(tree: Path) -> str:
    fs = fsspec.filesystem("memory")
    if fs.exists("/tree"):
        fs.rm("/tree", recursive=True)
    fs.put(str(tree), "/tree", recursive=True)
    return "memory://tree"


def _parquet(path: Path, expected: list[tuple[str, bytes]]) -> Path:
    table = pa.table({"image": [{"bytes": data} for _, data in expected], "label": [name for name, _ in expected]})
    pq.write_table(table, path)
    return path


def _csv(path: Path, root: Path, expected: list[tuple[str, bytes]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for i, (name, data) in enumerate(expected):
            (root / f"{i}").write_bytes(data)
            rows.writerow([f"{i}", name])
    return path


FOLDERS = st.lists(st.sampled_from(["a", "b", "train", "val", "images", "10", "2", ".hidden", "__MACOSX"]), max_size=3)
CONTENTS = {"Thumbs.db": b"x", "1.json": b"{}", "note.txt": b"some text", ".keep": b"", "x_boxes.txt": b"0"}
NESTED = st.dictionaries(
    st.tuples(FOLDERS, st.sampled_from(["1.jpg", "noending", "p.png", *CONTENTS])).map(lambda t: "/".join([*t[0], t[1]])),
    st.integers(0, len(IMAGES) - 1), min_size=1, max_size=7,
)  # fmt: skip
OPTIONS = st.fixed_dictionaries(
    {}, optional={"classes_from": st.sampled_from(["top", "leaf"]), "allow_empty": st.just(True),
                  "split": st.sampled_from(["train", "val"]), "class_order": st.just("natural")},
)  # fmt: skip


@settings(max_examples=200)
@given(NESTED, OPTIONS, st.booleans())
def test_odd_trees_are_taken_or_refused_alike(tree: dict[str, int], options: dict[str, object], image_json: bool) -> None:
    """Nested, with classes of litter alone; the tar lists no folders, the remote ones come as they are found."""
    files = {path: CONTENTS.get(path.rpartition("/")[2], IMAGES[k]) for path, k in tree.items()}
    if image_json:
        files |= {path: IMAGES[0] for path in files if path.endswith("a/1.json")}
    root = Path(tempfile.mkdtemp())
    try:
        put(root / "tree", files)
        sources = {f"{root}/tree": f"{root}/tree/", f"{root}/tree.tar": f"{root}/tree.tar: ", _remote(root / "tree"): "memory://tree/"}
        make_tar(root / "tree.tar", files.items())
        found = [_outcome(src, root, where, options) for src, where in sources.items()]
        assert found[0] == found[2]
        # A flat image beside a .json might have been meant as a WebDataset: a tar says that its label is missing.
        assert found[0] == found[1] or "1.json: its .json file has no 'label'" in str(found[1])
    finally:
        shutil.rmtree(root)


def _outcome(src: str, scratch: Path, where: str, options: dict[str, object]) -> tuple[list[str], object] | str:
    """Class names and samples, or what it is refused with, without where it lies."""
    try:
        source = opened(src, scratch, **options)
    except SourceError as error:
        return str(error).replace(where, "").replace(where.rstrip("/: "), "").removeprefix(": ")
    try:
        return source.class_names, [(int(label), source.read(i)) for i, label in enumerate(source.labels)]
    finally:
        source.close()


def test_a_listing_is_class_by_class_in_the_order_of_names(tmp_path: Path) -> None:
    put(tmp_path, {"b/2": IMAGES[0], "b/10": IMAGES[1], "a/9": IMAGES[2], "a/x/1": IMAGES[3], "b/x/1": IMAGES[0]})
    found = samples(tmp_path, classes_from="top")
    assert found == [("a", IMAGES[2]), ("a", IMAGES[3]), ("b", IMAGES[1]), ("b", IMAGES[0]), ("b", IMAGES[0])]
    assert np.unique([name for name, _ in found]).tolist() == ["a", "b"]
