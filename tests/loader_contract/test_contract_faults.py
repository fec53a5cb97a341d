"""Bad records and files that change: errors that name the record, at once, or skips that are reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from contract_cases import AUGMENTED, N, by_index, class_labels, flat, keep, one_pass, payloads, spec
from native_files import jpeg, picture, write

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BetonError, RecordError
from dp4tl_fast.loaders import open_loader

BAD, BAD_CLASS = 17, 1


def break_jpeg(kind: str) -> Callable[[bytes], bytes]:
    return {
        "garbage": lambda jpeg: bytes(len(jpeg)),
        "truncated": lambda jpeg: jpeg[: len(jpeg) // 2],
        "headless": lambda jpeg: jpeg[:2] + bytes(40) + jpeg[42:],
    }[kind]


@pytest.fixture(scope="module", params=["garbage", "truncated", "headless", "other size"])
def broken(request: pytest.FixtureRequest, folder: Path) -> Beton:
    """One record of 50 is not what the file says."""
    images = payloads("jpeg")
    path = folder / f"{request.param.replace(' ', '_')}.beton"
    good = write(path, images, class_labels())
    start, size = int(good.images["data_ptr"][BAD]), int(good.sizes[BAD])
    del good
    with open(path, "r+b") as file:
        file.seek(start)
        stored = file.read(size)
        other = jpeg(picture(5, 6))
        bad = other + bytes(size - len(other)) if request.param == "other size" else break_jpeg(request.param)(stored)
        file.seek(start)
        file.write(bad.ljust(size, b"\0"))
    return Beton(path)


def test_a_bad_record_is_named_in_the_consumer(backend: str, broken: Beton) -> None:
    with open_loader(broken, None, spec(), backend) as loader:
        batches = []
        with pytest.raises(RecordError) as error:
            batches.extend(loader)
        assert len(batches) <= 2  # never delivered past the bad one
        for word in (f"record {BAD} ", f"class {BAD_CLASS}", str(broken.path)):
            assert word in str(error.value)
        assert "\n" not in str(error.value)
        loader.set_records(keep(broken, 3).indices(broken))  # the loader still works
        assert flat(list(loader), 1) == [3] * 10


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("views", [1, 2])
def test_a_bad_record_can_be_skipped_and_is_reported(backend: str, broken: Beton, views: int) -> None:
    with open_loader(broken, None, spec(on_error="skip", views=views, **AUGMENTED), backend) as loader:
        batches = list(loader)
        wanted = [i for i in loader.epoch_order().tolist() if i != BAD]
        assert flat(batches, 2) == broken.index[wanted].tolist()
        assert flat(batches, 1) == broken.labels[wanted].tolist()
        assert [record for record, _ in loader.skipped] == [BAD]
        assert f"record {BAD} " in loader.skipped[0][1]
    want = by_index(one_pass(broken, "torchvision", on_error="skip", **AUGMENTED))
    for i, image in by_index(batches).items():  # the rows still belong to their records
        assert (image.float() - want[i].float()).abs().mean() < 4


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_batch_of_bad_records_is_empty(backend: str, broken: Beton) -> None:
    with open_loader(broken, None, spec(on_error="skip", batch_size=1), backend) as loader:
        sizes = [len(labels) for _, labels, _ in loader]
    assert sizes == [0 if i == BAD else 1 for i in range(N)]


def test_a_file_that_shrinks_is_an_error(backend: str, folder: Path) -> None:
    path = folder / f"shrinks_{backend}.beton"
    write(path, payloads("jpeg"), class_labels())
    with open_loader(path, None, spec(), backend) as loader:
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(BetonError, match="shrank"):
            next(iter(loader))


def test_a_raw_record_of_the_wrong_size_is_refused_at_the_start(backend: str, folder: Path) -> None:
    path = folder / f"wrong_{backend}.beton"
    beton = write(path, payloads("raw"), class_labels())
    offset = 24 + 1041 * len(beton.fields) + beton.metadata.dtype.itemsize * BAD
    with open(path, "r+b") as file:
        file.seek(offset + 1)
        file.write((9999).to_bytes(2, "little"))  # the width
    with pytest.raises(RecordError, match=f"record {BAD} .*not width x height x 3"):
        open_loader(path, None, spec(), backend)
