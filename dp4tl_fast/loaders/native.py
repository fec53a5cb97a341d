"""The native backend: C++ threads (``kernels/csrc/core/loader/loader.h``) decode records straight into batch memory.

Records come in ``BaseLoader``'s order (with ``max_ram`` smaller than the data, in that of ``order.block_buffers``), and what
a view shows is ``loaders/augment.py``'s pure function of (seed, epoch, record, view): the same batches come out for any
number of threads and after a resume.

Records are used where the page cache has them; the system is asked for each one 64 records ahead, by its exact range. With
``max_ram`` smaller than the data, blocks of 1 MiB from the whole file are read ahead into two buffers instead, and batches
are drawn from a buffer.

Batches for a GPU (``LoaderSpec.pinned``) are decoded straight into page-locked memory of torch's (``loaders/pinned.py``),
others into memory of the C++ loader's own, in huge pages.

JPEGs are decoded to planes that are resized apart, colours converted last. Against ``exact=True``, on 500 ImageNet images of
4:2:0 and quality 90: mean absolute difference of an image 0.3 levels in the median and below 1 in the worst, 44 at most in
a single sample (saturated chroma at an edge). Of a crop whose sides are at least 4, 8 or 16 times the output's, JPEGs are decoded
at 1/2, 1/4 or 1/8 from their lowest frequencies: 1.2 levels then in the worst image, at an output of 32 pixels.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError, BetonError, UsageError
from dp4tl_fast.common.machine import cores
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders import order
from dp4tl_fast.loaders.base import BaseLoader, Epochs
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.contract import Batch, IndexedBatch
from dp4tl_fast.loaders.decode import bad_record
from dp4tl_fast.loaders.pinned import held_bytes, pinned_allocator, views_in
from dp4tl_fast.loaders.spec import LoaderSpec

if TYPE_CHECKING:
    import torch

DEPTH = 3  # batches that are decoded ahead
BLOCK_BYTES = 1 << 20  # one read of slow storage; small, so that a buffer holds many places of the file


class NativeLoader(BaseLoader):
    """See ``loaders.contract.Loader``. Delivered tensors stay valid; their memory is used again once they are dropped."""

    name = "native"
    capabilities = Capabilities(
        summary="C++ threads, decodes only the crop, no Python per image", partial_decode=True, exact=True, max_ram=True
    )
    isa = "auto"  # instruction set of the pixel kernels; tests force each

    def __init__(self, beton: Beton, records: np.ndarray | None, spec: LoaderSpec) -> None:
        super().__init__(beton, records, spec)
        try:
            self._tables = _native.Beton(str(beton.real_path))
        except RuntimeError as error:
            raise BetonError(str(error)) from None
        self._allocate = pinned_allocator() if spec.pinned or spec.device != "cpu" else None
        self._open_core()

    # -- memory -------------------------------------------------------------------------------------------------------

    def _batch_bytes(self) -> int:
        spec = self.spec
        item = {"uint8": 1, "float32": 4}.get(spec.dtype, 2)
        return spec.batch_size * spec.views * 3 * spec.size**2 * item

    def _held_bytes(self) -> int:
        """What the memory of a batch takes."""
        return held_bytes(self._batch_bytes()) if self._allocate else self._batch_bytes()

    def _depth(self) -> int:
        """Batches ahead: fewer if they would take more than a quarter of ``max_ram``."""
        return DEPTH if not self.spec.max_ram else max(1, min(DEPTH, self.spec.max_ram // 4 // self._held_bytes()))

    def _buffer_bytes(self) -> int:
        """Bytes of one of the two record buffers; 0 if each record is read when its turn comes.

        Raises:
            UsageError: ``max_ram`` holds not even the batches and two blocks.
        """
        if not self.spec.max_ram:
            return 0
        # Besides those in the ring, a batch is with the consumer and one is kept for use again.
        room = self.spec.max_ram - (self._depth() + 2) * self._held_bytes()
        sizes = self.beton.sizes[self.records]
        if sizes.sum() <= room:
            return 0
        block = max(BLOCK_BYTES, int(sizes.max()))
        if room < 4 * block:
            need = (self._depth() + 2) * self._held_bytes() + 4 * block
            raise UsageError(f"`max_ram={self.spec.max_ram}`: batches and buffers need at least {need} bytes")
        return room // 2 - block

    # -- order --------------------------------------------------------------------------------------------------------

    def _places(self, records: np.ndarray) -> np.ndarray:
        return self._ordered(records)[0]

    def _ordered(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in ``records`` in the order in which they are loaded, and where another buffer begins (empty: no buffers)."""
        buffer_bytes = self._buffer_bytes()
        if not buffer_bytes:
            return super()._places(records), np.zeros(0, np.int64)
        sizes, places = self.beton.sizes[records], np.arange(len(records))
        if not self.spec.shuffle:
            buffer_of = (np.cumsum(sizes) - sizes) // buffer_bytes
            return places, np.flatnonzero(np.diff(buffer_of, prepend=-1))
        ordered, bounds = order.block_buffers(
            places, sizes, seed=self.spec.seed, epoch=self.epoch, block_bytes=BLOCK_BYTES, buffer_bytes=buffer_bytes
        )
        return ordered, bounds[:-1]

    def _windows(self, batches: list[np.ndarray]) -> np.ndarray:
        """Where, in the records of ``batches`` one after another, another buffer begins: int64, empty without buffers."""
        _, starts = self._ordered(self._drawn()[0])
        if len(starts) == 0:
            return starts
        places = order.rank_batches(np.arange(self.epoch_size), **self._sharding())[-len(batches) :]
        buffer_of = np.searchsorted(starts, np.concatenate(places), side="right")
        return np.append(np.flatnonzero(np.diff(buffer_of, prepend=-1)), len(buffer_of)).astype(np.int64)

    # -- running ------------------------------------------------------------------------------------------------------

    def _open_core(self) -> None:
        spec = self.spec
        options = _native.LoaderOptions()
        crop, output = options.crop, options.output
        crop.transform = _native.Transform[spec.transform]
        crop.scale, crop.aspect, crop.crop_ratio = spec.scale, spec.aspect, spec.crop_ratio
        crop.flip, crop.seed = spec.flip, spec.seed
        output.size, output.dtype = spec.size, _native.DType[spec.dtype]
        if spec.dtype != "uint8":  # x / 255, less the mean, by the standard deviation: as x * scale + bias
            output.scale = [1 / (255 * s) for s in spec.std]
            output.bias = [-m / s for m, s in zip(spec.mean, spec.std, strict=True)]
        options.views, options.batch_size, options.depth = spec.views, spec.batch_size, self._depth()
        options.threads = spec.workers or cores()
        options.skip, options.exact = spec.on_error == "skip", spec.exact
        options.lent, options.isa = self._allocate is not None, self.isa
        try:
            self._core = _native.Loader(self._tables, options)
        except RuntimeError as error:
            raise UsageError(f"native loader: {error}") from None

    def set_size(self, size: int) -> None:
        """Side of the images in pixels from the next iteration on (progressive resizing)."""
        self._stop("a new image size")
        super().set_size(size)
        self._core.close()
        self._open_core()

    def _load(self, batches: list[np.ndarray], epochs: list[Epochs]) -> Generator[Batch | IndexedBatch, None, None]:
        if not batches:
            return
        bounds = np.cumsum([0] + [len(b) for b in batches], dtype=np.int64)
        core = self._core
        records = np.concatenate(batches).astype(np.int64, copy=False)
        own = () if isinstance(epochs[0], int) else (np.concatenate(epochs),)  # type: ignore[arg-type]  # all are of one kind
        core.start(records, bounds, self._windows(batches), self.epoch, *own)
        try:
            later = len(batches) - self._depth()  # batches that get their memory when one before them is done
            self._lend(min(self._depth(), len(batches)))
            while (batch := core.next()) is not None:
                if len(batch) == 2:
                    raise bad_record(self.beton, *batch)
                if later > 0:
                    self._lend(1)
                    later -= 1
                yield self._deliver(*batch)
        finally:
            core.stop()

    def _lend(self, batches: int) -> None:
        """Memory for so many more batches, if the C++ loader has none of its own."""
        if self._allocate is None:
            return
        size = self._batch_bytes()
        try:
            for _ in range(batches):
                self._core.lend(self._allocate(size))
        except (MemoryError, RuntimeError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise BackendError(
                f"native loader: no page-locked memory for a batch of {size} bytes, besides up to {self._depth() + 1} others: "
                f"{why}. Use a smaller batch size"
            ) from error

    def _deliver(
        self, images: Any, labels: torch.Tensor, index: torch.Tensor, failures: list[tuple[int, int, str]]
    ) -> Batch | IndexedBatch:
        """``images``: the views, or the memory that was lent for them."""
        views: list[torch.Tensor] = views_in(images, self.spec, len(labels)) if self._allocate else images
        if failures:
            import torch

            rows = np.setdiff1d(np.arange(len(labels)), [row for _, row, _ in failures])
            keep = torch.from_numpy(rows)
            views, labels, index = [v[keep] for v in views], labels[keep], index[keep]
            for record, _, why in sorted(failures):
                self._skip(record, bad_record(self.beton, record, why))
        return self._on_device(views, labels, index)

    def profile(self) -> dict[str, float]:
        """Where the running or last epoch's time went, in seconds: ``read`` (what is not used in place), ``decode`` (entropy
        decoding and inverse DCT), ``resize`` (with flip, colours and normalisation) and ``idle`` (for want of a free batch)
        summed over threads; ``starve`` is the consumer's wait for a batch. Waiting for a mapped page counts where it is used."""
        return self._core.profile()

    def close(self) -> None:
        """End the threads. Tensors already delivered stay valid."""
        super().close()
        if core := getattr(self, "_core", None):
            core.close()
