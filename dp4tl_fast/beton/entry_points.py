"""Entry points: an index segment in a JPEG, from which the native loader decodes only what a crop needs. Other decoders pass
over it; the image's own bytes stay as they are. The segment's layout: ``kernels/csrc/core/jpeg/index.h``."""

from __future__ import annotations

from collections.abc import Sequence

from dp4tl_fast.common.checks import require_one_of

ENTRY_POINT_PIXELS = 128 * 128  # a crop of a smaller image needs most of it
ENTRY_POINT_DISTANCE = 64  # pixels in a row: half of it decodes 2 % faster and takes twice the 2.5 % of bytes


def wants_entry_points(value: str) -> bool:
    """The flag ``entry_points``.

    Raises:
        UsageError: It is neither on nor off.
    """
    require_one_of("entry_points", value, ("on", "off"))
    return value == "on"


def add_entry_points(payloads: Sequence[bytes], areas: Sequence[int]) -> list[bytes]:
    """Several JPEGs with entry points, which takes less time than one by one.

    Args:
        payloads: The JPEGs.
        areas: Of each, its pixels.

    Returns:
        Of each the JPEG with entry points; the very same object where it is too small, has some, is no ordinary one, or
        cannot be decoded in full.
    """
    from dp4tl_fast.kernels._native import jpeg_checked

    large = [i for i, area in enumerate(areas) if area >= ENTRY_POINT_PIXELS]
    found = jpeg_checked([payloads[i] for i in large], [ENTRY_POINT_DISTANCE] * len(large), all=False)
    results = list(payloads)
    for i, result in zip(large, found, strict=True):
        if not isinstance(result, str):
            results[i] = result
    return results


def checked(payloads: Sequence[bytes], areas: Sequence[int]) -> list[bytes | str]:
    """Read all of several JPEGs, which takes less time than one by one.

    Args:
        payloads: The JPEGs.
        areas: Of each, its pixels if it shall have entry points, or 0.

    Returns:
        Of each: a string that says why it cannot be decoded in full; else the JPEG with entry points, or the very same
        object where none are wanted, it is too small, has some, or is no ordinary one.
    """
    from dp4tl_fast.kernels._native import jpeg_checked

    return jpeg_checked(payloads, [ENTRY_POINT_DISTANCE if area >= ENTRY_POINT_PIXELS else 0 for area in areas])


def check(payload: bytes) -> None:
    """Read all of a JPEG.

    Raises:
        RuntimeError: It cannot be decoded in full.
    """
    from dp4tl_fast.kernels._native import jpeg_check

    jpeg_check(payload)
