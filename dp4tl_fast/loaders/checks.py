"""Checks when a loader is opened, not after an hour."""

from __future__ import annotations

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.format import MODE_JPEG, MODE_RAW
from dp4tl_fast.beton.reader import pieces
from dp4tl_fast.common.errors import BackendError, UsageError
from dp4tl_fast.common.machine import memory
from dp4tl_fast.loaders.decode import bad_record
from dp4tl_fast.loaders.spec import LoaderSpec


def check_tables(beton: Beton, records: np.ndarray) -> str:
    """Table-level checks of every record that will be read; decoding finds the rest.

    Args:
        records: int64 ``[n]``, ascending.

    Returns:
        ``record_kind`` of them.

    Raises:
        RecordError: An unknown mode, an empty image, or a raw record whose bytes do not match its size.
    """
    mode, width, height = (beton.images[name] for name in ("mode", "width", "height"))
    kinds = set()
    for part in pieces(len(records)):
        some = records[part]
        # Records in a row are a slice of the table, which is not copied.
        rows = slice(some[0], some[-1] + 1) if some[-1] - some[0] == len(some) - 1 else some
        modes, pixels = mode[rows], width[rows].astype(np.int64) * height[rows]
        raw = modes == MODE_RAW
        bad = {
            "has neither JPEG nor raw pixels": (modes != MODE_JPEG) & ~raw,
            "has no pixels": pixels == 0,
            "is raw, but its bytes are not width x height x 3": raw & (beton.sizes[rows] != 3 * pixels),
        }
        for why, wrong in bad.items():
            if wrong.any():
                raise bad_record(beton, int(some[wrong.argmax()]), why)
        kinds.add(record_kind(modes))
    return kinds.pop() if len(kinds) == 1 else "mixed"


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
            f"backend {name!r}: device {device!r} does not exist ({torch.cuda.device_count()} CUDA devices are usable). "
            "Use device=cpu, or install a driver that matches torch's CUDA"
        )
