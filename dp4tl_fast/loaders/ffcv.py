"""Backend ``ffcv``: FFCV 1.0.2's reader, pipeline graph and decoder behind our contract.

FFCV's traps, and where they end:

- ``NormalizeImage`` after ``ToTensor`` on a CPU makes FFCV's graph loop forever at start: neither is used; the
  decoding stage normalises (``ffcv_stages.DecodeCrop``).
- An exception in its loader thread leaves the consumer waiting forever; an abandoned epoch leaks that thread; it sets
  torch's thread count to its own: ``ffcv_stages.EpochThread``.
- ``drop_last=True`` is its default, its ``len`` is of the first epoch, ``QUASI_RANDOM`` is refused under DDP,
  ``distributed=True`` repeats samples, and an ``isinstance`` on the class refuses any own ``TraversalOrder``: it gets
  the records of an epoch from us, in the order that every backend follows.
- Its memory managers kill the process when the file shrinks, lose a page reader on any I/O error, and fetch several times the
  wanted bytes of a scattered selection: the bytes come from ``loaders.readahead`` instead, and FFCV only maps the file.
- It decodes a JPEG of another size than the file states into rubbish, and one without tables by another's, without a word:
  ``ffcv_stages.stands_alone``.
- Batches live in a ring of buffers that later batches overwrite: ours own their memory.
- Compiling takes 5 to 12 s per pipeline: our one kernel is cached on disk (``ffcv_stages.uncompiled``).
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError, BetonError, RecordError
from dp4tl_fast.common.machine import cores
from dp4tl_fast.loaders.augment import parameters
from dp4tl_fast.loaders.base import BaseLoader, Epochs
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.contract import Batch, IndexedBatch
from dp4tl_fast.loaders.lifetime import never_finalise
from dp4tl_fast.loaders.readahead import StoredRecords
from dp4tl_fast.loaders.spec import LoaderSpec

if TYPE_CHECKING:
    import torch

BATCHES_AHEAD = 3


class FfcvLoader(BaseLoader):
    name = "ffcv"
    capabilities = Capabilities(
        summary="FFCV 1.0.2: whole-image decode, crops by OpenCV",
        requires=("torch", "ffcv"),
        install="`pip install dp4tl_fast[ffcv]` (it needs OpenCV's and TurboJPEG's headers)",
    )

    def __init__(self, beton: Beton, records: np.ndarray | None, spec: LoaderSpec) -> None:
        super().__init__(beton, records, spec)
        self.workers = min(spec.workers or cores(), cores())  # numba refuses more than there are cores
        self._stored = StoredRecords(beton)
        self._ffcv = self._open()
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="dp4tl-ffcv")
        all_there = threading.Barrier(self.workers)  # a pool grows by chance; this one has its threads from the start
        list(self._pool.map(lambda _: all_there.wait(), range(self.workers)))

    def _open(self) -> Any:
        """An ``ffcv.Loader`` over the surviving records that calls ``self._decode`` for each batch."""
        try:
            import ffcv
            from ffcv.pipeline import PipelineSpec

            from dp4tl_fast.loaders.ffcv_stages import DecodeCrop, uncompiled
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(
                f"backend 'ffcv' cannot be imported here: {error}. Run {self.capabilities.install}"
            ) from error
        pipelines: dict[str, Any] = dict.fromkeys(self.beton.fields)  # None: FFCV leaves the field alone
        pipelines["image"] = PipelineSpec("image", decoder=DecodeCrop(self._decode))
        with uncompiled():
            return ffcv.Loader(
                self.beton.open_path,
                batch_size=self.spec.batch_size,
                num_workers=self.workers,
                os_cache=True,
                indices=self.records,
                pipelines=pipelines,
                drop_last=False,
                batches_ahead=BATCHES_AHEAD,
            )

    def _load(self, batches: list[np.ndarray], epochs: list[Epochs]) -> Generator[Batch | IndexedBatch, None, None]:
        if not batches:
            return
        from dp4tl_fast.loaders.ffcv_stages import EpochThread

        self._epochs = iter(epochs)  # FFCV's thread decodes one batch after another
        arriving = self._arriving(batches)
        try:
            thread = EpochThread(self._ffcv, arriving.each(self._stored.fetched(batches)), batches)
        except (OSError, ValueError) as why:  # FFCV maps the file, for nothing, whenever an epoch begins
            raise BetonError(f"{self.beton.path}: cannot be mapped: {why}") from why
        try:
            for images, kept, failures in thread:
                for record, error in failures:
                    self._skip(record, error)
                yield self._batch(images, kept)
        finally:
            arriving.close()  # first: the thread may be waiting for records
            thread.close()

    # -- one batch, in FFCV's thread ----------------------------------------------------------------------------------

    def _decode(
        self, records: np.ndarray
    ) -> tuple[tuple[torch.Tensor, ...], np.ndarray, list[tuple[int, RecordError]]]:
        """Views ``[kept, 3, size, size]``, the records kept, and what failed."""
        import torch

        from dp4tl_fast.loaders.ffcv_stages import decode_batch

        spec, rows, epochs = self.now.spec, self._stored.rows[records], next(self._epochs)
        stored, offsets = self._stored.read(records)
        drawn = [parameters(spec, epochs, records, rows["height"], rows["width"], view) for view in range(spec.views)]
        boxes, mirror = (np.stack(parts) for parts in zip(*drawn, strict=True))
        dtype = getattr(torch, spec.dtype)
        images = torch.empty((spec.views, len(records), spec.size, spec.size, 3), dtype=dtype)
        table = byte_table(spec)
        out = as_bits(images)
        columns = (rows["mode"], rows["height"], rows["width"], boxes, mirror, as_bits(table))
        located = (stored, offsets, self.beton.sizes[records])
        status = decode_batch(self._pool, self.workers, out, *located, *map(np.ascontiguousarray, columns))
        failures = []
        for i in np.flatnonzero(status).tolist():
            try:
                self._repair(int(records[i]), boxes[:, i], mirror[:, i], as_bits(table), out[:, i])
            except RecordError as error:
                failures.append((int(records[i]), error))
        kept = ~np.isin(records, [record for record, _ in failures])
        if failures:
            images = images[:, torch.from_numpy(kept)]
        return tuple(view.permute(0, 3, 1, 2) for view in images), records[kept], failures

    def _repair(self, record: int, boxes: np.ndarray, mirror: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
        """TurboJPEG returns the same for a warning (stray bytes), a kind of JPEG that it does not do (CMYK) and broken
        data: the reference decoder decides, and its pixels are used."""
        import cv2

        pixels = self._stored.pixels(record)
        for view, (top, left, height, width) in enumerate(boxes.tolist()):
            crop = pixels[top : top + height, left : left + width]
            tile = cv2.resize(crop, out.shape[1:3], interpolation=cv2.INTER_AREA)
            out[view] = table[tile[:, ::-1] if mirror[view] else tile, np.arange(3)]

    def _release(self) -> None:
        self._pool.shutdown()
        self._stored.close()


def byte_table(spec: LoaderSpec) -> torch.Tensor:
    """What byte b of channel c becomes: b, or ``(b / 255 - mean) / std`` rounded once. ``[256, 3]`` of the dtype."""
    import torch

    byte = torch.arange(256, dtype=torch.float64)[:, None].expand(256, 3)
    if spec.dtype != "uint8":
        mean, std = torch.tensor([spec.mean, spec.std], dtype=torch.float64)
        byte = (byte / 255 - mean) / std
    return byte.to(getattr(torch, spec.dtype)).contiguous()


def as_bits(tensor: torch.Tensor) -> np.ndarray:
    """The same memory as a NumPy array; 2-byte floats as int16, which numba and NumPy can copy."""
    import torch

    return (tensor.view(torch.int16) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


@atexit.register
def _keep_numbas_threads() -> None:
    """numba's pool of threads would be ended when its module is freed: TBB then waits for threads that a forked child, or a
    process on one core, does not have."""
    for layer in ("tbbpool", "omppool", "workqueue"):
        if pool := sys.modules.get(f"numba.np.ufunc.{layer}"):
            never_finalise(pool)
