"""Any image file to 8-bit grey or RGB pixels, by one set of rules; docs/converting.md states them.

- Alpha is dropped, palettes are looked up, the first frame of an animation is taken, CMYK and YCCK become RGB.
- 16-bit grey is divided by 257 and rounded (of 16-bit colours, Pillow keeps the high byte). Other integers and floating-point
  pixels are refused: their range is not defined.
- The EXIF orientation is ignored, or applied, in every format alike.
- Text, EXIF and colour profiles have no say in whether an image can be read.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, NamedTuple

from dp4tl_fast.common.content import HEAD_BYTES, what_it_is
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.common.pictures import open_picture

ICC_DROPPED = "ICC profile dropped"
PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 258, 262, 274, 339  # tags of TIFF; the third of EXIF, too
_NO_RANGE = "its pixels are signed or 32-bit integers, whose range is not defined. Convert them to 8 or 16 bits"
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode I is unsigned, of 16 bits


class Decoded(NamedTuple):
    """Pixels of mode L or RGB; the file's format; what was left out or changed; the ICC profile, where it still applies."""

    pixels: Any
    kind: str
    notes: list[str]
    profile: bytes


def decode(data: bytes, max_pixels: int, orientation: str = "ignore") -> Decoded:
    """Decode an image file.

    Raises:
        SourceError: It is no image, damaged, too large, or of pixels without a defined range.
    """
    try:
        return _decode(data, max_pixels, orientation)
    except SourceError:
        raise
    except Exception as error:  # a decoder of someone else's may raise anything over damaged data
        raise SourceError(_why(data, error)) from None


def exif_orientation(data: bytes) -> int:
    """1 to 8; 1 is upright, or unknown."""
    try:
        with open_picture(data) as image:
            return _orientation(image)
    except Exception:  # damaged EXIF tells nothing
        return 1


def _decode(data: bytes, max_pixels: int, orientation: str) -> Decoded:
    notes = []
    profile = b""
    if data.startswith(PNG):
        if fault := _png_fault(data):
            raise SourceError(f"it cannot be decoded: {fault}")
        data, profile = _without_text(data)
    with open_picture(data) as image:
        kind = image.format or "image"
        width, height = image.size
        check_pixels(width, height, max_pixels)
        turn, undo, sixteen_bits, white_is_zero = 1, 1, data.startswith(PNG) and data[24:25] == b"\x10", False
        if kind == "TIFF":
            _check_samples(image)
            turn, undo = _orientation(image), _undo_turn(image)  # loading it removes the tag
            sixteen_bits, white_is_zero = 16 in _tags(image, _BITS_PER_SAMPLE), _tags(image, _PHOTOMETRIC) == (0,)
        profile = profile or image.info.get("icc_profile") or b""
        image.load()
        image = _turn_by(image, undo)
        turn = turn if kind == "TIFF" else _orientation(image)  # a PNG's EXIF may lie at its end
        if turn != 1 and orientation == "apply":
            image = _turn_by(image, turn)
            notes.append("turned by its EXIF orientation")
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            notes.append("alpha dropped")
            image.info.pop("transparency", None)  # of which Pillow warns when it makes RGB of a palette
        if sixteen_bits and not image.mode.startswith("I"):  # Pillow has made them 8-bit already
            notes.append("16-bit colours by their high byte")
        same_colours = image.mode in ("L", "RGB", "LA", "RGBA", "P", "1")
        pixels = _to_8_bit(image, kind, notes, white_is_zero)
        if profile and not same_colours:  # it is of colours that are no longer these
            notes.append(ICC_DROPPED)
            profile = b""
        return Decoded(pixels, kind, notes, profile)


def check_pixels(width: int, height: int, limit: int) -> None:
    """Raise ``SourceError`` where an image has more pixels than may be decoded."""
    if width * height > limit:
        raise SourceError(f"it has {width} x {height} pixels, more than `max_pixels={limit}`. Give a larger limit if that is right")


def _to_8_bit(image: Any, kind: str, notes: list[str], white_is_zero: bool) -> Any:
    """To mode L or RGB."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and kind in _SIXTEEN_BITS):
        notes.append("16-bit grey")
        values = np.asarray(image).astype(np.int64)
        values = 65535 - values if white_is_zero else values  # which Pillow does for 8 bits alone
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # rounds v / 257
    if image.mode.startswith("I"):
        raise SourceError(_NO_RANGE)
    if image.mode == "F":
        raise SourceError("its pixels are floating-point numbers, whose range is not defined. Convert them to 8 or 16 bits")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _orientation(image: Any) -> int:
    """What EXIF says; in TIFF, whose tags it shares, the tag. What XMP says is not looked at."""
    try:
        if image.format == "TIFF":
            found = image.tag_v2.get(_ORIENTATION, 1)
        else:
            from PIL import Image

            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            found = exif.get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF tells nothing
        return 1
    return found if found in range(1, 9) else 1


def _turn_by(image: Any, orientation: int) -> Any:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    return image.transpose(turns[orientation]) if orientation in turns else image


# -- TIFF -------------------------------------------------------------------------------------------------------------


def _tags(image: Any, tag: int) -> tuple[int, ...]:
    """The numbers of a TIFF's tag, 1 where it is not there."""
    found = image.tag_v2.get(tag, 1)
    return found if isinstance(found, tuple) else (found,)


def _check_samples(image: Any) -> None:
    """Refuse pixels that Pillow would read as others: signed ones of 8 bits, and those of 12."""
    if 2 in _tags(image, _SAMPLE_FORMAT):
        raise SourceError(_NO_RANGE)
    if 12 in _tags(image, _BITS_PER_SAMPLE):
        raise SourceError("its pixels have 12 bits. Convert them to 8 or 16 bits")


def _undo_turn(image: Any) -> int:
    """The orientation that takes back how Pillow turns a TIFF when it is loaded."""
    try:
        turned = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF tells nothing
        return 1
    return {6: 8, 8: 6}.get(turned, turned)


# -- PNG --------------------------------------------------------------------------------------------------------------


def _chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """(name, start, stop) of a PNG's chunks, as far as they are whole."""
    at, found = len(PNG), []
    while at + 12 <= len(data):
        stop = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if stop > len(data):
            break
        found.append((data[at + 4 : at + 8], at, stop))
        at = stop
    return found


def _without_text(data: bytes) -> tuple[bytes, bytes]:
    """A PNG without text and colour profile, which Pillow limits in size; and the profile."""
    chunks = _chunks(data)
    profile = b""
    for name, start, stop in chunks:
        if name == b"iCCP":
            packed = data[start + 8 : stop - 4].partition(b"\0")[2][1:]
            try:
                profile = zlib.decompressobj().decompress(packed, 1 << 26)
            except zlib.error:
                profile = b""
    odd = [chunk for chunk in chunks if chunk[0] in _PNG_TEXT or chunk[0] == b"iCCP"]
    if not odd:
        return data, b""
    parts, at = [], 0
    for _, start, stop in odd:
        parts.append(data[at:start])
        at = stop
    return b"".join(parts) + data[at:], profile


def _png_fault(data: bytes) -> str:
    """What is wrong with a PNG's critical chunks; empty where they are in order. Pillow decodes some whose data have changed."""
    chunks = _chunks(data)
    for name, start, stop in chunks:
        if name[:1].isupper() and zlib.crc32(data[start + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big"):
            return f"PNG whose chunk {name.decode('latin-1')!r} at byte {start} does not match its checksum"
    return "" if chunks and chunks[-1][0] == b"IEND" else "PNG without an end: an incomplete file"


def _why(data: bytes, error: Exception) -> str:
    """Why it cannot be decoded: what it is instead of an image, or the decoder's own words."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its text has an address in it, and audits must not differ between runs
        what = what_it_is(data[:HEAD_BYTES])
        return f"it is {what}" if what else "it cannot be decoded: its content is not an image of a known kind"
    words = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "", (str(error).splitlines() or [""])[0])
    return f"it cannot be decoded: {words or type(error).__name__}"
