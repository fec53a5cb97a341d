"""A data set in several files: shards of one kind, found in a folder or by a pattern, and the split that their names tell."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from dp4tl_fast.common.content import UNFINISHED, image_kind
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.files import read_head
from dp4tl_fast.sources.litter import is_litter_folder
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.tree import SPLITS

KINDS = {".tar": "tar", ".parquet": "columns", ".arrow": "columns", ".csv": "table", ".tsv": "table"}
PACKED = {  # ending -> the command that unpacks it
    ".tar.gz": "gunzip -k", ".tgz": "gunzip -k -S .tgz", ".tar.bz2": "bunzip2 -k", ".tar.xz": "unxz -k", ".tar.zst": "unzstd",
    ".zip": "unzip", ".7z": "7z x", ".rar": "unrar x",
}  # fmt: skip
MAX_SHARDS, MAX_FOLDERS = 1_000_000, 16


def shards_in(folder: Path, depth: int = 2) -> list[Path]:
    """The tars, Parquet or Arrow files of a folder that holds no images; packed ones, too, which are refused by name.

    Parquet and Arrow files may lie in a few folders of it, as on the Hub (``data``, ``default/train``) and as
    ``datasets.save_to_disk`` writes the splits.
    """
    files: list[Path] = []
    folders: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not is_litter_folder(os.fsencode(entry.name)):
                        folders.append(Path(entry.path))
                elif is_shard(entry.name):
                    files.append(Path(entry.path))
                elif not entry.is_file() or image_kind(read_head(os.fsencode(entry.path))):
                    return []
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed: {error.strerror}. Make it readable") from None
    if files or not 0 < len(folders) <= MAX_FOLDERS or not depth:
        return [] if folders else sorted(files)
    found: list[Path] = []
    for path in sorted(folders):
        inner = shards_in(path, depth - 1)
        if not inner or any(file.suffix.lower() not in (".parquet", ".arrow") for file in inner):
            return []
        found += inner
    return found


def is_shard(name: str) -> bool:
    """Whether a file of this name is a part of a data set, or would be, unpacked or finished."""
    lower = name.lower()
    return not name.startswith(".") and lower.endswith((".tar", ".parquet", ".arrow", *PACKED, *UNFINISHED))


def _split_of(file: PurePath) -> str:
    """The split that a file's name tells: ``train-00000-of-00002.parquet``, ``imagenet-val-003.tar``; or its folder's."""
    words = [word for word in re.split(r"[-_.]+", file.name.lower()) if word in SPLITS]
    by_folder = file.suffix.lower() == ".arrow" or file.parent.name.lower() in SPLITS
    return words[0] if words else file.parent.name if by_folder and file.suffix.lower() != ".tar" else ""


def of_split(src: str, files: Sequence[PurePath], options: SourceOptions) -> tuple[list[int], SourceOptions]:
    """Which of the files are of the split asked for; all where they tell no splits, or only one."""
    everything = list(range(len(files)))
    kinds = {KINDS.get(file.suffix.lower()) for file in files}
    if not (kinds == {"columns"} or (kinds == {"tar"} and len(files) > 1)):
        return everything, options
    splits = [_split_of(file) for file in files]
    found = sorted(set(splits))
    if (options.split and len(found) > 1) or options.split in found:
        if options.split not in found:
            raise SourceError(f"{src}: has no split {options.split!r}. It holds {', '.join(filter(None, found))}")
        return [k for k in everything if splits[k] == options.split], replace(options, split="")
    if len(found) > 1:
        names = ", ".join(name or "others" for name in found)
        first = next(filter(None, found))
        raise SourceError(f"{src}: holds the splits {names}. Choose one with `split={first}`")
    return everything, options


def matching(src: str) -> list[Path]:
    """The files of a pattern: braces first, then ``*``; brackets are part of names, unless nothing is called so."""
    found = []
    names = braces(src)
    for name in names:
        plain = re.sub(r"([\[\]?])", r"[\1]", name)
        matches = sorted(glob.glob(plain)) or sorted(glob.glob(name))  # noqa: PTH207  # any root
        if not matches and len(names) > 1:
            raise SourceError(f"{name}: no such file, but {src} asks for it")
        found += [Path(match) for match in matches]
    return found


def braces(pattern: str) -> list[str]:
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
