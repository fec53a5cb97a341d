"""Odd and damaged images: what is stored can be decoded by everyone, and everything else is refused as what it is."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jpeg_layouts import YCC, odd_jpeg, segment
from PIL import Image, PngImagePlugin

from dp4tl_fast.beton import Beton, jpeg
from dp4tl_fast.beton.verify import verify
from dp4tl_fast.common.errors import RecordError, SourceError
from dp4tl_fast.conversion.decoding import decode
from dp4tl_fast.conversion.images import ImageRule, make_record
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.loaders.decode import decode_record

KEEP, RAW = ImageRule(), ImageRule(write_mode="raw")
RAMP = np.linspace(0, 65535, 96 * 64).reshape(64, 96)


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth, with another colour in every corner, so that a turned image is another one."""
    corners = np.array([[[200, 30, 40], [40, 180, 60]], [[50, 60, 210], [220, 210, 90]]], np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes, rule: ImageRule = RAW) -> np.ndarray:
    """What is stored of an image, as RGB."""
    record = make_record(data, rule, 0)
    if record.mode == 1:
        return np.frombuffer(record.payload, np.uint8).reshape(record.height, record.width, 3)
    return np.asarray(Image.open(io.BytesIO(record.payload)).convert("RGB"))


# -- what is stored can be decoded ------------------------------------------------------------------------------------


def without(data: bytes, marker: int) -> bytes:
    """A JPEG without its segments of a kind."""
    parts = [data[a:b] for m, a, b in jpeg._segments(data) if m != marker]
    end = max(b for _, _, b in jpeg._segments(data))
    return data[:2] + b"".join(parts) + data[end:]


def undecodable() -> dict[str, bytes]:
    found = {}
    for name, side in (("small", 96), ("large", 200)):
        data = saved(scene(side, side), "JPEG", quality=95)
        restarts = saved(scene(side, side), "JPEG", quality=95, restart_marker_blocks=4)
        found |= {
            f"{name}, no quantisation tables": without(data, 0xDB),
            f"{name}, restarts, no quantisation tables": without(restarts, 0xDB),
            f"{name}, impossible Huffman table": data.replace(b"\xff\xc4\0\x1f\0", b"\xff\xc4\0\x1f\7", 1),
        }  # fmt: skip
    return found


def test_standard_huffman_tables_may_be_missing() -> None:
    """As in motion JPEG: libjpeg-turbo has them, and so have all backends."""
    data = without(saved(scene(), "JPEG"), 0xC4)
    assert make_record(data, KEEP, 0).payload == data
    assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(Image.open(io.BytesIO(saved(scene(), "JPEG"))))).all()


@pytest.mark.parametrize("name", undecodable())
@pytest.mark.parametrize("entry_points", [False, True])
def test_what_nobody_can_decode_is_refused(name: str, entry_points: bool) -> None:
    with pytest.raises(SourceError, match="cannot be decoded"):
        make_record(undecodable()[name], ImageRule(entry_points=entry_points), 0)


@pytest.mark.parametrize("side", [96, 200])
@pytest.mark.parametrize("restart", [0, 4])
@pytest.mark.parametrize("entry_points", [False, True])
def test_damaged_data_are_encoded_anew_as_pillow_reads_them(side: int, restart: int, entry_points: bool) -> None:
    """Damage inside the entropy-coded data: decoders fill in what is missing, each as it likes. One of them decides, once."""
    data = bytearray(saved(scene(side, side), "JPEG", quality=95, restart_marker_blocks=restart))
    start = jpeg.parse(bytes(data)).scan_start + 14
    middle = start + (len(data) - start) // 2
    del data[middle : middle + 40]
    record = make_record(bytes(data), ImageRule(entry_points=entry_points), 0)
    assert record.note.startswith("damaged JPEG (its entropy-coded data are damaged")
    expected = np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB")).astype(int)
    assert np.abs(np.asarray(Image.open(io.BytesIO(record.payload)).convert("RGB")) - expected).mean() < 6  # a codec's loss


JPEGS = [
    saved(scene(), "JPEG", quality=90), saved(scene(), "JPEG", restart_marker_blocks=2), saved(scene().convert("L"), "JPEG"),
    saved(scene(), "JPEG", keep_rgb=True), saved(scene(), "JPEG", progressive=True), saved(scene(160, 130), "JPEG"),
    odd_jpeg(96, 64, scans=[[0], [1], [2]]), odd_jpeg(96, 64, ((1, 1, 1),), restart=3),
]  # fmt: skip


@given(st.data(), st.booleans())
def test_whatever_is_stored_of_a_mutant_decodes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, index: bool) -> None:
    """By Pillow, by the native decoder without a warning, and as ``inspect --verify --decode`` checks it."""
    from dp4tl_fast.kernels import _native

    damaged = bytearray(data.draw(st.sampled_from(JPEGS)))
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(2, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        record = make_record(bytes(damaged), ImageRule(entry_points=index), 0)
    except SourceError:
        return
    with Image.open(io.BytesIO(record.payload)) as image:
        image.load()
        assert image.size == (record.width, record.height)
    _native.jpeg_check(record.payload)


def test_verify_finds_what_earlier_versions_stored(tmp_path: Path) -> None:
    """Kept without a look into its data; converting again does not lead in a circle."""
    from dp4tl_fast.beton import BetonWriter

    data = undecodable()["small, no quantisation tables"]
    with BetonWriter(tmp_path / "o.beton", 1) as writer:
        writer.append(data, 0, 96, 96, 0, 0)
        writer.close()
    beton = Beton(tmp_path / "o.beton")
    for deep in (False, True):
        with pytest.raises(RecordError, match=r"record 0 .*cannot be decoded \(.*[Qq]uantization table"):
            verify(beton, decode=deep)
    (tmp_path / "t/a").mkdir(parents=True)
    (tmp_path / "t/a/1.jpg").write_bytes(data)
    (tmp_path / "t/a/2.jpg").write_bytes(JPEGS[0])
    assert convert(str(tmp_path / "t"), str(tmp_path / "p.beton"), on_error="skip", classes_from="top")["skipped"] == 1
    assert verify(Beton(tmp_path / "p.beton"), decode=True)["records"] == 1


def test_an_image_is_not_decoded_with_the_tables_of_the_one_before(tmp_path: Path) -> None:
    """libjpeg keeps tables from image to image, for streams that send them once."""
    from native_files import write

    from dp4tl_fast.loaders import LoaderSpec, open_loader

    good = saved(scene(), "JPEG")
    beton = write(tmp_path / "o.beton", [good, without(good, 0xDB)])
    spec = LoaderSpec(batch_size=1, size=32, workers=1)
    with open_loader(beton, spec=spec) as loader, pytest.raises(RecordError, match=r"record 1 .*[Qq]uantization table"):
        list(loader)


# -- one boundary around decoders of others ---------------------------------------------------------------------------

KINDS = ("AVIF", "TIFF", "PNG", "GIF", "WEBP", "BMP", "ICO", "PPM", "DDS", "JPEG2000", "PCX", "TGA", "SGI", "IM", "MPO", "BLP")
FILES = [saved(scene().quantize(16) if kind == "BLP" else scene(), kind) for kind in KINDS]
FILES.append(saved(scene(), "TIFF", compression="tiff_lzw"))


@given(st.data())
def test_a_decoder_may_raise_anything(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    try:
        record = make_record(bytes(damaged), ImageRule(max_pixels=1 << 20), 0)
    except SourceError as error:
        assert "0x" not in str(error), "no addresses: audits of two runs are equal"
    else:
        assert record.width * record.height <= 1 << 20


def test_one_damaged_image_does_not_end_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import BmpImagePlugin

    def broken(self: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(BmpImagePlugin.BmpImageFile, "load", broken, raising=False)
    for name, data in (("1.bmp", saved(scene(), "BMP")), ("2.png", saved(scene(), "PNG"))):
        (tmp_path / "t/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "t/a" / name).write_bytes(data)
    result = convert(str(tmp_path / "t"), str(tmp_path / "o.beton"), on_error="skip")
    assert (result["samples"], result["skipped"]) == (1, 1)
    (row,) = [row for row in Beton(tmp_path / "o.beton").sidecar.audit() if not row["record"]]
    assert row["what"] == "it cannot be decoded: unpack requires a buffer of 4 bytes"


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "TIFF", "BLP", "WEBP", "JPEG2000"])
def test_damaged_files_of_a_kind_do_not_end_the_conversion(
    tmp_path: Path, kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Cut anywhere, and with bytes changed: the others are stored, each of these is listed or decoded."""
    whole = FILES[KINDS.index(kind)]
    (tmp_path / "t/a").mkdir(parents=True)
    rng = np.random.default_rng(5)
    for k in range(24):
        data = bytearray(whole)
        for at in rng.integers(4, len(data), 4):
            data[at] = rng.integers(256)
        (tmp_path / f"t/a/{k:02}").write_bytes(data if k % 2 else whole[: 12 + k * (len(whole) - 13) // 24])
    (tmp_path / "t/a/whole").write_bytes(whole)
    result = convert(str(tmp_path / "t"), str(tmp_path / "o.beton"), on_error="skip")
    assert not recwarn.list
    beton = Beton(tmp_path / "o.beton")
    assert result["samples"] + result["skipped"] == 25 and result["skipped"] > 0
    assert 24 in beton.index.tolist() and len(list(beton.sidecar.audit())) == 25
    assert verify(beton, decode=True)["records"] == result["samples"]


# -- integers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_are_divided_by_257(kind: str) -> None:
    values = RAMP.astype(np.uint16)
    data = saved(Image.fromarray(values), kind)
    record = make_record(data, RAW, 0)
    expected = np.round(values / 257).astype(np.uint8)
    assert (pixels(data) == expected[..., None]).all()
    assert expected.min() == 0 and expected.max() == 255
    assert "16-bit grey" in record.note
    assert Image.open(io.BytesIO(make_record(data, KEEP, 0).payload)).mode == "L"


def test_sixteen_bit_colours_are_noted() -> None:
    """Pillow keeps their high byte: at most one level from what dividing by 257 gives."""
    rows = [b"\0" + row.tobytes() for row in np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]]).astype(">u2")]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 96, 64, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks)
    record = make_record(b"\x89PNG\r\n\x1a\n" + body, RAW, 0)
    assert record.note == "PNG, not JPEG; 16-bit colours by their high byte"
    found = np.frombuffer(record.payload, np.uint8).reshape(64, 96, 3)
    assert (found[..., 0] == RAMP.astype(np.uint16) >> 8).all()
    assert np.abs(found[..., 0] - RAMP / 257).max() <= 1


@pytest.mark.parametrize(
    ("values", "what"),
    [(RAMP.astype(np.int32) * 30000, "signed or 32-bit"), ((RAMP / 4 - 9000).astype(np.int16).astype(np.int32), "signed or 32-bit"),
     ((RAMP / 65535).astype(np.float32), "floating-point")],
    ids=["int32", "negative", "float"],
)  # fmt: skip
def test_pixels_without_a_defined_range_are_refused(values: np.ndarray, what: str) -> None:
    with pytest.raises(SourceError, match=f"{what}.* whose range is not defined"):
        make_record(saved(Image.fromarray(values), "TIFF"), KEEP, 0)


# -- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "JPEG"])
def test_one_rule_of_orientation_for_all_formats(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[274] = turn
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    options |= {"tiffinfo": {274: turn}} if kind == "TIFF" else {"exif": exif}
    data, upright = saved(scene(), kind, **options), np.asarray(scene()).astype(int)
    ways = (lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.transpose(1, 0, 2), lambda a: np.rot90(a, -1),
            lambda a: np.rot90(a, 2).transpose(1, 0, 2), np.rot90)  # fmt: skip
    ignored, applied = pixels(data), pixels(data, ImageRule(write_mode="raw", exif_orientation="apply"))
    assert ignored.shape == upright.shape and np.abs(ignored - upright).max() <= 6  # a JPEG of quality 100 is not exact
    turned = ways[turn - 1](upright)
    assert applied.shape == turned.shape and np.abs(applied - turned).max() <= 6
    kept = make_record(data, ImageRule(exif_orientation="apply"), 0)
    assert ("turned by its EXIF orientation" in kept.note) == (turn != 1)
    assert (kept.height, kept.width) == turned.shape[:2]


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("orientation", ["ignore", "apply"])
def test_what_xmp_says_turns_nothing(orientation: str) -> None:
    """Kept JPEGs could not follow it: it is no EXIF."""
    body = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    data = saved(scene(), "JPEG")
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    files = {
        "JPEG": data[:2] + segment(0xE1, body) + data[2:], "PNG": saved(scene(), "PNG", pnginfo=info),
        "WEBP": saved(scene(), "WEBP", lossless=True, xmp=XMP), "TIFF": saved(scene(), "TIFF", tiffinfo={700: XMP}),
    }  # fmt: skip
    for name, data in files.items():
        for options in ({}, {"write_mode": "jpg"}, {"max_side": 48}, {"write_mode": "raw"}):
            record = make_record(data, ImageRule(exif_orientation=orientation, **options), 0)
            assert record.width > record.height and "turned" not in record.note, (name, options)


# -- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_has_no_say_in_whether_a_png_is_read() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * (3 << 20), zip=True)
    for options in ({"pnginfo": info}, {"icc_profile": bytes(2 << 20)}):
        assert (pixels(saved(scene(), "PNG", **options)) == np.asarray(scene())).all()


def test_colour_profiles_are_dropped_or_kept_everywhere() -> None:
    profile = bytes(range(256)) * 300  # of two segments
    kinds = {
        "kept": saved(scene(), "JPEG", icc_profile=profile), "encoded anew": saved(scene(), "PNG", icc_profile=profile),
        "made sequential": saved(scene(), "JPEG", icc_profile=profile, progressive=True),
        "resized": saved(scene(400, 300), "JPEG", icc_profile=profile),
    }  # fmt: skip
    for name, data in kinds.items():
        rule = {"max_side": 200} if name == "resized" else {}
        record = make_record(data, ImageRule(**rule), 0)
        assert "ICC profile dropped" in record.note and "icc_profile" not in Image.open(io.BytesIO(record.payload)).info, name
        record = make_record(data, ImageRule(keep_icc=True, **rule), 0)
        assert "ICC" not in record.note and Image.open(io.BytesIO(record.payload)).info["icc_profile"] == profile, name
    assert make_record(kinds["kept"], ImageRule(keep_icc=True), 0).payload == kinds["kept"]


def test_a_dropped_profile_of_other_colours_is_noted() -> None:
    for kind in ("JPEG", "TIFF"):
        data = saved(scene().convert("CMYK"), kind, icc_profile=bytes(500))
        for keep in (False, True):
            record = make_record(data, ImageRule(keep_icc=keep), 0)
            assert record.note.count("ICC profile dropped") == 1, "it describes inks, and these are RGB"
            assert "icc_profile" not in Image.open(io.BytesIO(record.payload)).info


def test_dropped_alpha_is_noted() -> None:
    grey = Image.fromarray((RAMP / 256).astype(np.uint8))
    alpha = scene()
    alpha.putalpha(grey)
    few = scene().quantize(16)
    palettes = [saved(few, "PNG", transparency=bytes(range(0, 256, 16))), saved(few, "GIF", transparency=3)]
    for data in (saved(alpha, "PNG"), saved(alpha, "WEBP"), *palettes, saved(scene(), "PNG", transparency=(1, 2, 3))):
        assert "alpha dropped" in make_record(data, KEEP, 0).note


# -- JPEGs of several scans -------------------------------------------------------------------------------------------


MP4 = b"\0\0\0\x18ftypmp42\xff\xd9" + bytes(100)


@pytest.mark.parametrize("tail", [odd_jpeg(64, 64), bytes(1000), MP4], ids=["jpeg", "zeros", "mp4"])
@pytest.mark.parametrize("scans", [(), ([0], [1], [2]), ([0], [1, 2])], ids=["one", "three", "two"])
def test_what_follows_the_end_is_no_part_of_a_jpeg(tail: bytes, scans: tuple[list[int], ...]) -> None:
    data = odd_jpeg(scans=scans)
    assert jpeg.parse(data + tail).stop == len(data)
    record = make_record(data + tail, KEEP, 0)
    assert (record.payload, record.note) == (data, "metadata stripped")
    assert make_record(data, KEEP, 0) == record._replace(note="")
    assert jpeg.parse(odd_jpeg(scans=scans, restart=3) + tail).stop == len(odd_jpeg(scans=scans, restart=3))


def test_progressive_jpegs_with_missing_scans_are_encoded_anew() -> None:
    """Decoders smooth their blocks; as sequential ones they would not, and differ by up to 15 levels."""
    whole = saved(scene(), "JPEG", progressive=True, quality=90)
    starts = [at for at in range(len(whole) - 1) if whole[at : at + 2] == b"\xff\xda"]
    assert len(starts) > 4
    for count in range(1, len(starts)):
        data = whole[: starts[count]] + b"\xff\xd9"
        record = make_record(data, KEEP, 0)
        smoothed = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        found = np.asarray(Image.open(io.BytesIO(record.payload)).convert("RGB"))
        assert record.note.startswith("progressive JPEG that cannot be made sequential (")
        assert np.abs(found - smoothed).mean() < 3  # a codec's loss
    assert make_record(whole, KEEP, 0).note == "progressive JPEG; made sequential"


# -- limits, and what it is instead -----------------------------------------------------------------------------------


def test_one_limit_of_pixels_for_all_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored with a larger limit is read by the reference backend, ``inspect --decode`` and reports."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # as if the image had 400 million
    for data in (JPEGS[0], saved(scene(), "PNG")):
        with pytest.raises(SourceError, match=r"it has 96 x 64 pixels, more than `max_pixels=6143`"):
            make_record(data, ImageRule(max_pixels=6143), 0)
        assert make_record(data, ImageRule(max_pixels=6144), 0).width == 96
    (tmp_path / "t/a").mkdir(parents=True)
    (tmp_path / "t/a/1.jpg").write_bytes(JPEGS[0])
    convert(str(tmp_path / "t"), str(tmp_path / "o.beton"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    beton = Beton(tmp_path / "o.beton")
    assert decode_record(beton, 0, beton.images[0], beton.payload(0)).shape == (64, 96, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert verify(beton, decode=True)["decoded"] is True


def broken_png() -> bytes:
    data = bytearray(saved(scene(), "PNG"))
    data[60] ^= 1
    return bytes(data)


INSTEAD = {
    "empty": (b"", "it is an empty file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "it is a Git LFS pointer, not the file itself"),
    "html": (b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "it is an HTML page: a failed download"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500), "it is HEIC, which cannot be decoded here"),
    "text": (b"not an image", "it is a text file"),
    "zeros": (bytes(1000), "it is zeros: an incomplete download"),
    "pdf": (b"%PDF-1.7\n\xff\xff", "it is a PDF document"),
    "png, wrong checksum": (broken_png(), "it cannot be decoded: PNG whose chunk 'IDAT' at byte 33 does not match its checksum"),
    "png, cut": (saved(scene(), "PNG")[:-40], "it cannot be decoded: PNG without an end: an incomplete file"),
    "jpeg, cut": (JPEGS[0][: len(JPEGS[0]) // 2], r"it cannot be decoded: .*truncated.* \(JPEG without an end marker\)"),
}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_no_image_is_named_as_what_it_is(name: str) -> None:
    data, message = INSTEAD[name]
    with pytest.raises(SourceError, match=message):
        make_record(data, KEEP, 0)


def test_an_unfinished_download_is_named(tmp_path: Path) -> None:
    (tmp_path / "t/a").mkdir(parents=True)
    (tmp_path / "t/a/1.jpg.part").write_bytes(JPEGS[0][:200])
    with pytest.raises(SourceError, match=r"1\.jpg\.part: it is an unfinished download: "):
        convert(str(tmp_path / "t"), str(tmp_path / "o.beton"))


def test_a_jpeg_with_much_metadata_is_kept_without_it() -> None:
    before = b"".join(segment(0xE1, b"Exif\0\0" + bytes(60000)) for _ in range(8)) + b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes([k + 1, 60]) + bytes(60000)) for k in range(60)
    )
    record = make_record(odd_jpeg(before=before), KEEP, 0)
    assert record.payload == odd_jpeg()
    assert record.note == "metadata stripped; ICC profile dropped"
    assert decode(odd_jpeg(150, 110, YCC), 1 << 20).pixels.size == (150, 110)
    assert zlib.crc32(record.payload) == zlib.crc32(odd_jpeg())
