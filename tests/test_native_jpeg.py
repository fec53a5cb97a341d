"""Entry points: the same pixels, fewer bytes, whatever kind of JPEG; and what the loader makes of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from native_files import jpeg, picture, write
from PIL import Image

from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders import LoaderSpec, open_loader

KINDS = {
    "444": {"subsampling": 0}, "422": {"subsampling": 1}, "420": {"subsampling": 2}, "gray": {"mode": "L"},
    "cmyk": {"mode": "CMYK"}, "progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 3},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (250, 130)])
def test_pixels_stay_identical(kind: str, size: tuple[int, int]) -> None:
    before = jpeg(picture(*size), **KINDS[kind])
    after = _native.jpeg_add_entry_points(before)
    a, b = (Image.open(io.BytesIO(data)) for data in (before, after))
    assert a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b))
    assert b"\xff\xdd\x00\x04\x00\x04" in after  # DRI: every 4 MCUs
    assert b"\xff\xc2" not in after  # no longer progressive


def test_optimised_tables_pay_for_the_markers() -> None:
    before = jpeg(picture(500, 400), subsampling=0)
    assert len(_native.jpeg_add_entry_points(before)) < len(before)


@pytest.mark.parametrize("data", [b"", b"no JPEG", jpeg(picture(64, 64))[:900]], ids=["empty", "text", "truncated"])
def test_what_is_no_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(RuntimeError, match="is not a JPEG that can be rewritten"):
        _native.jpeg_add_entry_points(data)


@pytest.mark.parametrize("exact", [False, True])
def test_the_loader_gives_the_same_pixels_with_and_without(tmp_path: Path, exact: bool) -> None:
    plain = [jpeg(picture(300 + i, 200 + 3 * i, i), subsampling=i % 3) for i in range(24)]
    intervals = [1, 2, 4, 9] * 6
    gridded = [_native.jpeg_add_entry_points(d, n) for d, n in zip(plain, intervals, strict=True)]
    images = []
    for name, payloads in (("plain", plain), ("gridded", gridded)):
        spec = LoaderSpec(batch_size=24, size=96, transform="random_resized_crop", flip=True, exact=exact, seed=5)
        with open_loader(write(tmp_path / f"{name}.beton", payloads), spec=spec) as loader:
            images += [x for x, _ in loader]
    assert torch.equal(*images)
