"""Files that are either the old one or the complete new one."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from dp4tl_fast.common.errors import UsageError


def check_outputs(outputs: Iterable[tuple[str, str | Path]], inputs: Iterable[str | Path]) -> None:
    """Refuse, before anything expensive is done, what cannot be written or would replace what is read.

    Args:
        outputs: Parameters that name files to write, and the files.
        inputs: Files that are read.

    Raises:
        UsageError: An output is a folder, lies below something that is no writable folder, or is an input or another output.
    """
    taken = {Path(path).resolve(): "an input" for path in inputs}
    for parameter, name in outputs:
        path = Path(name)
        if path.is_dir():
            raise UsageError(f"`{parameter}={path}`: is a folder. Give the name of a file in it")
        folder = next(p for p in path.absolute().parents if p.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"`{parameter}={path}`: cannot be written: {folder} is not a writable folder")
        if path.resolve() in taken:
            raise UsageError(f"`{parameter}={path}`: is also {taken[path.resolve()]}. Choose another name")
        taken[path.resolve()] = f"`{parameter}`"


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write to a temporary name in the same directory, sync, rename. Creates missing parent directories."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path, "wb") as file:
        file.write(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)  # names need not be UTF-8


@contextmanager
def atomically(path: Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """A file to write to, opened like ``open`` under a temporary name; afterwards synced and renamed, on an error removed."""
    path = through_links(path)
    with unnamed(path, mode, **options) as file:
        yield file
    commit(partial_path(path), path)


def through_links(path: Path) -> Path:
    """The file that a link leads to, for outputs: the target is written, and the link stays."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def unnamed(path: Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """Like ``atomically``, but the file keeps its temporary name, ``partial_path(path)``: for ``commit``, later."""
    partial = partial_path(path)
    with naming(path):
        try:
            with open(partial, mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Errors of the system say which file they are about: those of a write to an open one do not know it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def partial_path(path: Path) -> Path:
    """The temporary name under which ``path`` is written."""
    return path.with_name(f".{path.name}.partial")


def commit(partial: Path, path: Path) -> None:
    """Give a complete, synced file its final name, durably where the file system can sync a folder."""
    partial.replace(path)
    with _suppress(*UNABLE, errno.EACCES, errno.EBADF):
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


# What file systems answer that lack an operation: Lustre and some NFS have no flock, exFAT and CIFS no links, FUSE mounts no fsync
# of a folder.
UNABLE = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EPERM)


def suppress_no_locks() -> AbstractContextManager[None]:
    """Around ``flock``: a file system that has no locks is worked on without."""
    return _suppress(*UNABLE)


@contextmanager
def _suppress(*numbers: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/dp4tl_fast``, by default ``~/.cache/dp4tl_fast``. Raises OSError if the user has no home folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():  # unset, or invalid by the XDG specification
        try:
            home = Path("~/.cache").expanduser()
        except RuntimeError as error:
            raise OSError(str(error)) from error
    return home / "dp4tl_fast"


def write_at(fd: int, data: bytes | memoryview, at: int) -> None:
    """All of it from this byte of the file on."""
    while len(data):
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as a ``.npy`` file's contents."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """A name of a file or folder that is there, for libraries which take UTF-8 alone: its own, or one that is valid within."""
    name = os.fspath(path)
    if name == name.encode("utf-8", "replace").decode():
        yield name
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def printable(name: str) -> str:
    """A file's or class's name for people: bytes that are not UTF-8 become U+FFFD, control characters are escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
