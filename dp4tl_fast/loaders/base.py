"""What all backends share: record numbers, epochs, position, resume, closing. A backend only turns batches of record numbers
into tensors."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, ClassVar, Generic, TypeAlias

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.checks import distinct_numbers, require
from dp4tl_fast.common.errors import BackendError, SelectionError, UsageError
from dp4tl_fast.loaders import lifetime, order
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.checks import check_device, check_memory, check_tables
from dp4tl_fast.loaders.contract import B, Batch, Images, IndexedBatch, State
from dp4tl_fast.loaders.dataset import Records, Sampler
from dp4tl_fast.loaders.epoch import Epoch, sharding
from dp4tl_fast.loaders.iteration import Iteration
from dp4tl_fast.loaders.spec import LoaderSpec
from dp4tl_fast.loaders.transforms import Transforms
from dp4tl_fast.remote.arriving import Arriving, local

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.loaders.dataloader import WholeLoader


ESSENTIAL = ("global_batch_size", "records")  # every version's states have them

Epochs: TypeAlias = "int | np.ndarray"  # that the augmentation of a batch is drawn for: one, or one per record (int64)

class BaseLoader(ABC, Generic[B]):
    """Bookkeeping of a loader over ``beton``; see ``loaders.contract.Loader`` for the contract.

    Args:
        records: Record numbers to load, int64 ``[n]``, ascending and below ``beton.num_samples``, as ``open_loader`` gives
            them; ``None`` for all.

    Attributes:
        spec: How the next iteration loads.
        records: What it loads.
        transforms: What is done to each batch before it is delivered.
        epoch: The epoch that runs, or that begins with the next iteration.
        skipped: Records left out so far under ``on_error="skip"``, ``(record, message)`` each.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def __init__(self, beton: Beton, records: np.ndarray | None, spec: LoaderSpec) -> None:
        self.beton = beton
        self.spec = spec.placed()
        self.transforms = Transforms()
        self.epoch = 0
        self.bytes_read = 0
        self.skipped: list[tuple[int, str]] = []
        self._process = os.getpid()
        self._start = 0  # batches of the epoch that the next iteration leaves out
        self._delivered = 0  # batches of the epoch that the consumer has had
        self._finished = False  # the consumer has had all of them by iterating
        self._closed = False
        self._running: weakref.ref[Iteration[B]] | None = None
        self._takers: set[threading.Thread] = set()  # of batches, since it was opened
        self._draws: order.Draws | None = None
        self._all = records is None  # in file order, each once
        self.records = self._checked(np.arange(beton.num_samples) if records is None else records)
        self.now = self._next()  # what the running, or last, iteration loads
        check_device(self.name, spec.device)
        # Read now: the tables are mapped, and touching the map of a file that shrank kills the process.
        self._columns = (beton.labels, beton.index) if spec.with_index else (beton.labels,)
        lifetime.register(self)

    # -- what to load -------------------------------------------------------------------------------------------------

    def set_records(self, records: np.ndarray | None) -> None:
        """Load these records from the next iteration on, which begins an epoch; a running one keeps its own.

        Args:
            records: Distinct record numbers ``[n]`` in any order; ``None`` for all.
        """
        path, count = self.beton.path, self.beton.num_samples
        self.records = self._checked(np.arange(count) if records is None else distinct_numbers(records, count, f"{path}: record"))
        self._draws, self._all = None, records is None
        self.set_epoch(self.epoch + self._finished)

    def set_draws(self, draws: order.Draws | None) -> None:
        """Load what ``draws`` says from the next iteration on, which begins an epoch; a running one keeps its own.

        ``None``: each record once in every epoch.

        Raises:
            SelectionError, UsageError: Its groups are no distinct record numbers, or a count is none.
        """
        if draws is not None:
            draws, records = self._checked_draws(draws)
            self.records, self._all = self._checked(records), False
        self._draws = draws
        self.set_epoch(self.epoch + self._finished)

    def _checked_draws(self, draws: order.Draws) -> tuple[order.Draws, np.ndarray]:
        """The same with ascending groups, and the records of all of them, ascending."""
        count, what = self.beton.num_samples, f"{self.beton.path}: record"
        groups = [distinct_numbers(group, count, what) for group in draws.groups]
        if len(groups) != len(draws.counts) or not all(map(len, groups)):
            sizes = list(map(len, groups))
            given = f"{list(draws.counts)} of {sizes}"
            raise SelectionError(f"{what}s are drawn from non-empty groups with one count each, not {given}")
        for each in draws.counts:
            require(isinstance(each, Integral) and each >= 1, "counts", each, "a whole number of at least 1")
        return replace(draws, groups=groups), distinct_numbers(np.concatenate([np.zeros(0, np.int64), *groups]), count, what)

    @property
    def epoch_size(self) -> int:
        """Records of an epoch, over all ranks."""
        return self._next().size

    def _next(self) -> Epoch:
        """What the next iteration loads."""
        return Epoch(self.epoch, self.spec, self.records, self._draws)

    def _checked(self, records: np.ndarray) -> np.ndarray:
        if len(records) == 0:
            raise SelectionError(f"{self.beton.path}: no record is left to load. Keep at least one class with samples")
        self.beton.check_size()
        self.capabilities.check(self.name, self.spec, check_tables(self.beton, records))
        return records

    def set_size(self, size: int) -> None:
        """Side of the images in pixels from the next iteration on (progressive resizing); a running one keeps its own."""
        self.spec = replace(self.spec, size=size)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration begins with the first batch of epoch ``epoch``; a running one keeps its own.

        Without it, an iteration that was not finished is followed by its own epoch from the start, and a finished one by the next
        epoch.
        """
        require(isinstance(epoch, Integral) and 0 <= epoch < 2**32, "epoch", epoch, "a whole number from 0 to 2^32 - 1")
        self._begin(int(epoch), 0)

    def _begin(self, epoch: int, start: int) -> None:
        """Where the next iteration begins. The running one no longer tells where the loader is."""
        if (running := self._iteration()) is not None:
            running.tells_position = False
        self.epoch, self._start, self._delivered, self._finished = epoch, start, start, False

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return order.num_batches(self.epoch_size, **sharding(self.spec))

    def epoch_order(self) -> np.ndarray:
        """The order of epoch ``self.epoch`` over all ranks, int64 ``[n]``. The same for every backend."""
        epoch = self._next()
        records = epoch.drawn()[0]
        return self._at(records, self._places(epoch, records)[0])

    def _at(self, records: np.ndarray, places: np.ndarray) -> np.ndarray:
        """``records[places]``; of all records in file order, places are their numbers."""
        return places if self._all else records[places]

    def _places(self, epoch: Epoch, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in ``records``, the epoch's in file order, in the order in which they are loaded: int64 ``[n]``; and where another
        ``shuffle_buffer`` of them begins, int64, empty without one."""
        spec = epoch.spec
        if not (spec.shuffle and spec.shuffle_buffer):
            none = np.zeros(0, np.int64)
            return order.epoch_places(len(records), seed=spec.seed, epoch=epoch.number, shuffle=spec.shuffle), none
        ordered, bounds = order.block_buffers(
            np.arange(len(records)), self.beton.sizes[records], seed=spec.seed, epoch=epoch.number, block_bytes=order.BLOCK_BYTES,
            buffer_bytes=spec.shuffle_buffer,
        )  # fmt: skip
        return ordered, bounds[:-1]

    # -- what code written for torch's DataLoader looks for -------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Images per batch on this rank."""
        return self.spec.batch_size

    @property
    def dataset(self) -> Records:
        """The records that are read, over all ranks."""
        return Records(self.beton, self.records)

    @property
    def sampler(self) -> Sampler:
        """Their order; for ``loader.sampler.set_epoch(epoch)``."""
        return Sampler(self)

    def as_dataloader(self) -> WholeLoader:
        """This loader as a ``torch.utils.data.DataLoader``, for what takes nothing else. Close this one at the end."""
        from dp4tl_fast.loaders.dataloader import WholeLoader

        return WholeLoader(self)

    # -- iterating ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[B]:
        """The rest of the current epoch: from its start, or from where a resumed state left off. After a finished epoch, the next.

        One epoch runs at a time: a new one ends the one before it, and closing the loader ends it, too.
        """
        lifetime.hold()
        lifetime.come_first(self.name)
        self._check_usable()
        self._stop("a new iteration over the same loader")
        if self._finished:
            self.set_epoch(self.epoch + 1)
        check_memory(self.name, self.spec)
        now = self._next()
        records, epochs = now.drawn()
        places, _ = self._places(now, records)

        def mine(values: np.ndarray) -> list[np.ndarray]:
            return order.rank_batches(values, **sharding(now.spec))[self._start :]

        batches = mine(self._at(records, places))
        shown: list[Epochs] = [now.number] * len(batches) if epochs is None else list(mine(epochs[places]))
        self.now = now
        self._delivered, self._start = self._start, 0
        iteration: Iteration[B] = Iteration(self, batches, shown)
        # Weak: when the consumer drops the iterator, the epoch ends at once, whoever holds the loader.
        self._running = weakref.ref(iteration)
        return iteration

    def _iteration(self) -> Iteration[B] | None:
        return self._running() if self._running else None

    def _check_usable(self) -> None:
        if os.getpid() != self._process:
            raise BackendError(
                f"{self.name} loader of {self.beton.path} was opened by process {self._process}, and its threads are there. "
                f"Open it in the child (process {os.getpid()})"
            )
        if self._closed:
            raise BackendError(f"{self.name} loader of {self.beton.path} is closed. Open it again")

    def _stop(self, reason: str) -> None:
        if (running := self._iteration()) is not None:
            running.stop(reason)

    def _arriving(self, batches: list[np.ndarray]) -> Arriving:
        """These batches of the running iteration, on their way if the file lies elsewhere, and what later epochs read."""
        if self.beton.url is None:
            return local
        records = self.now.drawn()[0] if self.now.spec.shuffle else np.concatenate([np.zeros(0, np.int64), *batches])
        return self.beton.arriving(batches, records)

    @abstractmethod
    def _load(self, batches: list[np.ndarray], epochs: list[Epochs]) -> Generator[Batch | IndexedBatch, None, None]:
        """Yield a batch for each array of record numbers, in order, as ``self.now`` wants them, augmented for the epochs given
        with it.

        Closing the generator must end the epoch's threads and give its memory back.
        """

    def _batch(self, views: Iterable[torch.Tensor], records: np.ndarray) -> Batch | IndexedBatch:
        """The batch on the device, for the views of ``records``."""
        import torch

        return self._on_device(views, *(torch.from_numpy(column[records]) for column in self._columns))

    def _on_device(self, views: Iterable[torch.Tensor], labels: torch.Tensor, *index: torch.Tensor) -> Batch | IndexedBatch:
        """The batch with its parts on the device; ``index`` is used with ``spec.with_index`` only."""
        moved = tuple(self._to_device(view) for view in views)
        images: Images = moved if self.spec.views > 1 else moved[0]
        if self.spec.with_index:
            return IndexedBatch(images, self._to_device(labels), self._to_device(*index))
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

    def state_dict(self) -> State:
        """Epoch, the number of batches already delivered in it, and what makes that number a place in the data."""
        running = self._iteration()
        at = self.now if running is not None and running.tells_position else self._next()
        return {"epoch": self.epoch, "batch": self._delivered, **self._place(at)}

    def _place(self, at: Epoch) -> State:
        """All that the order of the records, cut into global batches, depends on besides the epoch's number.

        A path is not part of it, nor is the number of ranks: the same file elsewhere, and the same global batches on more
        ranks, have the same order.
        """
        spec = at.spec
        return {
            "global_batch_size": spec.global_batch_size,
            "min_batch": spec.min_batch,
            "records": at.size,
            "seed": spec.seed,
            "shuffle": int(spec.shuffle),
            "shuffle_buffer": spec.shuffle_buffer if spec.shuffle else 0,
            "file_sha256": self.beton.records_sha256,
            "records_sha256": at.kept_sha256,
            **({"file_checksums_sha256": checksums} if (checksums := self.beton.checksums_sha256) else {}),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue after the last delivered batch; costs no decoding. After a whole epoch, nothing of it is left.

        Raises:
            UsageError: The state is of a loader with another order: of other records, another file, seed, shuffle, shuffle_buffer
                or global batch size (batch size times ranks). The same number of batches is another place there.
        """
        here = self._place(self._next())
        # What a state of an earlier version does not have is not compared, nor are checksums that one of the files lacks.
        other = {k: state.get(k) for k in here if state.get(k, here[k]) != here[k] or (k not in state and k in ESSENTIAL)}
        if other:
            mine = {name: here[name] for name in other}
            raise UsageError(f"loader state is for {other}, but this loader has {mine}. Resume with the same settings")
        batch = state.get("batch")
        if not isinstance(batch, Integral) or not 0 <= batch <= len(self):
            raise UsageError(f"loader state says {batch} batches were delivered, but this epoch has {len(self)}")
        self.set_epoch(state.get("epoch"))  # type: ignore[arg-type]  # which checks it
        self._begin(self.epoch, int(batch))

    # -- closing ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release threads and memory. May be called twice, from any thread, and from a signal handler.

        A thread that waits for a batch meanwhile gets ``BackendError`` when it is there.
        """
        if os.getpid() != self._process:
            return  # the threads are the parent's
        self._closed = True
        self._takers.clear()
        running = self._iteration()
        if running is None or running.stop("closing the loader"):
            self._release()

    def _release(self) -> None:
        """End the backend's threads. May be called twice. No iteration runs."""

    def __enter__(self) -> BaseLoader[B]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise BackendError(
            f"{self.name} loader of {self.beton.path} cannot be pickled or copied: it has threads and open files. Pickle its "
            "Beton, Selection and LoaderSpec, and open it in the other process"
        )
