"""One wording for a parameter out of range: name, value, rule; and for numbers of items that are none."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from dp4tl_fast.common.errors import SelectionError, UsageError


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raise ``UsageError`` unless ``ok``: "`batch_size=0`: must be at least 1"."""
    if not ok:
        raise UsageError(f"`{name}={value}`: must be {rule}")


def require_one_of(name: str, value: str, known: Collection[str]) -> None:
    """Raise ``UsageError`` unless ``value`` is one of ``known``, which the message lists."""
    *most, last = known
    require(value in known, name, value, f"{', '.join(most)} or {last}")


def class_id(given: str, names: Sequence[str], parameter: str = "classes") -> int:
    """The class that a name, an id, ``name:0`` or ``id:0`` stands for.

    Args:
        names: Class names by id.

    Raises:
        UsageError: There is no such class, or the text is the name of one class and the id of another.
    """
    kind, _, rest = given.partition(":")
    by_name = names.index(given) if given in names else None
    by_id = int(given) if given.isdecimal() and int(given) < len(names) else None
    if by_name is None and kind == "name" and rest in names:
        by_name = names.index(rest)
    if by_name is None and kind == "id" and rest.isdecimal() and int(rest) < len(names):
        by_id = int(rest)
    if by_name is not None and by_id is not None and by_name != by_id:
        what = f"the name of class {by_name} and the id of class {names[by_id]!r}"
        raise UsageError(f"`{parameter}={given}`: is {what}. Give name:{given} or id:{given}")
    found = by_id if by_name is None else by_name
    if found is None:
        raise UsageError(f"`{parameter}={given}`: the source has no such class. `dp4tl-fast inspect` lists them")
    return found


def numbers(values: object, count: int, what: str) -> np.ndarray:
    """Numbers of items out of ``count``, int64 ``[n]`` in their order.

    Args:
        values: Whole numbers ``[n]``.
        what: For messages: "x.beton: record".

    Raises:
        SelectionError: Not whole numbers ``[n]``, or not from 0 to ``count - 1``.
    """
    given = np.asarray(values)
    if given.ndim != 1 or not (np.issubdtype(given.dtype, np.integer) or given.size == 0):
        raise SelectionError(
            f"{what} numbers must be whole numbers [n], but these are {given.dtype} {list(given.shape)}. "
            "For a boolean mask, give np.flatnonzero(mask)"
        )
    for number in (int(given.min()), int(given.max())) if given.size else ():
        if not 0 <= number < count:
            raise SelectionError(f"{what} {number} does not exist: they are 0 to {count - 1}")
    return given.astype(np.int64)


def distinct_numbers(values: object, count: int, what: str) -> np.ndarray:
    """``numbers`` of distinct items, ascending.

    Raises:
        SelectionError: As there, or one of them is given twice.
    """
    found = np.sort(numbers(values, count, what))
    if (twice := found[1:] == found[:-1]).any():
        raise SelectionError(f"{what} {found[twice.argmax()]} is given twice. Give each once")
    return found
