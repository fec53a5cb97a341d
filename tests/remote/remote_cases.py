"""What the tests of files behind URLs share."""


import numpy as np
import torch

from dp4tl_fast.loaders import LoaderSpec

CLASSES, PER_CLASS = 8, 25
KEPT = [1, 4, 5]
SPEC = LoaderSpec(batch_size=16, size=32, transform="random_resized_crop", shuffle=True, flip=True, workers=1)


def kept(beton):
    return np.flatnonzero(np.isin(beton.labels, KEPT))


def batches(loader):
    with loader:
        return [(images.clone(), labels) for images, labels in loader]


def same(found, expected):
    assert len(found) == len(expected)
    for (a, b), (c, d) in zip(found, expected, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def intact(beton, original, records=None):
    records = np.arange(original.num_samples) if records is None else np.array(records)
    beton.fetch(records)
    for i in records:
        assert bytes(beton.payload(int(i))) == bytes(original.payload(int(i)))


def of_records(server, beton):
    """The ranges that were asked for in the pages."""
    return [(a, b) for name, a, b in server.asked if name == "x.beton" and a >= beton.page_size]
