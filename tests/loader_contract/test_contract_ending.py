"""Epochs that are abandoned and loaders that are closed leave nothing behind."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from contract_cases import AUGMENTED, spec

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders import open_loader


def threads() -> int:
    """Of the whole process: Python's, numba's, OpenCV's, DALI's and ours."""
    return len(list(Path("/proc/self/task").iterdir()))


def test_abandoned_epochs_leave_no_thread(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(batch_size=1, **AUGMENTED), backend) as loader:
        counts = []
        for epoch in range(12):
            loader.set_epoch(epoch)
            for _ in loader:
                break
            counts.append(threads())
        assert max(counts[2:]) <= max(counts[:2])
        held = iter(loader)
        next(held)
    assert threads() <= max(counts)
    with pytest.raises(BackendError, match="ended by closing the loader"):
        next(held)


def test_closed_loaders_leave_no_thread(backend: str, jpegs: Beton) -> None:
    counts = []
    for _ in range(6):
        loader = open_loader(jpegs, None, spec(), backend)
        next(iter(loader))
        loader.close()
        loader.close()
        with pytest.raises(BackendError, match="is closed"):
            iter(loader)
        del loader
        gc.collect()
        counts.append(threads())
    assert max(counts[2:]) <= max(counts[:2])


def test_a_new_iteration_ends_the_old_one_loudly(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        old = iter(loader)
        next(old)
        assert len(list(loader)) == len(loader)
        with pytest.raises(BackendError, match="ended by a new iteration"):
            next(old)


def test_torchs_threads_are_left_alone(backend: str, jpegs: Beton) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with open_loader(jpegs, None, spec(workers=1), backend) as loader:
            list(loader)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
