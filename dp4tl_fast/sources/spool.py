"""Images that come one after the other are first written to an unnamed file, then read from there at random."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.common.files import naming
from dp4tl_fast.sources.base import Source, named_classes


class SpoolSource(Source):
    """Samples given as (label, bytes). Subclasses set ``class_names``, empty where there are none, and call ``_spool``.

    Args:
        src: What they come from, for messages.
        scratch: Where the unnamed file goes; it takes as much room as the images.
    """

    def __init__(self, src: str, scratch: Path) -> None:
        self._src = src
        self._scratch = scratch
        self._file: Any = None

    def _spool(self, samples: Iterable[tuple[int, bytes]]) -> None:
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115  # closed by close()
        digest = hashlib.sha256()
        labels, sizes = [], []
        for label, data in samples:
            with naming(self._scratch):
                self._file.write(data)
            digest.update(data)
            labels.append(label)
            sizes.append(len(data))
        with naming(self._scratch):
            self._file.flush()
        if not labels:
            raise SourceError(f"{self._src}: holds no images")
        self.labels, self.sizes = np.array(labels, np.int64), np.array(sizes, np.int64)
        self.class_names = named_classes(self._src, self.class_names, self.labels)
        self._starts = np.cumsum(self.sizes) - self.sizes
        for table in (self.labels, self.sizes):
            digest.update(table.tobytes())
        self._identity = digest.hexdigest()

    def name(self, i: int) -> str:
        return f"{self._src}: sample {i}"

    def read(self, i: int) -> bytes:
        return os.pread(self._file.fileno(), int(self.sizes[i]), int(self._starts[i]))

    def identity(self) -> str:
        return self._identity

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
