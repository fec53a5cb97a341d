"""inspect: what it says about a file, and that --verify finds every kind of damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.sidecars import sidecar
from dp4tl_fast.common.errors import BetonError
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.inspect import inspect, main


@pytest.fixture(params=["keep", "raw"])
def beton_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    for i in range(12):
        folder = tmp_path / "tree" / "bca"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(folder / f"{i:02}.jpg")
    convert(str(tmp_path / "tree"), str(tmp_path / "o.beton"), write_mode=request.param)
    return tmp_path / "o.beton"


def test_inspect_describes_the_file(beton_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(beton_path), "--verify", "--decode", "--json"]) == 0
    captured = capsys.readouterr()
    result, beton = json.loads(captured.out), Beton(beton_path)
    assert result["samples"] == 12
    assert result["layout"] == "class"
    assert result["jpeg"] + result["raw"] == 12
    assert result["height"] == {"min": 20, "median": 25, "max": 31}
    assert [c["name"] for c in result["classes"]] == ["a", "b", "c"]
    assert [c["samples"] for c in result["classes"]] == [4, 4, 4]
    assert [c["bytes"] for c in result["classes"]] == beton.class_bytes.tolist()
    assert result["image_bytes"] == sum(c["bytes"] for c in result["classes"])
    assert result["verified"] == {"records": 12, "checksums": True, "decoded": True}
    assert "12 records in 3 classes" in captured.err
    assert result["sidecar"] == str(beton_path.with_suffix(".info.zip"))
    assert result["label_mixing"]["window"] == 12


@pytest.mark.parametrize(("side", "entry_points", "found"), [(200, "on", 6), (200, "off", 0), (100, "on", 0)])
def test_inspect_counts_entry_points(
    tmp_path: Path, side: int, entry_points: str, found: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for i in range(6):
        Image.effect_noise((side, side), 50 + i).save(tmp_path / "tree" / "a" / f"{i}.jpg")
    convert(str(tmp_path / "tree"), str(tmp_path / "o.beton"), entry_points=entry_points)
    assert inspect(str(tmp_path / "o.beton"))["entry_points"] == {"found": found, "looked_at": 6}
    assert ("relayout` adds them" in capsys.readouterr().err) == (found == 0)


def test_inspect_of_a_file_by_ffcv(tmp_path: Path) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    rng = np.random.default_rng(0)
    samples = [(Image.fromarray(rng.integers(0, 256, (9, 14, 3), np.uint8)), i % 2) for i in range(10)]
    path = tmp_path / "f.beton"
    writer = DatasetWriter(str(path), {"image": RGBImageField("jpg"), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(samples)
    result = inspect(str(path), verify=True)
    assert result["sidecar"] == ""
    assert result["layout"] == "shuffled"
    assert result["verified"] == {"records": 10, "checksums": False, "decoded": False}


def damaged(path: Path, at: int, value: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


def test_verify_notices_a_flipped_bit_anywhere_in_the_payloads(beton_path: Path) -> None:
    beton = Beton(beton_path)
    starts, sizes = beton.images["data_ptr"].astype(int), beton.sizes
    original = beton_path.read_bytes()
    rng = np.random.default_rng(1)
    for record in range(12):
        at = int(starts[record] + rng.integers(sizes[record]))
        beton_path.write_bytes(original)
        with pytest.raises(BetonError, match=f"record {record} .*checksum"):
            inspect(str(damaged(beton_path, at, bytes([original[at] ^ 4]))), verify=True)


def test_verify_notices_wrong_tables(beton_path: Path) -> None:
    beton = Beton(beton_path)
    row = 24 + 1041 * 3 + 5 * beton.metadata.dtype.itemsize  # record 5
    original, raw = beton_path.read_bytes(), int(beton.images["mode"][5])
    sidecar(beton_path).unlink()  # which tells at once that the tables are not those it was written for
    pointer = int(beton.images["data_ptr"][5]).to_bytes(8, "little")
    other = int(beton.images["data_ptr"][6]).to_bytes(8, "little")
    faults = {
        "mode": (row, b"\x07", "record 5 .*mode"),
        "width": (row + 1, b"\x1f\x00", "record 5 .*(table says|not width)"),
        "no pixels": (row + 1, b"\x00\x00", "record 5 .*no pixels"),
        "pointer": (row + 5, other, "record 5 .*outside|record [56] .*(overlaps|checksum)"),
        "far away": (row + 5, b"\xff" * 7, "record 5"),
        "label": (row + 16, b"\xff" * 8, "record 5 has the negative label"),
    }
    assert pointer in original
    for name, (at, value, message) in faults.items():
        beton_path.write_bytes(original)
        with pytest.raises(BetonError, match=message):
            inspect(str(damaged(beton_path, at, value)), verify=True)
            pytest.fail(f"{name} (raw {raw}) was not noticed")


def test_a_size_that_would_wrap_around_is_outside_the_pages(beton_path: Path) -> None:
    beton = Beton(beton_path)
    entry = beton._alloc_ptr + 24 * 5 + 16
    assert int.from_bytes(beton_path.read_bytes()[entry : entry + 8], "little") == int(beton.sizes[5])
    sidecar(beton_path).unlink()
    damaged(beton_path, entry, (2**63 - 1).to_bytes(8, "little"))
    with pytest.raises(BetonError, match=f"record 5 .*has {2**63 - 1} bytes .*outside the file's pages"):
        inspect(str(beton_path))


def test_a_file_without_fields_is_named(beton_path: Path) -> None:
    with pytest.raises(BetonError, match=r"o\.beton: has no fields"):
        inspect(str(damaged(beton_path, 2, bytes(2))))


def test_verify_without_checksums_still_reads_headers_and_decodes(beton_path: Path) -> None:
    beton = Beton(beton_path)
    beton_path.with_suffix(".info.zip").unlink()
    if beton.images["mode"][3] == 1:
        assert inspect(str(beton_path), verify=True)["verified"]["checksums"] is False
        return
    start, size = int(beton.images["data_ptr"][3]), int(beton.sizes[3])
    original = beton_path.read_bytes()
    with pytest.raises(BetonError, match=r"record 3 .*no JPEG"):
        inspect(str(damaged(beton_path, start, b"\0\0")), verify=True)
    beton_path.write_bytes(original)
    with pytest.raises(BetonError, match=r"record 3 .*end marker"):
        inspect(str(damaged(beton_path, start + size - 2, b"\0\0")), verify=True)
    beton_path.write_bytes(original)
    tables = bytes(beton.payload(3)).index(b"\xff\xc4") + start  # only a decoder notices
    damaged(beton_path, tables + 4, b"\x55")
    for how in ({"verify": True}, {"decode": True}):
        with pytest.raises(BetonError, match=r"record 3 .*cannot be decoded"):
            inspect(str(beton_path), **how)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "x.beton").write_bytes(b"hello" * 100)
    assert main([str(tmp_path / "x.beton")]) == 2
    assert main([str(tmp_path / "no.beton")]) == 2
    (tmp_path / "x.beton").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BetonError, match=r"is not a \.beton file but a Git LFS pointer, .* Fetch it with `git lfs pull`$"):
        inspect(str(tmp_path / "x.beton"))
