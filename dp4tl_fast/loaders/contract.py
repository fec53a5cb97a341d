"""What every loader promises, and what a batch is. Those who take batches import this module only; it imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.loaders.spec import LoaderSpec

Images: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...]"
State: TypeAlias = "dict[str, int | str]"


class Batch(NamedTuple):
    """One batch of a loader without ``spec.with_index``. All tensors are on ``spec.device``.

    Attributes:
        images: ``[batch, 3, size, size]`` of ``spec.dtype``, channels-last in memory; with ``spec.views > 1`` a tuple of
            that many such tensors.
        labels: Class ids, int64 ``[batch]``.
    """

    images: Images
    labels: torch.Tensor


class IndexedBatch(NamedTuple):
    """One batch of a loader with ``spec.with_index``: a ``Batch`` that says which samples it holds.

    Attributes:
        images: As in ``Batch``.
        labels: As in ``Batch``.
        index: The records' ``index`` fields, int64 ``[batch]``: the record number where the file has no such field.
    """

    images: Images
    labels: torch.Tensor
    index: torch.Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a batch


B = TypeVar("B", bound="Batch | IndexedBatch")
B_co = TypeVar("B_co", bound="Batch | IndexedBatch", covariant=True)


@runtime_checkable
class Loader(Protocol[B_co]):
    """An iterable of ready batches: of ``IndexedBatch`` with ``spec.with_index``, else of ``Batch``.

    Each iteration is one epoch: a finished one is followed by the next epoch, one that was abandoned by its own epoch from the
    start. One iteration runs at a time: a new one ends the one before it, and so does ``close``. An iteration that was ended,
    or failed, raises ``BackendError`` at its next batch; it never looks complete. It keeps the epoch, size and records that it
    began with.

    A loader belongs to the process that opened it: a forked child opens its own. Any thread may use it.

    Attributes:
        spec: What is loaded, and how.
        bytes_read: Record bytes delivered since the loader was opened.
    """

    spec: LoaderSpec
    bytes_read: int

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""

    def __iter__(self) -> Iterator[B_co]:
        """The rest of the current epoch: from its start, or from where a loaded state left off."""

    def set_epoch(self, epoch: int) -> None:
        """The next iteration begins with the first batch of this epoch."""

    def state_dict(self) -> State:
        """Where the loader is, and what that place depends on: a few numbers and hashes."""

    def load_state_dict(self, state: State) -> None:
        """Continue after the last delivered batch; costs no decoding. Refuses a state of a loader with another order."""

    def close(self) -> None:
        """Release threads and memory. May be called more than once, from any thread, and from a signal handler."""

    def __enter__(self) -> Loader[B_co]: ...
    def __exit__(self, *exc: object) -> None: ...
