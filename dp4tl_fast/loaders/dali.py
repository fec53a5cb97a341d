"""Backend ``dali``: NVIDIA DALI behind our contract, on a CPU alone or with nvJPEG on a GPU.

DALI gets the stored bytes of a batch as views of one buffer, made natively: no Python runs per image. Crops and mirrors come from
``loaders.augment``, so DALI draws no random numbers and an epoch is the same for any number of threads, ranks and
resumes. Batches are as long as the order says: nothing is padded or repeated.
"""

from __future__ import annotations

import io
import os
import sys
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
from dp4tl_fast.loaders.base import BaseLoader, Epochs
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.checks import record_kind
from dp4tl_fast.loaders.contract import Batch, IndexedBatch
from dp4tl_fast.loaders.epoch import Epoch
from dp4tl_fast.loaders.lifetime import never_finalise
from dp4tl_fast.loaders.readahead import StoredRecords
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
        self._stored = StoredRecords(beton)
        self._build(self.now)  # a DALI that cannot work here says so now, not in the first epoch

    def _kind(self, epoch: Epoch) -> str:
        return record_kind(self._stored.rows["mode"][epoch.records])

    def _build(self, epoch: Epoch) -> None:
        try:
            from dp4tl_fast.loaders.dali_pipeline import build
        except (ImportError, OSError) as error:
            raise BackendError(
                f"backend 'dali' cannot be imported here: {error}. Run {self.capabilities.install}"
            ) from error
        spec, kind = epoch.spec, self._kind(epoch)
        try:
            self._pipeline = build(spec, kind, spec.workers or cores(), device_id(spec.device), lambda: next(self._inputs))
        except RuntimeError as error:
            raise BackendError(f"backend 'dali' cannot work here: {reason(error)}") from error
        self._built_for = (spec, kind)

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

        if self._pipeline is None or self._built_for != (self.now.spec, self._kind(self.now)):
            self._build(self.now)
        pipeline = self._pipeline
        arriving = self._arriving(batches)
        self._inputs = map(self._feed, arriving.each(self._stored.fetched(batches)), epochs)
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
            if "bad_alloc" in str(error):
                raise MemoryError(reason(error)) from error
            raise _BatchFailedError(reason(error)) from error
        finally:
            arriving.close()

    def _feed(self, records: np.ndarray, epochs: Epochs) -> tuple[Any, ...]:
        """DALI's inputs for one batch; see ``dali_pipeline.build``."""
        rows, kind = self._stored.rows[records], self._built_for[1]
        from dp4tl_fast.loaders.dali_pipeline import as_batch

        inputs: list[Any] = [as_batch(self._bytes_of(records))]
        if kind != "jpeg":
            channels = np.full(len(records), 3)
            inputs.append(np.stack([rows["height"], rows["width"], channels], axis=1).astype(np.int32))
        if kind == "mixed":
            inputs.append(rows["mode"] == MODE_RAW)
        for view in range(self.spec.views):
            boxes, mirror = parameters(self.now.spec, epochs, records, rows["height"], rows["width"], view)
            region = np.tile(np.array([0, 0, 1, 1], np.float32), (len(records), 1))
            region[mirror] = 0, 1, 1, 0
            inputs += [boxes.astype(np.int32), region]
        return tuple(inputs)

    def _views(self, outputs: Any) -> tuple[torch.Tensor, ...]:
        """``[batch, 3, size, size]`` of the spec's dtype, in memory that DALI does not use again.

        On a CPU it is torch's: DALI's is freed under a lock, which in a forked child a thread may hold that is not there.
        """
        import torch

        dtype = getattr(torch, self.spec.dtype)
        views = (torch.from_dlpack(output.as_tensor()) for output in outputs)
        return tuple(view.to(dtype, copy=not view.is_cuda).permute(0, 3, 1, 2) for view in views)

    def _no_images(self) -> tuple[torch.Tensor, ...]:
        import torch

        spec = self.now.spec
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
                pixels[record] = self._stored.pixels(record)
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

    def _bytes_of(self, records: np.ndarray) -> list[Any]:
        """The records' stored bytes, uint8 ``[size]`` each, which keep the batch's buffer alive."""
        views: list[Any] = _native.byte_views(*self._stored.read(records), self.beton.sizes[records])
        for i, record in enumerate(records.tolist()) if self._rescued else ():
            if record in self._rescued and self._stored.rows["mode"][record] == MODE_JPEG:
                views[i] = bitmap(self._rescued[record])
        return views

    def _release(self) -> None:
        self._pipeline = None
        self._stored.close()


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


def _leave_pipelines_to_parent() -> None:
    """In a forked child: DALI would shut down at exit what it knows of, and wait for threads that are not there."""
    if (dali := sys.modules.get("nvidia.dali.pipeline")) is None:
        return
    for known in list(dali.Pipeline._pipes):
        if (pipeline := known()) is not None and pipeline._pipe:
            never_finalise(pipeline._pipe)
            pipeline._pipe = None


os.register_at_fork(after_in_child=_leave_pipelines_to_parent)
