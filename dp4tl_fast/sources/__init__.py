"""Where images come from: one module per kind, chosen by what ``SRC`` is."""

from __future__ import annotations

import glob
import re
import shutil
import tempfile
from pathlib import Path

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.base import Source
from dp4tl_fast.sources.folder import FolderSource

__all__ = ["Source", "open_source"]

TABLES = (".csv", ".tsv")


def open_source(src: str, *, labels: str = "", scratch: Path | None = None) -> Source:
    """List the samples of ``src``.

    Args:
        src: A folder of class folders; a tar of tars, of class folders, of flat images (with ``labels``), or WebDataset
            tars; Parquet; CSV or TSV; several files as a pattern (``x-*.tar``, ``x-{000..009}.tar``) or a folder of
            them; ``torchvision:NAME?root=...``; ``x.tar#a/train``: what lies below a folder in the tar; a folder, tar or
            Parquet file behind a URL that fsspec knows.
        labels: ImageNet's devkit, for its validation tar.
        scratch: Where sources that cannot be read at random are copied to; the system's temporary folder by default.

    Raises:
        SourceError: It is missing, empty or of no known kind.
    """
    scratch = scratch or Path(tempfile.gettempdir())
    if src.startswith("torchvision:"):
        from dp4tl_fast.sources.torchvision import open_torchvision

        return open_torchvision(src, scratch)
    if "://" in src:
        return _open_remote(src, labels, scratch)
    below = ""
    if ".tar#" in src and not Path(src).exists():
        src, _, below = src.partition("#")
    path = Path(src)
    files = _files(src)
    if path.is_dir() and not files:
        return FolderSource(path)
    if not files:
        raise SourceError(f"{src}: no such file or folder")
    return _open_files(src, files, labels, scratch, below)


def _open_files(src: str, files: list[Path], labels: str, scratch: Path, below: str = "") -> Source:
    endings = {file.suffix.lower() for file in files}
    if endings == {".tar"}:
        from dp4tl_fast.sources.tar import TarSource

        return TarSource(files, labels, below)
    if endings == {".parquet"}:
        from dp4tl_fast.sources.parquet import ParquetSource

        return ParquetSource(files, scratch)
    if len(files) == 1 and endings <= set(TABLES):
        from dp4tl_fast.sources.table import TableSource

        return TableSource(files[0])
    raise SourceError(f"{src}: of no known kind. Give a folder of class folders, .tar, .parquet, .csv or .tsv files")


def _files(src: str) -> list[Path]:
    """The files that ``src`` names: itself, a pattern's, or the tars or Parquet files in a folder of such alone."""
    path = Path(src)
    if path.is_dir():
        visible = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")]
        return visible if visible and all(p.suffix.lower() in (".tar", ".parquet") for p in visible) else []
    if path.exists():
        return [path]
    return sorted(Path(name) for pattern in _braces(src) for name in glob.glob(pattern))  # noqa: PTH207  # any root


def _braces(pattern: str) -> list[str]:
    """``x-{000..012}.tar`` -> the names of a WebDataset."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    numbers = range(int(match[1]), min(int(match[2]), int(match[1]) + 1_000_000) + 1)
    names = [f"{pattern[: match.start()]}{k:0{len(match[1])}}{pattern[match.end() :]}" for k in numbers]
    if missing := [name for name in names if "*" not in name and not Path(name).exists()]:
        raise SourceError(f"{missing[0]}: no such file, but {pattern} asks for it")
    return names


def _open_remote(url: str, labels: str, scratch: Path) -> Source:
    from dp4tl_fast.sources.remote import RemoteFolderSource, fetch

    if Path(url).suffix.lower() not in (".tar", ".parquet"):
        return RemoteFolderSource(url)
    folder = Path(tempfile.mkdtemp(prefix=".dp4tl-fetch-", dir=scratch))
    try:  # an open file outlives its name
        return _open_files(url, [fetch(url, folder)], labels, scratch)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
