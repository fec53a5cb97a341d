"""How the bytes of an image file become a record: kept, re-encoded, or raw. The content tells the kind, never the name.

What is not stored as it came is decoded (``decoding``), and

- grey stays grey in a JPEG and becomes three equal channels in a raw record;
- resizing is bilinear with antialiasing and keeps the aspect ratio; images are never enlarged. Ordinary JPEGs are
  resized as YCbCr planes, everything else as RGB or grey; the result is 4:2:0;
- colour profiles are dropped, also of JPEGs that are kept, unless they are asked for.

What is stored can be decoded: every JPEG is read to its end before.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton import jpeg
from dp4tl_fast.beton.entry_points import checked
from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.common.pictures import MAX_PIXELS
from dp4tl_fast.conversion.decoding import ICC_DROPPED, check_pixels, decode, exif_orientation

WRITE_MODES = ("keep", "jpg", "raw", "smart", "proportion")
ORIENTATIONS = ("ignore", "apply")


class Record(NamedTuple):
    """One image, ready to be stored. ``note`` says why it is not the file's own bytes; empty when it is."""

    payload: bytes
    mode: int
    width: int
    height: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRule:
    """What to store.

    Attributes:
        write_mode: ``keep`` stores a JPEG's own bytes where every backend reads them; ``jpg`` encodes every image anew;
            ``raw`` stores pixels; ``smart`` stores pixels unless they take more than ``smart_threshold`` bytes;
            ``proportion`` stores a random share ``jpeg_share`` as JPEG and the rest as pixels.
        max_side, short_side: Shrink until the longer (shorter) side is no larger; 0 does not. Smaller images are kept.
        quality: Of JPEGs that are encoded anew, 1 to 100.
        entry_points: Insert an index into JPEGs of at least ``ENTRY_POINT_PIXELS``, so that the native loader can begin
            in the middle. It is a segment that other decoders pass over; the image's own bytes stay as they are.
        max_pixels: Images with more pixels are refused.
        exif_orientation: ``ignore`` it, or ``apply`` it: images that it turns are encoded anew.
        keep_icc: Keep colour profiles in JPEGs.
    """

    write_mode: str = "keep"
    max_side: int = 0
    short_side: int = 0
    quality: int = 90
    smart_threshold: int = 0
    jpeg_share: float = 0.5
    seed: int = 0
    entry_points: bool = False
    max_pixels: int = MAX_PIXELS
    exif_orientation: str = "ignore"
    keep_icc: bool = False

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, rule: str) -> None:
            require(ok, name, getattr(self, name), rule)

        need(self.write_mode in WRITE_MODES, "write_mode", f"one of {', '.join(WRITE_MODES)}")
        need(0 <= self.max_side <= fmt.MAX_SIDE, "max_side", f"from 0 (no limit) to {fmt.MAX_SIDE}")
        need(0 <= self.short_side <= fmt.MAX_SIDE, "short_side", f"from 0 (no limit) to {fmt.MAX_SIDE}")
        need(not (self.max_side and self.short_side), "short_side", "0 when max_side is given")
        need(1 <= self.quality <= 100, "quality", "from 1 to 100")
        need(self.write_mode != "smart" or self.smart_threshold > 0, "smart_threshold", "above 0 with write mode smart")
        need(0 <= self.jpeg_share <= 1, "jpeg_share", "from 0 to 1")
        need(self.max_pixels >= 1, "max_pixels", "at least 1")
        require_one_of("exif_orientation", self.exif_orientation, ORIENTATIONS)

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """The stored size of an image of this size, in pixels."""
        side, limit = (max(width, height), self.max_side) if self.max_side else (min(width, height), self.short_side)
        if not limit or side <= limit:
            return width, height
        return max(1, round(width * limit / side)), max(1, round(height * limit / side))


def make_record(data: bytes, rule: ImageRule, index: int) -> Record:
    """Turn an image file's bytes into a record.

    Args:
        data: The whole file.
        rule: What to store.
        index: The sample's position in the source's listing: ``proportion`` chooses by it.

    Raises:
        SourceError: The bytes are no image, or a damaged one. The message does not know the file's name.
    """
    (record,) = check_records([draft_record(data, rule, index)], rule)
    if isinstance(record, SourceError):
        raise record
    return record


class Draft(NamedTuple):
    """What would be stored of an image, if it can be decoded; and the file's bytes, for when it cannot."""

    record: Record
    data: bytes


def check_records(drafts: Sequence[Draft], rule: ImageRule) -> list[Record | SourceError]:
    """The records of several images, together: each JPEG is read to its end, and gets its entry points."""
    records: list[Record | SourceError] = [draft.record for draft in drafts]
    at = [k for k, draft in enumerate(drafts) if draft.record.mode == fmt.MODE_JPEG]
    jpegs = [drafts[k].record for k in at]
    areas = [record.width * record.height if rule.entry_points else 0 for record in jpegs]
    for k, record, payload in zip(at, jpegs, checked([record.payload for record in jpegs], areas), strict=True):
        if isinstance(payload, str):  # found only by reading all of it: Pillow decides whether it can be used
            try:
                records[k] = _decoded(drafts[k].data, rule, "keep", f"damaged JPEG ({payload})")
            except SourceError as error:
                records[k] = error
        elif payload is not record.payload:
            note = "; ".join(filter(None, (record.note, "entry points added")))
            records[k] = record._replace(payload=payload, note=note)
    return records


def draft_record(data: bytes, rule: ImageRule, index: int) -> Draft:
    """The first part of ``make_record``, which takes the same and raises the same: all but reading JPEGs to their ends."""
    return Draft(_unchecked(data, rule, index), data)


def _unchecked(data: bytes, rule: ImageRule, index: int) -> Record:
    mode = rule.write_mode
    if mode == "proportion":
        mode = "keep" if _random_share(rule.seed, index) < rule.jpeg_share else "raw"
    if data[:2] == jpeg.SOI and mode in ("keep", "smart"):
        kept = _kept(data, rule, mode)
        if isinstance(kept, Record):
            return kept
        return _decoded(data, rule, mode, kept)
    return _decoded(data, rule, mode, "")


def _random_share(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on (seed, index) alone."""
    digest = hashlib.blake2b(b"%d %d" % (seed, index), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _kept(data: bytes, rule: ImageRule, mode: str) -> Record | str:
    """The JPEG's own bytes, or why they cannot be stored."""
    try:
        header = jpeg.parse(data)
    except ValueError as error:
        return f"damaged JPEG ({error})"
    width, height = header.width, header.height
    check_pixels(width, height, rule.max_pixels)
    reason = jpeg.why_not_plain(header)
    if rule.exif_orientation == "apply" and header.has_exif and exif_orientation(data) != 1:
        return reason
    size = rule.size_for(width, height)
    if size != (width, height):
        note = f"resized from {width}x{height}" + (f"; {reason}" if reason else "")
        shrinks = not reason and mode == "keep" and not (rule.keep_icc and header.profile)
        return (shrinks and _shrunk(data, header, size, rule, note)) or note
    if mode == "smart" and width * height * 3 <= rule.smart_threshold:
        return "stored raw" + (f"; {reason}" if reason else "")
    if reason and not jpeg.can_become_plain(header):
        return reason
    payload, notes = data, [reason] if reason else []
    if (stripped := jpeg.strip(data, header, rule.keep_icc)) is not data:
        payload = stripped
        notes += ["metadata stripped"] if header.has_metadata(len(data)) else []
        notes += [ICC_DROPPED] if header.profile and not rule.keep_icc else []
    if reason:
        try:
            payload = _sequential(payload)
        except RuntimeError as error:
            return f"{reason} that cannot be made sequential ({error})"
        notes.append("made sequential")
    return Record(payload, fmt.MODE_JPEG, width, height, "; ".join(notes))


def _shrunk(data: bytes, header: jpeg.JpegHeader, size: tuple[int, int], rule: ImageRule, note: str) -> Record | None:
    """Resized without leaving YCbCr; ``None`` where only PIL can decode it."""
    from dp4tl_fast.kernels._native import jpeg_shrink

    try:
        payload = jpeg_shrink(data, header.width, header.height, *size, rule.quality)
    except (RuntimeError, MemoryError) as error:
        raise _not_stored(size, error) from None
    note += f"; {ICC_DROPPED}" if header.profile else ""
    return Record(payload, fmt.MODE_JPEG, *size, note) if payload else None


def _sequential(data: bytes) -> bytes:
    """The same coefficients as a sequential JPEG; colour profiles are carried over."""
    from dp4tl_fast.kernels._native import jpeg_make_sequential

    return jpeg.with_profiles(jpeg_make_sequential(data), jpeg.profiles(data))


def _decoded(data: bytes, rule: ImageRule, mode: str, note: str) -> Record:
    try:
        image = decode(data, rule.max_pixels, rule.exif_orientation)
    except SourceError as error:
        raise SourceError(f"{error} ({note.partition(' (')[0]})" if note else str(error)) from None
    pixels, notes = image.pixels, [note] if note else [f"{image.kind}, not JPEG"] if image.kind != "JPEG" else []
    notes += image.notes
    size = rule.size_for(*pixels.size)
    if max(size) > fmt.MAX_SIDE:
        raise SourceError(f"its sides of {size[0]} x {size[1]} pixels exceed {fmt.MAX_SIDE}. Give `max_side`")
    if size != pixels.size and not note.startswith("resized"):
        notes.append(f"resized from {pixels.width}x{pixels.height}")
    raw = mode == "raw" or (mode == "smart" and math.prod(size) * 3 <= rule.smart_threshold)
    keep_profile = rule.keep_icc and bool(image.profile) and not raw
    if image.profile and not keep_profile:
        notes.append(ICC_DROPPED)
    try:
        if size != pixels.size:
            from PIL.Image import Resampling

            pixels = pixels.resize(size, Resampling.BILINEAR)
        if raw:
            return Record(pixels.convert("RGB").tobytes(), fmt.MODE_RAW, *size, "; ".join(notes) or "stored raw")
        out = io.BytesIO()
        pixels.save(out, "JPEG", quality=rule.quality, **({"icc_profile": image.profile} if keep_profile else {}))
    except (OSError, ValueError, MemoryError) as error:
        raise _not_stored(size, error) from None
    return Record(out.getvalue(), fmt.MODE_JPEG, *size, "; ".join(notes) or "encoded anew")


def _not_stored(size: tuple[int, int], error: Exception) -> SourceError:
    """An encoder takes no side above 65,500 pixels, or memory is short."""
    reason = str(error) or "not enough memory"
    return SourceError(f"it cannot be stored at {size[0]} x {size[1]} pixels: {reason}. Give a smaller `max_side`")
