"""Only the surviving records are read: which bytes are asked for, and what the system then reads from the disk."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton.format import MODE_RAW
from dp4tl_fast.loaders import BACKENDS, LoaderSpec, open_loader
from dp4tl_fast.loaders.readahead import BATCHES_AHEAD, StoredRecords

SIDE, CLASSES, PER_CLASS = 120, 12, 40  # records of 43,200 bytes, 20 MB in all


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), min_size=1, max_size=40), st.data())
def test_runs_cover_exactly_the_records(layout: list[tuple[int, int]], data: st.DataObject) -> None:
    """``layout``: size of each record and the gap before it."""
    sizes, gaps = np.array(layout).T
    start = np.cumsum(gaps + sizes) - sizes
    place = np.array(data.draw(st.permutations(range(len(sizes)))))  # records need not lie in the file in their order
    pointers = np.zeros(len(sizes), [("data_ptr", "<u8")])
    pointers["data_ptr"] = start[place]
    beton: Any = SimpleNamespace(images=pointers, sizes=sizes[place], open_path=os.devnull)
    records = np.array(data.draw(st.lists(st.integers(0, len(sizes) - 1), unique=True, min_size=1)))
    at, starts, lengths = StoredRecords(beton).runs(records)
    got = list(zip(starts, lengths, strict=True))
    wanted = {b for r in records for b in range(int(start[place[r]]), int(start[place[r]] + sizes[place[r]]))}
    asked = [b for first, length in got for b in range(first, first + length)]
    assert sorted(asked) == sorted(wanted)  # each byte once, none besides
    assert all(a + length < b for (a, length), (b, _) in pairwise(got))  # adjoining ones are joined
    for i, record in enumerate(records.tolist()):  # and each record is found in what was read
        assert asked[at[i]] == start[place[record]]
        assert at[i] + sizes[place[record]] <= len(asked)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Beton]:
    """The same records on the class layout and shuffled; and another file, to warm up with."""
    folder = tmp_path_factory.mktemp("readahead")
    n = CLASSES * PER_CLASS
    orders = {"class": np.arange(n), "shuffled": np.random.default_rng(0).permutation(n), "warm": np.arange(n)}
    pixels = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8).tobytes()
    for name, order in orders.items():
        with BetonWriter(folder / f"{name}.beton", n) as writer:
            for i in order.tolist():
                writer.append(pixels, MODE_RAW, SIDE, SIDE, i // PER_CLASS, i)
            writer.close()
    return {name: Beton(folder / f"{name}.beton") for name in orders}


def test_the_stored_bytes_of_records_in_any_order(files: dict[str, Beton]) -> None:
    beton = files["shuffled"]
    records = np.random.default_rng(3).permutation(beton.num_samples)[:50]
    stored, at = StoredRecords(beton).read(records)
    for i, record in enumerate(records.tolist()):
        assert np.array_equal(stored[at[i] : at[i] + beton.sizes[record]], beton.payload(record))


def test_batches_pass_through_and_the_file_is_closed(files: dict[str, Beton]) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    batches = [np.arange(i, i + 5) for i in range(0, 100, 5)]
    before = descriptors()
    stored = StoredRecords(files["class"])
    assert descriptors() == before + 1
    taken = list(stored.fetched(batches))
    assert all(a is b for a, b in zip(taken, batches, strict=True))
    few = batches[: BATCHES_AHEAD - 1]  # fewer than are read ahead
    assert len(list(stored.fetched(iter(few)))) == len(few)
    stored.close()
    stored.close()
    assert descriptors() == before
    StoredRecords(files["class"])  # dropped without close()
    assert descriptors() == before


def scattered(beton: Beton) -> np.ndarray:
    """The records of every third class."""
    return np.flatnonzero(beton.labels % 3 == 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["class", "shuffled"])
def test_the_disk_gives_the_surviving_records_and_little_else(
    files: dict[str, Beton], backend: str, layout: str
) -> None:
    spec = LoaderSpec(batch_size=16, size=32, shuffle=True, workers=2)
    with open_loader(files["warm"], scattered(files["warm"]), spec, backend) as loader:
        list(loader)
    beton = files[layout]
    with open_loader(beton, scattered(beton), spec, backend) as loader:
        start, length = int(beton.images["data_ptr"].min()), int(beton.sizes.sum())
        fd = os.open(beton.path, os.O_RDONLY)
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)  # out of the page cache
        os.close(fd)
        before = read_from_disk()
        list(loader)
        read = read_from_disk() - before
    wanted = int(beton.sizes[scattered(beton)].sum())
    # A record's first and last 4 KiB page may hold bytes of its neighbours: two more pages for each.
    assert read <= wanted + len(loader.records) * 2 * 4096 + 2**20


def read_from_disk() -> int:
    """Bytes that this process made the disk read (0 on a file system in memory)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
