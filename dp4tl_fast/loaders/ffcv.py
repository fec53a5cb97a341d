"""Backend ``ffcv``: FFCV 1.0.2's reader, memory managers, pipeline graph and decoder behind our contract.

FFCV's traps, and where they end:

- ``NormalizeImage`` after ``ToTensor`` on a CPU makes FFCV's graph loop forever at start: neither is used; the
  decoding stage normalises (``ffcv_stages.DecodeCrop``).
- An exception in its loader thread leaves the consumer waiting forever; an abandoned epoch leaks that thread; it sets
  torch's thread count to its own: ``ffcv_stages.Epoch``.
- ``drop_last=True`` is its default, its ``len`` is of the first epoch, ``QUASI_RANDOM`` is refused under DDP,
  ``distributed=True`` repeats samples, and an ``isinstance`` on the class refuses any own ``TraversalOrder``: it gets
  the records of an epoch from us, in the order that every backend follows.
- Its readahead fetches several times the wanted bytes of a scattered selection: ``loaders.readahead``.
- It decodes a JPEG of another size than the file states into rubbish, and one without tables by another's, without a word:
  ``ffcv_stages.stands_alone``.
- Batches live in a ring of buffers that later batches overwrite: ours own their memory.
- Compiling takes 5 to 12 s per pipeline: our one kernel is cached on disk (``ffcv_stages.uncompiled``).
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError, RecordError
from dp4tl_fast.common.machine import cores
from dp4tl_fast.loaders.augment import parameters
from dp4tl_fast.loaders.base import BaseLoader, Epochs
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.contract import Batch, IndexedBatch
from dp4tl_fast.loaders.decode import decode_record
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
        self._ffcv = self._open()
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="dp4tl-ffcv")
        all_there = threading.Barrier(self.workers)  # a pool grows by chance; this one has its threads from the start
        list(self._pool.map(lambda _: all_there.wait(), range(self.workers)))

    def _open(self) -> Any:
        """An ``ffcv.Loader`` over the surviving records that calls ``self._decode`` for each batch."""
        try:
            import ffcv
            from ffcv.pipeline import PipelineSpec

            from dp4tl_fast.loaders.ffcv_stages import DecodeCrop, Locate, uncompiled
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(
                f"backend 'ffcv' cannot be imported here: {error}. Run {self.capabilities.install}"
            ) from error
        pipelines: dict[str, Any] = dict.fromkeys(self.beton.fields)  # None: FFCV leaves the field alone
        pipelines["image"] = PipelineSpec("image", decoder=Locate(), transforms=[DecodeCrop(self._decode)])
        with uncompiled():
            return ffcv.Loader(
                str(self.beton.real_path),
                batch_size=self.spec.batch_size,
                num_workers=self.workers,
                os_cache=self.os_cache(),
                indices=self.records,
                pipelines=pipelines,
                drop_last=False,
                batches_ahead=BATCHES_AHEAD,
            )

    def os_cache(self) -> bool:
        """FFCV's ``os_cache``, chosen from the sizes of the file, the memory and what an epoch would hold."""
        held = pages_held(self.beton, self.epoch_order(), self.spec.batch_size) * self.beton.page_size
        return choose_os_cache(self.beton.file_size, held, available_memory() // 2)

    def _load(self, batches: list[np.ndarray], epochs: list[Epochs]) -> Generator[Batch | IndexedBatch, None, None]:
        if not batches:
            return
        from dp4tl_fast.loaders.ffcv_stages import Epoch

        self._epochs = iter(epochs)  # FFCV's thread decodes one batch after another

        epoch = Epoch(self._ffcv, self.beton, batches)
        try:
            for images, kept, failures in epoch:
                for record, error in failures:
                    self._skip(record, error)
                yield self._batch(images, kept)
        finally:
            epoch.close()

    # -- one batch, in FFCV's thread ----------------------------------------------------------------------------------

    def _decode(
        self, records: np.ndarray, located: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> tuple[tuple[torch.Tensor, ...], np.ndarray, list[tuple[int, RecordError]]]:
        """Views ``[kept, 3, size, size]``, the records kept, and what failed."""
        import torch

        from dp4tl_fast.loaders.ffcv_stages import decode_batch

        spec, rows = self.spec, self.beton.images[records]
        epochs = next(self._epochs)
        drawn = [parameters(spec, epochs, records, rows["height"], rows["width"], view) for view in range(spec.views)]
        boxes, mirror = (np.stack(parts) for parts in zip(*drawn, strict=True))
        dtype = getattr(torch, spec.dtype)
        images = torch.empty((spec.views, len(records), spec.size, spec.size, 3), dtype=dtype)
        table = byte_table(spec)
        out = as_bits(images)
        columns = (rows["mode"], rows["height"], rows["width"], boxes, mirror, as_bits(table))
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

        pixels = decode_record(self.beton, record)
        for view, (top, left, height, width) in enumerate(boxes.tolist()):
            crop = pixels[top : top + height, left : left + width]
            tile = cv2.resize(crop, out.shape[1:3], interpolation=cv2.INTER_AREA)
            out[view] = table[tile[:, ::-1] if mirror[view] else tile, np.arange(3)]

    def close(self) -> None:
        super().close()
        self._pool.shutdown()


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


def choose_os_cache(file_size: int, held: int, memory: int) -> bool:
    """Map the file (true), or let FFCV read whole pages into its own buffers (false)?

    Mapped pages are shared between processes and given back under pressure, so that a file within ``memory`` bytes is
    mapped. Beyond it, FFCV's page buffers read long runs where the map would fault page by page, but each is kept
    until its last use: ``held`` bytes at once for this order. A random order holds nearly the whole file; then only the
    map works.
    """
    return file_size <= memory or held > memory


def pages_held(beton: Beton, order: np.ndarray, batch_size: int) -> int:
    """The most pages of the file that FFCV's process cache keeps at once for this order of records."""
    page = beton.images["data_ptr"][order].astype(np.int64) // beton.page_size
    batch = np.arange(len(order)) // batch_size
    pages, where = np.unique(page, return_inverse=True)
    first, last = np.full(len(pages), len(order)), np.zeros(len(pages), np.int64)
    np.minimum.at(first, where, batch)
    np.maximum.at(last, where, batch)
    change = np.zeros(int(batch[-1]) + 2, np.int64)
    np.add.at(change, np.maximum(first - 3, 0), 1)  # FFCV reads three batches ahead
    np.add.at(change, last + 1, -1)
    return int(np.cumsum(change).max())


def available_memory() -> int:
    """Bytes that can be had without swapping: free ones and those of the page cache that can be given back."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
