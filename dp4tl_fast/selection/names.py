"""Readable names, where classes are named by an id (``n01443537``): from a list such as Tiny-ImageNet's ``words.txt``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import printable


def readable(names: Sequence[str], path: str) -> list[str]:
    """The readable name of every class: its first synonym; ``names`` themselves without a list.

    Args:
        names: Class names by class id.
        path: Text file, one class per line: its name, a tab or spaces, its readable name, synonyms after commas. Empty for
            none. Classes that are not there keep their names.

    Raises:
        UsageError: The file cannot be read, or names no class of the source.
    """
    if not path:
        return [printable(name) for name in names]
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"`names={path}`: cannot be read as text ({error})") from None
    pairs = [line.split(None, 1) for line in lines]
    called = {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}
    if not any(name in called for name in names):
        raise UsageError(
            f"`names={path}`: has none of the source's classes ({', '.join(names[:3])} ...). It needs lines such as "
            "`n01443537<TAB>goldfish, Carassius auratus`"
        )
    return [printable(called.get(name, name)) for name in names]
