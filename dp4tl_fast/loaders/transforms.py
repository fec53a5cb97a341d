"""What the caller does to every batch before it is handed out: on the device, after the backend."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dp4tl_fast.loaders.contract import Batch, IndexedBatch
from dp4tl_fast.loaders.spec import LoaderSpec

Transform = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Transforms:
    """Of the images, and of the labels, of a batch; ``None`` leaves them as they are.

    torch's random numbers in them are a function of (seed, epoch, batch, rank), so that a resumed epoch sees the same ones, and
    the caller's own are left alone. Those of NumPy and of ``random`` are the caller's business.
    """

    images: Transform | None = None
    labels: Transform | None = None

    def __call__(self, batch: Batch | IndexedBatch, spec: LoaderSpec, epoch: int, number: int) -> Batch | IndexedBatch:
        """``batch`` number ``number`` of an epoch, transformed: ``images`` is called with each view ``[batch, 3, size, size]``."""
        if self.images is None and self.labels is None:
            return batch
        with _random_numbers_of(spec, epoch, number):
            if self.images is not None:
                views = batch.images
                changed = tuple(map(self.images, views)) if isinstance(views, tuple) else self.images(views)
                batch = batch._replace(images=changed)
            if self.labels is not None:
                batch = batch._replace(labels=self.labels(batch.labels))
        return batch


@contextmanager
def _random_numbers_of(spec: LoaderSpec, epoch: int, number: int) -> Iterator[None]:
    """torch's default generators, of the CPU and of the batch's device, seeded for this batch; afterwards as they were."""
    import torch

    place = f"{spec.seed} {epoch} {number} {spec.rank}".encode()
    seed = int.from_bytes(hashlib.sha256(place).digest()[:7], "little")
    device = torch.device(spec.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
