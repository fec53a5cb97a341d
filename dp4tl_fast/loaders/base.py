"""What all backends share: record numbers, epochs, position, resume. A backend only turns batches of record numbers into
tensors."""

from __future__ import annotations

import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.format import MODE_JPEG, MODE_RAW
from dp4tl_fast.common.checks import require
from dp4tl_fast.common.errors import BackendError, BetonError, SelectionError, UsageError
from dp4tl_fast.loaders import order
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.contract import B, Batch, Images, IndexedBatch
from dp4tl_fast.loaders.decode import bad_record
from dp4tl_fast.loaders.spec import LoaderSpec

if TYPE_CHECKING:
    import torch


Epochs: TypeAlias = "int | np.ndarray"  # that the augmentation of a batch is drawn for: one, or one per record (int64)


class BaseLoader(ABC, Generic[B]):
    """Bookkeeping of a loader over ``beton``; see ``loaders.contract.Loader`` for the contract.

    Args:
        records: Record numbers to load, int64 ``[n]``, ascending and below ``beton.num_samples``, as ``open_loader`` gives
            them; ``None`` for all.

    Attributes:
        records: The records to load, int64 ``[n]``.
        skipped: Records left out so far under ``on_error="skip"``, ``(record, message)`` each.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def __init__(self, beton: Beton, records: np.ndarray | None, spec: LoaderSpec) -> None:
        self.beton = beton
        self.spec = spec
        self.epoch = 0
        self.bytes_read = 0
        self.skipped: list[tuple[int, str]] = []
        self._next_batch = 0  # where the next iteration of this epoch starts
        self._delivered = 0  # batches of this epoch that the consumer has had
        self._closed = False
        self._running: weakref.ref[_Epoch[B]] | None = None
        self._draws: order.Draws | None = None
        self._use(np.arange(beton.num_samples) if records is None else records)
        check_device(self.name, spec.device)

    # -- what to load -------------------------------------------------------------------------------------------------

    def set_records(self, records: np.ndarray | None) -> None:
        """Load these records from the next iteration on: distinct record numbers ``[n]`` in any order; ``None`` for all."""
        self._use(checked_records(self.beton, records))

    def set_draws(self, draws: order.Draws | None) -> None:
        """Load what ``draws`` says of these records from the next iteration on; ``None``: each of them once in every epoch."""
        if draws is not None:
            self._use(np.sort(np.concatenate(draws.groups)))
        self._draws = draws

    def _use(self, records: np.ndarray) -> None:
        if len(records) == 0:
            raise SelectionError(f"{self.beton.path}: no record is left to load. Keep at least one class with samples")
        check_tables(self.beton, records)
        self.capabilities.check(self.name, self.spec, record_kind(self.beton, records))
        self.records: np.ndarray = records
        self._draws = None

    @property
    def epoch_size(self) -> int:
        """Records of an epoch, over all ranks."""
        return len(self.records) if self._draws is None else self._draws.total

    def set_size(self, size: int) -> None:
        """Side of the images in pixels from the next iteration on (progressive resizing)."""
        self.spec = replace(self.spec, size=size)

    def set_epoch(self, epoch: int) -> None:
        """Start of epoch ``epoch``: the next iteration begins with its first batch."""
        require(0 <= epoch < 2**32, "epoch", epoch, "between 0 and 2^32 - 1")
        self.epoch, self._next_batch, self._delivered = epoch, 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return order.num_batches(self.epoch_size, **self._sharding())

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
        records = self._drawn()[0]
        return records[self._places(records)]

    def _drawn(self) -> tuple[np.ndarray, np.ndarray | None]:
        """This epoch's records in file order, and the epochs that they are augmented for, int64 ``[n]``; ``None``: this one."""
        if self._draws is None:
            return self.records, None
        return self._draws.of_epoch(self.spec.seed, self.epoch)

    def _places(self, records: np.ndarray) -> np.ndarray:
        """Places in ``records``, this epoch's in file order, in the order in which they are loaded: int64 ``[n]``."""
        return order.epoch_order(np.arange(len(records)), seed=self.spec.seed, epoch=self.epoch, shuffle=self.spec.shuffle)

    # -- iterating ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[B]:
        """The rest of the current epoch: from its start, or from where a resumed state left off.

        One epoch runs at a time: a new one ends the one before it, and closing the loader ends it, too.
        """
        if self._closed:
            raise BackendError(f"{self.name} loader of {self.beton.path} is closed. Open it again")
        self._stop("a new iteration over the same loader")
        records, epochs = self._drawn()
        batches = order.rank_batches(self._places(records), **self._sharding())[self._next_batch :]
        self._delivered, self._next_batch = self._next_batch, 0  # iterating again without set_epoch repeats the epoch
        shown: list[Epochs] = [self.epoch if epochs is None else epochs[b] for b in batches]
        epoch: _Epoch[B] = _Epoch(self, [records[b] for b in batches], shown)
        # Weak: when the consumer drops the iterator, the epoch ends at once, whoever holds the loader.
        self._running = weakref.ref(epoch)
        return epoch

    def _stop(self, reason: str) -> None:
        epoch = self._running() if self._running else None
        if epoch is not None:
            epoch.stop(reason)

    @abstractmethod
    def _load(self, batches: list[np.ndarray], epochs: list[Epochs]) -> Generator[Batch | IndexedBatch, None, None]:
        """Yield a batch for each array of record numbers, in order, augmented for the epochs given with it.

        Closing the generator must end the epoch's threads and give its memory back.
        """

    def _batch(self, views: Iterable[torch.Tensor], records: np.ndarray) -> Batch | IndexedBatch:
        """The batch on the device, for the views of ``records``."""
        import torch

        index = torch.from_numpy(self.beton.index[records]) if self.spec.with_index else None
        return self._on_device(views, torch.from_numpy(self.beton.labels[records]), index)

    def _on_device(
        self, views: Iterable[torch.Tensor], labels: torch.Tensor, index: torch.Tensor | None
    ) -> Batch | IndexedBatch:
        """The batch with its parts on the device; ``index`` is used with ``spec.with_index`` only."""
        moved = tuple(self._to_device(view) for view in views)
        images: Images = moved if self.spec.views > 1 else moved[0]
        if self.spec.with_index and index is not None:
            return IndexedBatch(images, self._to_device(labels), self._to_device(index))
        return Batch(images, self._to_device(labels))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.spec.device == "cpu" or tensor.is_cuda:
            return tensor
        return tensor.pin_memory().to(self.spec.device, non_blocking=True)  # pinned already: no copy is made of it

    def _skip(self, record: int, error: Exception) -> None:
        """Raise ``error``, or note it and warn under ``on_error="skip"``."""
        if self.spec.on_error == "raise":
            raise error
        self.skipped.append((record, str(error)))
        warnings.warn(f"skipped: {error}", stacklevel=2)

    # -- resume -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """Epoch, the number of batches already delivered in it, and what makes that number a place in the data."""
        return {"epoch": self.epoch, "batch": self._delivered, **self._place()}

    def _place(self) -> dict[str, int]:
        return {"global_batch_size": self.spec.batch_size * self.spec.world_size, "records": self.epoch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the last delivered batch; costs no decoding. After a whole epoch, nothing of it is left.

        Raises:
            UsageError: The state is of a loader over other records or with another global batch size (batch size times
                ranks): the same number of batches is another place there.
        """
        here = self._place()
        saved = {name: state.get(name) for name in here}
        if saved != here:
            raise UsageError(f"loader state is of {saved}, but this loader has {here}. Resume with the same settings")
        batch = int(state["batch"])
        if not 0 <= batch <= len(self):
            raise UsageError(f"loader state says {batch} batches were delivered, but this epoch has {len(self)}")
        self.set_epoch(int(state["epoch"]))
        self._next_batch = self._delivered = batch

    # -- closing ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release threads and memory. May be called twice."""
        self._stop("closing the loader")
        self._closed = True

    def __enter__(self) -> BaseLoader[B]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Epoch(Iterator[B]):
    """One pass over the batches; counts what was delivered. Ended early, it says so instead of looking complete."""

    def __init__(self, loader: BaseLoader[B], batches: list[np.ndarray], epochs: list[Epochs]) -> None:
        self._loader, self._records = loader, iter(batches)
        self._loaded: Generator[Any, None, None] = loader._load(batches, epochs)
        self._ended_by = ""

    def __next__(self) -> B:
        loader = self._loader
        if self._ended_by:
            raise BackendError(f"this iteration over {loader.beton.path} was ended by {self._ended_by}")
        check_file(loader.beton)
        batch = next(self._loaded)
        loader._delivered += 1
        loader.bytes_read += int(loader.beton.sizes[next(self._records)].sum())
        return batch

    def stop(self, reason: str) -> None:
        self._ended_by = reason
        self._loaded.close()


# -- checks at the start, not after an hour --------------------------------------------------------------------------


def checked_records(beton: Beton, numbers: np.ndarray | None) -> np.ndarray:
    """Record numbers from outside as loaders want them, int64 ``[n]`` ascending; ``None`` means all.

    Raises:
        SelectionError: Not integers ``[n]``, not numbers of records of ``beton``, or one of them twice.
    """
    if numbers is None:
        return np.arange(beton.num_samples)
    given = np.asarray(numbers)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise SelectionError(
            f"{beton.path}: record numbers must be integers [n], but these are {given.dtype} {list(given.shape)}. "
            "Of a boolean mask, give np.flatnonzero(mask)"
        )
    records = np.sort(given)
    for record in records[[0, -1]].tolist() if len(records) else ():
        if not 0 <= record < beton.num_samples:
            raise SelectionError(f"{beton.path}: there is no record {record}; records are 0 to {beton.num_samples - 1}")
    if (twice := records[1:] == records[:-1]).any():
        raise SelectionError(f"{beton.path}: record {records[twice.argmax()]} is given twice. Give each record once")
    return records.astype(np.int64, copy=False)


def check_tables(beton: Beton, records: np.ndarray) -> None:
    """Table-level checks of every record that will be read; decoding finds the rest.

    Raises:
        RecordError: An unknown mode, an empty image, or a raw record whose bytes do not match its size.
    """
    rows, sizes = beton.images[records], beton.sizes[records]
    pixels = rows["width"].astype(np.int64) * rows["height"]
    bad = {
        "has neither JPEG nor raw pixels": (rows["mode"] != MODE_JPEG) & (rows["mode"] != MODE_RAW),
        "has no pixels": pixels == 0,
        "is raw, but its bytes are not width x height x 3": (rows["mode"] == MODE_RAW) & (sizes != 3 * pixels),
    }
    for why, wrong in bad.items():
        if wrong.any():
            raise bad_record(beton, int(records[wrong.argmax()]), why)


def record_kind(beton: Beton, records: np.ndarray) -> str:
    """``jpeg``, ``raw`` or ``mixed``."""
    raw = beton.images["mode"][records] == MODE_RAW
    return "raw" if raw.all() else "mixed" if raw.any() else "jpeg"


def check_device(name: str, device: str) -> None:
    """Refuse a CUDA device that is not there."""
    if device == "cpu":
        return
    import torch

    try:
        found = torch.cuda.is_available() and (torch.device(device).index or 0) < torch.cuda.device_count()
    except RuntimeError as error:
        raise UsageError(f"`device={device}`: {error}") from None
    if not found:
        raise BackendError(
            f"backend {name!r}: device {device!r} is not there ({torch.cuda.device_count()} CUDA devices are usable). "
            "Use device=cpu, or install a driver that matches torch's CUDA"
        )


def check_file(beton: Beton) -> None:
    """A mapped file that shrank would kill the process (SIGBUS); one ``stat`` per batch makes it an error instead."""
    try:
        size = beton.real_path.stat().st_size
    except OSError as error:
        raise BetonError(f"{beton.path}: gone while it was being read: {error.strerror}") from None
    if size < beton.file_size:
        raise BetonError(f"{beton.path}: shrank from {beton.file_size} to {size} bytes while it was being read")
