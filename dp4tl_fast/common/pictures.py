"""Opening images with Pillow without its own limit of pixels: there is one limit, that of ``convert``, for every reader."""

from __future__ import annotations

import io
from typing import Any

MAX_PIXELS = 178_956_970  # of an image that convert takes by default: where Pillow itself would refuse one


def open_picture(data: bytes, formats: tuple[str, ...] | None = None) -> Any:
    """A ``PIL.Image.Image``, not yet decoded. Its size is to be checked before it is.

    Raises:
        Exception: Whatever Pillow raises over damaged headers.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return Image.open(io.BytesIO(data), formats=formats)
