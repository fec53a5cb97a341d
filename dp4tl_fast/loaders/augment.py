"""Where each image is cropped and whether it is mirrored: pure functions of (seed, epoch, record, view).

The one truth for every backend, and the reference of the native one (``kernels/csrc/core/pixels/crop.cpp``). Random numbers are
``philox.philox(seed, record, epoch, view, block)``; blocks t below 10 are try t at a random resized crop, block 16 mirrors (top
bit of word 0). Blocks from 32 on belong to colours (``training/views.py``).
"""

from __future__ import annotations

import numpy as np

from dp4tl_fast.common.philox import philox
from dp4tl_fast.loaders.spec import LoaderSpec

CROP_TRIES, MIRROR_BLOCK = 10, 16


def parameters(
    spec: LoaderSpec, epoch: int | np.ndarray, records: np.ndarray, heights: np.ndarray, widths: np.ndarray, view: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """What one view of each image shows.

    Args:
        epoch: Of all images, or int64 ``[n]`` of each.
        records: Record numbers, int64 ``[n]``.
        heights, widths: Of the stored images in pixels, int ``[n]``.

    Returns:
        Boxes ``(top, left, height, width)`` in pixels, inside the image, int64 ``[n, 4]``; and mirror, bool ``[n]``.
    """
    h, w, epochs = heights.astype(np.int64), widths.astype(np.int64), np.broadcast_to(epoch, records.shape)
    if spec.transform == "random_resized_crop":
        boxes = random_boxes(spec, epochs, records, h, w, view)
    elif spec.transform == "center_crop":
        boxes = center_boxes(h, w, spec.crop_ratio)
    else:
        boxes = np.stack([np.zeros_like(h), np.zeros_like(h), h, w], axis=1)
    mirror = np.zeros(len(records), bool)
    if spec.flip:
        mirror = philox(spec.seed, records, epochs, view, MIRROR_BLOCK)[0] >= np.uint64(2**31)
    return boxes, mirror


def center_boxes(h: np.ndarray, w: np.ndarray, ratio: float) -> np.ndarray:
    """Centre squares of side ``floor(ratio * min(h, w))`` (as FFCV rounds), at least one pixel. int64 ``[n, 4]``."""
    side = np.maximum(1, (ratio * np.minimum(h, w)).astype(np.int64))
    return np.stack([(h - side) // 2, (w - side) // 2, side, side], axis=1)


def random_boxes(
    spec: LoaderSpec, epochs: np.ndarray, records: np.ndarray, h: np.ndarray, w: np.ndarray, view: int
) -> np.ndarray:
    """torchvision's ``RandomResizedCrop.get_params``: ten tries, then the centre. int64 ``[n, 4]``."""
    boxes = _fallback_boxes(h, w, spec.aspect)
    todo = np.arange(len(records))
    log_aspect = np.log(spec.aspect)
    for t in range(CROP_TRIES):
        if len(todo) == 0:
            break
        words = philox(spec.seed, records[todo], epochs[todo], view, t)
        unit = words[:2] * 2.0**-32  # [0, 1)
        area = h[todo] * w[todo] * (spec.scale[0] + unit[0] * (spec.scale[1] - spec.scale[0]))
        aspect = np.exp(log_aspect[0] + unit[1] * (log_aspect[1] - log_aspect[0]))
        ch, cw = np.rint(np.sqrt(area / aspect)).astype(np.int64), np.rint(np.sqrt(area * aspect)).astype(np.int64)
        fits = (ch >= 1) & (ch <= h[todo]) & (cw >= 1) & (cw <= w[todo])
        hit, ch, cw = todo[fits], ch[fits], cw[fits]
        # A 32-bit word times the number of places, shifted: exact in integers, so every language agrees.
        top, left = (
            (words[k, fits] * (room + 1).astype(np.uint64) >> np.uint64(32)).astype(np.int64)
            for k, room in ((2, h[hit] - ch), (3, w[hit] - cw))
        )
        boxes[hit] = np.stack([top, left, ch, cw], axis=1)
        todo = todo[~fits]
    return boxes


def _fallback_boxes(h: np.ndarray, w: np.ndarray, aspect: tuple[float, float]) -> np.ndarray:
    """The largest centred box whose aspect is allowed."""
    ratio = w / h
    ch = np.where(ratio < aspect[0], np.rint(w / aspect[0]), h).astype(np.int64)
    cw = np.where(ratio > aspect[1], np.rint(h * aspect[1]), w).astype(np.int64)
    ch, cw = np.clip(ch, 1, h), np.clip(cw, 1, w)
    return np.stack([(h - ch) // 2, (w - cw) // 2, ch, cw], axis=1)
