"""convert: images as they occur in the wild, found by content; each is stored by the documented rule, or refused."""

from __future__ import annotations

import dataclasses
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dp4tl_fast.beton import Beton, BetonWriter, jpeg
from dp4tl_fast.beton.verify import verify
from dp4tl_fast.common.errors import RecordError, SourceError
from dp4tl_fast.conversion.images import ImageRule, Record, make_record
from dp4tl_fast.conversion.run import convert

KEEP = ImageRule()


def scene(width: int = 90, height: int = 60) -> Image.Image:
    """Shades of one colour: a JPEG with half its chroma resolution stays close to it."""
    shades = np.random.default_rng(8).integers(-70, 70, (6, 9, 1)) + np.array([150, 100, 90])
    return Image.fromarray(shades.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def insert_segment(data: bytes, marker: int, body: bytes) -> bytes:
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


def pixels(record: Record) -> np.ndarray:
    """The record as RGB, ``[height, width, 3]``."""
    if record.mode == 1:
        return np.frombuffer(record.payload, np.uint8).reshape(record.height, record.width, 3)
    image = Image.open(io.BytesIO(record.payload))
    assert image.size == (record.width, record.height)
    assert not jpeg.why_not_plain(jpeg.parse(record.payload))
    return np.asarray(image.convert("RGB"))


def as_torchvision_reads(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


EXIF_ROTATED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
PLAIN = saved(scene(), "JPEG", quality=95)

# name -> (file bytes, the note in the audit)
ZOO = {
    "png_named_jpeg": (saved(scene(), "PNG"), "PNG, not JPEG"),
    "webp": (saved(scene(), "WEBP", lossless=True), "WEBP, not JPEG"),
    "gif": (saved(scene().quantize(64), "GIF"), "GIF, not JPEG"),
    "bmp": (saved(scene(), "BMP"), "BMP, not JPEG"),
    "tiff": (saved(scene(), "TIFF"), "TIFF, not JPEG"),
    "alpha": (saved(scene().convert("RGBA"), "PNG"), "PNG, not JPEG; alpha dropped"),
    "palette": (saved(scene().quantize(64), "PNG"), "PNG, not JPEG"),
    "one_bit": (saved(scene().convert("1"), "PNG"), "PNG, not JPEG"),
    "grey_alpha": (saved(scene().convert("LA"), "PNG"), "PNG, not JPEG; alpha dropped"),
    "cmyk": (saved(scene().convert("CMYK"), "JPEG", quality=95), "CMYK JPEG"),
    "1x1": (saved(scene(1, 1), "PNG"), "PNG, not JPEG"),
    "500x33": (saved(scene(500, 33), "PNG"), "PNG, not JPEG"),
}


@pytest.mark.parametrize("name", ZOO)
def test_odd_images_become_what_torchvision_reads(name: str) -> None:
    data, note = ZOO[name]
    expected = as_torchvision_reads(data).astype(int)
    raw = make_record(data, ImageRule(write_mode="raw"), 0)
    assert (raw.mode, raw.note) == (1, note.split("CMYK")[0] or "stored raw")
    assert (pixels(raw) == expected).all()
    kept = make_record(data, KEEP, 0)
    assert (kept.mode, kept.note) == (0, note)
    if name != "one_bit":  # black and white edges ring in a JPEG
        assert np.abs(pixels(kept) - expected).mean() < 6


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        saved(scene().convert("L"), "JPEG"),
        saved(scene(), "JPEG", subsampling="4:2:2"),
        saved(scene(), "JPEG", subsampling="4:4:4"),
        saved(scene(), "JPEG", keep_rgb=True),
        saved(scene(), "JPEG", restart_marker_blocks=3),
        saved(scene(), "JPEG", optimize=True),
        saved(scene(1, 1), "JPEG"),
        saved(scene(500, 33), "JPEG"),
    ],
    ids=["plain", "grey", "422", "444", "rgb", "restarts", "optimised", "1x1", "500x33"],
)
def test_plain_jpegs_are_kept_byte_for_byte(data: bytes) -> None:
    record = make_record(data, KEEP, 0)
    assert record.payload == data
    assert (record.width, record.height) == Image.open(io.BytesIO(data)).size
    assert record.note == ""


@pytest.mark.parametrize(
    "data",
    [
        insert_segment(PLAIN, 0xE1, EXIF_ROTATED),
        insert_segment(PLAIN, 0xE1, b"Exif\0\0 this is no TIFF directory"),
        insert_segment(PLAIN, 0xFE, b"a comment"),
        insert_segment(insert_segment(PLAIN, 0xED, b"Photoshop"), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        PLAIN + b"garbage behind the end",
        PLAIN + PLAIN,
    ],
    ids=["rotated", "corrupt_exif", "comment", "xmp", "garbage", "two_images"],
)
def test_metadata_is_stripped_without_touching_pixels(data: bytes) -> None:
    record = make_record(data, KEEP, 0)
    assert record.payload == PLAIN
    assert record.note == "metadata stripped"


@pytest.mark.parametrize("entry_points", [False, True])
@pytest.mark.parametrize("size", [(90, 60), (200, 131)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_progressive_jpegs_become_sequential_without_loss(mode: str, size: tuple[int, int], entry_points: bool) -> None:
    data = saved(scene(*size).convert(mode), "JPEG", progressive=True, icc_profile=b"profile", comment=b"goes")
    record = make_record(data, ImageRule(entry_points=entry_points, keep_icc=True), 0)
    added = "; entry points added" if entry_points and size[0] > 128 else ""
    assert record.note == f"progressive JPEG; metadata stripped; made sequential{added}"
    assert (pixels(record) == as_torchvision_reads(data)).all()
    assert Image.open(io.BytesIO(record.payload)).info["icc_profile"] == b"profile"
    assert b"goes" not in record.payload


def test_entry_points_change_no_pixel_and_spare_small_images() -> None:
    rule = ImageRule(entry_points=True, keep_icc=True)
    assert make_record(PLAIN, rule, 0).payload == PLAIN
    for options in ({}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"keep_rgb": True}, {"icc_profile": b"p"}):
        data = saved(scene(300, 201), "JPEG", **options)
        record = make_record(data, rule, 0)
        if options.get("keep_rgb"):
            assert record.payload == data, "the native decoder leaves RGB JPEGs to libjpeg-turbo"
            continue
        assert record.note == "entry points added"
        assert b"DP4TL\0" in record.payload[: jpeg.parse(record.payload).scan_start]
        assert (pixels(record) == as_torchvision_reads(data)).all()
        assert Image.open(io.BytesIO(record.payload)).info.get("icc_profile") == options.get("icc_profile")


def test_truncated_and_damaged_jpegs_are_refused() -> None:
    for cut in (2, 3, 20, 150, 400, len(PLAIN) // 2, len(PLAIN) - 100):
        with pytest.raises(SourceError, match="cannot be decoded"):
            make_record(PLAIN[:cut], KEEP, 0)
    for data in (b"\xff", PLAIN[1:], b"\x89PNG\r\n\x1a\n" + bytes(50)):
        with pytest.raises(SourceError, match="cannot be decoded"):
            make_record(data, KEEP, 0)


def flat_jpeg(width: int, height: int, scan_bytes: int = 0) -> bytes:
    """Grey, with a code of one bit for "as before" and one for "no more": two bits a block, the least there can be."""
    one_code = bytes([1]) + bytes(16)
    scan = bytes(scan_bytes or -(-(-(-width // 8) * -(-height // 8)) // 4))
    data = jpeg.SOI + scan + jpeg.EOI
    for marker, body in reversed(
        [
            (0xDB, b"\0" + bytes([1]) * 64), (0xC0, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"),
            (0xC4, b"\x00" + one_code), (0xC4, b"\x10" + one_code), (0xDA, b"\1\1\0\0\x3f\0"),
        ]
    ):  # fmt: skip
        data = insert_segment(data, marker, body)
    return data


def test_a_scan_without_components_is_no_crash(tmp_path: Path) -> None:
    data = bytes.fromhex("FFD8 FFC0 000B 08 0010 0010 01 01 11 00 FFDA 0002")
    with pytest.raises(ValueError, match="first scan has no complete header"):
        jpeg.parse(data)
    with pytest.raises(SourceError, match="cannot be decoded"):
        make_record(data, KEEP, 0)
    with BetonWriter(tmp_path / "o.beton", 1) as writer:
        writer.append(data, 0, 16, 16, 0, 0)
        writer.close()
    with pytest.raises(RecordError, match=r"record 0 .*is no JPEG \(its first scan"):
        verify(Beton(tmp_path / "o.beton"))


def test_a_side_that_no_encoder_takes_is_the_images_fault() -> None:
    """A JPEG may have sides up to 65,535 pixels; libjpeg writes them up to 65,500."""
    data = flat_jpeg(65535, 8)
    with pytest.raises(SourceError, match="cannot be decoded"):
        make_record(data, KEEP, 0)  # libjpeg reads them up to 65,500, too: what is stored must be readable by every backend
    assert make_record(data, ImageRule(max_side=65500), 0).width == 65500
    for wide in (data, saved(Image.new("L", (65530, 8)), "PNG")):
        with pytest.raises(SourceError, match="cannot be stored at 65520 x 8 pixels"):
            make_record(wide, ImageRule(max_side=65520), 0)


BOMB_CHILD = """
import sys
from pathlib import Path
from dp4tl_fast.conversion.images import ImageRule, make_record
from dp4tl_fast.common.errors import SourceError

def peak():  # MiB
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

small, bomb = (Path(name).read_bytes() for name in sys.argv[1:])
make_record(small, ImageRule(max_side=50), 0)  # loads what is needed
before = peak()
try:
    make_record(bomb, ImageRule(max_side=50), 0)
except SourceError as error:
    print(peak() - before, error)
"""


def test_a_few_bytes_that_claim_a_huge_image_fill_no_memory(tmp_path: Path) -> None:
    (tmp_path / "small.jpg").write_bytes(PLAIN)
    (tmp_path / "bomb.jpg").write_bytes(flat_jpeg(30000, 30000, scan_bytes=500))  # 858 MiB of grey
    command = [sys.executable, "-c", BOMB_CHILD, str(tmp_path / "small.jpg"), str(tmp_path / "bomb.jpg")]
    more, message = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(maxsplit=1)
    assert "it has 30000 x 30000 pixels, more than `max_pixels=178956970`" in message
    assert float(more) < 100


@given(st.data())
def test_damaged_bytes_never_crash(data: st.DataObject) -> None:
    """Whatever the bytes: a record whose size is in range, or a SourceError."""
    damaged = bytearray(data.draw(st.sampled_from([PLAIN, ZOO["cmyk"][0], ZOO["gif"][0]])))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, min(700, len(damaged) - 1)))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    try:
        record = make_record(bytes(damaged), ImageRule(max_side=200), 0)
    except SourceError:
        return
    assert 1 <= record.width <= 65535
    assert 1 <= record.height <= 65535


@given(st.binary(max_size=80))
def test_marker_parser_survives_any_bytes(tail: bytes) -> None:
    try:
        header = jpeg.parse(jpeg.SOI + tail)
    except ValueError:
        return
    assert header.scan_start < len(tail) + 2


def test_a_huge_image_needs_a_smaller_side() -> None:
    data = saved(Image.new("L", (70000, 2)), "PNG")
    with pytest.raises(SourceError, match="65535"):
        make_record(data, KEEP, 0)
    record = make_record(data, ImageRule(max_side=500), 0)
    assert (record.width, record.height) == (500, 1)


@pytest.mark.parametrize("rule", [ImageRule(max_side=30), ImageRule(short_side=20)], ids=["max", "short"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (90, 7), (31, 31), (20, 15)])
def test_resize_keeps_the_aspect_ratio_and_is_antialiased(rule: ImageRule, size: tuple[int, int]) -> None:
    data = saved(scene(*size), "JPEG", quality=95)
    record = make_record(data, rule, 0)
    side = max(size) if rule.max_side else min(size)
    limit = rule.max_side or rule.short_side
    factor = min(1.0, limit / side)
    assert (record.width, record.height) == tuple(max(1, round(s * factor)) for s in size)
    if factor == 1:
        assert record.payload == data
    else:
        assert record.note == f"resized from {size[0]}x{size[1]}"
        with_entry_points = make_record(data, dataclasses.replace(rule, entry_points=True), 0)
        assert with_entry_points.payload == record.payload, "it is too small for entry points"
        box = Image.open(io.BytesIO(data)).resize((record.width, record.height), Image.Resampling.BOX)
        assert np.abs(pixels(record).astype(int) - np.asarray(box)).mean() < 8


@pytest.mark.parametrize("size", [(400, 301), (131, 400), (399, 33)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_resizing_as_planes_is_close_to_pillow(size: tuple[int, int], mode: str, subsampling: str) -> None:
    """Noise of one colour over smooth shades: what PIL's antialiased bilinear filter makes of it, within the codec's error."""
    rng = np.random.default_rng(1)
    noisy = np.clip(np.asarray(scene(*size), int) + rng.integers(-30, 30, (size[1], size[0], 1)), 0, 255)
    image = Image.fromarray(noisy.astype(np.uint8)).convert(mode)
    data = saved(image, "JPEG", quality=95, subsampling=subsampling)
    for limit in (350, 200, 131, 40, 9):
        rule = ImageRule(max_side=limit, quality=95, entry_points=True)
        record = make_record(data, rule, 0)
        decoded = Image.open(io.BytesIO(data))
        expected = np.asarray(decoded.resize((record.width, record.height), Image.Resampling.BILINEAR).convert("RGB"))
        difference = pixels(record).astype(int) - expected
        assert np.abs(difference).mean() < 3, limit
        assert np.abs(difference.mean()) < 0.6, "no drift of brightness"
        assert (b"DP4TL\0" in record.payload) == (record.width * record.height >= 128 * 128)


def test_the_audit_lists_what_changed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "n01"
    folder.mkdir(parents=True)
    (folder / "plain.JPEG").write_bytes(PLAIN)
    (folder / "unreadable, with comma.JPEG").write_bytes(b"nothing")
    for name, (data, _) in ZOO.items():
        (folder / f"{name}.JPEG").write_bytes(data)
    result = convert(str(folder.parent), str(tmp_path / "o.beton"), on_error="skip")
    assert (result["byte_for_byte"], sum(result["changed"].values()), result["skipped"]) == (1, len(ZOO), 1)
    beton = Beton(tmp_path / "o.beton")
    names = sorted(p.name for p in folder.iterdir())
    rows = list(beton.sidecar.audit())
    assert len(rows) == len(ZOO) + 1
    for row in rows:
        name = Path(row["source"]).stem
        assert names[int(row["index"])] == Path(row["source"]).name
        if name == "unreadable, with comma":
            assert row["record"] == ""
            assert row["what"] == "it is a text file"
        else:
            assert row["what"].removesuffix("; entry points added") == ZOO[name][1]
            assert beton.index[int(row["record"])] == int(row["index"])
