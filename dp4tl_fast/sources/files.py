"""Reading files of the file system, and nothing that is no file: a pipe would never end, a device has no content."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from dp4tl_fast.common.content import HEAD_BYTES
from dp4tl_fast.common.errors import SourceError


def kind_of(status: os.stat_result) -> str:
    """What is neither file nor folder, in words."""
    tests: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"),
    )  # fmt: skip
    return next((what for test, what in tests if test(status.st_mode)), "a device")


def check_file(path: str | bytes | Path) -> os.stat_result:
    """The status of a regular file: opening anything else might wait for ever.

    Raises:
        OSError, SourceError: It is not there, or no regular file.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  # bytes
    except ValueError:
        raise SourceError(f"{os.fsdecode(path)!r}: a NUL in a file's name") from None
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{os.fsdecode(path)}: is {kind_of(status)}, not a file")
    return status


def read_head(path: bytes) -> bytes:
    """The first ``HEAD_BYTES`` of a file.

    Raises:
        OSError, SourceError: It is not there, or no regular file.
    """
    check_file(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, HEAD_BYTES)
    finally:
        os.close(fd)


def read_whole(path: bytes, size: int) -> bytes:
    """A file that was listed with ``size`` bytes: one read, and one byte more to see that it has not grown."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SourceError(f"it is now {kind_of(os.fstat(fd))}, not a file")
        data = os.read(fd, size + 1)
        if len(data) == size:
            return data
        rest = []
        while part := os.read(fd, 1 << 20):
            rest.append(part)
        return data + b"".join(rest)
    finally:
        os.close(fd)
