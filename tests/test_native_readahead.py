"""Reading ahead in windows, for data larger than ``max_ram``: the same records and pixels, bounded memory, long reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_files import picture, write

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.loaders import LoaderSpec, native, open_loader
from dp4tl_fast.loaders.native import NativeLoader
from dp4tl_fast.loaders.order import Draws

N, SIDE = 600, 20  # records of 1200 bytes


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    images = [picture(SIDE, SIDE, i) for i in range(N)]
    return write(tmp_path_factory.mktemp("windows") / "raw.beton", images, labels=[i // 10 for i in range(N)])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "BLOCK_BYTES", 12_000)  # ten records


def spec(**options: object) -> LoaderSpec:
    given = {"batch_size": 7, "size": 8, "with_index": True, "workers": 3, "max_ram": 200_000, "transform": "resize"}
    return LoaderSpec(**{**given, **options})


def test_every_record_comes_once_with_its_own_pixels(beton: Beton) -> None:
    with open_loader(beton, spec=spec(max_ram=0)) as whole:
        images, _, index = (torch.cat(column) for column in zip(*whole, strict=True))
    for shuffle in (False, True):
        with open_loader(beton, spec=spec(shuffle=shuffle)) as loader:
            assert isinstance(loader, NativeLoader) and len(loader._ordered(loader.now, loader.records)[1]) > 5
            some, _, order = (torch.cat(column) for column in zip(*loader, strict=True))
        assert torch.equal(order.sort().values, index)
        assert torch.equal(some[order.argsort()], images)
        assert torch.equal(order, index) != shuffle


def test_a_resumed_epoch_and_ranks_see_the_same_order(beton: Beton) -> None:
    with open_loader(beton, spec=spec(shuffle=True)) as loader:
        whole = [index for *_, index in loader]
        loader.load_state_dict({**loader.state_dict(), "batch": 31})
        rest = [index for *_, index in loader]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[31:], strict=True))
    parts = []
    for rank in range(2):
        with open_loader(beton, spec=spec(shuffle=True, rank=rank, world_size=2)) as loader:
            parts += [index for *_, index in loader]
    assert torch.cat(parts).sort().values.tolist() == [1000 + i for i in range(N)]


@pytest.mark.parametrize("shuffle", [False, True])
def test_records_drawn_for_an_epoch_come_as_without_buffers(beton: Beton, shuffle: bool) -> None:
    """In another order; a record that comes twice is shown in two ways, and both are the same."""
    draws = Draws([np.arange(400), np.arange(400, 600)], [150, 450])

    def images(**options: object) -> list[bytes]:
        how = {"shuffle": shuffle, "transform": "random_resized_crop", "flip": True, **options}
        with open_loader(beton, spec=spec(**how)) as loader:
            loader.set_draws(draws)
            loader.set_epoch(3)
            now = loader._next()
            assert (len(loader._ordered(now, now.drawn()[0])[1]) > 5) == (how.get("max_ram") != 0)
            pairs = [pair for images, _, index in loader for pair in zip(index.numpy(), images.numpy(), strict=True)]
            return sorted(i.tobytes() + image.tobytes() for i, image in pairs)

    drawn = images()
    assert drawn == images(max_ram=0) and len(drawn) == len(set(drawn)) == 600


def test_abandoned_in_the_middle_of_a_window(beton: Beton) -> None:
    with open_loader(beton, spec=spec(shuffle=True)) as loader:
        for epoch in range(50):
            loader.set_epoch(epoch)
            next(iter(loader))


def test_batches_mix_classes_of_a_class_layout(beton: Beton) -> None:
    with open_loader(beton, spec=spec(shuffle=True, batch_size=30, max_ram=300_000)) as loader:
        assert isinstance(loader, NativeLoader) and loader._buffer_bytes(loader.now) > 0
        distinct = [len(set(labels.tolist())) for _, labels, _ in loader]
    # A buffer holds about 10 of 60 classes; three classes in a row of 30 records is what no shuffle would give.
    assert np.mean(distinct) > 6


def test_too_little_memory_is_refused(beton: Beton) -> None:
    with open_loader(beton, spec=spec(max_ram=40_000)) as loader, pytest.raises(UsageError, match="need at least"):
        next(iter(loader))


def test_what_fits_is_shuffled_uniformly(beton: Beton) -> None:
    large, unbounded = (open_loader(beton, spec=spec(shuffle=True, max_ram=ram)) for ram in (10**8, 0))
    with large as fits, unbounded as free:
        assert isinstance(fits, NativeLoader) and fits._buffer_bytes(fits.now) == 0
        assert np.array_equal(fits.epoch_order(), free.epoch_order())


def test_profile_counts_the_stages(beton: Beton) -> None:
    with open_loader(beton, spec=spec()) as loader:
        list(loader)
        profile = loader.profile()
    assert set(profile) == {"read", "decode", "resize", "starve", "idle"}
    assert profile["resize"] > 0 and profile["read"] > 0 and min(profile.values()) >= 0
