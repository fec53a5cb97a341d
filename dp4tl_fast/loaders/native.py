"""The native backend: C++ threads (``kernels/csrc/core/loader/loader.h``) decode records straight into batch memory.

Records come in ``BaseLoader``'s order, and what a view shows is ``loaders/augment.py``'s pure function of (seed, epoch, record,
view): the same batches come out for any number of threads and after a resume.

Records are used where the page cache has them; the system is asked for each one 64 records ahead, by its exact range. With a
``shuffle_buffer``, or ``max_ram`` smaller than the data, windows of the order are read ahead instead, in the order of the file: one
window while the one before it is decoded. A window is a shuffle buffer, which has long reads, or what fits into ``max_ram``.

Of a file that lies elsewhere a batch is begun once its records are there, and those of the next ones meanwhile fetched.

Batches for a GPU (``LoaderSpec.pinned``) are decoded straight into page-locked memory of torch's (``loaders/pinned.py``),
others into memory of the C++ loader's own, in huge pages.

JPEGs are decoded to planes that are resized apart, colours converted last. Against ``exact=True``, on 500 ImageNet images of
4:2:0 and quality 90: mean absolute difference of an image 0.3 levels in the median and below 1 in the worst, 44 at most in
a single sample (saturated chroma at an edge). Of a crop whose sides are at least 4, 8 or 16 times the output's, JPEGs are decoded
at 1/2, 1/4 or 1/8 from their lowest frequencies: 1.2 levels then in the worst image, at an output of 32 pixels.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
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
from dp4tl_fast.loaders.epoch import Epoch, sharding
from dp4tl_fast.loaders.pinned import held_bytes, pinned_allocator, plain_allocator, views_in
from dp4tl_fast.loaders.spec import LoaderSpec

if TYPE_CHECKING:
    import torch

DEPTH = 3  # batches that are decoded ahead


class NativeLoader(BaseLoader):
    """See ``loaders.contract.Loader``. Delivered tensors stay valid; their memory is used again once they are dropped."""

    name = "native"
    capabilities = Capabilities(
        summary="C++ threads, decodes only the crop, no Python per image", partial_decode=True, exact=True, max_ram=True
    )
    isa = "auto"  # instruction set of the pixel kernels; tests force each

    def __init__(self, beton: Beton, records: np.ndarray | None, spec: LoaderSpec) -> None:
        with ThreadPoolExecutor(1) as other:  # of the core's tables and ours, each is read and checked in a thread
            tables = other.submit(_native.Beton, beton.open_path)
            super().__init__(beton, records, spec)
        spec = self.spec
        try:
            self._tables: _native.Beton | None = tables.result()
        except RuntimeError as error:
            raise BetonError(str(error).replace(beton.open_path, str(beton.path))) from None
        self._allocate = pinned_allocator() if spec.pinned or spec.device != "cpu" else None
        self._window_bytes(self.now)  # too little memory is refused now
        self._lent = self._allocate  # memory of the running, or last, iteration's batches; ``None``: the C++ loader's own
        self._core: _native.Loader | None = None
        self._core_of = (spec, False)
        self._open_core(spec)

    # -- memory -------------------------------------------------------------------------------------------------------

    def _held_bytes(self, spec: LoaderSpec) -> int:
        """What the memory of a batch takes."""
        return held_bytes(spec.batch_bytes) if self._allocate else spec.batch_bytes

    def _depth(self, spec: LoaderSpec) -> int:
        """Batches ahead: fewer if they would take more than a quarter of ``max_ram``."""
        return DEPTH if not spec.max_ram else max(1, min(DEPTH, spec.max_ram // 4 // self._held_bytes(spec)))

    def _room(self, spec: LoaderSpec) -> int:
        """Bytes of ``max_ram`` that are left for records."""
        # Besides those in the ring, a batch is with the consumer and one is kept for use again.
        return spec.max_ram - (self._depth(spec) + 2) * self._held_bytes(spec)

    def _window_bytes(self, epoch: Epoch) -> int:
        """The most bytes of records that are read ahead together, where that bounds them: two such windows are in memory. 0: each
        record is read when its turn comes, or with its shuffle buffer.

        Raises:
            UsageError: ``max_ram`` holds not even the batches and a few reads, or not two shuffle buffers.
        """
        spec = epoch.spec
        if not spec.max_ram:
            return 0
        sizes, room = self.beton.sizes[epoch.records], self._room(spec)
        if sizes.sum() <= room:
            return 0
        largest = int(sizes.max())
        buffered = spec.shuffle and spec.shuffle_buffer
        needed = 4 * max(order.BLOCK_BYTES, largest)
        if buffered:
            needed = min(2 * (spec.shuffle_buffer + order.BLOCK_BYTES + largest), int(sizes.sum()))
        if room < needed:
            what = f"two of `shuffle_buffer={spec.shuffle_buffer}`" if buffered else "buffers"
            raise UsageError(f"`max_ram={spec.max_ram}`: batches and {what} need at least {spec.max_ram - room + needed} bytes")
        return 0 if buffered else room // 2

    # -- order --------------------------------------------------------------------------------------------------------

    def _windows(self, batches: list[np.ndarray]) -> np.ndarray:
        """Where, in the records of ``batches`` one after another, another window begins: int64, empty without windows."""
        now = self.now
        most = self._window_bytes(now)
        if not most and not now.spec.shuffle_buffer:
            return np.zeros(0, np.int64)
        records = now.drawn()[0]
        ordered, starts = self._places(now, records)
        if most:
            starts = order.windows(self.beton.sizes[records[ordered]], most)
        if len(starts) == 0:
            return starts
        places = order.rank_batches(np.arange(now.size), **sharding(now.spec))[-len(batches) :]
        window_of = np.searchsorted(starts, np.concatenate(places), side="right")
        return np.append(np.flatnonzero(np.diff(window_of, prepend=-1)), len(window_of)).astype(np.int64)

    # -- running ------------------------------------------------------------------------------------------------------

    def _open_core(self, spec: LoaderSpec) -> _native.Loader:
        """The C++ loader for ``spec``, which differs from the one before in ``size`` and in whose memory it writes to only."""
        if self._core is not None and self._core_of == (spec, self._lent is not None):
            return self._core
        self._release()
        options = _native.LoaderOptions()
        crop, output = options.crop, options.output
        crop.transform = _native.Transform[spec.transform]
        crop.scale, crop.aspect, crop.crop_ratio = spec.scale, spec.aspect, spec.crop_ratio
        crop.flip, crop.seed = spec.flip, spec.seed
        output.size, output.dtype = spec.size, _native.DType[spec.dtype]
        if spec.dtype != "uint8":  # x / 255, less the mean, by the standard deviation: as x * scale + bias
            output.scale = [1 / (255 * s) for s in spec.std]
            output.bias = [-m / s for m, s in zip(spec.mean, spec.std, strict=True)]
        options.views, options.batch_size, options.depth = spec.views, spec.batch_size, self._depth(spec)
        options.threads = spec.workers or cores()
        options.skip, options.exact = spec.on_error == "skip", spec.exact
        options.lent, options.isa = self._lent is not None, self.isa
        assert self._tables is not None  # it is not closed
        try:
            self._core, self._core_of = _native.Loader(self._tables, options), (spec, options.lent)
        except RuntimeError as error:
            raise UsageError(f"native loader: {error}") from None
        return self._core

    def _load(self, batches: list[np.ndarray], epochs: list[Epochs]) -> Generator[Batch | IndexedBatch, None, None]:
        if not batches:
            return
        bounds = np.cumsum([0] + [len(b) for b in batches], dtype=np.int64)
        spec, windows = self.now.spec, self._windows(batches)
        records = order.joined(batches).astype(np.int64, copy=False)
        own = () if isinstance(epochs[0], int) else (np.concatenate(epochs),)  # type: ignore[arg-type]  # all are of one kind
        with self._arriving(batches) as arriving:
            if len(windows):  # which are read ahead by themselves
                for i in range(len(batches)):
                    arriving.wait(i)
            # The C++ loader begins no batch that it has no memory for: so none whose records are still on their way.
            self._lent = self._allocate or (None if arriving.complete or len(windows) else plain_allocator())
            core, depth, lent = self._open_core(spec), self._depth(spec), 0
            core.start(records, bounds, windows, self.now.number, *own)

            def lend(wanted: int, ahead: int) -> None:
                """Memory for all batches below ``wanted``, and for up to ``ahead`` more that are there."""
                nonlocal lent
                while lent < min(wanted + ahead, len(batches)) and (lent < wanted or arriving.there(lent)):
                    arriving.wait(lent)
                    self._lend(core)
                    lent += 1

            try:
                for number in range(len(batches)):
                    lend(number + 1, depth - 1)
                    batch = core.next()
                    if batch is None:
                        return
                    lend(number + 1, depth)
                    if len(batch) == 2:
                        record, why = batch
                        raise bad_record(self.beton, record, why) if record >= 0 else MemoryError(why)
                    yield self._deliver(*batch)
            finally:
                core.stop()

    def _lend(self, core: _native.Loader) -> None:
        """Memory for another batch, if the C++ loader has none of its own."""
        if self._lent is None:
            return
        spec = self.now.spec
        try:
            core.lend(self._lent(spec.batch_bytes))
        except (MemoryError, RuntimeError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise BackendError(
                f"native loader: no page-locked memory for a batch of {spec.batch_bytes} bytes, besides up to "
                f"{self._depth(spec) + 1} others: {why}. Use a smaller batch size"
            ) from error

    def _deliver(
        self, images: Any, labels: torch.Tensor, index: torch.Tensor, failures: list[tuple[int, int, str]]
    ) -> Batch | IndexedBatch:
        """``images``: the views, or the memory that was lent for them."""
        views: list[torch.Tensor] = views_in(images, self.now.spec, len(labels)) if self._lent else images
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
        return self._core.profile() if self._core is not None else {}

    def _release(self) -> None:
        """End the threads; of a closed loader, give the file back, too. Tensors already delivered stay valid."""
        if self._core is not None:
            self._core.close()
            self._core = None
        if self._closed:
            self._tables = None
