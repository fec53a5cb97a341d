"""Entry points: the same pixels and bytes, whatever kind of JPEG; and what the loader makes of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from native_files import decoded, jpeg, picture, write
from PIL import Image

from dp4tl_fast.beton.entry_points import add_entry_points
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders import LoaderSpec, open_loader

KINDS = {
    "444": {"subsampling": 0}, "422": {"subsampling": 1}, "420": {"subsampling": 2}, "gray": {"mode": "L"},
    "cmyk": {"mode": "CMYK"}, "progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 3},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (250, 130)])
def test_an_index_changes_no_pixel_and_no_byte_of_the_image(kind: str, size: tuple[int, int]) -> None:
    before = jpeg(picture(*size), **KINDS[kind])
    after = _native.jpeg_add_index(before)
    a, b = (Image.open(io.BytesIO(data)) for data in (before, after))
    assert a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b))
    if kind in ("cmyk", "progressive", "restarts"):
        assert after is before, "no index where it would not be used"
        return
    at = after.index(b"DP4TL\0") - 4
    length = int.from_bytes(after[at + 2 : at + 4], "big") + 2
    assert after[at : at + 2] == b"\xff\xef" and after[:at] + after[at + length :] == before
    assert _native.jpeg_add_index(after) is after, "one index is enough"


def test_an_index_is_small() -> None:
    for subsampling in (0, 1, 2):
        before = jpeg(picture(500, 400), subsampling=subsampling)
        assert len(_native.jpeg_add_index(before)) < 1.06 * len(before)


def test_a_huge_image_has_a_coarser_index() -> None:
    before = jpeg(picture(2600, 2000), subsampling=0)
    after = _native.jpeg_add_index(before, 8)  # an entry an MCU would not fit into a segment
    assert 0 < len(after) - len(before) < 65_600


@pytest.mark.parametrize("data", [b"", b"no JPEG", b"\xff\xd8\xff"], ids=["empty", "text", "begun"])
def test_what_is_no_jpeg_stays_as_it_is(data: bytes) -> None:
    assert _native.jpeg_add_index(data) is data
    with pytest.raises(RuntimeError, match="is not a JPEG that can be rewritten"):
        _native.jpeg_make_sequential(data)


def test_a_damaged_jpeg_gets_no_index() -> None:
    whole = jpeg(picture(64, 64))
    for data in (whole[:900], whole[:900] + whole[-2:]):
        with pytest.raises(RuntimeError, match="entropy-coded data are damaged"):
            _native.jpeg_add_index(data)


def test_several_at_once_are_what_each_is_alone() -> None:
    whole = [jpeg(picture(side, 2 * side), quality=50 + side, **kind) for side in (8, 33, 47) for kind in KINDS.values()]
    several = [data for i, jpg in enumerate(whole) for data in (jpg, jpg[: -7 - i], jpg[: -7 - i] + jpg[-2:])]
    pixels = [(0, 8, 64)[i % 5 % 3] for i in range(len(several))]
    got = _native.jpeg_checked(several, pixels)
    assert got == [_native.jpeg_checked([data], [n])[0] for data, n in zip(several, pixels, strict=True)]
    assert [isinstance(result, str) for result in got] == [False, True, True] * len(whole), "damage has no neighbours"
    same = [result is data for result, data in zip(got[::3], several[::3], strict=True)]
    unusual = [kind in ("cmyk", "progressive", "restarts") for kind in KINDS] * 3
    assert same == [odd or not n for odd, n in zip(unusual, pixels[::3], strict=True)]


def test_entry_points_of_several_are_those_of_each_alone() -> None:
    whole = [jpeg(picture(side, 150), **kind) for side in (99, 140, 310) for kind in KINDS.values()]
    several = [data for jpg in whole for data in (jpg, jpg[:900] + jpg[-2:])]
    areas = [side * 150 for side in (99, 140, 310) for _ in range(2 * len(KINDS))]
    got = add_entry_points(several, areas)
    assert got == [add_entry_points([data], [area])[0] for data, area in zip(several, areas, strict=True)]
    plain = [kind not in ("cmyk", "progressive", "restarts") for kind in KINDS for _ in range(2)] * 3
    changed = [area >= 128 * 128 and ordinary and i % 2 == 0 for i, (area, ordinary) in enumerate(zip(areas, plain, strict=True))]
    assert [result is not data for result, data in zip(got, several, strict=True)] == changed, "damage has no neighbours"


def entries(data: bytes) -> bytes:
    at = data.index(b"DP4TL\0")
    return data[at + 18 : at - 2 + int.from_bytes(data[at - 2 : at], "big")]


def test_fill_bytes_are_no_part_of_the_image() -> None:
    """FF may be repeated before a marker: the entries, the last ones too, are those of the JPEG without."""
    whole = jpeg(np.full((64, 64, 3), 99, np.uint8))
    filled = whole[:-2] + b"\xff\xff" + whole[-2:]
    want, got = (entries(_native.jpeg_add_index(data, 8)) for data in (whole, filled))
    assert got == want and len(want) == 8 * 15


def test_cmyk_without_an_adobe_marker_is_what_pillow_makes_of_it(tmp_path: Path) -> None:
    """Pillow takes every CMYK JPEG for Adobe's, whose values are inverted."""
    marked = jpeg(picture(40, 40), mode="CMYK", quality=95)
    at = marked.index(b"\xff\xee")
    bare = marked[:at] + marked[at + 2 + int.from_bytes(marked[at + 2 : at + 4], "big") :]
    assert b"Adobe" in marked and b"Adobe" not in bare
    beton = write(tmp_path / "cmyk.beton", [marked, bare])
    with open_loader(beton, spec=LoaderSpec(batch_size=2, size=40, transform="resize", exact=True)) as loader:
        ((images, _),) = list(loader)
    for i in range(2):
        assert np.abs(images[i].permute(1, 2, 0).numpy().astype(int) - decoded(beton, i)).max() <= 1


@pytest.mark.parametrize("exact", [False, True])
def test_the_loader_gives_the_same_pixels_with_and_without(tmp_path: Path, exact: bool) -> None:
    plain = [jpeg(picture(300 + i, 200 + 3 * i, i), subsampling=i % 3) for i in range(24)]
    distances = [8, 16, 32, 64] * 6
    indexed = [_native.jpeg_add_index(d, n) for d, n in zip(plain, distances, strict=True)]
    images = []
    for name, payloads in (("plain", plain), ("indexed", indexed)):
        spec = LoaderSpec(batch_size=24, size=96, transform="random_resized_crop", flip=True, exact=exact, seed=5)
        with open_loader(write(tmp_path / f"{name}.beton", payloads), spec=spec) as loader:
            images += [x for x, _ in loader]
    assert torch.equal(*images)
