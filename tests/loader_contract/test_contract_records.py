"""Which records a loader delivers, in which order, on which rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract_cases import AUGMENTED, BATCH, CLASSES, N, by_index, flat, keep, same, spec

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SelectionError, UsageError
from dp4tl_fast.loaders import Batch, IndexedBatch, Loader, open_loader, order


def test_a_last_batch_takes_what_it_lacks_from_the_one_before(backend: str, beton: Beton) -> None:
    """18 records in batches of 8: 8, 6 and 4 in place of 8, 8 and 2; the images are the same, and so is what a resume leaves."""
    chosen, options = np.arange(18), {"seed": 2, **AUGMENTED}
    with open_loader(beton, chosen, spec(min_batch=4, **options), backend) as loader:
        batches = list(loader)
        assert [len(labels) for _, labels, _ in batches] == [8, 6, 4] and len(loader) == 3
        loader.set_epoch(0)
        next(iter(loader))
        state = loader.state_dict()
        loader.load_state_dict(state)
        assert same(list(loader), batches[1:])
    with open_loader(beton, chosen, spec(**options), backend) as loader:
        plain = list(loader)
        assert [len(labels) for _, labels, _ in plain] == [8, 8, 2]
        assert flat(plain, 2) == flat(batches, 2)
        ours, theirs = by_index(batches), by_index(plain)
        assert all(torch.equal(ours[i], theirs[i]) for i in theirs)
        with pytest.raises(UsageError, match="min_batch"):
            loader.load_state_dict(state)


@pytest.mark.parametrize("drop_last", [False, True])
def test_exactly_the_selected_records_with_their_labels(backend: str, beton: Beton, drop_last: bool) -> None:
    with open_loader(beton, keep(beton, 1, 3, 4), spec(drop_last=drop_last), backend) as loader:
        assert len(loader) == (3 if drop_last else 4)
        batches = list(loader)
        wanted = np.flatnonzero(np.isin(beton.labels, [1, 3, 4]))[: 24 if drop_last else None]
        assert len(batches) == len(loader)
        assert flat(batches, 1) == beton.labels[wanted].tolist()
        assert flat(batches, 2) == beton.index[wanted].tolist()
        assert loader.bytes_read == beton.sizes[wanted].sum()


def test_reads_what_ffcv_wrote(backend: str, by_ffcv: Beton) -> None:
    with open_loader(by_ffcv, keep(by_ffcv, 0, 2), spec(), backend) as loader:
        batches = list(loader)
    assert flat(batches, 2) == [500 + i for i in range(30) if i * 7 % CLASSES in (0, 2)]
    assert set(flat(batches, 1)) == {0, 2}


@pytest.mark.parametrize("buffer", [0, 9_000])
def test_every_backend_follows_one_order_and_each_epoch_has_its_own(
    backend: str, jpegs: Beton, buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "BLOCK_BYTES", 3_000)
    with open_loader(jpegs, None, spec(shuffle=True, seed=11, shuffle_buffer=buffer), backend) as loader:
        orders = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            orders.append(flat(list(loader), 2))
            assert orders[-1] == jpegs.index[loader.epoch_order()].tolist()
        assert orders[0] != orders[1]
        assert sorted(orders[0]) == sorted(orders[1]) == jpegs.index.tolist()
        places = order.epoch_order(np.arange(N), seed=11, epoch=0, shuffle=True)
        if buffer:
            blocks = {"block_bytes": 3_000, "buffer_bytes": buffer}
            places, bounds = order.block_buffers(np.arange(N), jpegs.sizes, seed=11, epoch=0, **blocks)
            assert len(bounds) > 4
        assert orders[0] == jpegs.index[places].tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_ranks_share_every_record_once(backend: str, jpegs: Beton, shuffle: bool) -> None:
    ranks = []
    for rank in (0, 1):
        with open_loader(jpegs, None, spec(shuffle=shuffle, rank=rank, world_size=2), backend) as loader:
            ranks.append(flat(list(loader), 2))
            assert len(loader) == 4
    assert sorted(ranks[0] + ranks[1]) == jpegs.index.tolist()
    assert [len(r) for r in ranks] == [25, 25]


def test_selection_changes_between_epochs(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, keep(jpegs, 0), spec(), backend) as loader:
        assert flat(list(loader), 1) == [0] * 10
        loader.set_records(np.flatnonzero(np.isin(jpegs.labels, (2, 4))))
        assert len(loader) == 3
        assert flat(list(loader), 1) == [2] * 10 + [4] * 10
        with pytest.raises(SelectionError, match="no record is left"):
            loader.set_records(np.empty(0, np.int64))


def test_record_numbers_are_taken_in_any_order_and_integer_type(backend: str, jpegs: Beton) -> None:
    for numbers in (np.array([41, 3, 7], np.uint8), np.array([7, 41, 3], ">i4")):
        with open_loader(jpegs, numbers, spec(), backend) as loader:
            assert loader.records.dtype == np.int64
            assert flat(list(loader), 2) == jpegs.index[[3, 7, 41]].tolist()


MISTAKES = {
    "a mask": (np.arange(N) < 2, r"record numbers must be whole numbers \[n\], but these are bool \[50\].*flatnonzero"),
    "fractions": (np.array([0.0, 1.0]), "but these are float64"),
    "a table": (np.array([[0, 1]]), r"int64 \[1, 2\]"),
    "below the first": (np.array([3, -1]), "record -1 does not exist: they are 0 to 49"),
    "past the last": (np.array([3, N]), "record 50 does not exist: they are 0 to 49"),
    "past int64": (np.array([2**64 - 1], np.uint64), "record 18446744073709551615 does not exist"),
    "one twice": (np.array([3, 5, 3]), "record 3 is given twice"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_are_no_record_numbers_is_refused(jpegs: Beton, mistake: str) -> None:
    numbers, says = MISTAKES[mistake]
    with pytest.raises(SelectionError, match=f"{jpegs.path}: .*{says}"):
        open_loader(jpegs, numbers, spec())
    with open_loader(jpegs, None, spec()) as loader:
        with pytest.raises(SelectionError, match=says):
            loader.set_records(numbers)
        assert len(loader.records) == N


def test_a_batch_names_its_parts(backend: str, jpegs: Beton) -> None:
    for with_index in (False, True):
        with open_loader(jpegs, None, spec(with_index=with_index), backend) as loader:
            assert isinstance(loader, Loader)
            batch = next(iter(loader))
        assert type(batch) is (IndexedBatch if with_index else Batch)
        assert batch.labels.tolist() == jpegs.labels[:BATCH].tolist()
        assert not with_index or batch.index.tolist() == jpegs.index[:BATCH].tolist()
