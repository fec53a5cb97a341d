"""Where images come from: one module per kind, chosen by what ``SRC`` is. The rules: docs/converting.md."""

from __future__ import annotations

import glob
import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote

from dp4tl_fast.common.content import PARQUET, TAR, TEXT, UNFINISHED, what_it_is
from dp4tl_fast.common.errors import Dp4tlError, SourceError, UsageError
from dp4tl_fast.sources.base import Source
from dp4tl_fast.sources.files import check_file, read_head
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.tree import SPLITS

__all__ = ["Source", "SourceOptions", "open_source"]

KINDS = {".tar": "tar", ".parquet": "columns", ".arrow": "columns", ".csv": "table", ".tsv": "table"}
EXPECTED = {".tar": TAR, ".parquet": PARQUET, ".csv": TEXT, ".tsv": TEXT}  # as ``what_it_is`` says it
PACKED = {  # ending -> the command that unpacks it
    ".tar.gz": "gunzip -k", ".tgz": "gunzip -k -S .tgz", ".tar.bz2": "bunzip2 -k", ".tar.xz": "unxz -k", ".tar.zst": "unzstd",
    ".zip": "unzip", ".7z": "7z x", ".rar": "unrar x",
}  # fmt: skip
NOTES = (".md", ".json", ".txt", ".yaml", ".yml", ".lock")  # beside shards
MAX_SHARDS, MAX_FOLDERS = 1_000_000, 16


def open_source(src: str, options: SourceOptions | None = None, *, scratch: Path | None = None) -> Source:
    """List the samples of ``src``.

    Args:
        src: A folder of class folders; a tar of tars, of class folders, of flat images (with ``labels``), or WebDataset
            tars; Parquet; Arrow files of ``datasets.save_to_disk``; CSV or TSV; several files as a pattern (``x-*.tar``,
            ``x-{000..009}.tar``) or a folder of them; ``torchvision:NAME?root=...``; ``x.tar#a/train``: what lies below a
            folder in the tar; a folder or such files behind a URL that fsspec knows.
        options: Answers to what the source leaves open.
        scratch: Where sources that cannot be read at random are copied to; the system's temporary folder by default.

    Raises:
        SourceError: It is missing, empty or of no known kind, or leaves open what must be said.
        UsageError: An option has no meaning for it.
    """
    try:
        return _open(src, options or SourceOptions(), scratch or Path(tempfile.gettempdir()))
    except Dp4tlError:
        raise
    except OSError as error:
        if error.filename is not None:  # it says which file it is about
            raise
        raise SourceError(f"{src}: cannot be read: {error}") from error
    except Exception as error:  # readers of others' formats, file systems and data sets may raise anything
        words = (str(error).splitlines() or [""])[0]
        raise SourceError(f"{src}: cannot be read: {type(error).__name__}: {words}") from error


def _open(src: str, options: SourceOptions, scratch: Path) -> Source:
    if not src.strip():
        raise UsageError(
            "`src` is empty. Give a folder, or one of the files that `dp4tl-fast convert --help` lists"
        )
    if src.startswith("torchvision:"):
        from dp4tl_fast.sources.torchvision import open_torchvision

        return open_torchvision(src, options, scratch)
    if src.startswith("file://"):
        src = unquote(src.removeprefix("file://"))
    if "://" in src:
        return _open_remote(src, options, scratch)
    below = ""
    if ".tar#" in src and not Path(src).exists():
        src, _, below = src.partition("#")
    path = Path(src)
    if path.is_dir():
        files = _shards(path)
        if not files:
            from dp4tl_fast.sources.folder import FolderSource

            options.refuse(src, "image_key", "label_key")
            return FolderSource(path, options)
    else:
        files = [path] if path.exists() else _matching(src)
    if not files:
        raise SourceError(f"{src}: no such file or folder")
    return _open_files(src, files, options, scratch, below)


def _open_files(src: str, files: list[Path], options: SourceOptions, scratch: Path, below: str = "") -> Source:
    for file in files:
        check_file(file)
        _check_content(file)
    kinds = {KINDS.get(file.suffix.lower()) for file in files}
    if kinds == {"tar"}:
        from dp4tl_fast.sources.tar import TarSource

        if len(files) > 1:
            files, options = _of_split(src, files, options)
        return TarSource(files, options, below)
    if kinds == {"columns"}:
        from dp4tl_fast.sources.columns import ColumnSource

        files, options = _of_split(src, files, options)
        return ColumnSource(files, options, scratch)
    if kinds == {"table"} and len(files) == 1:
        from dp4tl_fast.sources.table import TableSource

        return TableSource(files[0], options)
    raise SourceError(
        f"{src}: is of no known kind. Give a folder of class folders, .tar, .parquet, .arrow, .csv or .tsv files"
    )


def _check_content(file: Path) -> None:
    """Refuse what is something else than its name says: a pointer, an error page, a packed or unfinished file."""
    for ending, command in PACKED.items():
        if file.name.lower().endswith(ending):
            raise SourceError(f"{file}: is packed. Unpack it with `{command} {file}`, then convert what comes out")
    if file.suffix.lower() in UNFINISHED:
        raise SourceError(f"{file}: is an unfinished download. Finish it")
    what = what_it_is(read_head(os.fsencode(file)))
    if what and what != EXPECTED.get(file.suffix.lower()):
        raise SourceError(f"{file}: is {what}")


# -- files in parts ---------------------------------------------------------------------------------------------------


def _shards(folder: Path, depth: int = 2) -> list[Path]:
    """The tars, Parquet or Arrow files of a folder that holds nothing else but notes.

    Parquet and Arrow files may lie in a few folders of it, as on the Hub (``data``, ``default/train``) and as
    ``datasets.save_to_disk`` writes the splits.
    """
    files: list[Path] = []
    folders: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = Path(entry.name).suffix.lower()
                if entry.name.startswith(".") or suffix in NOTES:
                    continue
                if not entry.is_dir() and suffix not in (".tar", ".parquet", ".arrow"):
                    return []
                (folders if entry.is_dir() else files).append(Path(entry.path))
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed: {error.strerror}. Make it readable") from None
    if files or not 0 < len(folders) <= MAX_FOLDERS or not depth:
        return [] if folders else sorted(files)
    inner = [_shards(path, depth - 1) for path in sorted(folders)]
    found = [path for part in inner for path in part]
    return found if all(inner) and all(path.suffix.lower() != ".tar" for path in found) else []


def _split_of(file: Path) -> str:
    """The split that a file's name tells: ``train-00000-of-00002.parquet``, ``imagenet-val-003.tar``; or its folder's."""
    words = [word for word in re.split(r"[-_.]+", file.name.lower()) if word in SPLITS]
    by_folder = file.suffix.lower() == ".arrow" or file.parent.name.lower() in SPLITS
    return words[0] if words else file.parent.name if by_folder and file.suffix.lower() != ".tar" else ""


def _of_split(src: str, files: list[Path], options: SourceOptions) -> tuple[list[Path], SourceOptions]:
    """The files of the split asked for; all where they tell no splits, or only one."""
    splits = {file: _split_of(file) for file in files}
    found = sorted(set(splits.values()))
    if (options.split and len(found) > 1) or options.split in found:
        if options.split not in found:
            raise SourceError(f"{src}: has no split {options.split!r}. It holds {', '.join(filter(None, found))}")
        from dataclasses import replace

        return [file for file in files if splits[file] == options.split], replace(options, split="")
    if len(found) > 1:
        names = ", ".join(name or "others" for name in found)
        first = next(filter(None, found))
        raise SourceError(f"{src}: holds the splits {names}. Choose one with `split={first}`")
    return files, options


def _matching(src: str) -> list[Path]:
    """The files of a pattern: braces first, then ``*``; brackets are part of names, unless nothing is called so."""
    found = []
    names = _braces(src)
    for name in names:
        plain = re.sub(r"([\[\]?])", r"[\1]", name)
        matches = sorted(glob.glob(plain)) or sorted(glob.glob(name))  # noqa: PTH207  # any root
        if not matches and len(names) > 1:
            raise SourceError(f"{name}: no such file, but {src} asks for it")
        found += [Path(match) for match in matches]
    return found


def _braces(pattern: str) -> list[str]:
    """``x-{000..012}.tar`` and ``{a,b}/x.tar`` -> the names of a WebDataset; any number of braces."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[list[str]] = []
    for i, part in enumerate(parts):
        if i % 2 == 0:
            choices.append([part])
        elif match := re.fullmatch(r"(\d+)\.\.(\d+)", part):
            first, last = int(match[1]), int(match[2])
            if last < first or last - first >= MAX_SHARDS:
                raise SourceError(f"{pattern}: {{{part}}} must count up, over at most {MAX_SHARDS} files")
            choices.append([f"{k:0{len(match[1])}}" for k in range(first, last + 1)])
        else:
            choices.append(part.split(",") if "," in part else ["{" + part + "}"])
    return ["".join(names) for names in itertools.product(*choices)]


def _open_remote(url: str, options: SourceOptions, scratch: Path) -> Source:
    from dp4tl_fast.sources.remote import RemoteFolderSource, fetch, file_name, matching

    urls = [found for name in _braces(url) for found in matching(name)]
    name = file_name(urls[0]).lower()
    if name.endswith((*PACKED, ".csv", ".tsv")):
        raise SourceError(f"{url}: cannot be read from afar. Download it, and what belongs to it, and convert that")
    if Path(name).suffix not in KINDS:
        options.refuse(url, "image_key", "label_key")
        return RemoteFolderSource(url, options)
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".dp4tl-fetch-", dir=scratch))
    try:  # an open file outlives its name
        return _open_files(url, [fetch(name, folder / str(k)) for k, name in enumerate(urls)], options, scratch)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
