"""From labels, as files have them, to class ids and names: one rule for every kind of source.

- Labels that are numbers are class ids by their value (``2``, ``2.0``, ``" 2"``, ``+1`` and ``01`` are numbers); they must be
  whole and not negative. Above ``MAX_LISTED`` they are renumbered in ascending order and become names.
- Where no label is a number, labels are class names. Numbers and text together are refused: one of them is a mistake.
- Class names get their ids in the order asked for: of their bytes, natural (numbers in them by value), or a file's.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dp4tl_fast.common.errors import SourceError, UsageError
from dp4tl_fast.sources.files import check_file
from dp4tl_fast.sources.options import SourceOptions

MAX_LISTED = 1_000_000  # a class list of more ids than this would be nearly empty: they are numbers of another kind
MAX_ID = 10**12
ORDERS = {"text": "the order of their bytes", "natural": "natural order"}


class Labels(NamedTuple):
    """Class names by id, the class id of every sample, int64 ``[n]``, and the rule that was applied, in words."""

    names: list[str]
    ids: np.ndarray
    rule: str


def class_labels(
    src: str, values: Sequence[Any], where: Callable[[int], str], options: SourceOptions, names: list[str] | None = None
) -> Labels:
    """Class names and ids from labels as they stand in a source.

    Args:
        src: What the labels come from, for messages.
        values: Labels as they stand in the source: numbers, text, bytes; none that ``is_missing``.
        where: What to call sample ``i`` in messages.
        names: Class names by id, where the source has them.

    Raises:
        SourceError: A label is no class id or class name, or numbers and text are mixed.
    """
    kinds = [_number(value) for value in values] if options.label_type != "text" or names else [None] * len(values)
    first_text = next((i for i, number in enumerate(kinds) if number is None), None)
    first_number = next((i for i, number in enumerate(kinds) if number is not None), None)
    if first_text is None:
        return _by_id(src, kinds, where, options, names)  # type: ignore[arg-type]
    if options.label_type == "id" or names:
        raise SourceError(
            f"{where(first_text)}: the label {values[first_text]!r} is not a number, but labels are class ids here"
        )
    if first_number is not None:
        raise SourceError(
            f"{where(first_text)}: the label {values[first_text]!r} is text, but that of {where(first_number)}, "
            f"{values[first_number]!r}, is a number. Correct one, or give `label_type=text` if both are class names"
        )
    texts = [_text(value, where, i) for i, value in enumerate(values)]
    found = ordered(set(texts), src, options)
    position = {name: i for i, name in enumerate(found)}
    ids = np.fromiter((position[text] for text in texts), np.int64, len(texts))
    return Labels(found, ids, f"labels are class names, in {order_in_words(options)}")


def order_in_words(options: SourceOptions) -> str:
    return ORDERS.get(options.class_order, f"the order of {options.class_order}")


def is_missing(value: Any) -> bool:
    """Whether a label is none, which makes a sample a bad record: nothing, or text of blanks."""
    return value is None or (isinstance(value, (str, bytes)) and not value.strip())


def _number(value: Any) -> float | int | None:
    """The label as a number; ``None`` where it is text."""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return None
    if "_" in text:  # Python takes 1_000 for a number
        return None
    try:
        return int(text)
    except ValueError:
        pass
    if re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*|\s*[+-]?nan\s*", text, re.IGNORECASE):
        return float(text)
    return None


def _text(value: Any, where: Callable[[int], str], i: int) -> str:
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    if isinstance(text, (bool, int, float, np.generic)):
        text = str(text)
    if not isinstance(text, str):
        raise SourceError(f"{where(i)}: the label {value!r} is not a class name")
    return text


def _by_id(
    src: str, numbers: list[float | int], where: Callable[[int], str], options: SourceOptions, names: list[str] | None
) -> Labels:
    for i, number in enumerate(numbers):
        limit = len(names) - 1 if names else MAX_ID
        if not 0 <= number <= limit or number != int(number):
            why = f"there are names for {len(names)} classes" if names and number > limit else _why(number)
            raise SourceError(f"{where(i)}: the label {number} is not a class id: {why}")
    labels = np.fromiter((int(number) for number in numbers), np.int64, len(numbers))
    if names:
        rule = "labels are ids of the class names that come with them"
    elif labels.max(initial=0) < MAX_LISTED:
        names, rule = [str(i) for i in range(int(labels.max(initial=-1)) + 1)], "labels are class ids"
    else:
        distinct, labels = np.unique(labels, return_inverse=True)
        names, rule = [str(i) for i in distinct.tolist()], "labels are class ids, renumbered in ascending order"
    names, labels = reordered(names, labels, src, options)
    return Labels(names, labels, rule + ("" if options.class_order == "text" else f", in {order_in_words(options)}"))


def _why(number: float) -> str:
    if math.isnan(number):
        return "it is not a number. Fill it in or remove the row"
    if number < 0:
        return "it is negative, as in test sets that hide their labels. Choose another split, or remove the row"
    why = f"it is above {MAX_ID}" if number > MAX_ID else "it is not a whole number"
    return f"{why}. Correct it, or give `label_type=text` if labels are class names"


def reordered(names: list[str], labels: np.ndarray, src: str, options: SourceOptions) -> tuple[list[str], np.ndarray]:
    """Ids that come with names keep their order, unless another one is asked for."""
    if options.class_order == "text":
        return names, labels
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise SourceError(
            f"{src}: calls two classes {twice!r}, so `class_order={options.class_order}` cannot tell them apart. Leave it out"
        )
    order = ordered(set(names), src, options)
    position = {name: i for i, name in enumerate(order)}
    return order, np.array([position[name] for name in names], np.int64)[labels]


# -- order of names ---------------------------------------------------------------------------------------------------


def ordered(names: Iterable[str], src: str, options: SourceOptions) -> list[str]:
    """Class names in the order of their ids.

    Raises:
        SourceError: Two names are the same text in two Unicode forms; a name is missing in the file that gives the order, or the
            file names classes that there are not (allowed with ``allow_empty``).
    """
    found = set(names)
    _check_unicode(found, src)
    if options.class_order == "natural":
        return sorted(found, key=_natural)
    if options.class_order == "text":
        return sorted(found, key=os.fsencode)
    given = list(options.class_list) or read_order(options.class_order, found)
    if missing := sorted(found - set(given), key=os.fsencode):
        count = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        raise SourceError(f"{options.class_order}: has no class {missing[0]!r}, but {src} does{count}")
    if not options.allow_empty and (more := [name for name in given if name not in found]):
        several = f", nor of {len(more) - 1} {'other' if len(more) == 2 else 'others'}" if len(more) > 1 else ""
        raise SourceError(
            f"{options.class_order}: has the class {more[0]!r}, but {src} has no image of it{several}. "
            "Give `allow_empty` to keep such classes"
        )
    return given


def _natural(name: str) -> tuple[list[tuple[int, Any]], bytes]:
    """As timm sorts: lower case, numbers by value."""
    parts = [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name.lower()) if part]
    return parts, os.fsencode(name)


def read_order(path: str, known: set[str]) -> list[str]:
    """Class names by id, from a text file with one per line. Blanks around a name count only if a ``known`` one has them.

    Raises:
        UsageError: It cannot be read, or names a class twice.
    """
    try:
        check_file(path)
        lines = Path(path).read_text("utf-8-sig", "surrogateescape").split("\n")
    except OSError as error:
        raise UsageError(
            f"`class_order={path}`: cannot be read: {error.strerror}. Give text, natural, or a file"
        ) from None
    names = [line if line in known else line.strip() for line in lines if line.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"`class_order={path}`: names {twice[0]!r} twice")
    return names


def _check_unicode(names: set[str], src: str) -> None:
    composed: dict[str, str] = {}
    for name in sorted(names):
        form = unicodedata.normalize("NFC", name)
        if form in composed:
            raise SourceError(
                f"{src}: the classes {composed[form]!a} and {name!a} read the same: they are {form!r} in two Unicode forms. "
                "Rename one of them, or merge them"
            )
        composed[form] = name
