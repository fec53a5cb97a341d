"""Reading ahead in windows, for shuffle buffers and data larger than ``max_ram``: the same records and pixels in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from native_files import jpeg, picture, write

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders import IndexedBatch, Loader, LoaderSpec, open_loader, order
from dp4tl_fast.loaders.native import NativeLoader
from dp4tl_fast.loaders.order import Draws

N, SIDE = 600, 20  # records of 1200 bytes


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    images = [picture(SIDE, SIDE, i) for i in range(N)]
    return write(tmp_path_factory.mktemp("windows") / "raw.beton", images, labels=[i // 10 for i in range(N)])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "BLOCK_BYTES", 12_000)  # ten records


def spec(**options: object) -> LoaderSpec:
    given = {"batch_size": 7, "size": 8, "with_index": True, "workers": 3, "max_ram": 200_000, "transform": "resize"}
    return LoaderSpec(**{**given, **options})


def test_every_record_comes_once_with_its_own_pixels(beton: Beton) -> None:
    with open_loader(beton, spec=spec(max_ram=0)) as whole:
        images, _, index = (torch.cat(column) for column in zip(*whole, strict=True))
    for shuffle in (False, True):
        for buffer in (0, 40_000):
            with open_loader(beton, spec=spec(shuffle=shuffle, shuffle_buffer=buffer)) as loader:
                assert windows(loader) > 5
                some, _, places = (torch.cat(column) for column in zip(*loader, strict=True))
            assert torch.equal(places.sort().values, index)
            assert torch.equal(some[places.argsort()], images)
            assert torch.equal(places, index) != shuffle


def windows(loader: Loader[IndexedBatch]) -> int:
    """In how many the epoch is read."""
    assert isinstance(loader, NativeLoader)
    numbers = np.arange(loader.now.size)
    bounds = loader._windows([numbers[i : i + 7] for i in range(0, len(numbers), 7)])
    assert len(bounds) == 0 or (bounds[0], bounds[-1]) == (0, len(numbers))
    return max(0, len(bounds) - 1)


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "shuffle_buffer": 20_000}])
def test_memory_changes_no_order(beton: Beton, options: dict[str, object]) -> None:
    """Nor what is delivered: a place taken with one ``max_ram`` is one with every other."""
    whole, state, few = [], {}, []
    for ram in (0, 160_000, 300_000, 10**8):
        with open_loader(beton, spec=spec(max_ram=ram, **options)) as loader:
            few.append(windows(loader))
            batches = list(loader)
            whole = whole or batches
            assert all(torch.equal(a, b) for x, y in zip(batches, whole, strict=True) for a, b in zip(x, y, strict=True))
            loader.set_epoch(0)
            for _ in zip(range(20), loader, strict=False):
                pass
            state = state or loader.state_dict()
            assert loader.state_dict() == state
        with open_loader(beton, spec=spec(max_ram=ram, **options)) as loader:
            loader.load_state_dict(state)
            rest = [index for *_, index in loader]
        start = int(state["batch"])
        assert all(torch.equal(a, b) for a, (*_, b) in zip(rest, whole[start:], strict=True))
    buffered = "shuffle_buffer" in options
    assert (few[0] == few[3] > 5 and len(set(few)) == 1) if buffered else (few[0] == few[3] == 0 and few[1] > few[2] > 2)


def test_windows_keep_to_memory(beton: Beton) -> None:
    sizes = np.random.default_rng(0).integers(1, 500, 1000)
    starts = order.windows(sizes, 5000)
    held = np.add.reduceat(sizes, starts)
    assert starts[0] == 0 and held.max() <= 5000 and held.sum() == sizes.sum() and len(held) < 1.3 * sizes.sum() / 5000


def test_a_resumed_epoch_and_ranks_see_the_same_order(beton: Beton) -> None:
    with open_loader(beton, spec=spec(shuffle=True, shuffle_buffer=40_000)) as loader:
        whole = [index for *_, index in loader]
        loader.load_state_dict({**loader.state_dict(), "batch": 31})
        rest = [index for *_, index in loader]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[31:], strict=True))
    parts = []
    for rank in range(2):
        with open_loader(beton, spec=spec(shuffle=True, shuffle_buffer=40_000, rank=rank, world_size=2)) as loader:
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
            pairs = [pair for images, _, index in loader for pair in zip(index.numpy(), images.numpy(), strict=True)]
            return sorted(i.tobytes() + image.tobytes() for i, image in pairs)

    drawn = images()
    assert drawn == images(max_ram=0) == images(shuffle_buffer=40_000) and len(drawn) == len(set(drawn)) == 600


def test_abandoned_in_the_middle_of_a_window(beton: Beton) -> None:
    with open_loader(beton, spec=spec(shuffle=True)) as loader:
        for epoch in range(50):
            loader.set_epoch(epoch)
            next(iter(loader))


def test_batches_mix_classes_of_a_class_layout(beton: Beton) -> None:
    with open_loader(beton, spec=spec(shuffle=True, batch_size=30, shuffle_buffer=120_000, max_ram=400_000)) as loader:
        distinct = [len(set(labels.tolist())) for _, labels, _ in loader]
    # A buffer holds about 10 of 60 classes; three classes in a row of 30 records is what no shuffle would give.
    assert np.mean(distinct) > 6


def test_too_little_memory_is_refused(beton: Beton) -> None:
    with pytest.raises(UsageError, match="`max_ram=40000`: batches and buffers need at least"):
        open_loader(beton, spec=spec(max_ram=40_000))
    with pytest.raises(UsageError, match="batches and two of `shuffle_buffer=300000` need at least"):
        open_loader(beton, spec=spec(shuffle=True, shuffle_buffer=300_000))
    open_loader(beton, spec=spec(shuffle_buffer=300_000)).close()  # file order has none


def test_profile_counts_the_stages(beton: Beton) -> None:
    with open_loader(beton, spec=spec()) as loader:
        list(loader)
        profile = loader.profile()
    assert set(profile) == {"read", "decode", "resize", "starve", "idle"}
    assert profile["resize"] > 0 and profile["read"] > 0 and min(profile.values()) >= 0


@pytest.mark.parametrize("threads", [1, 3])
def test_jpegs_in_windows_of_their_own(tmp_path: Path, threads: int) -> None:
    """A thread decodes two in turn, and must not wait for a record that can be read only once it lets go of another."""
    sides = [16 if i % 3 else 400 for i in range(24)]  # while one is decoded, several others are
    path = write(tmp_path / "jpeg.beton", [jpeg(picture(side, side, i)) for i, side in enumerate(sides)]).real_path
    options = _native.LoaderOptions()
    options.threads, options.batch_size, options.crop.transform, options.output.size = threads, 24, _native.Transform.resize, 8
    batches = []
    for windows in (np.arange(len(sides) + 1), np.empty(0, np.int64)):
        loader = _native.Loader(_native.Beton(str(path)), options)
        loader.start(np.arange(len(sides)), np.array([0, len(sides)]), windows, 0)
        batch = loader.next()
        assert batch is not None and len(batch) == 4
        batches.append(batch[0][0])
        loader.close()
    assert torch.equal(*batches)
