"""Where images come from: one module per kind, chosen by what ``SRC`` is. The rules: docs/converting.md."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from shlex import quote
from urllib.parse import unquote, urlsplit

from dp4tl_fast.common.content import PARQUET, TAR, TEXT, UNFINISHED, what_it_is
from dp4tl_fast.common.errors import Dp4tlError, SourceError, UsageError
from dp4tl_fast.sources.base import Source
from dp4tl_fast.sources.files import check_file, read_head
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.shards import KINDS, PACKED, braces, matching, of_split, shards_in

__all__ = ["Source", "SourceOptions", "open_source"]

EXPECTED = {".tar": TAR, ".parquet": PARQUET, ".csv": TEXT, ".tsv": TEXT}  # as ``what_it_is`` says it


def open_source(
    src: str, options: SourceOptions | None = None, *, scratch: Path | None = None, copy: bool = True
) -> Source:
    """List the samples of ``src``.

    Args:
        src: A folder of class folders; a tar of tars, of class folders, of flat images (with ``labels``), or WebDataset
            tars; Parquet; Arrow files of ``datasets.save_to_disk``; CSV or TSV; several files as a pattern (``x-*.tar``,
            ``x-{000..009}.tar``) or a folder of them; ``torchvision:NAME?root=...``; ``x.tar#a/train``: what lies below a
            folder in the tar; a folder or such files behind a URL that fsspec knows.
        options: Answers to what the source leaves open.
        scratch: Where sources that cannot be read at random are copied to; the system's temporary folder by default.
        copy: Without it, such sources are only listed: their samples cannot be read.

    Raises:
        SourceError: It is missing, empty or of no known kind, or leaves open what must be said.
        UsageError: An option has no meaning for it.
    """
    try:
        scratch = scratch or Path(tempfile.gettempdir())
        return _open(src, options or SourceOptions(), scratch if copy else None)
    except Dp4tlError:
        raise
    except OSError as error:
        if error.filename is not None:  # it says which file it is about
            raise
        raise SourceError(f"{src}: cannot be read: {error}") from error
    except Exception as error:  # readers of others' formats, file systems and data sets may raise anything
        words = (str(error).splitlines() or [""])[0]
        raise SourceError(f"{src}: cannot be read: {type(error).__name__}: {words}") from error


def _open(src: str, options: SourceOptions, scratch: Path | None) -> Source:
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
        files = shards_in(path)
        if not files:
            from dp4tl_fast.sources.folder import FolderSource

            options.refuse(src, "image_key", "label_key")
            return FolderSource(path, options)
    else:
        files = [path] if path.exists() else matching(src)
    if not files:
        raise SourceError(f"{src}: no such file or folder")
    wanted, options = of_split(src, files, options)
    return _open_files(src, {files[k]: str(files[k]) for k in wanted}, options, scratch, below)


def _open_files(src: str, names: dict[Path, str], options: SourceOptions, scratch: Path | None, below: str) -> Source:
    """
    Args:
        names: What each file is called in messages: the URL of one that was fetched.
    """
    for file, name in names.items():
        check_file(file)
        _check_content(file, name)
    files = list(names)
    kinds = {KINDS.get(file.suffix.lower()) for file in files}
    if kinds == {"tar"}:
        from dp4tl_fast.sources.tar import TarSource

        return TarSource(names, options, below)
    if kinds == {"columns"}:
        from dp4tl_fast.sources.columns import ColumnSource

        return ColumnSource(names, options, scratch)
    if kinds == {"table"} and len(files) == 1:
        from dp4tl_fast.sources.table import TableSource

        return TableSource(files[0], options)
    raise SourceError(
        f"{src}: is not of a known kind. Give a folder of class folders, .tar, .parquet, .arrow, .csv or .tsv files"
    )


def _check_content(file: Path, name: str) -> None:
    """Refuse what is something else than its name says: a pointer, an error page, a packed or unfinished file."""
    for ending, command in PACKED.items():
        if file.name.lower().endswith(ending):
            raise SourceError(f"{name}: is packed. Unpack it with `{command} {quote(name)}`, then convert the result")
    if file.suffix.lower() in UNFINISHED:
        raise SourceError(f"{name}: is an unfinished download. Finish it")
    what = what_it_is(read_head(os.fsencode(file)))
    if what and what != EXPECTED.get(file.suffix.lower(), TEXT):
        raise SourceError(f"{name}: is {what}")


def _open_remote(url: str, options: SourceOptions, scratch: Path | None) -> Source:
    from dp4tl_fast.remote.url import unsigned
    from dp4tl_fast.sources.remote import RemoteFolder, RemoteFolderSource, fetch, file_name, found_at

    below = ""
    if ".tar#" in url:
        url, _, below = url.partition("#")
    urls = [found for name in braces(url) for found in found_at(name)]
    if not file_name(urls[0]).lower().endswith((*KINDS, *PACKED)):
        folder = RemoteFolder(url)
        urls = folder.shards()
        if not urls:
            options.refuse(folder.url, "image_key", "label_key")
            return RemoteFolderSource(folder, options)
    for each in urls:
        if file_name(each).lower().endswith((*PACKED, ".csv", ".tsv")):
            raise SourceError(f"{unsigned(each)}: cannot be read from a URL. Download it and its related files, and convert those")
    paths = [PurePosixPath(unquote(urlsplit(each).path)) for each in urls]
    wanted, options = of_split(unsigned(url), paths, options)
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    fetched = Path(tempfile.mkdtemp(prefix=".dp4tl-fetch-", dir=scratch))
    try:  # an open file outlives its name
        files = {fetch(urls[k], fetched / str(k)): unsigned(urls[k]) for k in wanted}
        return _open_files(unsigned(url), files, options, scratch, below)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
