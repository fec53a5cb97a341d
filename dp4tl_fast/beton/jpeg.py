"""Read a JPEG's markers, without decoding it: enough to know whether every backend can read it as it stands.

A JPEG is ``FFD8``, then segments ``FF marker length(2, big-endian, counting itself) body``, then from ``SOS`` (FFDA)
on entropy-coded data, in which ``FF`` is always followed by ``00`` or a restart marker, then ``FFD9`` (ITU-T T.81, B).
Nothing in it is trusted: every length is checked against the bytes at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_REWRITABLE = frozenset({0xC2, 0xC9, 0xCA})  # progressive; arithmetic coding: sequential, progressive
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)  # neither a stuffed byte nor a restart
_SOS, _DRI, _APP0, _APP2, _APP14, _APP15, _COM = 0xDA, 0xDD, 0xE0, 0xE2, 0xEE, 0xEF, 0xFE
SAMPLINGS = {  # luma's (horizontal, vertical) factors over chroma's 1 x 1: those all decoders know
    (1, 1): "4:4:4", (2, 1): "4:2:2", (1, 2): "4:4:0", (2, 2): "4:2:0", (4, 1): "4:1:1", (1, 4): "4:4:1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What the markers say.

    Attributes:
        sof: Start-of-frame marker: 0xC0 baseline, 0xC1 extended, 0xC2 progressive ...
        bits, width, height, components: Of the frame.
        sampling: (horizontal, vertical) factors of every component.
        adobe_transform: The Adobe marker's colour transform (0 none, 1 YCbCr, 2 YCCK), -1 without the marker.
        metadata: (start, stop) of segments without a say in the pixels: EXIF, XMP, comments, thumbnails.
        profile: (start, stop) of the segments of an ICC profile.
        has_exif: Whether there is EXIF, which may tell an orientation.
        scan_start, stop: The first SOS, and the end just behind EOI. ``stop`` is 0 when there is no EOI (truncated).
    """

    sof: int
    bits: int
    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]
    adobe_transform: int
    metadata: tuple[tuple[int, int], ...]
    profile: tuple[tuple[int, int], ...]
    has_exif: bool
    scan_start: int
    stop: int

    @property
    def components(self) -> int:
        return len(self.sampling)

    def has_metadata(self, size: int) -> bool:
        """Whether something besides an ICC profile goes when a file of ``size`` bytes is stripped."""
        return bool(self.metadata) or self.stop != size


def parse(data: bytes) -> JpegHeader:
    """Walk the markers of a JPEG.

    Raises:
        ValueError: It is not a JPEG, or its markers are damaged; the message says where.
    """
    if data[:2] != SOI:
        raise ValueError("it does not start with FFD8")
    from dp4tl_fast.kernels._native import jpeg_end

    frame, adobe, sof = b"", -1, 0
    metadata, profile, has_exif, at = [], [], False, 0
    for marker, at, end in _segments(data):
        if marker in _SOF:
            if sof:
                raise ValueError("it has two frame headers")
            sof, frame = marker, data[at + 4 : end]
        elif _APP0 <= marker <= _APP15 or marker == _COM:
            head = data[at + 4 : at + 16]
            if marker == _APP14 and head[:5] == b"Adobe" and len(head) == 12:
                adobe = head[11]
            elif marker == _APP2 and head == b"ICC_PROFILE\0":
                profile.append((at, end))
            elif not (marker == _APP0 and head[:5] == b"JFIF\0"):
                metadata.append((at, end))
                has_exif = has_exif or head[:5] == b"Exif\0"
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        raise ValueError("it has no complete frame header before its first scan")
    scan = data[at + 4 : end]  # components, 2 bytes each, 3 bytes
    if len(scan) < 4 or len(scan) != 4 + 2 * scan[0]:
        raise ValueError("its first scan has no complete header")
    sampling = tuple((frame[i] >> 4, frame[i] & 15) for i in range(7, len(frame), 3))
    # In one scan of everything, the first FFD9 is the end; several scans have tables between them that may contain one.
    single = scan[0] == len(sampling) and sof != 0xC2
    stop = jpeg_end(data, at) if single else _end_of_scans(data, end)
    height, width = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]
    return JpegHeader(
        sof=sof, bits=frame[0], width=width, height=height, sampling=sampling, adobe_transform=adobe,
        metadata=tuple(metadata), profile=tuple(profile), has_exif=has_exif, scan_start=at, stop=stop if stop > at else 0,
    )  # fmt: skip


def _end_of_scans(data: bytes, at: int) -> int:
    """The position behind the end marker, from entropy-coded data at ``at`` on; 0 where there is none."""
    while found := _MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return at
        if at + 2 > len(data):
            break
        at += data[at] << 8 | data[at + 1]  # tables, or the header of the next scan
    return 0


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of every segment up to the first SOS, which is the last one.

    Raises:
        ValueError: A marker or length is damaged.
    """
    size, at, marker = len(data), 2, 0
    while marker != _SOS:
        if at + 4 > size:
            raise ValueError(f"it ends at byte {size}, inside the header")
        if data[at] != 0xFF:
            raise ValueError(f"byte {at} is {data[at]:#04x} where a marker was expected")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        stop = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if stop < at + 4 or stop > size:
            raise ValueError(f"segment {marker:02X} at byte {at} ends at {stop}, but there are {size} bytes")
        yield marker, at, stop
        at = stop


def has_entry_points(data: bytes) -> bool:
    """Whether the native loader can begin in the middle: an index segment (``csrc/core/jpeg/index.h``), or restart markers.

    Raises:
        ValueError: The markers are damaged.
    """
    return any(
        (marker == _APP15 and data[at + 4 : at + 10] == b"DP4TL\0") or (marker == _DRI and data[at + 4 : stop] != b"\0\0")
        for marker, at, stop in _segments(data)
    )


def why_not_plain(header: JpegHeader) -> str:
    """Empty when every backend reads the JPEG as it is (8-bit sequential Huffman, grey or 3 colours); or why not."""
    if header.sof not in (0xC0, 0xC1):
        return "progressive JPEG" if header.sof == 0xC2 else f"JPEG of an unusual kind (SOF{header.sof - 0xC0})"
    if header.bits != 8:
        return f"{header.bits}-bit JPEG"
    if not header.width or not header.height:
        return "JPEG without a size in its header"
    if header.components == 4:
        return "YCCK JPEG" if header.adobe_transform == 2 else "CMYK JPEG"
    if header.components not in (1, 3):
        return f"JPEG with {header.components} components"
    if header.components == 3 and (header.sampling[0] not in SAMPLINGS or header.sampling[1:] != ((1, 1), (1, 1))):
        return f"JPEG with unusual sampling factors {header.sampling}"
    if not header.stop:
        return "JPEG without an end marker"
    return ""


def can_become_plain(header: JpegHeader) -> bool:
    """Whether only the order of its coefficients or their entropy coding is odd: both can be changed without loss."""
    return header.sof in _REWRITABLE and not why_not_plain(replace(header, sof=0xC0))


def strip(data: bytes, header: JpegHeader, keep_profile: bool = False) -> bytes:
    """The JPEG without metadata that has no say in its pixels, without its ICC profile unless that is kept, and without a tail.

    JFIF and Adobe segments stay. Orientation goes: PIL and torchvision ignore it, other readers apply it.
    """
    dropped = sorted(header.metadata if keep_profile else header.metadata + header.profile)
    if not dropped and header.stop == len(data):
        return data
    starts = [0, *(stop for _, stop in dropped)]
    stops = [*(start for start, _ in dropped), header.stop]
    return b"".join(data[a:b] for a, b in zip(starts, stops, strict=True))


def profiles(data: bytes) -> bytes:
    """The ICC segments of a stripped JPEG, one after the other; empty where there are none."""
    return b"".join(data[a:b] for marker, a, b in _segments(data) if marker == _APP2)


def with_profiles(data: bytes, segments: bytes) -> bytes:
    """Insert ICC segments behind the JFIF and Adobe segments."""
    if not segments:
        return data
    at = next(start for marker, start, _ in _segments(data) if marker not in (_APP0, _APP14))
    return data[:at] + segments + data[at:]
