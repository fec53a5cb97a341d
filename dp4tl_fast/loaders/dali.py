"""Backend ``dali``: NVIDIA DALI behind our contract, on a CPU alone or with nvJPEG on a GPU.

DALI gets the records as views of the mapped file, made natively, one batch at a time: no byte is copied on the way to the
decoder and no Python runs per image. Crops and mirrors come from
``loaders.augment``, so DALI draws no random numbers and an epoch is the same for any number of threads, ranks and
resumes. Batches are as long as the order says: nothing is padded or repeated.
"""

from __future__ import annotations

import io
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.format import MODE_JPEG, MODE_RAW
from dp4tl_fast.common.errors import BackendError, RecordError
from dp4tl_fast.common.machine import cores
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders.augment import parameters
from dp4tl_fast.loaders.base import BaseLoader, Epochs, record_kind
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.contract import Batch, IndexedBatch
from dp4tl_fast.loaders.decode import decode_record
from dp4tl_fast.loaders.readahead import fetched, no_readahead
from dp4tl_fast.loaders.spec import LoaderSpec

if TYPE_CHECKING:
    import torch


class DaliLoader(BaseLoader):
    name = "dali"
    capabilities = Capabilities(
        summary="NVIDIA DALI: crop-aware decode, nvJPEG on a GPU",
        partial_decode=True,
        requires=("torch", "nvidia.dali"),
        install="`pip install dp4tl_fast[dali]`",
    )

    def __init__(self, beton: Beton, records: np.ndarray | None, spec: LoaderSpec) -> None:
        self._pipeline: Any = None
        self._inputs: Iterator[Any] = iter(())  # what DALI asks for, batch by batch
        self._rescued: dict[int, np.ndarray] = {}  # pixels of records that DALI could not decode
        super().__init__(beton, records, spec)
        self._bytes = np.memmap(beton.real_path, np.uint8, mode="r")
        no_readahead(self._bytes)
        self._build()  # a DALI that cannot work here says so now, not in the first epoch

    def _build(self) -> None:
        try:
            from dp4tl_fast.loaders.dali_pipeline import build
        except (ImportError, OSError) as error:
            raise BackendError(
                f"backend 'dali' cannot be imported here: {error}. Run {self.capabilities.install}"
            ) from error
        threads = self.spec.workers or cores()
        kind = record_kind(self.beton, self.records)
        try:
            self._pipeline = build(self.spec, kind, threads, device_id(self.spec.device), lambda: next(self._inputs))
        except RuntimeError as error:
            raise BackendError(f"backend 'dali' cannot work here: {reason(error)}") from error
        self._built_for = (self.spec, kind)

    def _load(self, batches: list[np.ndarray], epochs: list[Epochs]) -> Generator[Batch | IndexedBatch, None, None]:
        todo, of = deque(batches), deque(epochs)
        while todo:
            if len(todo[0]) == 0:  # every record of it was skipped
                of.popleft()
                yield self._batch(self._no_images(), todo.popleft())
                continue
            try:
                for images in self._run(list(todo), list(of)):
                    of.popleft()
                    yield self._batch(images, todo.popleft())
            except _BatchFailedError as error:
                good = self._rescue(todo[0], str(error))
                todo[0], of[0] = todo[0][good], np.broadcast_to(of[0], good.shape)[good]

    def _run(self, batches: list[np.ndarray], epochs: list[Epochs]) -> Generator[tuple[torch.Tensor, ...], None, None]:
        """The views of each batch."""
        import torch

        if self._pipeline is None or self._built_for != (self.spec, record_kind(self.beton, self.records)):
            self._build()
        pipeline = self._pipeline
        self._inputs = map(self._feed, fetched(self.beton, batches), epochs)
        stream = None if self.spec.device == "cpu" else torch.cuda.current_stream()
        try:
            while True:
                pipeline.schedule_run()
                yield self._views(pipeline.outputs(stream))
        except StopIteration:  # from DALI, when every scheduled batch was taken
            pipeline.reset()
        except GeneratorExit:
            self._inputs = iter(())
            drain(pipeline)
            raise
        except RuntimeError as error:  # DALI fails the whole batch, and the pipeline with it
            self._pipeline = None
            raise _BatchFailedError(reason(error)) from error

    def _feed(self, records: np.ndarray, epochs: Epochs) -> tuple[Any, ...]:
        """DALI's inputs for one batch; see ``dali_pipeline.build``."""
        rows, kind = self.beton.images[records], self._built_for[1]
        from dp4tl_fast.loaders.dali_pipeline import as_batch

        inputs: list[Any] = [as_batch(self._stored(records))]
        if kind != "jpeg":
            channels = np.full(len(records), 3)
            inputs.append(np.stack([rows["height"], rows["width"], channels], axis=1).astype(np.int32))
        if kind == "mixed":
            inputs.append(rows["mode"] == MODE_RAW)
        for view in range(self.spec.views):
            boxes, mirror = parameters(self.spec, epochs, records, rows["height"], rows["width"], view)
            region = np.tile(np.array([0, 0, 1, 1], np.float32), (len(records), 1))
            region[mirror] = 0, 1, 1, 0
            inputs += [boxes.astype(np.int32), region]
        return tuple(inputs)

    def _views(self, outputs: Any) -> tuple[torch.Tensor, ...]:
        """``[batch, 3, size, size]`` of the spec's dtype, in memory that DALI does not use again."""
        import torch

        dtype = getattr(torch, self.spec.dtype)
        return tuple(torch.from_dlpack(views.as_tensor()).to(dtype).permute(0, 3, 1, 2) for views in outputs)

    def _no_images(self) -> tuple[torch.Tensor, ...]:
        import torch

        spec = self.spec
        shape = (0, 3, spec.size, spec.size)
        return (torch.empty(shape, dtype=getattr(torch, spec.dtype), device=spec.device),) * spec.views

    def _rescue(self, records: np.ndarray, failure: str) -> np.ndarray:
        """Which records of a failed batch to try again, bool ``[n]``. DALI does not say which one it could not do.

        Records that the reference cannot decode either are left out (or raised). If there is none, DALI is stricter
        than the rest of the world (stray bytes between segments): then it gets the reference's pixels, as bitmaps.
        """
        pixels: dict[int, np.ndarray] = {}
        for record in dict.fromkeys(records.tolist()):
            try:
                pixels[record] = decode_record(self.beton, record)
            except RecordError as error:
                self._skip(record, error)
        good = np.isin(records, list(pixels))
        if good.all():
            if self._rescued.keys() == pixels.keys():
                raise BackendError(
                    f"{self.beton.path}: DALI failed on a batch of records {records.min()} to {records.max()}, which "
                    f"all decode without it: {failure}. Use another backend"
                )
            warnings.warn(f"{self.beton.path}: DALI failed ({failure}); a batch was decoded without it", stacklevel=2)
            self._rescued = pixels
        return good

    def _stored(self, records: np.ndarray) -> list[Any]:
        """The records' bytes where they lie in the mapped file, uint8 ``[size]`` each."""
        offsets = self.beton.images["data_ptr"][records].astype(np.int64)
        views = _native.byte_views(self._bytes, offsets, self.beton.sizes[records])
        for i, record in enumerate(records.tolist()) if self._rescued else ():
            if record in self._rescued and self.beton.images["mode"][record] == MODE_JPEG:
                views[i] = bitmap(self._rescued[record])
        return views

    def close(self) -> None:
        super().close()
        self._pipeline = None


class _BatchFailedError(Exception):
    """DALI could not do a batch; its pipeline is no longer valid."""


def device_id(device: str) -> int | None:
    """The number of a GPU, the current one where ``device`` has none; ``None`` for a CPU."""
    import torch

    wanted = torch.device(device)
    if wanted.type == "cpu":
        return None
    return torch.cuda.current_device() if wanted.index is None else wanted.index


def drain(pipeline: Any) -> None:
    """Take what is still under way and make ready for the next epoch."""
    pipeline.schedule_run()  # the inputs have ended: nothing new starts
    with suppress(StopIteration):
        while True:
            pipeline.outputs()
    pipeline.reset()


def reason(error: Exception) -> str:
    """The one line of DALI's message that says what happened, between stack traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = lines[lines.index("encountered:") + 1 :] if "encountered:" in lines else lines
    return after[0] if after else repr(error)


def bitmap(pixels: np.ndarray) -> np.ndarray:
    """The image as a BMP file: pixels as they are, in a format that DALI's decoders know. uint8 ``[size]``."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return np.array(buffer.getbuffer())
