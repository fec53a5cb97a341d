"""The same pixels for any threads and batches, and after a resume."""

from __future__ import annotations

import pytest
import torch
from contract_cases import AUGMENTED, BATCH, N, by_index, keep, one_pass, same, spec

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.loaders import capabilities, open_loader


def test_pixels_do_not_depend_on_threads_or_batches(backend: str, beton: Beton) -> None:
    assert capabilities()[backend].deterministic
    runs = [one_pass(beton, backend, epoch=3, workers=workers, **AUGMENTED) for workers in (1, 2)]
    assert same(*runs)
    one, two = (by_index(one_pass(beton, backend, epoch=3, batch_size=size, **AUGMENTED)) for size in (5, 13))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[i], two[i]) for i in one)
    assert not same(runs[0], one_pass(beton, backend, epoch=4, **AUGMENTED))


@pytest.mark.parametrize("delivered", [0, 1, 3, 7])
def test_resume_continues_after_the_last_delivered_batch(backend: str, jpegs: Beton, delivered: int) -> None:
    with open_loader(jpegs, None, spec(**AUGMENTED), backend) as loader:
        loader.set_epoch(5)
        batches = list(loader)
        loader.set_epoch(5)
        iterator = iter(loader)
        for _ in range(delivered):
            next(iterator)
        state = loader.state_dict()
    assert state == {"epoch": 5, "batch": delivered, "global_batch_size": BATCH, "records": N}
    with open_loader(jpegs, None, spec(**AUGMENTED), backend) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert same(list(loader), batches[delivered:])
        assert same(list(loader), batches)  # without set_epoch the epoch repeats as a whole
        with pytest.raises(UsageError, match="8 batches were delivered, but this epoch has 7"):
            loader.load_state_dict({**state, "batch": 8})


def test_a_state_of_other_data_or_batches_is_refused(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        state = loader.state_dict()
    for other in ({"batch_size": 2 * BATCH}, {"world_size": 2}):
        with open_loader(jpegs, None, spec(**other), backend) as loader, pytest.raises(UsageError, match=r"of .*8.* 16"):
            loader.load_state_dict(state)
    with open_loader(jpegs, None, spec(batch_size=BATCH // 2, world_size=2, rank=1), backend) as loader:
        loader.load_state_dict(state)  # the same global batches on more ranks
    with open_loader(jpegs, keep(jpegs, 1), spec(), backend) as loader, pytest.raises(UsageError, match=r"50.* 10"):
        loader.load_state_dict(state)
