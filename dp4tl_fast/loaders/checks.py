"""Checks when a loader is opened, not after an hour."""

from __future__ import annotations

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.format import MODE_JPEG, MODE_RAW
from dp4tl_fast.common.errors import BackendError, UsageError
from dp4tl_fast.common.machine import memory
from dp4tl_fast.loaders.decode import bad_record
from dp4tl_fast.loaders.spec import LoaderSpec


def check_tables(beton: Beton, records: np.ndarray) -> None:
    """Table-level checks of every record that will be read; decoding finds the rest.

    Raises:
        RecordError: An unknown mode, an empty image, or a raw record whose bytes do not match its size.
    """
    rows, sizes = beton.images[records], beton.sizes[records]
    pixels = rows["width"].astype(np.int64) * rows["height"]
    bad = {
        "has neither JPEG nor raw pixels": (rows["mode"] != MODE_JPEG) & (rows["mode"] != MODE_RAW),
        "has no pixels": pixels == 0,
        "is raw, but its bytes are not width x height x 3": (rows["mode"] == MODE_RAW) & (sizes != 3 * pixels),
    }
    for why, wrong in bad.items():
        if wrong.any():
            raise bad_record(beton, int(records[wrong.argmax()]), why)


def check_memory(name: str, spec: LoaderSpec) -> None:
    """Refuse batches larger than all the memory that this process may use: the system would rather end it than say so."""
    if spec.batch_bytes > (most := memory()):
        raise BackendError(
            f"{name} loader: no memory for a batch of {spec.batch_bytes} bytes: this process may use {most}. Use a smaller "
            "batch_size or size, or fewer views"
        )


def record_kind(modes: np.ndarray) -> str:
    """``jpeg``, ``raw`` or ``mixed``, from the records' modes."""
    raw = modes == MODE_RAW
    return "raw" if raw.all() else "mixed" if raw.any() else "jpeg"


def check_device(name: str, device: str) -> None:
    """Refuse a CUDA device that is not there."""
    if device == "cpu":
        return
    import torch

    try:
        found = torch.cuda.is_available() and (torch.device(device).index or 0) < torch.cuda.device_count()
    except RuntimeError as error:
        raise UsageError(f"`device={device}`: {error}") from None
    if not found:
        raise BackendError(
            f"backend {name!r}: device {device!r} is not there ({torch.cuda.device_count()} CUDA devices are usable). "
            "Use device=cpu, or install a driver that matches torch's CUDA"
        )
