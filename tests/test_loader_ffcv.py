"""What only the FFCV backend has: its thread, its decoding kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_files import jpeg, picture, write
from odd_jpegs import without

from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton.format import MODE_RAW
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.loaders.ffcv import FfcvLoader, as_bits, byte_table


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """Raw records that fill five pages of 2 MiB."""
    path = tmp_path_factory.mktemp("ffcv") / "paged.beton"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 320, 3), np.uint8)
    with BetonWriter(path, 36, page_size=1 << 21) as writer:
        for i in range(36):
            writer.append(np.roll(pixels, i, axis=0).tobytes(), MODE_RAW, 320, 300, i % 3, i)
        writer.close()
    beton = Beton(path)
    assert len(np.unique(beton.images["data_ptr"] >> 21)) == 6
    return beton


def spec(**options: Any) -> LoaderSpec:
    augmented = {"transform": "random_resized_crop", "flip": True, "shuffle": True}
    return LoaderSpec(**{"batch_size": 5, "size": 16, "with_index": True, "workers": 2, **augmented, **options})


# -- the thread -------------------------------------------------------------------------------------------------------


def test_an_exception_in_the_loader_thread_reaches_the_consumer(paged: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FfcvLoader, records: np.ndarray) -> None:
        raise ZeroDivisionError("in the thread")

    monkeypatch.setattr(FfcvLoader, "_decode", fail)
    with open_loader(paged, None, spec(), "ffcv") as loader, pytest.raises(ZeroDivisionError, match="in the thread"):
        next(iter(loader))


def test_more_workers_than_cores_are_as_many_as_there_are_cores(paged: Beton) -> None:
    with open_loader(paged, None, spec(workers=10_000), "ffcv") as loader:
        assert len(list(loader)) == 8


# -- the kernel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
def test_a_crop_of_the_output_size_is_copied_mirrored_and_normalised(tmp_path: Path, dtype: str) -> None:
    pixels = [picture(33, 33, seed) for seed in range(12)]
    beton = write(tmp_path / "same.beton", list(pixels))
    options = spec(transform="resize", size=33, dtype=dtype, shuffle=False)
    table = byte_table(options)
    with open_loader(beton, None, options, "ffcv") as loader:
        images = torch.cat([batch[0] for batch in loader])
    mirrored = 0
    for image, stored in zip(images, pixels, strict=True):
        plain = table[torch.from_numpy(stored).long(), torch.arange(3)].permute(2, 0, 1)
        flipped = torch.equal(image, plain.flip(2))
        mirrored += flipped
        assert flipped or torch.equal(image, plain)
    assert 0 < mirrored < 12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_byte_table_is_rounded_once(dtype: str) -> None:
    options = LoaderSpec(dtype=dtype)
    table = byte_table(options)
    exact = (np.arange(256)[:, None] / 255 - np.array(options.mean)) / np.array(options.std)
    kind = getattr(torch, dtype)
    bits = as_bits(table).view(f"u{table.element_size()}")
    for step in (-1, 1):  # the next number on either side is no nearer
        other = torch.from_numpy((bits + np.array(step).astype(bits.dtype)).view(f"i{bits.itemsize}")).view(kind)
        assert (np.abs(other.double().numpy() - exact) >= np.abs(table.double().numpy() - exact)).all()


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["RGB", "L", "CMYK"]), st.booleans())
def test_a_jpeg_of_this_size_with_its_own_tables_stands_alone(width: int, height: int, mode: str, progressive: bool) -> None:
    from dp4tl_fast.loaders.ffcv_stages import stands_alone

    data = jpeg(np.zeros((height, width, 3), np.uint8), mode, progressive=progressive)
    stored = np.frombuffer(data, np.uint8)
    assert stands_alone(stored, height, width)
    assert not stands_alone(stored, height + 1, width)
    assert not stands_alone(stored, height, width + 1)
    for marker in (0xC4, 0xDB):
        assert not stands_alone(np.frombuffer(without(data, marker), np.uint8), height, width)


@given(st.binary(max_size=60), st.integers(0, 700))
def test_a_search_for_the_frame_header_stays_inside_the_bytes(junk: bytes, keep: int) -> None:
    from dp4tl_fast.loaders.ffcv_stages import stands_alone

    cut = jpeg(picture(40, 30), progressive=bool(keep % 2))[:keep] + junk
    found = stands_alone.py_func(np.frombuffer(cut, np.uint8).astype(np.int64), 30, 40)  # Python checks every index
    assert found == stands_alone(np.frombuffer(cut, np.uint8), 30, 40)
