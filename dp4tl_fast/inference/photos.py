"""Photos to look at: files, folders flat or nested, tars, a list on stdin. No labels, no conversion to keep."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dp4tl_fast.common.content import HEAD_BYTES
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.files import check_file, read_head, read_whole
from dp4tl_fast.sources.litter import is_litter_folder, why_litter
from dp4tl_fast.sources.tar_members import Member, members

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Photo:
    """An image file, not yet read.

    Attributes:
        name: What it is called in the results.
        size: Bytes, as listed; 0 where it is not there.
        read: Its bytes; raises ``OSError`` or ``SourceError``.
    """

    name: str
    size: int
    read: Callable[[], bytes]


def find(places: list[str]) -> list[Photo]:
    """Every photo in ``places``, in their order; of a folder or tar in the order of names.

    Of a folder and of a tar every file but hidden ones and those that systems and tools leave there (``sources.litter``).

    Raises:
        SourceError: A place is not there, a folder cannot be listed, or a tar is damaged; or there is nothing at all. What a list
            on stdin names is looked for when its turn comes.
    """
    if gone := [place for place in places if place != STDIN and not Path(place).exists()]:
        raise SourceError(f"{gone[0]}: no such file or folder")
    found = [photo for place in places for photo in _in(place)]
    if not found:
        raise SourceError(f"{', '.join(places)}: no images there")
    return found


def _in(place: str) -> Iterator[Photo]:
    if place == STDIN:
        yield from (_file(line.rstrip("\r\n")) for line in sys.stdin if line.strip())
    elif Path(place).is_dir():
        yield from _folder(place)
    elif place.lower().endswith(".tar") and Path(place).is_file():
        yield from _tar(place)
    else:
        yield _file(place)


def _file(name: str) -> Photo:
    try:
        size = check_file(name).st_size
    except (OSError, SourceError):
        size = 0  # reading it will say why
    return Photo(name, size, partial(_read, name, size))


def _read(name: str, size: int) -> bytes:
    check_file(name)
    return read_whole(os.fsencode(name), size)


def _folder(root: str) -> Iterator[Photo]:
    def fail(error: OSError) -> None:
        raise SourceError(f"{error.filename}: cannot be listed: {error.strerror}")

    for folder, below, files in os.walk(root, onerror=fail):
        below[:] = sorted(name for name in below if not is_litter_folder(os.fsencode(name)))
        for name in sorted(files):
            path = Path(folder) / name
            if not why_litter(os.fsencode(name), partial(read_head, os.fsencode(path))):
                yield _file(str(path))


def _tar(path: str) -> Iterator[Photo]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # open until the process ends: photos are read later

    def litter(member: Member) -> str:
        *folders, name = member.name.split(b"/")
        if any(map(is_litter_folder, folders)):
            return "in a hidden folder, or a system's"
        return why_litter(name, lambda: os.pread(fd, min(member.size, HEAD_BYTES), member.start))

    found = members(fd, 0, os.fstat(fd).st_size, path, litter=litter).files
    for member in sorted(found, key=lambda m: m.name):
        yield Photo(f"{path}#{os.fsdecode(member.name)}", member.size, partial(os.pread, fd, member.size, member.start))
