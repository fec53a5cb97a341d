"""A loader as a ``torch.utils.data.DataLoader``, for code that takes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset

from dp4tl_fast.loaders.contract import State

if TYPE_CHECKING:
    from dp4tl_fast.loaders.base import BaseLoader


class Batches(IterableDataset[Any]):
    """A loader's batches as the items of a data set, which has a position: for a ``DataLoader`` or torchdata's
    ``StatefulDataLoader`` of one's own, with ``batch_size=None`` and ``num_workers=0`` (the loader has threads)."""

    def __init__(self, loader: BaseLoader[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """See ``Sampler.set_epoch``."""
        self._loader.sampler.set_epoch(epoch)

    def state_dict(self) -> State:
        """See ``Loader.state_dict``."""
        return self._loader.state_dict()

    def load_state_dict(self, state: State) -> None:
        """See ``Loader.load_state_dict``; of a finished epoch's state, the next iteration is the next epoch."""
        self._loader.load_state_dict(state)
        if state["batch"] == len(self._loader):
            self._loader.set_epoch(self._loader.epoch + 1)


class WholeLoader(DataLoader[Any]):
    """The loader behind the face of torch's ``DataLoader``: its iteration, length and position are the loader's.

    ``batch_size`` is ``None``, as torch has it where the data set yields whole batches. The state has StatefulDataLoader's
    contract: taken anywhere, and loaded before the next iteration, that one is the rest of the epoch, or the next epoch.

    Accelerate's ``prepare`` returns it as it is, for all that it would do is done: each rank reads its own share, and batches are
    on ``LoaderSpec(device=...)``. ``Accelerator.save_state`` keeps its position.
    """

    # What Accelerate looks for. It would otherwise read everything on rank 0 and send batches to the others.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

    def __init__(self, loader: BaseLoader[Any]) -> None:
        super().__init__(Batches(loader), batch_size=None)

    def __iter__(self) -> Any:
        return iter(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """See ``Sampler.set_epoch``."""
        self._batches.set_epoch(epoch)

    def state_dict(self) -> State:
        """See ``Loader.state_dict``."""
        return self._batches.state_dict()

    def load_state_dict(self, state: State) -> None:
        """See ``Batches.load_state_dict``."""
        self._batches.load_state_dict(state)

    @property
    def _batches(self) -> Batches:
        assert isinstance(self.dataset, Batches)
        return self.dataset
