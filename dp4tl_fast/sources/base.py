"""What every source of labelled images offers. Tables are arrays, not one Python object per image."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from dp4tl_fast.common.errors import SourceError

MAX_CLASS_ID = 10_000_000  # a larger number is no class id, and a table of so many classes would fill the memory


class Source(ABC):
    """Labelled images in a fixed, documented order: the "listing".

    Attributes:
        class_names: Names by class id.
        labels: Class id of every sample in listing order, int64 ``[n]``.
        sizes: Stored bytes of every sample, int64 ``[n]``.
    """

    class_names: list[str]
    labels: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, i: int) -> str:
        """Where sample ``i`` comes from, for messages and the audit file."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The image file's bytes. Called from several threads.

        Raises:
            OSError, SourceError: It cannot be read.
        """

    @abstractmethod
    def identity(self) -> str:
        """A hash of names, sizes and labels: equal when a second listing would give the same input."""

    def close(self) -> None:  # noqa: B027  # most sources hold nothing open
        """Release files. May be called twice."""


def named_classes(src: str, names: list[str], labels: np.ndarray) -> list[str]:
    """The class names by id; the ids themselves where there are no names.

    Raises:
        SourceError: A label (int64 ``[n]``, n > 0) is no class id, or has no name.
    """
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label <= MAX_CLASS_ID:
            raise SourceError(f"{src}: has the label {label}, which is no class id. It is not for classification")
        if names and label >= len(names):
            raise SourceError(f"{src}: has the label {label}, but names for {len(names)} classes")
    return names or [str(i) for i in range(int(labels.max()) + 1)]


class Names:
    """Many strings in one block of bytes: ``names[i]`` without one object per name."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._lengths: list[np.ndarray] = []
        self._block, self._starts = b"", np.zeros(1, np.int64)

    def extend(self, names: list[bytes]) -> None:
        self._blocks.append(b"".join(names))
        self._lengths.append(np.fromiter(map(len, names), np.int64, len(names)))

    def freeze(self) -> Names:
        """Make ``names[i]`` available; call once after the last ``extend``."""
        self._block = b"".join(self._blocks)
        self._starts = np.concatenate([np.zeros(1, np.int64), *self._lengths]).cumsum()
        self._blocks, self._lengths = [], []
        return self

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> bytes:
        return self._block[self._starts[i] : self._starts[i + 1]]

    def block(self) -> bytes:
        """All names, for hashing."""
        return self._starts.tobytes() + self._block
