"""What only the DALI backend has: bytes that stay in the map, pipelines that fail as a whole, and their messages."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native_files import jpeg, picture, write

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.loaders import dali as backend
from dp4tl_fast.loaders.readahead import StoredRecords

RECORDS = 20


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    path = tmp_path_factory.mktemp("dali") / "mixed.beton"
    images = [picture(50 + i, 40, i) for i in range(RECORDS)]
    return write(path, [jpeg(p) if i % 2 else p for i, p in enumerate(images)])


def test_the_first_gpu_is_not_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert [backend.device_id(name) for name in ("cpu", "cuda:0", "cuda:1", "cuda")] == [None, 0, 1, 3]


def spec(**options: Any) -> LoaderSpec:
    return LoaderSpec(**{"batch_size": 6, "size": 16, "with_index": True, "workers": 2, **options})


def test_a_batch_is_read_into_one_buffer_and_not_copied_from_there(beton: Beton) -> None:
    records = np.array([3, 0, 7])
    with open_loader(beton, None, spec(), "dali") as loader:
        batch = loader._feed(records, 0)[0]
        first, second = beton.sizes[[0, 3]].tolist()  # in the order of the file
        start = batch[1].data_ptr()
        assert [view.data_ptr() - start for view in batch] == [first, 0, first + second]
        assert all((np.asarray(view) == beton.payload(record)).all() for view, record in zip(batch, records, strict=True))


def test_views_keep_the_mapping_alive_until_the_last_is_gone() -> None:
    buffer = np.arange(100, dtype=np.uint8)
    alive = weakref.ref(buffer)
    views = _native.byte_views(buffer, np.array([90, 0, 100]), np.array([10, 3, 0]))
    del buffer
    assert [np.from_dlpack(view).tolist() for view in views] == [list(range(90, 100)), [0, 1, 2], []]
    one = np.from_dlpack(views.pop(0))
    del views
    assert alive() is not None and one.tolist() == list(range(90, 100))
    del one
    assert alive() is None


@pytest.mark.parametrize(("offset", "size"), [(95, 6), (-1, 2), (5, -1), (101, 0), (2**62, 2**62), (0, 2**63 - 1)])
def test_a_view_outside_the_mapping_is_refused(offset: int, size: int) -> None:
    with pytest.raises(IndexError, match=rf"piece 1 \({size} bytes at {offset}\) is not inside the buffer of 100"):
        _native.byte_views(np.zeros(100, np.uint8), np.array([0, offset]), np.array([5, size]))


def test_nothing_is_padded_or_repeated_over_epochs(beton: Beton) -> None:
    with open_loader(beton, None, spec(shuffle=True), "dali") as loader:
        for epoch in range(3):
            loader.set_epoch(epoch)
            batches = list(loader)
            assert [len(labels) for _, labels, _ in batches] == [6, 6, 6, 2]
            assert sorted(torch.cat([index for *_, index in batches]).tolist()) == beton.index.tolist()


def test_a_mirrored_crop_is_the_mirror_image(beton: Beton) -> None:
    straight, both = (load(beton, flip=flip) for flip in (False, True))
    mirrored = 0
    for one, two in zip(straight, both, strict=True):
        mirrored += not torch.equal(one, two)
        # Summed in the other direction, a pixel may round to the next level.
        assert torch.equal(one, two) or (one.int() - two.flip(2).int()).abs().max() <= 1
    assert 0 < mirrored < RECORDS


def load(beton: Beton, **options: Any) -> torch.Tensor:
    with open_loader(beton, None, spec(transform="random_resized_crop", **options), "dali") as loader:
        return torch.cat([images for images, *_ in loader])


@pytest.fixture
def broken(tmp_path: Path) -> Beton:
    """Record 4 is no JPEG."""
    beton = write(tmp_path / "broken.beton", [jpeg(picture(40, 40, i)) for i in range(9)])
    with open(beton.path, "r+b") as file:
        file.seek(int(beton.images["data_ptr"][4]))
        file.write(bytes(int(beton.sizes[4])))
    return Beton(beton.path)


def test_a_batch_that_only_dali_cannot_decode_is_decoded_by_the_reference(
    broken: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((40, 40, 3), 77, np.uint8)
    real = StoredRecords.pixels
    monkeypatch.setattr(StoredRecords, "pixels", lambda self, i: pixels if i == 4 else real(self, i))
    with (
        open_loader(broken, None, spec(batch_size=3), "dali") as loader,
        pytest.warns(UserWarning, match="DALI failed .nvImageCodec.* a batch was decoded without it"),
    ):
        images = torch.cat([batch[0] for batch in loader])
    assert len(images) == 9
    assert (images[4] == 77).all()


@pytest.mark.filterwarnings("ignore:.*DALI failed")
def test_a_dali_that_still_fails_is_an_error_in_one_line(broken: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredRecords, "pixels", lambda self, i: np.zeros((40, 40, 3), np.uint8))
    monkeypatch.setattr(backend, "bitmap", lambda pixels: np.zeros(9, np.uint8))
    with (
        open_loader(broken, None, spec(batch_size=3), "dali") as loader,
        pytest.raises(BackendError, match=r"DALI failed on a batch of records 3 to 5, .*nvImageCodec.* another") as e,
    ):
        list(loader)
    assert "\n" not in str(e.value)


def test_the_reason_is_found_between_stack_traces() -> None:
    message = "Critical error\nError in CPU operator x,\n\n File y\n\nencountered:\n\nCannot read\nCurrent pipeline ..."
    assert backend.reason(RuntimeError(message)) == "Cannot read"
    assert backend.reason(RuntimeError("one line")) == "one line"
    assert backend.reason(RuntimeError("")) == "RuntimeError('')"


def test_a_pipeline_is_rebuilt_when_the_kind_of_records_changes(beton: Beton) -> None:
    with open_loader(beton, np.arange(1, RECORDS, 2), spec(), "dali") as loader:
        for step in (slice(1, None, 2), slice(0, None, 2), slice(None)):  # JPEG, raw, mixed
            loader.set_records(np.arange(RECORDS)[step])
            index = torch.cat([batch[2] for batch in loader])
            assert index.tolist() == beton.index[step].tolist()


def test_a_forked_child_ends_no_pipeline_of_its_parent(beton: Beton) -> None:
    """DALI shuts down at exit what it knows of, and would wait for threads that only the parent has, or fail."""
    from nvidia.dali.pipeline import Pipeline

    with open_loader(beton, None, spec(), "dali") as closed:
        next(iter(closed))
        dropped = closed._pipeline
    with open_loader(beton, None, spec(), "dali") as loader:
        batches = iter(loader)
        next(batches)
        assert dropped._pipe and loader._pipeline._pipe
        child = os.fork()
        if child == 0:
            os._exit(sum(bool(pipeline()._pipe) for pipeline in Pipeline._pipes if pipeline() is not None))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(list(batches)) == len(loader) - 1  # the parent goes on
