"""Epochs that draw some records of each group: which records, how each is shown, and that nothing but the epoch decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract_cases import AUGMENTED, BATCH, Batches, flat, keep, same, spec

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SelectionError, UsageError
from dp4tl_fast.loaders import BaseLoader, IndexedBatch, open_loader
from dp4tl_fast.loaders.order import Draws


def draws(beton: Beton) -> Draws:
    """Of class 1 (10 records) 4 an epoch, of class 3 all, of class 4 each two or three times."""
    return Draws([np.flatnonzero(beton.labels == c) for c in (1, 3, 4)], [4, 10, 25])


def opened(beton: Beton, backend: str, **options: object) -> BaseLoader[IndexedBatch]:
    loader = open_loader(beton, None, spec(**{**AUGMENTED, "seed": 7, **options}), backend)
    loader.set_draws(draws(beton))
    return loader


def of_epoch(loader: BaseLoader[IndexedBatch], epoch: int) -> Batches:
    loader.set_epoch(epoch)
    return list(loader)


def shown(batches: Batches) -> dict[int, list[torch.Tensor]]:
    """Every image of each record, in no order."""
    found: dict[int, list[torch.Tensor]] = {}
    for images, _, index in batches:
        for image, i in zip(images, index.tolist(), strict=True):
            found.setdefault(i, []).append(image)
    return found


def test_counts_of_each_group_and_one_order_for_all(backend: str, jpegs: Beton) -> None:
    with opened(jpegs, backend) as loader:
        assert len(loader) == 5
        first, second = of_epoch(loader, 0), of_epoch(loader, 1)
        assert flat(second, 2) == jpegs.index[loader.epoch_order()].tolist()
        for batches in (first, second):
            assert np.bincount(flat(batches, 1), minlength=5).tolist() == [0, 4, 0, 10, 25]
        a, b = ({i for i in flat(x, 2) if jpegs.labels[jpegs.index == i] == 1} for x in (first, second))
        assert len(a) == len(b) == 4 and not a & b  # goes on where the last epoch stopped
        loader.set_records(np.arange(10))
        assert sorted(flat(list(loader), 2)) == jpegs.index[:10].tolist()


def test_a_record_that_comes_again_is_shown_anew(backend: str, beton: Beton) -> None:
    with opened(beton, backend) as loader:
        images = shown(of_epoch(loader, 2))
    again = [each for each in images.values() if len(each) > 1]
    assert len(again) == 10 and all(not torch.equal(a, b) for a, b, *_ in again)


def test_threads_ranks_and_a_resume_change_nothing(backend: str, jpegs: Beton) -> None:
    with opened(jpegs, backend) as loader:
        whole = of_epoch(loader, 3)
        loader.set_epoch(3)
        iterator = iter(loader)
        for _ in range(2):
            next(iterator)
        state = loader.state_dict()
    assert {"epoch": 3, "batch": 2, "global_batch_size": BATCH, "records": 39}.items() <= state.items()
    groups = [np.flatnonzero(jpegs.labels == c) for c in range(jpegs.num_classes)]
    with opened(jpegs, backend) as loader, pytest.raises(UsageError, match="records_sha256"):
        loader.set_draws(Draws(groups, [39 - 4, 1, 1, 1, 1]))  # as many of an epoch, but others
        loader.load_state_dict(state)
    with opened(jpegs, backend, workers=1) as loader:
        loader.load_state_dict(state)
        assert same(list(loader), whole[2:])
    parts = []
    for rank in (0, 1):
        with opened(jpegs, backend, batch_size=BATCH // 2, rank=rank, world_size=2) as loader:
            parts.append(of_epoch(loader, 3))
    joined = [tuple(torch.cat([x, y]) for x, y in zip(a, b, strict=True)) for a, b in zip(*parts, strict=True)]
    assert same(joined, whole)


def test_drawing_all_of_each_class_once_is_the_plain_selection(backend: str, beton: Beton) -> None:
    with open_loader(beton, keep(beton, 1, 3), spec(**AUGMENTED), backend) as loader:
        plain = of_epoch(loader, 5)
        loader.set_draws(Draws([np.flatnonzero(beton.labels == c) for c in (3, 1)], [10, 10]))
        assert same(of_epoch(loader, 5), plain)


MISTAKES = {
    "a mask": ([np.arange(50) < 2], [2], r"record numbers must be whole numbers \[n\], but these are bool \[50\]"),
    "a mask beside numbers": ([np.arange(9), np.arange(50) < 2], [2, 2], "but these are bool"),
    "below the first": ([np.array([-1])], [1], "record -1 does not exist: they are 0 to 49"),
    "past the last": ([np.array([3, 50])], [1], "record 50 does not exist: they are 0 to 49"),
    "one in two groups": ([np.arange(9), np.array([8])], [1, 1], "record 8 is given twice"),
    "an empty group": ([np.arange(9), np.arange(0)], [1, 1], r"with one count each, not \[1, 1\] of \[9, 0\]"),
    "a group without a count": ([np.arange(9), np.array([9])], [1], r"with one count each, not \[1\] of \[9, 1\]"),
    "none of a group": ([np.arange(9)], [0], "`counts=0`: must be a whole number of at least 1"),
    "half a record": ([np.arange(9)], [1.5], "`counts=1.5`: must be a whole number of at least 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_drawn_is_refused(jpegs: Beton, mistake: str) -> None:
    groups, counts, says = MISTAKES[mistake]
    with open_loader(jpegs, None, spec()) as loader:
        with pytest.raises((SelectionError, UsageError), match=says):
            loader.set_draws(Draws(groups, counts))  # type: ignore[arg-type]
        assert len(loader.records) == jpegs.num_samples and loader.epoch_size == jpegs.num_samples


def test_groups_are_drawn_from_in_file_order(backend: str, jpegs: Beton) -> None:
    """However their records are listed."""
    with opened(jpegs, backend) as loader:
        whole = of_epoch(loader, 1)
        given = draws(jpegs)
        loader.set_draws(Draws([group[::-1].astype(np.uint16) for group in given.groups], given.counts))
        assert same(of_epoch(loader, 1), whole)
