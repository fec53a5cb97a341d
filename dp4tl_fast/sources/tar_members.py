"""What a tar holds, and where: one walk over its headers, so that files are read by position afterwards.

A tar is a row of 512-byte headers, each followed by its member's bytes, padded to 512 (POSIX.1-2001 ustar and pax; GNU
long names and base-256 sizes). Links have no bytes: one that leads to another member is those bytes under a second name.
"""

from __future__ import annotations

import os
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dp4tl_fast.common.errors import SourceError

BLOCK = 512
MAX_NAME = 1 << 16
_ODD = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)")  # an empty part, ``.`` or ``..``
MAX_LINKS = 40  # one leading to the next, as Linux follows them

FILE, HARD_LINK, SYMBOLIC_LINK, FOLDER, SPARSE = b"0", b"1", b"2", b"5", b"S"
_FILES = (FILE, b"\0", b"7")
_DEVICES = {b"3": "a device", b"4": "a device", b"6": "a pipe"}
_LONG_NAME, _LONG_TARGET, _PAX = b"L", b"K", b"x"


@dataclass(frozen=True, slots=True)
class Member:
    name: bytes
    start: int  # of its bytes in the file
    size: int
    kind: bytes = FILE
    target: bytes = b""  # of a link


@dataclass(slots=True)
class Contents:
    """What a tar holds: files, under normalised names (``a/b``, no ``./``, no ``..``), and its folders, empty ones too.

    Attributes:
        left_out: Name and reason: litter, and what a later member of the same name replaces, as when the tar is unpacked.
    """

    files: list[Member]
    folders: list[bytes]
    left_out: list[tuple[bytes, str]]


def members(
    fd: int, start: int, stop: int, where: str, below: bytes = b"", litter: Callable[[Member], str] = lambda member: ""
) -> Contents:
    """The files of the tar that lies in bytes ``start`` to ``stop`` of an open file, and links to such, in its order.

    Args:
        where: The tar's name, for messages.
        below: Only what lies below this folder, given in any spelling; names stay whole.
        litter: Why a member is to be left out, or empty. Links and devices among these are not refused.

    Raises:
        SourceError: A header is damaged, a member goes beyond ``stop`` (a truncated download), data follow behind the end, or a
            file would be missed: it is stored as a sparse file, or is a link to something else than a file in the tar.
    """
    found = list(_headers(fd, start, stop, where))
    windows = any(b"\\" in m.name for m in found) and not any(b"/" in m.name.rstrip(b"/") for m in found)
    for i, m in enumerate(found):
        if (name := normal(m.name.replace(b"\\", b"/") if windows else m.name)) != m.name:
            found[i] = replace(m, name=name)
    if any(m.kind in (HARD_LINK, SYMBOLIC_LINK) for m in found):
        _follow_links(found)
    if below := normal(below):
        tops = sorted({m.name.partition(b"/")[0] for m in found if b"/" in m.name or m.kind == FOLDER} - {b""})
        found = [m for m in found if m.name.startswith(below + b"/")]
        if not found:
            there = ", ".join(map(os.fsdecode, tops[:5])) + (", ..." if len(tops) > 5 else "")
            raise SourceError(f"{where}: has no folder {os.fsdecode(below)}. It holds {there or 'no folder'}")
    last: dict[bytes, Member] = {}
    left_out = []
    for m in found:
        if m.kind == FOLDER or not m.name:
            continue
        if why := litter(m):
            left_out.append((m.name, why))
            continue
        if m.kind != FILE:
            raise SourceError(f"{where}: {_why_no_file(m)}")
        if last.pop(m.name, None) is not None:
            left_out.append((m.name, "replaced by a later member of the same name"))
        last[m.name] = m
    return Contents(list(last.values()), [m.name for m in found if m.kind == FOLDER and m.name], left_out)


def _why_no_file(m: Member) -> str:
    name = os.fsdecode(m.name)
    if m.kind == SPARSE:
        return f"{name} is stored as a sparse file. Pack it without --sparse"
    if m.kind in _DEVICES:
        return f"{name} is {_DEVICES[m.kind]}, not a file. Pack the tar without it"
    return (
        f"{name} is a link to {os.fsdecode(m.target)}, which is no file in the tar. Pack the files that links lead to: "
        "tar --dereference --hard-dereference"
    )


def normal(name: bytes) -> bytes:
    """``./a//b/../c/`` -> ``a/c``: as a path below the root, whatever leads out of it."""
    return posixpath.normpath(b"/" + name).strip(b"/") if _ODD.search(name) else name


def _headers(fd: int, start: int, stop: int, where: str) -> Iterator[Member]:
    """Files, folders, links, sparse files and devices, as they come."""
    at, empty = start, True
    extended: dict[
        bytes, bytes
    ] = {}  # what headers before a member's own say of it: ``path``, ``linkpath``, ``size`` ...
    while at + BLOCK <= stop:
        header = os.pread(fd, BLOCK, at)
        if len(header) < BLOCK:
            break
        if header == bytes(BLOCK):
            if (more := _first_data(fd, at, stop)) >= 0:
                raise SourceError(
                    f"{where}: ends at byte {at}, but data follow at byte {more}. If tars were joined with cat, give them one by "
                    "one; else the download is incomplete there"
                )
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
            name = extended.get(b"path") or _name(header)
            if kind == FOLDER or (kind in _FILES and name.endswith(b"/")):  # before 1988, folders had no kind
                yield Member(name, data, 0, FOLDER)
            elif kind in _FILES:
                sparse = any(key.startswith(b"GNU.sparse.") for key in extended)
                yield Member(name, data, size, SPARSE if sparse else FILE)
            elif kind in (HARD_LINK, SYMBOLIC_LINK, SPARSE, *_DEVICES):
                target = extended.get(b"linkpath") or header[157:257].split(b"\0")[0]
                yield Member(name, data, size, kind, target)
            extended = {}
        empty = False
        at = data + -(-size // BLOCK) * BLOCK
    if empty:
        raise SourceError(f"{where}: holds no files, or is not a tar")


def _first_data(fd: int, start: int, stop: int) -> int:
    """The first byte from ``start`` on, in whole blocks, that is not 0; -1 where there is none."""
    for at in range(start, stop, 1 << 20):
        part = os.pread(fd, min(1 << 20, stop - at), at)
        rest = part.lstrip(b"\0")
        if rest:
            return at + len(part) - len(rest)
    return -1


def _follow_links(found: list[Member]) -> None:
    """Put files in the place of links, where these lead to one."""
    known: dict[bytes, Member] = {}
    for i, m in enumerate(found):
        if m.kind == HARD_LINK and (target := known.get(normal(m.target))):  # an earlier member
            found[i] = m = replace(target, name=m.name)
        known[m.name] = m
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


def _name(header: bytes) -> bytes:
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    short = header[:100].split(b"\0")[0]
    return prefix + b"/" + short if prefix else short


def _checksum_is_right(header: bytes) -> bool:
    """The sum of the bytes, with blanks in place of the checksum itself; as Adler-32 has it, modulo 65521."""
    try:
        stated = int(header[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        return False
    summed = zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF  # 1 more than the sum
    return 0 <= stated < 512 * 256 and (stated + 1) % 65521 == summed


def _size(text: bytes, where: str, base: int = 8) -> int:
    if base == 8 and text[0] & 0x80:  # base 256
        return int.from_bytes(text[1:], "big")
    try:
        return int(text.strip(b" \0") or b"0", base)
    except ValueError:
        raise SourceError(f"{where}: {text!r} is not a size. Is the tar damaged?") from None


def _pax(body: bytes) -> dict[bytes, bytes]:
    """``length key=value\\n`` records."""
    records = {}
    while (match := re.match(rb"(\d{1,9}) ([^=]+)=", body)) and match.end() < int(match[1]) <= len(body):
        records[match[2]] = body[match.end() : int(match[1]) - 1]
        body = body[int(match[1]) :]
    return records
