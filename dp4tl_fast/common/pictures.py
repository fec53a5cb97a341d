"""Opening images with Pillow without its own limit of pixels: there is one limit, that of ``convert``, for every reader."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_PIXELS = 178_956_970  # of an image that convert takes by default: where Pillow itself would refuse one


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings of damage that it gets over: they name no file, and come in the middle of a progress bar."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def open_picture(data: bytes, formats: tuple[str, ...] | None = None) -> Any:
    """A ``PIL.Image.Image``, not yet decoded. Its size is to be checked before it is.

    Raises:
        Exception: Whatever Pillow raises over damaged headers.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return Image.open(io.BytesIO(data), formats=formats)
