"""The C++ crops are those of ``loaders/augment.py``."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders.augment import parameters
from dp4tl_fast.loaders.spec import TRANSFORMS, LoaderSpec

sides = st.integers(1, 65535)


@settings(max_examples=150, deadline=None)
@given(
    transform=st.sampled_from(TRANSFORMS),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**32 - 1),
    view=st.integers(0, 63),
    scale=st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)).map(sorted),
    aspect=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)).map(sorted),
    ratio=st.floats(1e-3, 1),
    shapes=st.lists(st.tuples(sides, sides, st.integers(0, 2**40)), min_size=1, max_size=50),
)
def test_crops_and_mirrors_are_the_references(
    transform: str, seed: int, epoch: int, view: int, scale: list[float], aspect: list[float], ratio: float,
    shapes: list,
) -> None:
    ranges = {"scale": tuple(scale), "aspect": tuple(aspect), "crop_ratio": ratio}
    spec = LoaderSpec(transform=transform, seed=seed, flip=True, **ranges)
    widths, heights, records = (np.array(column, np.int64) for column in zip(*shapes, strict=True))
    boxes, mirror = parameters(spec, epoch, records, heights, widths, view)
    crop = _native.CropSpec()
    crop.transform = _native.Transform[transform]
    crop.scale, crop.aspect, crop.crop_ratio, crop.flip, crop.seed = spec.scale, spec.aspect, ratio, True, seed
    got = _native.sample_crops(crop, widths, heights, records, epoch, view)
    left, top, width, height, flip = got.T
    assert np.array_equal(np.stack([top, left, height, width], axis=1), boxes)
    assert np.array_equal(flip.astype(bool), mirror)
