"""convert: layouts, write modes, determinism, errors; an unmodified FFCV reads every mode."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SourceError, UsageError
from dp4tl_fast.conversion import pipeline
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.convert import main

FFCV_DUMP = Path(__file__).with_name("ffcv_dump.py")
SIZES = [(32, 24), (7, 50), (1, 1), (64, 64), (33, 17)]


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A colour with smooth shades, so that a JPEG with half its chroma resolution is close to it."""
    small = Image.fromarray((rng.integers(40, 216, 3) + rng.integers(-40, 40, (3, 3, 1))).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def jpeg_bytes(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes with 5, 10 and 3 JPEGs."""
    rng = np.random.default_rng(0)
    root = tmp_path / "tree"
    for name, count in (("n02", 5), ("n01", 10), ("n03", 3)):
        (root / name).mkdir(parents=True)
        for k in range(count):
            (root / name / f"img{k}.JPEG").write_bytes(jpeg_bytes(picture(rng, *SIZES[k % 5]), quality=95))
    return root


def listing(root: Path) -> list[Path]:
    return [file for folder in sorted(root.iterdir()) for file in sorted(folder.iterdir())]


def test_keep_class_layout(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.beton"
    result = convert(str(tree), str(out))
    beton, files = Beton(out), listing(tree)
    assert (result["samples"], result["classes"], result["skipped"], result["byte_for_byte"]) == (18, 3, 0, 18)
    assert result["bytes"] == out.stat().st_size
    assert beton.layout == "class"
    assert beton.class_names == ["n01", "n02", "n03"]
    assert beton.class_counts.tolist() == [10, 5, 3]
    assert sorted(beton.index) == list(range(18))
    assert beton.index.tolist() != list(range(18)), "records of a class are in random order"
    for record, i in enumerate(beton.index):
        assert bytes(beton.payload(record)) == files[i].read_bytes()
        assert beton.class_names[beton.labels[record]] == files[i].parent.name
        with Image.open(files[i]) as image:
            assert (beton.images[record]["width"], beton.images[record]["height"]) == image.size


def test_shuffled_layout_holds_the_same_samples_and_indices(tree: Path, tmp_path: Path) -> None:
    convert(str(tree), str(tmp_path / "a.beton"))
    convert(str(tree), str(tmp_path / "b.beton"), layout="shuffled")
    a, b = Beton(tmp_path / "a.beton"), Beton(tmp_path / "b.beton")
    assert b.layout == "shuffled"
    first, second = np.argsort(a.index), np.argsort(b.index)
    assert (a.labels[first] == b.labels[second]).all()
    for i, j in zip(first, second, strict=True):
        assert (a.payload(i) == b.payload(j)).all()


@pytest.mark.parametrize("options", [{}, {"write_mode": "raw"}, {"write_mode": "jpg", "max_side": 20}], ids=str)
def test_bytes_do_not_depend_on_workers_or_chunks(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    convert(str(tree), str(tmp_path / "a.beton"), workers=1, **options)
    monkeypatch.setattr(pipeline, "CHUNK_RECORDS", 2)
    convert(str(tree), str(tmp_path / "b.beton"), workers=3, **options)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    convert(str(tree), str(tmp_path / "c.beton"), seed=1, **options)
    assert (tmp_path / "a.beton").read_bytes() != (tmp_path / "c.beton").read_bytes()


def read_with_ffcv(*paths: Path) -> dict[Path, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(centre squares of 16 x 16, labels, index) of all records of each file."""
    out = paths[0].with_name("ffcv.npz")
    subprocess.run([sys.executable, str(FFCV_DUMP), str(out), *map(str, paths)], check=True, capture_output=True)
    with np.load(out) as arrays:
        return {path: tuple(arrays[f"{path}:{name}"] for name in ("images", "labels", "index")) for path in paths}


MODES = {
    "keep": {},
    "shuffled": {"layout": "shuffled"},
    "raw": {"write_mode": "raw"},
    "jpg": {"write_mode": "jpg", "quality": 95},
    "max_side": {"max_side": 30},
    "short_side": {"short_side": 16, "write_mode": "raw"},
    "smart": {"write_mode": "smart", "smart_threshold": 3 * 33 * 17},
    "proportion": {"write_mode": "proportion", "jpeg_share": 0.5},
}


def test_ffcv_reads_every_mode(tree: Path, tmp_path: Path) -> None:
    files, outputs = listing(tree), [tmp_path / f"{name}.beton" for name in MODES]
    for out, options in zip(outputs, MODES.values(), strict=True):
        convert(str(tree), str(out), **options)
    for out, (squares, labels, index) in read_with_ffcv(*outputs).items():
        beton = Beton(out)
        assert sorted(index) == list(range(18))
        assert (index == beton.index).all()
        assert (labels == beton.labels).all()
        for record, i in enumerate(index):
            stored = stored_image(beton, record)
            with Image.open(files[i]) as original:
                reference = np.asarray(original.convert("RGB").resize(stored.size, Image.Resampling.BOX), np.float64)
            # Smooth pictures: a wrong image, channel order or stride is off by tens on average, a codec by a few.
            assert np.abs(np.asarray(stored, np.float64) - reference).mean() < 6, (out.stem, record)
            side = min(stored.size)
            left, top = (stored.width - side) // 2, (stored.height - side) // 2
            square = np.asarray(stored.crop((left, top, left + side, top + side)))
            square = cv2.resize(square, (16, 16), interpolation=cv2.INTER_AREA)  # as FFCV does
            # Its IDCT is the fast, inexact one; another crop or channel order is off by tens on average.
            assert np.abs(squares[record].astype(float) - square).mean() < 4, (out.stem, record)
    modes = {out.stem: set(Beton(out).images["mode"].tolist()) for out in outputs}
    assert modes["keep"] == modes["jpg"] == modes["max_side"] == {0}
    assert modes["raw"] == modes["short_side"] == {1}
    assert modes["smart"] == modes["proportion"] == {0, 1}


def stored_image(beton: Beton, record: int) -> Image.Image:
    """The record decoded by PIL, RGB; its size is checked against the table."""
    row = beton.images[record]
    size, payload = (int(row["width"]), int(row["height"])), bytes(beton.payload(record))
    if row["mode"] == 1:
        return Image.frombytes("RGB", size, payload)
    image = Image.open(io.BytesIO(payload)).convert("RGB")
    assert image.size == size
    return image


def test_max_side_resizes_only_larger_images(tree: Path, tmp_path: Path) -> None:
    out, files = tmp_path / "o.beton", listing(tree)
    convert(str(tree), str(out), max_side=33)
    beton = Beton(out)
    for record, i in enumerate(beton.index):
        with Image.open(files[i]) as image:
            width, height = image.size
        row = beton.images[record]
        if max(width, height) <= 33:
            assert bytes(beton.payload(record)) == files[i].read_bytes()
        else:
            assert max(row["width"], row["height"]) == 33
            assert abs(row["width"] / row["height"] - width / height) < 0.2


def test_a_page_grows_with_its_largest_record(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "a").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for k, size in enumerate([(10, 10), (2000, 1500), (5, 5)]):
        picture(rng, *size).save(root / "a" / f"{k}.png")
    convert(str(root), str(tmp_path / "o.beton"), write_mode="raw")  # 9 MB do not fit FFCV's default 8 MiB pages
    beton = Beton(tmp_path / "o.beton")
    assert beton.page_size == 2**24
    first, last = beton.images["data_ptr"].astype(int), beton.images["data_ptr"].astype(int) + beton.sizes - 1
    assert (first // beton.page_size == last // beton.page_size).all()
    assert len(read_with_ffcv(beton.path)[beton.path][0]) == 3


# -- errors -----------------------------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name != "tree"]


def test_bad_sources_are_named_and_leave_nothing(tree: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "o.beton")
    with pytest.raises(SourceError, match="nowhere: no such"):
        convert(str(tmp_path / "nowhere"), out)
    (tmp_path / "tree" / "n01" / "notes.txt").write_text("not an image")
    with pytest.raises(SourceError, match=r"n01/notes\.txt: it is a text file"):
        convert(str(tree), out)
    assert leftovers(tmp_path) == []
    (tree / "n01" / "notes.txt").unlink()
    (tree / "n00").mkdir()
    with pytest.raises(SourceError, match="'n00' has no images"):
        convert(str(tree), out)
    assert leftovers(tmp_path) == []


def test_empty_folder_and_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(SourceError, match="holds nothing"):
        convert(str(tmp_path / "tree"), str(tmp_path / "o.beton"))
    (tmp_path / "tree" / "x.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match="1 file but no folder"):
        convert(str(tmp_path / "tree"), str(tmp_path / "o.beton"))


def test_links_that_lead_back_or_nowhere_are_named(tree: Path, tmp_path: Path) -> None:
    link = tree / "n01" / "link"
    for target, message in (
        ("..", "n01/link: leads back to a folder above it"), (".", "n01/link: leads back to a folder above it"),
        ("link", "n01/link: cannot be read: Too many levels"), ("gone", "n01/link: a broken link"),
    ):  # fmt: skip
        link.symlink_to(target)
        with pytest.raises(SourceError, match=message):
            convert(str(tree), str(tmp_path / "o.beton"))
        link.unlink()
    link.symlink_to("../n03")
    result = convert(str(tree), str(tmp_path / "o.beton"), classes_from="top")
    assert result["samples"] == 21, "a link to another folder is followed"


def test_a_folder_that_may_not_be_read_is_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel refuses it: the tests may run as root, whom it lets in everywhere."""
    real = os.scandir

    def scandir(folder: bytes) -> object:
        if os.fsencode(folder).endswith(b"/n02"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match=r"tree/n02: cannot be read: Permission denied"):
        convert(str(tree), str(tmp_path / "o.beton"))


def test_truncated_jpeg(tree: Path, tmp_path: Path) -> None:
    victim = tree / "n01" / "img3.JPEG"
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"img3\.JPEG"):
        convert(str(tree), str(tmp_path / "o.beton"))
    result = convert(str(tree), str(tmp_path / "o.beton"), on_error="skip")
    beton = Beton(tmp_path / "o.beton")
    assert (result["skipped"], result["samples"]) == (1, 17)
    assert sorted(beton.index) == [i for i in range(18) if i != 3], "the others keep their indices"


@pytest.mark.parametrize("order", [(1, 3), (3, 1)])
def test_the_first_bad_image_is_named(tree: Path, tmp_path: Path, order: tuple[int, int]) -> None:
    """Also where one is found later than the other: when the JPEGs of a chunk are read to their ends."""
    damaged, text = (tree / "n01" / f"img{i}.JPEG" for i in order)
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) // 2] + data[-2:])
    text.write_bytes(b"text")
    with pytest.raises(SourceError, match=r"img1\.JPEG"):
        convert(str(tree), str(tmp_path / "o.beton"))
    result = convert(str(tree), str(tmp_path / "o.beton"), on_error="skip")
    assert (result["skipped"], result["samples"]) == (2, 16)


@pytest.mark.parametrize(
    "flags",
    [
        {"layout": "x"}, {"write_mode": "x"}, {"quality": 0}, {"max_side": -1}, {"workers": -1}, {"on_error": "x"},
        {"max_side": 5, "short_side": 5}, {"entry_points": "x"}, {"write_mode": "smart"}, {"seed": -1},
    ],
    ids=str,
)  # fmt: skip
def test_bad_flags(tree: Path, tmp_path: Path, flags: dict) -> None:
    with pytest.raises(UsageError, match="smart_threshold|" + "|".join(flags)):
        convert(str(tree), str(tmp_path / "o.beton"), **flags)
    assert leftovers(tmp_path) == []


def test_command_line(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "o.beton"
    assert main([str(tree), str(out), "--layout", "shuffled", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 18
    assert Beton(out).class_names == ["n01", "n02", "n03"]
    assert main([str(tmp_path / "no"), str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("dp4tl-fast convert: ")
