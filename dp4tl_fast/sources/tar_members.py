"""What a tar holds, and where: one walk over its headers, so that files are read by position afterwards.

A tar is a row of 512-byte headers, each followed by its member's bytes, padded to 512 (POSIX.1-2001 ustar and pax; GNU
long names and base-256 sizes). Links have no bytes: one that leads to another member is those bytes under a second name.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dp4tl_fast.common.errors import SourceError

BLOCK = 512
MAX_NAME = 1 << 16
MAX_LINKS = 40  # one leading to the next, as Linux follows them
IMAGE_ENDINGS = (b".jpg", b".jpeg", b".png", b".webp", b".gif", b".bmp", b".tif", b".tiff", b".ppm")

FILE, HARD_LINK, SYMBOLIC_LINK, SPARSE = b"0", b"1", b"2", b"S"
_FILES = (FILE, b"\0", b"7")
_LONG_NAME, _LONG_TARGET, _PAX = b"L", b"K", b"x"


@dataclass(frozen=True, slots=True)
class Member:
    name: bytes
    start: int  # of its bytes in the file
    size: int
    kind: bytes = FILE
    target: bytes = b""  # of a link


def members(fd: int, start: int, stop: int, where: str, below: bytes = b"") -> list[Member]:
    """The files of the tar that lies in bytes ``start`` to ``stop`` of an open file, and links to such, in its order.

    Args:
        where: The tar's name, for messages.
        below: Only members whose names begin with this.

    Raises:
        SourceError: A header is damaged, a member goes beyond ``stop`` (a truncated download), or an image would be
            missed: it is stored as a sparse file, or is a link to something else than a file in the tar.
    """
    found = list(_headers(fd, start, stop, where))
    if any(m.kind in (HARD_LINK, SYMBOLIC_LINK) for m in found):
        _follow_links(found)
    found = [m for m in found if m.name.removeprefix(b"./").startswith(below)]
    for m in found:
        if m.kind != FILE and is_visible(m.name) and m.name.lower().endswith((*IMAGE_ENDINGS, b".tar", b"/")):
            name, target = os.fsdecode(m.name), os.fsdecode(m.target)
            if m.kind == SPARSE:
                raise SourceError(f"{where}: {name} is stored as a sparse file. Pack it without --sparse")
            raise SourceError(
                f"{where}: {name} is a link to {target}, which is no file in the tar. Pack the files that links lead to: "
                "tar --dereference --hard-dereference"
            )
    return [m for m in found if m.kind == FILE]


def is_image(name: bytes) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def is_visible(name: bytes) -> bool:
    return not any(part.startswith(b".") and part != b"." for part in name.split(b"/"))


def _headers(fd: int, start: int, stop: int, where: str) -> Iterator[Member]:
    """Files, sparse files and links, as they come."""
    at, empty = start, True
    extended: dict[bytes, bytes] = {}  # what headers before a member's own say of it: ``path``, ``linkpath``, ``size`` ...
    while at + BLOCK <= stop:
        header = os.pread(fd, BLOCK, at)
        if len(header) < BLOCK or header == bytes(BLOCK):
            break
        if not _checksum_is_right(header):
            raise SourceError(f"{where}: no tar header at byte {at}. Is the file damaged, or compressed?")
        kind = header[156:157]
        size = _size(header[124:136], where)
        if kind in _FILES and b"size" in extended:
            size = _size(extended[b"size"], where, 10)
        elif kind in (HARD_LINK, SYMBOLIC_LINK):
            size = 0  # old programs note the target's
        data = at + BLOCK
        if size < 0 or data + size > stop:
            raise SourceError(f"{where}: ends at byte {stop}, inside the member at {at} of {size} bytes. Truncated?")
        if kind in (_LONG_NAME, _LONG_TARGET):
            key = b"path" if kind == _LONG_NAME else b"linkpath"
            extended[key] = os.pread(fd, min(size, MAX_NAME), data).rstrip(b"\0")
        elif kind == _PAX:
            extended.update(_pax(os.pread(fd, min(size, MAX_NAME), data)))
        else:
            if kind in _FILES:
                sparse = any(key.startswith(b"GNU.sparse.") for key in extended)
                yield Member(extended.get(b"path") or _name(header), data, size, SPARSE if sparse else FILE)
            elif kind in (HARD_LINK, SYMBOLIC_LINK, SPARSE):
                target = extended.get(b"linkpath") or header[157:257].split(b"\0")[0]
                yield Member(extended.get(b"path") or _name(header), data, size, kind, target)
            extended = {}
        empty = False
        at = data + -(-size // BLOCK) * BLOCK
    if empty:
        raise SourceError(f"{where}: holds no files, or is no tar")


def _follow_links(found: list[Member]) -> None:
    """Put files in the place of links, where these lead to one. A link to a folder of images gets a ``/`` at its end."""
    known: dict[bytes, Member] = {}
    for i, m in enumerate(found):
        if m.kind == HARD_LINK and (target := known.get(posixpath.normpath(m.target))):  # an earlier member
            found[i] = m = replace(target, name=m.name)
        known[posixpath.normpath(m.name)] = m
    folders = _folders(name for name in known if is_image(name))
    for i, m in enumerate(found):
        at, end = m.name, m
        for _ in range(MAX_LINKS):
            if end.kind != SYMBOLIC_LINK:
                break
            at = posixpath.normpath(posixpath.join(posixpath.dirname(at), end.target))
            if at not in known:
                break
            end = known[at]
        if m.kind == SYMBOLIC_LINK and end.kind == FILE:
            found[i] = replace(end, name=m.name)
        elif m.kind == SYMBOLIC_LINK and at in folders:
            found[i] = replace(m, name=m.name + b"/")


def _folders(names: Iterator[bytes]) -> set[bytes]:
    """All folders above these names."""
    folders: set[bytes] = set()
    for name in names:
        while (name := posixpath.dirname(name)) and name not in folders:
            folders.add(name)
            if name == b"/":
                break
    return folders


def _name(header: bytes) -> bytes:
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    short = header[:100].split(b"\0")[0]
    return prefix + b"/" + short if prefix else short


def _checksum_is_right(header: bytes) -> bool:
    try:
        return int(header[148:156].strip(b" \0") or b"-1", 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def _size(text: bytes, where: str, base: int = 8) -> int:
    if base == 8 and text[0] & 0x80:  # base 256
        return int.from_bytes(text[1:], "big")
    try:
        return int(text.strip(b" \0") or b"0", base)
    except ValueError:
        raise SourceError(f"{where}: {text!r} is no size. Is the tar damaged?") from None


def _pax(body: bytes) -> dict[bytes, bytes]:
    """``length key=value\\n`` records."""
    records = {}
    while (match := re.match(rb"(\d{1,9}) ([^=]+)=", body)) and match.end() < int(match[1]) <= len(body):
        records[match[2]] = body[match.end() : int(match[1]) - 1]
        body = body[int(match[1]) :]
    return records
