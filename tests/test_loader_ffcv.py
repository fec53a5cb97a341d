"""What only the FFCV backend has: its two ways to read, its threads, its decoding kernel."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
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
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.loaders.ffcv import FfcvLoader, as_bits, available_memory, byte_table, choose_os_cache, pages_held


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


@pytest.fixture
def in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read through FFCV's process cache."""
    monkeypatch.setattr(FfcvLoader, "os_cache", lambda self: False)


def spec(**options: Any) -> LoaderSpec:
    augmented = {"transform": "random_resized_crop", "flip": True, "shuffle": True}
    return LoaderSpec(**{"batch_size": 5, "size": 16, "with_index": True, "workers": 2, **augmented, **options})


# -- map the file, or read pages ------------------------------------------------------------------------------------


def test_both_ways_to_read_give_the_same_batches(paged: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for mapped in (True, False):
        monkeypatch.setattr(FfcvLoader, "os_cache", lambda self, mapped=mapped: mapped)
        with open_loader(paged, None, spec(), "ffcv") as loader:
            for epoch in range(2):
                loader.set_epoch(epoch)
                runs.append([torch.cat(column) for column in zip(*loader, strict=True)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0] + runs[1], runs[2] + runs[3], strict=True))


def test_pages_are_read_by_threads_that_end(paged: Beton, in_pages: None) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    with open_loader(paged, None, spec(), "ffcv") as loader:
        list(loader)
        before = threads()
        for _ in range(8):
            next(iter(loader))
        for _ in range(200):  # the system lists a thread for a moment after it was joined
            if threads() <= before:
                break
            time.sleep(0.05)
        assert threads() <= before


def test_a_dead_page_reader_is_an_error_and_no_hang(
    paged: Beton, in_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ffcv.memory_managers.process_cache.page_reader import PageReader

    monkeypatch.setattr(PageReader, "run", lambda self: None)
    with (
        open_loader(paged, None, spec(), "ffcv") as loader,
        pytest.raises(BackendError, match=r"reading threads .*paged\.beton have died"),
    ):
        next(iter(loader))


@pytest.mark.parametrize(
    ("file_size", "held", "memory", "mapped"),
    [(10, 10, 10, True), (11, 10, 10, False), (11, 11, 10, True), (10**12, 10**9, 10**10, False)],
)
def test_os_cache_follows_from_the_sizes(file_size: int, held: int, memory: int, mapped: bool) -> None:
    assert choose_os_cache(file_size, held, memory) == mapped


@pytest.mark.parametrize(
    ("shuffle", "free", "mapped"),
    # The file has 14 MiB, of which half the memory may be used. In file order two or three pages are held, shuffled all.
    [(False, 40 << 20, True), (False, 18 << 20, False), (True, 18 << 20, True)],
)
def test_ffcv_reads_pages_where_that_helps(
    paged: Beton, monkeypatch: pytest.MonkeyPatch, shuffle: bool, free: int, mapped: bool
) -> None:
    monkeypatch.setattr("dp4tl_fast.loaders.ffcv.available_memory", lambda: free)
    with open_loader(paged, None, spec(batch_size=1, shuffle=shuffle), "ffcv") as loader:
        assert loader.os_cache() == mapped
        assert len(list(loader)) == 36


def test_available_memory_counts_what_the_page_cache_can_give_back() -> None:
    assert os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") * 0.5 < available_memory() < 2**50


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(1, 12))
def test_pages_held_is_what_ffcv_allocates(pages: list[int], batch_size: int) -> None:
    from ffcv.memory_managers.process_cache.schedule import compute_schedule

    pointers = np.zeros(len(pages), [("data_ptr", "<u8")])
    pointers["data_ptr"] = np.array(pages) * 4096 + 17
    beton: Any = SimpleNamespace(images=pointers, page_size=4096)
    batches = [set(pages[i : i + batch_size]) for i in range(0, len(pages), batch_size)]
    assert pages_held(beton, np.arange(len(pages)), batch_size) == compute_schedule(batches).num_slots


# -- the thread -------------------------------------------------------------------------------------------------------


def test_an_exception_in_the_loader_thread_reaches_the_consumer(paged: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FfcvLoader, records: np.ndarray, located: Any) -> None:
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
