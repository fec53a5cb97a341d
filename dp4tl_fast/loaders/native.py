"""The native backend: C++ threads (``kernels/csrc/core/loader.h``) decode records straight into batch memory.

Records come in ``BaseLoader``'s order, and what a view shows is ``loaders/augment.py``'s pure function of (seed, epoch,
record, view): the same batches come out for any number of threads and after a resume.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.errors import BetonError, UsageError
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders.base import BaseLoader
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.decode import bad_record
from dp4tl_fast.loaders.spec import LoaderSpec

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.selection import Selection

DEPTH = 3  # batches that are decoded ahead


class NativeLoader(BaseLoader):
    """See ``loaders.spec.Loader``. Delivered tensors stay valid; their memory is used again once they are dropped."""

    name = "native"
    capabilities = Capabilities(
        summary="C++ threads, decodes only the crop, no Python per image", exact=True, partial_decode=True
    )
    isa = "auto"  # instruction set of the pixel kernels; tests force each

    def __init__(self, beton: Beton, selection: Selection | None, spec: LoaderSpec) -> None:
        super().__init__(beton, selection, spec)
        try:
            self._tables = _native.Beton(str(beton.path))
        except RuntimeError as error:
            raise BetonError(str(error)) from None
        self._open_core()

    def _open_core(self) -> None:
        spec = self.spec
        to_float = spec.dtype != "uint8"  # x / 255, less the mean, by the standard deviation: as x * mul + add
        try:
            self._core = _native.Loader(
                self._tables,
                transform=spec.transform,
                scale=spec.scale,
                aspect=spec.aspect,
                crop_ratio=spec.crop_ratio,
                flip=spec.flip,
                seed=spec.seed,
                size=spec.size,
                dtype=spec.dtype,
                mul=[1 / (255 * s) if to_float else 1.0 for s in spec.std],
                add=[-m / s if to_float else 0.0 for m, s in zip(spec.mean, spec.std, strict=True)],
                views=spec.views,
                threads=spec.workers or len(os.sched_getaffinity(0)),
                batch_size=spec.batch_size,
                depth=DEPTH,
                skip=spec.on_error == "skip",
                exact=spec.exact,
                isa=self.isa,
            )
        except RuntimeError as error:
            raise UsageError(f"native loader: {error}") from None

    def set_size(self, size: int) -> None:
        """Side of the images in pixels from the next iteration on (progressive resizing)."""
        self._stop("a new image size")
        super().set_size(size)
        self._core.close()
        self._open_core()

    def _load(self, batches: list[np.ndarray]) -> Generator[tuple[Any, ...], None, None]:
        if not batches:
            return
        bounds = np.cumsum([0] + [len(b) for b in batches], dtype=np.int64)
        core = self._core
        core.start(np.concatenate(batches).astype(np.int64, copy=False), bounds, self.epoch)
        try:
            while (batch := core.next()) is not None:
                if len(batch) == 2:
                    raise bad_record(self.beton, *batch)
                yield self._deliver(*batch)
        finally:
            core.stop()

    def _deliver(
        self, views: list[torch.Tensor], labels: torch.Tensor, index: torch.Tensor, failures: list[tuple[int, int, str]]
    ) -> tuple[Any, ...]:
        if failures:
            import torch

            rows = np.setdiff1d(np.arange(len(labels)), [row for _, row, _ in failures])
            keep = torch.from_numpy(rows)
            views, labels, index = [v[keep] for v in views], labels[keep], index[keep]
            for record, _, why in sorted(failures):
                self._skip(record, bad_record(self.beton, record, why))
        moved = [self._to_device(v) for v in views]
        columns = (labels, index) if self.spec.with_index else (labels,)
        return (tuple(moved) if self.spec.views > 1 else moved[0], *(self._to_device(c) for c in columns))

    def close(self) -> None:
        """End the threads. Tensors already delivered stay valid."""
        super().close()
        if core := getattr(self, "_core", None):
            core.close()
