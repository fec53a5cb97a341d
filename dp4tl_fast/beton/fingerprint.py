"""What identifies a source for selections, surrogates and runs: its classes in order, its labels, its records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fingerprint = dict[str, int | str]
FIRST = ("samples", "classes", "labels_sha256")  # all that the first versions wrote
CLASS_NAMES, RECORDS, CHECKSUMS = "class_names_sha256", "records_sha256", "checksums_sha256"
KEYS = (*FIRST, CLASS_NAMES, RECORDS, CHECKSUMS)


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """How two fingerprints differ in what both have: in words for "..., but X has ..."; empty when they do not."""
    other = [key for key in KEYS if key in a and key in b and a[key] != b[key]]
    if not other:
        return ""
    if other[0] in ("samples", "classes"):
        return f"{b['samples']} samples of {b['classes']} classes, not {a['samples']} samples of {a['classes']}"
    if CLASS_NAMES in other:
        return "classes of other names or in another order"
    if "labels_sha256" in other:
        return "as many samples and classes, but other labels, or the same in another order"
    return "as many images of each class, but other images, or the same in another order"


def says_class_names(fingerprint: Mapping[str, Any]) -> bool:
    """Whether it tells classes apart by their names: those that earlier versions wrote do not."""
    return CLASS_NAMES in fingerprint
