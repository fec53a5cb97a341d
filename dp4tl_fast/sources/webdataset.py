"""WebDataset: files of one tar whose names are equal up to the first dot are one sample, ``key.jpg`` and ``key.cls``.

The image is what is one by content; the label is the text of ``.cls`` (or of the ending asked for), or ``label`` in ``.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dp4tl_fast.common.content import HEAD_BYTES, TEXT, image_kind, what_it_is
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.classes import class_labels, is_missing
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.tar_members import Member

MAX_LABEL_BYTES = 1 << 20
TEXTS = ("cls", "json", "txt", "xml")  # endings of what is no image by intention
Read = Callable[[int, Member, int], bytes]  # (number of the tar, member, at most so many bytes)
Group = dict[str, Member]  # ending -> file


@dataclass(slots=True)
class Samples:
    """What was found: see ``Source``; ``table`` is int64 ``[n, 3]``: size, number of the tar, start."""

    class_names: list[str]
    labels: np.ndarray
    names: list[bytes]
    table: np.ndarray
    bad: dict[int, str]
    left_out: list[tuple[str, str]]
    rule: str


def find(tars: list[list[Member]], read: Read, options: SourceOptions, paths: list[str]) -> Samples | None:
    """The samples of the tars, in their order; ``None`` where they are no WebDataset.

    They are one where a ``.cls``, or a ``.json`` with a label, lies beside an image; or where keys are asked for.

    Raises:
        SourceError: Several folders hold images with a label in a ``.json``: they may be classes, or not.
    """
    keys = bool(options.image_key or options.label_key)
    if not keys and (options.classes_from or options.labels):  # it is said where the classes stand
        return None
    groups: list[tuple[int, bytes, Group]] = []
    for tar, files in enumerate(tars):
        by_key: dict[bytes, Group] = {}
        for member in files:
            folder, slash, base = member.name.rpartition(b"/")
            key, _, ending = base.partition(b".")
            group = by_key.setdefault(folder + slash + key, {})
            lower = os.fsdecode(ending.lower())
            group[os.fsdecode(ending) if lower in group else lower] = member  # x.JPG beside x.jpg is another file
        groups += [(tar, key, group) for key, group in by_key.items()]
    if not (keys or _has_labels(groups, read, paths)):
        _refuse_other_labels(groups, read, paths)
        return None
    return _samples(groups, read, options, paths)


def _has_labels(groups: list[tuple[int, bytes, Group]], read: Read, paths: list[str]) -> bool:
    for tar, _, group in groups:
        if "cls" in group and _images(tar, group, read):
            return True
        if "json" in group and (images := _images(tar, group, read)) and "json" not in images:
            try:
                found = "label" in json.loads(read(tar, group["json"], MAX_LABEL_BYTES))
            except (ValueError, TypeError, RecursionError):
                return False
            if found and len({key.rpartition(b"/")[0] for _, key, group in groups if "json" in group}) > 1:
                raise SourceError(
                    f"{paths[tar]}: holds images in several folders, and {os.fsdecode(group['json'].name)} has a label. Say which "
                    "counts: `label_key=json:label` or `classes_from=top`"
                )
            return found
    return False


def _refuse_other_labels(groups: list[tuple[int, bytes, Group]], read: Read, paths: list[str]) -> None:
    """Flat images whose labels were meant for a WebDataset, but are not where they are looked for."""
    for tar, key, group in groups:
        endings = [ending for ending in group if ending.rpartition(".")[2] in ("cls", "json")]
        if b"/" in key or not endings or not (images := _images(tar, group, read)) or endings[0] in images:
            continue
        where = f"{paths[tar]}: {os.fsdecode(group[endings[0]].name)}"
        if "." in endings[0]:
            raise SourceError(
                f"{where}: in a WebDataset a sample's name ends at the first dot, so this one is called {os.fsdecode(key)!r}. "
                "Pack the tar again with other names"
            )
        _, why = _label(tar, group, read, SourceOptions(label_key="json:label"))
        raise SourceError(f"{where}: {why}")


def _images(tar: int, group: Group, read: Read) -> list[str]:
    return [ending for ending, m in group.items() if image_kind(read(tar, m, HEAD_BYTES))]


def _samples(groups: list[tuple[int, bytes, Group]], read: Read, options: SourceOptions, paths: list[str]) -> Samples:
    names: list[bytes] = []
    rows: list[tuple[int, int, int]] = []
    values: list[Any] = []
    bad: dict[int, str] = {}
    left_out: list[tuple[str, str]] = []
    for tar, key, group in groups:
        where = f"{paths[tar]}: {os.fsdecode(key)}"
        images = _chosen(group, options.image_key) if options.image_key else _images(tar, group, read)
        if len(images) > 1:
            flags = " or ".join(f"`image_key={ending}`" for ending in images)
            raise SourceError(f"{where}: has several images, {', '.join(images)}. Choose with {flags}")
        value, why = _label(tar, group, read, options)
        instead = "" if images else _instead_of_image(tar, group, read)
        if not images and why and not instead:
            left_out += [
                (f"{paths[tar]}: {os.fsdecode(m.name)}", "neither an image nor a label of one") for m in group.values()
            ]
            continue
        if not images:
            why = instead or f"it has no image: its files are {', '.join(group)}"
        if why:
            bad[len(names)] = why
        image = group[images[0]] if images else next(iter(group.values()))
        names.append(image.name)
        rows.append((0 if why else image.size, tar, image.start))
        values.append(value)
    good = [i for i in range(len(names)) if i not in bad]
    if not good:
        first = f"Of the first: {next(iter(bad.values()))}" if bad else "It has no images"
        raise SourceError(f"{paths[0]}: no sample has an image and a label. {first}")
    labels = np.full(len(names), -1, np.int64)
    at = [(rows[i][1], names[i]) for i in good]
    src = paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1].rpartition('/')[2]}"
    class_names, labels[good], rule = class_labels(
        src, [values[i] for i in good], lambda k: f"{paths[at[k][0]]}: {os.fsdecode(at[k][1])}", options
    )
    return Samples(class_names, labels, names, np.array(rows, np.int64).reshape(-1, 3), bad, left_out, rule)


def _label(tar: int, group: Group, read: Read, options: SourceOptions) -> tuple[Any, str]:
    """The label, or why there is none."""
    key = options.label_key or ("cls" if "cls" in group else "json:label")
    ending, _, path = key.partition(":")
    if ending not in group:
        return None, f"it has no label: no .{ending} file" + ("" if options.label_key else ", nor .cls")
    text = read(tar, group[ending], MAX_LABEL_BYTES).decode("utf-8", "surrogateescape").strip()
    if not path:
        return (text, "") if text else (None, f"its .{ending} file is empty")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, f"its .{ending} file is not JSON: {error}"
    for name in path.split("."):
        if not isinstance(value, dict) or value.get(name) is None:
            keys = (isinstance(value, dict) and ", ".join(value)) or "no names"
            return None, f"its .{ending} file has no {name!r} (it has {keys}). Choose with `label_key=json:NAME`"
        value = value[name]
    return (None, f"its .{ending} file has an empty {path}") if is_missing(value) else (value, "")


def _chosen(group: Group, key: str) -> list[str]:
    """The image with the ending asked for, spelled ``jpg``, ``.jpg`` or ``JPG``."""
    ending = key.removeprefix(".")
    return [name for name in (ending, ending.lower()) if name in group][:1]


def _instead_of_image(tar: int, group: Group, read: Read) -> str:
    """What lies in place of a sample's image: a pointer, an error page, HEIC ...; empty where no file is such a thing."""
    for ending, member in group.items():
        if ending.rpartition(".")[2] not in TEXTS and (what := what_it_is(read(tar, member, HEAD_BYTES))) not in (
            "",
            TEXT,
        ):
            return f"its .{ending} file is {what}"
    return ""
