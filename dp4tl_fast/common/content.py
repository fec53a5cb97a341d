"""What a file is, by its first bytes and never by its name."""

from __future__ import annotations

import codecs
from contextlib import suppress

UNFINISHED = (".part", ".crdownload", ".download", ".aria2", ".tmp", ".partial")  # endings of unfinished downloads
HEAD_BYTES = 264  # enough for every rule below

TAR, PARQUET, TEXT = "a tar archive. Unpack it", "a Parquet file", "a text file"
_IMAGES = (  # first bytes -> name, of what Pillow decodes
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"\0\0\x01\0", "ICO"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"DDS ", "DDS"),
    (b"8BPS", "PSD"),
    (b"qoif", "QOI"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"BLP1", "BLP"), (b"BLP2", "BLP"),
    (b"\x01\xda", "SGI"),
    (b"icns", "ICNS"),
)  # fmt: skip
_OTHERS = (  # what people have instead of an image, and what to do about it
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`"),
    (b"\x1f\x8b", "compressed with gzip. Unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd. Unpack it"),
    (b"BZh", "compressed with bzip2. Unpack it"),
    (b"\xfd7zXZ\0", "compressed with xz. Unpack it"),
    (b"PK\x03\x04", "a zip archive. Unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive. Unpack it"),
    (b"Rar!", "a RAR archive. Unpack it"),
    (b"%PDF", "a PDF document"),
    (b"PAR1", PARQUET),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\xff\xfe", "text in UTF-16. Save it as UTF-8"), (b"\xfe\xff", "text in UTF-16. Save it as UTF-8"),
    (b"\x00\x05\x16\x07", "macOS metadata (AppleDouble)"),
)
_HEIF = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"heim": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}


def image_kind(head: bytes) -> str:
    """The format of the image that begins with these bytes; empty where they begin none that can be decoded."""
    for magic, kind in _IMAGES:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "AVIF"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b"\n\r\t #" and len(head) > 2:
        return "PPM"
    return ""


def what_it_is(head: bytes) -> str:
    """What a file that is no image is, in words that follow "is"; empty where that is not known.

    Args:
        head: Its first ``HEAD_BYTES``, or all of it where it has fewer.
    """
    if not head:
        return "an empty file"
    for magic, what in _OTHERS:
        if head.startswith(magic):
            return what
    if head[4:8] == b"ftyp":
        kind = _HEIF.get(head[8:12])
        return (
            f"{kind}, which cannot be decoded here. Convert it to JPEG or PNG"
            if kind
            else "a video or audio file (MP4)"
        )
    if head[257:262] == b"ustar":
        return TAR
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page: a failed download"
    if start.startswith((b"<?xml", b"<svg", b"<annotation")):
        return "an XML file"
    if not any(head):
        return "zeros: an incomplete download, or a lost sector"
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        with suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
            return TEXT if len(head) > 3 else ""
    return ""
