"""What every source of labelled images offers. Tables are arrays, not one Python object per image."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from dp4tl_fast.common.errors import SourceError


class Source(ABC):
    """Labelled images in a fixed, documented order: the "listing".

    Attributes:
        class_names: Names by class id.
        labels: Class id of every sample in listing order, int64 ``[n]``.
        sizes: Stored bytes of every sample, int64 ``[n]``.
        left_out: (name, why) of files that were passed over: well-known litter, and what lies in no class folder.
        bad: Samples that are known to be unusable when they are listed, and why; their label is -1.
        notes: The rules that were applied where the source left a choice, in words.
    """

    class_names: list[str]
    labels: np.ndarray
    sizes: np.ndarray

    def __init__(self) -> None:
        self.left_out: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, i: int) -> str:
        """Where sample ``i`` comes from, for messages and the audit file."""

    def read(self, i: int) -> bytes:
        """The image file's bytes. Called from several threads.

        Raises:
            OSError, SourceError: It cannot be read.
        """
        if i in self.bad:
            raise SourceError(self.bad[i])
        return self.read_file(i)

    @abstractmethod
    def read_file(self, i: int) -> bytes:
        """The bytes of a sample that is not known to be bad."""

    @abstractmethod
    def identity(self) -> str:
        """A hash of names, sizes and labels: equal when a second listing would give the same input."""

    def close(self) -> None:  # noqa: B027  # most sources hold nothing open
        """Release files. May be called twice."""


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
