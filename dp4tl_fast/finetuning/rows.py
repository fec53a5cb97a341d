"""A loader over features in memory: what a linear probe trains on, an epoch over which equals an epoch over the images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.loaders.contract import IndexedBatch, State
from dp4tl_fast.loaders.epoch import sharding
from dp4tl_fast.loaders.order import num_batches, rank_batches
from dp4tl_fast.loaders.spec import LoaderSpec


class Rows:
    """A ``loaders.contract.Loader`` whose images are rows of features.

    Args:
        features: float32 ``[n, d]``, on the device that trains.
        labels: int64 ``[n]``, there too.
        records: Of ``beton``, int64 ``[n]``.
        spec: Batch size, seed and share of this rank.
    """

    bytes_read = 0  # the images were read before

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, beton: Beton, records: np.ndarray, spec: LoaderSpec) -> None:
        self._x, self._y, self.beton, self.records, self.spec = features, labels, beton, records, spec
        self._index = torch.from_numpy(beton.index[records])
        self.epoch = self._next = self._delivered = 0
        self._generator, self._drawn = torch.Generator(), 0

    def __len__(self) -> int:
        return num_batches(len(self.records), **sharding(self.spec))

    def _order(self) -> torch.Tensor:
        """The epoch's permutation: one generator draws those of all epochs, one after the other."""
        if self._drawn == 0 or self._drawn > self.epoch:
            self._generator.manual_seed(self.spec.seed)
            self._drawn = 0
        while self._drawn <= self.epoch:
            order = torch.randperm(len(self.records), generator=self._generator)
            self._drawn += 1
        return order

    def __iter__(self) -> Iterator[IndexedBatch]:
        batches = rank_batches(self._order().numpy(), **sharding(self.spec))[self._next :]
        self._delivered, self._next = self._next, 0
        for rows in map(torch.from_numpy, batches):
            self._delivered += 1
            there = rows.to(self._x.device)
            yield IndexedBatch(self._x[there], self._y[there], self._index[rows])

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self._next, self._delivered = epoch, 0, 0

    def set_size(self, size: int) -> None:
        """Features have no resolution."""

    def state_dict(self) -> State:
        return {"epoch": self.epoch, "batch": self._delivered, "records": len(self.records)}

    def load_state_dict(self, state: State) -> None:
        if state["records"] != len(self.records):
            raise UsageError(f"loader state is for {state['records']} records, but there are {len(self.records)}")
        self.set_epoch(int(state["epoch"]))
        self._next = self._delivered = int(state["batch"])

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
