"""Batches on their way from the loader to the step."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from dp4tl_fast.common.errors import TrainingError
from dp4tl_fast.loaders.contract import IndexedBatch
from dp4tl_fast.training.tally import Tally


def filled(loader: Any) -> Iterator[IndexedBatch]:
    """A loader's batches, each as large as it was meant to be: the places of records that it skipped are taken by other images of
    the batch, in their order. So no process has fewer images than another.

    Raises:
        TrainingError: None of a batch's records can be decoded.
    """
    skipped: Any = getattr(loader, "skipped", [])
    iterator, before = iter(loader), len(skipped)
    for batch in iterator:
        images, labels, index = batch
        lost, before = len(skipped) - before, len(skipped)
        if not lost:
            yield batch
            continue
        if len(labels) == 0:
            raise TrainingError(f"no record of a batch can be decoded. The last: {skipped[-1][1]}")
        rows = torch.arange(len(labels) + lost) % len(labels)
        views = images if isinstance(images, tuple) else (images,)
        full = tuple(view[rows] for view in views)
        yield IndexedBatch(full if isinstance(images, tuple) else full[0], labels[rows], index[rows])


def timed(batches: Iterable[IndexedBatch], tally: Tally) -> Iterator[IndexedBatch]:
    """Pass batches on and count the seconds spent waiting for them."""
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(iterator, None)
        tally.data_wait_s += time.perf_counter() - start
        if batch is None:
            return
        yield batch


def ahead(batches: Iterator[IndexedBatch], device: torch.device) -> Iterator[IndexedBatch]:
    """Batches on a GPU, each copied while the step before it computes; on the CPU there is nothing to copy.

    Images that the loader did not decode into page-locked memory are copied there first. The index stays on the CPU.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = _copying(device)

    def move(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(move(view) for view in x)
        return (x if x.is_cuda else x.pin_memory()).to(device, non_blocking=True)

    def copy(batch: IndexedBatch) -> tuple[IndexedBatch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            images, labels, index = batch
            return IndexedBatch(move(images), move(labels), index), stream.record_event()

    waiting = None
    for batch in batches:
        arriving = copy(batch)
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = arriving
    if waiting is not None:
        yield _arrived(*waiting)


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs: torch's allocator keeps the memory of each stream apart."""
    return torch.cuda.Stream(device)


def _arrived(batch: IndexedBatch, event: torch.cuda.Event) -> IndexedBatch:
    """The batch, once the compute stream may use it; its memory is not reused before that stream is done with it."""
    compute = torch.cuda.current_stream(batch.labels.device)
    compute.wait_event(event)
    for part in (*(batch.images if isinstance(batch.images, tuple) else (batch.images,)), batch.labels):
        part.record_stream(compute)
    return batch


def split(batch: IndexedBatch, parts: int) -> Iterator[IndexedBatch]:
    """A batch as consecutive parts of nearly equal size, none of them empty."""
    images, labels, index = batch
    views = images if isinstance(images, tuple) else (images,)
    pieces = [x.tensor_split(min(parts, len(labels))) for x in (*views, labels, index)]
    for *some, y, i in zip(*pieces, strict=True):
        yield IndexedBatch(tuple(some) if isinstance(images, tuple) else some[0], y, i)
