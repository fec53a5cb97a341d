"""The loader contract: every backend against the same tests. A missing backend fails here; nothing is skipped."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contract_cases import CLASSES, class_labels, payloads
from native_files import write

from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import BACKENDS


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="module", params=["jpeg", "raw", "mixed"])
def beton(request: pytest.FixtureRequest, folder: Path) -> Beton:
    """Records of each kind, all records of a class together, as ``convert`` writes them."""
    return write(folder / f"{request.param}.beton", payloads(request.param), class_labels())


@pytest.fixture(scope="module")
def jpegs(folder: Path) -> Beton:
    return write(folder / "jpegs.beton", payloads("jpeg"), class_labels())


@pytest.fixture(scope="module")
def by_ffcv(folder: Path) -> Beton:
    """Written by FFCV itself: JPEG and raw records in one file, labels in no order, records in worker order."""
    path = folder / "by_ffcv.beton"
    # FFCV's writer forks: not in a process that other backends have filled with threads.
    subprocess.run([sys.executable, "-c", WRITE_WITH_FFCV, str(path)], cwd=Path(__file__).parent.parent, check=True)
    beton = Beton(path)
    assert set(beton.images["mode"].tolist()) == {0, 1}
    return beton


WRITE_WITH_FFCV = f"""
import os, sys
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from native_files import picture

class Images:
    def __len__(self):
        return 30

    def __getitem__(self, i):
        return picture(30 + i, 70 - i, i), i * 7 % {CLASSES}, 500 + i

fields = {{"image": RGBImageField("smart", smart_threshold=6800), "label": IntField(), "index": IntField()}}
DatasetWriter(sys.argv[1], fields, page_size=1 << 21, num_workers=2).from_indexed_dataset(Images(), chunksize=5)
os._exit(0)  # on one core numba's finalizers would wait for good
"""


@pytest.fixture
def limited() -> Iterator[Callable[[], None]]:
    """Call it to bound this process's address space to 8 GB more than it has; undone after the test."""
    before = resource.getrlimit(resource.RLIMIT_AS)

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 8 * 10**9, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_AS, before)
