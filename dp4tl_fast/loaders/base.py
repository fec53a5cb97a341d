"""What all backends share: records of a selection, epochs, position, resume. A backend only turns batches of record
numbers into tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.errors import BackendError, SelectionError, UsageError
from dp4tl_fast.loaders import order
from dp4tl_fast.loaders.spec import LoaderSpec

if TYPE_CHECKING:
    from dp4tl_fast.selection import Selection


class BaseLoader(ABC):
    """Bookkeeping of a loader over ``beton``; see ``loaders.spec.Loader`` for the contract."""

    name: str

    def __init__(self, beton: Beton, selection: Selection | None, spec: LoaderSpec) -> None:
        self.beton = beton
        self.spec = spec
        self.epoch = 0
        self.bytes_read = 0
        self._next_batch = 0  # where the next iteration of this epoch starts
        self._closed = False
        self.set_selection(selection)

    def set_selection(self, selection: Selection | None) -> None:
        """Read only these records from now on (``None``: all). Takes effect at the next iteration."""
        records = np.arange(self.beton.num_samples) if selection is None else selection.indices(self.beton)
        if len(records) == 0:
            raise SelectionError(f"{self.beton.path}: no record is left to load. Keep at least one class that has samples")
        self.records: np.ndarray = records  # int64 [n], ascending

    def set_epoch(self, epoch: int) -> None:
        """Start of epoch ``epoch``: the next iteration begins with its first batch."""
        if epoch < 0:
            raise UsageError(f"loader: epoch = {epoch}, but it must be 0 or more")
        self.epoch, self._next_batch = epoch, 0

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return order.num_batches(len(self.records), **self._sharding())

    def _sharding(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "batch_size": spec.batch_size,
            "rank": spec.rank,
            "world_size": spec.world_size,
            "drop_last": spec.drop_last,
        }

    def epoch_order(self) -> np.ndarray:
        """This epoch's order over all ranks, int64 ``[n]``. The same for every backend."""
        return order.epoch_order(self.records, seed=self.spec.seed, epoch=self.epoch, shuffle=self.spec.shuffle)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The rest of the current epoch: from its start, or from where a resumed state left off."""
        if self._closed:
            raise BackendError(f"{self.name} loader of {self.beton.path} is closed. Open it again")
        batches = order.rank_batches(self.epoch_order(), **self._sharding())[self._next_batch :]
        self._next_batch = 0  # iterating again without set_epoch repeats the epoch
        position = len(self) - len(batches)
        for records, batch in zip(batches, self._load(batches), strict=True):
            position += 1
            self._resume_at = position
            self.bytes_read += int(self.beton.sizes[records].sum())
            yield batch
        self._resume_at = 0

    @abstractmethod
    def _load(self, batches: list[np.ndarray]) -> Iterator[tuple[Any, ...]]:
        """Yield ``(images, labels[, index])`` for each array of record numbers, in order."""

    # -- resume -------------------------------------------------------------------------------------------------------

    _resume_at = 0

    def state_dict(self) -> dict[str, int]:
        """Epoch and the number of batches already delivered in it."""
        return {"epoch": self.epoch, "batch": self._resume_at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the last delivered batch; costs no decoding."""
        self.set_epoch(int(state["epoch"]))
        batch = int(state["batch"])
        if not 0 <= batch <= len(self):
            raise UsageError(f"loader state says {batch} batches were delivered, but this epoch has {len(self)}")
        self._next_batch = batch

    # -- closing ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release threads and memory. May be called twice."""
        self._closed = True

    def __enter__(self) -> BaseLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
