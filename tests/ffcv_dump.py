"""Read .beton files with an unmodified FFCV: ``python ffcv_dump.py OUT.npz A.beton B.beton ...``.

A script of its own: FFCV's compiled functions raise from numba finalizers when they are collected, which pytest rightly
reports against whichever test runs at that moment.
"""

import os
import sys

import numpy as np
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder
from ffcv.loader import Loader, OrderOption

SIDE = 16


def dump(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre squares resized to SIDE, labels and index of every record, in file order."""
    square = CenterCropRGBImageDecoder((SIDE, SIDE), ratio=1)
    pipelines = {"image": [square], "label": [IntDecoder()], "index": [IntDecoder()]}
    loader = Loader(
        path, batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False, os_cache=True, pipelines=pipelines
    )
    batches = [tuple(np.array(column) for column in batch) for batch in loader]
    images, labels, index = (np.concatenate(column) for column in zip(*batches, strict=True))
    return images, labels[:, 0], index[:, 0]


if __name__ == "__main__":
    arrays = {}
    for path in sys.argv[2:]:
        arrays[path + ":images"], arrays[path + ":labels"], arrays[path + ":index"] = dump(path)
    np.savez(sys.argv[1], **arrays)
    os._exit(0)  # without the noise of those finalizers
