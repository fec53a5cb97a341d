"""Which records a loader delivers, in which order, on which rank."""

from __future__ import annotations

import numpy as np
import pytest
from contract_cases import CLASSES, flat, keep, spec

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SelectionError
from dp4tl_fast.loaders import open_loader


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


def test_every_backend_follows_one_order_and_each_epoch_has_its_own(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(shuffle=True, seed=11), backend) as loader:
        orders = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            orders.append(flat(list(loader), 2))
            assert orders[-1] == jpegs.index[loader.epoch_order()].tolist()
        assert orders[0] != orders[1]
        assert sorted(orders[0]) == sorted(orders[1]) == jpegs.index.tolist()


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
        loader.set_selection(keep(jpegs, 2, 4))
        assert len(loader) == 3
        assert flat(list(loader), 1) == [2] * 10 + [4] * 10
        with pytest.raises(SelectionError, match="no record is left"):
            loader.set_selection(_Nothing())  # type: ignore[arg-type]


class _Nothing:
    def indices(self, beton: Beton) -> np.ndarray:
        return np.empty(0, np.int64)
