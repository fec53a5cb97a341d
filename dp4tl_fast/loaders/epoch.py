"""What one iteration over a loader loads, and how an epoch is cut into batches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dp4tl_fast.loaders import order
from dp4tl_fast.loaders.spec import LoaderSpec


@dataclass(frozen=True)
class Epoch:
    """What one iteration loads: the loader's settings as they were when it began.

    Attributes:
        number: Of the epoch.
        records: The records to load, int64 ``[n]``, ascending.
        draws: How often each of them; ``None``: each once.
    """

    number: int
    spec: LoaderSpec
    records: np.ndarray
    draws: order.Draws | None = None

    @property
    def size(self) -> int:
        """Records of the epoch, over all ranks."""
        return len(self.records) if self.draws is None else self.draws.total

    def drawn(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The epoch's records in file order, and the epochs that they are augmented for, int64 ``[n]``; ``None``: this one."""
        return (self.records, None) if self.draws is None else self.draws.of_epoch(self.spec.seed, self.number)

    @cached_property
    def kept_sha256(self) -> str:
        """Names the records, and how often each is drawn. Once per epoch: a state may be taken after every batch."""
        digest = hashlib.sha256()
        groups, counts = ([self.records], [0]) if self.draws is None else (self.draws.groups, self.draws.counts)
        for group, count in zip(groups, counts, strict=True):
            digest.update(np.array([len(group), count], "<i8").tobytes() + np.ascontiguousarray(group, "<i8").tobytes())
        return digest.hexdigest()


def sharding(spec: LoaderSpec) -> dict[str, Any]:
    """How an epoch is cut into batches."""
    names = ("batch_size", "rank", "world_size", "drop_last", "min_batch")
    return {name: getattr(spec, name) for name in names}
