"""A loader's records and its order, as code written for torch's ``DataLoader`` looks for them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders.decode import decode_record

if TYPE_CHECKING:
    from PIL.Image import Image

    from dp4tl_fast.loaders.base import BaseLoader


class Records(Sequence["tuple[Image, int]"]):
    """The records that a loader reads, in file order, in the manner of torchvision's ``ImageFolder``.

    An item is a PIL image, whole and not augmented, and its class id: for looking at a few. Training reads batches.

    Attributes:
        classes: Class names by id.
        class_to_idx: Their ids by name.
    """

    def __init__(self, beton: Beton, records: np.ndarray) -> None:
        self._beton, self._records = beton, records
        self.classes = list(beton.class_names)
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}

    @property
    def targets(self) -> list[int]:
        """Class ids of the records."""
        return self._beton.labels[self._records].tolist()

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, i: int) -> tuple[Image, int]: ...
    @overload
    def __getitem__(self, i: slice) -> Records: ...
    def __getitem__(self, i: int | slice) -> tuple[Image, int] | Records:
        """Raises: IndexError, ``RecordError`` where the record cannot be decoded."""
        from PIL import Image

        if isinstance(i, slice):
            return Records(self._beton, self._records[i])
        record = int(self._records[i])
        pixels = decode_record(self._beton, record, self._beton.images[record], self._beton.payload(record))
        return Image.fromarray(pixels), int(self._beton.labels[record])


class Sampler:
    """The order of a loader as torch's samplers show theirs, for loops that call ``loader.sampler.set_epoch(epoch)``.

    As with torch's samplers that does not undo a resume: where the loader has loaded a state in the middle of that epoch, it stays
    there. ``loader.set_epoch`` always begins the epoch.
    """

    def __init__(self, loader: BaseLoader[Any]) -> None:
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is of this epoch."""
        if not (self._loader.epoch == epoch and 0 < self._loader._start < len(self._loader)):
            self._loader.set_epoch(epoch)

    def __len__(self) -> int:
        """Records of an epoch, over all ranks."""
        return self._loader.epoch_size
