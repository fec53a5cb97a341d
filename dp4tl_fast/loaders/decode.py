"""One record to pixels, slow and plain: the reference of every decoder, and the judge of what can be decoded at all."""

from __future__ import annotations

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.format import MODE_JPEG, MODE_RAW
from dp4tl_fast.common.errors import RecordError


def bad_record(beton: Beton, record: int, why: str) -> RecordError:
    """The error that names the record, its class and the file."""
    label = int(beton.labels[record])
    return RecordError(
        f"{beton.path}: record {record} (class {label}, {beton.class_names[label]!r}) {why}. "
        "Convert its source again, or leave such records out (`on_bad_record=skip`; of a loader, `on_error=skip`)"
    )


def decode_record(beton: Beton, record: int, row: np.void, payload: np.ndarray) -> np.ndarray:
    """Pixels of a record, uint8 ``[height, width, 3]``, RGB.

    Args:
        row: Of ``beton.images``.
        payload: The stored bytes, uint8 ``[size]``.

    Raises:
        RecordError: The stored bytes are not an image of the size that the file states.
    """
    mode, width, height = (int(row[name]) for name in ("mode", "width", "height"))
    if mode == MODE_RAW:
        if payload.size != width * height * 3:
            raise bad_record(beton, record, f"has {payload.size} bytes, not {width} x {height} x 3")
        return payload.reshape(height, width, 3)
    if mode != MODE_JPEG:
        raise bad_record(beton, record, f"has the unknown mode {mode}")
    from PIL import Image  # takes 10 ms, and loaders import this module for what they seldom need

    from dp4tl_fast.common.pictures import open_picture

    try:
        with open_picture(payload.tobytes(), formats=("JPEG",)) as image:
            if image.size != (width, height):
                w, h = image.size
                raise ValueError(f"it holds {w} x {h} pixels, but the file says {width} x {height}")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        # PIL names its buffer's address, which changes every time and helps nobody.
        reason = "it is not a JPEG" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise bad_record(beton, record, f"cannot be decoded: {reason}") from None
