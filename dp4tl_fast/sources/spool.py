"""Images that come one after the other are first written to an unnamed file, then read from there at random."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.common.files import naming
from dp4tl_fast.sources.base import Source


class SpoolSource(Source):
    """Samples given as bytes. Subclasses set ``class_names``, ``labels`` and ``bad``, and call ``_spool``.

    Args:
        src: What they come from, for messages.
        scratch: Where the unnamed file goes; it takes as much room as the images. ``None``: nowhere, and samples cannot be read.
    """

    def __init__(self, src: str, scratch: Path | None) -> None:
        super().__init__()
        self._src = src
        self._scratch = scratch
        self._file: Any = None

    def _spool(self, samples: Iterable[bytes]) -> None:
        """Write the bytes of all samples, in order; empty where there are none."""
        digest = hashlib.sha256()
        sizes = []
        if self._scratch is None:
            sizes = [len(data) for data in samples]
        else:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115  # closed by close()
            for data in samples:
                with naming(self._scratch):
                    self._file.write(data)
                digest.update(data)
                sizes.append(len(data))
            with naming(self._scratch):
                self._file.flush()
        self.sizes = np.array(sizes, np.int64)
        self._starts = np.cumsum(self.sizes) - self.sizes
        self._digest = digest

    def name(self, i: int) -> str:
        return f"{self._src}: sample {i}"

    def read_file(self, i: int) -> bytes:
        return os.pread(self._file.fileno(), int(self.sizes[i]), int(self._starts[i]))

    def identity(self) -> str:
        digest = self._digest.copy()
        for table in (self.labels, self.sizes):
            digest.update(table.tobytes())
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
