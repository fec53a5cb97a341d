"""The parts of the FFCV backend that need FFCV itself: a pipeline stage, its kernel, and an epoch whose thread ends.

    DecodeCrop    its decoder: hands the record numbers of a batch to ``ffcv.FfcvLoader``, which reads the stored bytes
    decode_batch  numba without the GIL, on a pool of threads: libffcv decodes the JPEG once, then for every view crops
                  and resizes (OpenCV INTER_AREA), and mirror, normalise and cast are one pass over the output

FFCV's own stages would copy the batch for each of mirror, normalise and cast; draw crops from numba's per-thread random
state, which no seed reaches; keep a buffer of the largest image for every slot of every batch; and ignore what the
decoder says about a broken JPEG.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import Empty
from typing import Any

import ffcv.libffcv
import llvmlite.binding
import numba
import numpy as np
import torch
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from numba import types

from dp4tl_fast.common.errors import BackendError

# libffcv's functions under names of ours, so that compiled code can be cached on disk: a ctypes pointer could not be.
_LIB = ffcv.libffcv.lib
if (len(_LIB.imdecode.argtypes), len(_LIB.resize.argtypes)) != (13, 11):
    raise BackendError("backend 'ffcv' knows the library of ffcv 1.0.2, not this one. Run `pip install ffcv==1.0.2`")
for _name in ("imdecode", "resize"):
    _address = ctypes.cast(getattr(_LIB, _name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(f"dp4tl_ffcv_{_name}", _address)
_imdecode: Any = types.ExternalFunction(
    "dp4tl_ffcv_imdecode",
    types.int32(types.uintp, types.uint64, types.uint32, types.uint32, types.uintp, types.uint32, types.uint32,
                types.uint32, types.uint32, types.uint32, types.uint32, types.boolean, types.boolean),
)  # fmt: skip
_resize: Any = types.ExternalFunction("dp4tl_ffcv_resize", types.void(*[types.int64] * 11))

JPEG = 0
_compiling = threading.Lock()


@numba.njit(nogil=True, cache=True)
def decode_crop(stored, offsets, sizes, modes, heights, widths, boxes, mirror, table, out, status, start, stop):  # type: ignore[no-untyped-def]
    """Decode images ``start`` to ``stop`` of a batch into ``out``.

    Args:
        stored: uint8 ``[bytes]``; image i is ``stored[offsets[i] : offsets[i] + sizes[i]]``.
        modes, heights, widths: As the file states them, ``[n]``.
        boxes: Top, left, height, width, int64 ``[views, n, 4]``, inside the image.
        mirror: bool ``[views, n]``.
        table: What a byte of a channel becomes, ``[256, 3]``.
        out: ``[views, n, size, size, 3]`` of the table's dtype.
        status: int32 ``[n]``, 0 for the images to decode (``standing`` has marked the others); set to the decoder's return code.
    """
    size = out.shape[2]
    most = np.int64(0)
    for i in range(start, stop):
        if modes[i] == JPEG:
            most = max(most, np.int64(heights[i]) * np.int64(widths[i]) * 3)
    pixels = np.empty(most, np.uint8)
    tile = np.empty((size, size, 3), np.uint8)
    for i in range(start, stop):
        h, w, image = np.int64(heights[i]), np.int64(widths[i]), stored[offsets[i] : offsets[i] + sizes[i]]
        source = image.ctypes.data
        if modes[i] == JPEG:
            if status[i] == 0:
                status[i] = _imdecode(source, image.size, h, w, pixels.ctypes.data, h, w, 0, 0, 1, 1, False, False)
            if status[i] != 0:
                continue
            source = pixels.ctypes.data
        for v in range(boxes.shape[0]):
            y, x, height, width = boxes[v, i]
            _resize(0, source, h, w, y, y + height, x, x + width, tile.ctypes.data, size, size)
            write_tile(tile, mirror[v, i], table, out[v, i])


@numba.njit(nogil=True, cache=True)
def write_tile(tile, mirrored, table, out):  # type: ignore[no-untyped-def]
    """``out[y, x, c] = table[tile[y, x or its mirror image, c], c]``."""
    size = tile.shape[1]
    for y in range(tile.shape[0]):
        for x in range(size):
            from_x = size - 1 - x if mirrored else x
            for c in range(3):
                out[y, x, c] = table[tile[y, from_x, c], c]


# A kernel of its own, with one signature: where decode_crop called stands_alone and was compiled for a second dtype, numba
# sometimes raised KeyError over the signatures of stands_alone that it knew.
@numba.njit(nogil=True, cache=True)
def standing(stored, offsets, sizes, modes, heights, widths, status, start, stop):  # type: ignore[no-untyped-def]
    """Set ``status`` to -1 for the images ``start`` to ``stop`` that are JPEGs and do not stand alone. Arguments as above."""
    for i in range(start, stop):
        if modes[i] == JPEG:
            image = stored[offsets[i] : offsets[i] + sizes[i]]
            if not stands_alone(image, np.int64(heights[i]), np.int64(widths[i])):
                status[i] = -1


@numba.njit(nogil=True, cache=True)
def stands_alone(jpeg, height, width):  # type: ignore[no-untyped-def]
    """Is this a Huffman-coded JPEG that states this size and holds every table its scans name (ITU-T T.81, B.2)?

    FFCV's decoder keeps tables from image to image: one that lacks its own would be decoded with another's.
    """
    tables, wanted, components, progressive = 0, 0, 0, False  # bits 0 to 15: DC, 16 to 31: AC, 32 to 47: quantisation
    i = 2
    while i + 4 <= jpeg.size and jpeg[i] == 0xFF:
        marker = jpeg[i + 1]
        if marker == 0xFF:  # fill byte
            i += 1
            continue
        at, end = i + 4, i + 2 + (np.int64(jpeg[i + 2]) << 8 | jpeg[i + 3])
        if end > jpeg.size:
            return False
        i = end
        if marker == 0xDB:
            while at < end:
                tables |= np.int64(1) << (32 + (jpeg[at] & 15))
                at += 129 if jpeg[at] >> 4 else 65
        elif marker == 0xC4:
            while at + 17 <= end:
                tables |= np.int64(1) << ((jpeg[at] >> 4 & 1) * 16 + (jpeg[at] & 15))
                at += 17 + np.int64(jpeg[at + 1 : at + 17].sum())
        elif marker == 0xC0 or marker == 0xC1 or marker == 0xC2:
            if end < at + 6 or (np.int64(jpeg[at + 1]) << 8 | jpeg[at + 2]) != height:
                return False
            if (np.int64(jpeg[at + 3]) << 8 | jpeg[at + 4]) != width or end < at + 6 + 3 * np.int64(jpeg[at + 5]):
                return False
            components, progressive = np.int64(jpeg[at + 5]), marker == 0xC2
            for c in range(components):
                wanted |= np.int64(1) << (32 + (jpeg[at + 8 + 3 * c] & 15))
        elif marker == 0xDA:
            n = np.int64(jpeg[at]) if at < end else np.int64(255)
            if components == 0 or end < at + 4 + 2 * n:
                return False
            first, refines = jpeg[at + 1 + 2 * n], jpeg[at + 3 + 2 * n] >> 4
            for c in range(n):
                if not progressive or (first == 0 and refines == 0):
                    wanted |= np.int64(1) << (jpeg[at + 2 + 2 * c] >> 4)
                if not progressive or first > 0:
                    wanted |= np.int64(1) << (16 + (jpeg[at + 2 + 2 * c] & 15))
            if wanted & ~tables:
                return False
            if n == components and not progressive:
                return True
            while i + 1 < jpeg.size and (jpeg[i] != 0xFF or jpeg[i + 1] == 0 or 0xD0 <= jpeg[i + 1] <= 0xD7):
                i += 1  # entropy-coded data, up to the next marker
            if i + 1 >= jpeg.size or jpeg[i + 1] == 0xD9:
                return True
        elif marker == 0xC9 or marker == 0xCA or marker == 0xD9:
            return False
    return False


class DecodeCrop(SimpleRGBImageDecoder):
    """FFCV's place for a decoder. Runs ``batch(records)`` outside its compiler; that returns the batch that the consumer gets."""

    def __init__(self, batch: Callable[[np.ndarray], Any]) -> None:
        super().__init__()
        self.batch = batch

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        return replace(previous_state, jit_mode=False, shape=(), dtype=np.dtype("u1")), None

    def generate_code(self) -> Callable[..., Any]:
        def run(records: np.ndarray, memory: None, metadata: np.ndarray, state: tuple[np.ndarray, ...]) -> Any:
            return self.batch(records)

        return run


def decode_batch(pool: ThreadPoolExecutor, workers: int, out: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """``decode_crop`` on a pool of threads, in pieces small enough to balance. Returns the status, ``[n]``."""
    n = out.shape[1]
    status = np.zeros(n, np.int32)
    step = max(1, -(-n // (4 * workers)))

    def run(start: int, stop: int) -> None:
        standing(*columns[:6], status, start, stop)  # type: ignore[call-arg]
        decode_crop(*columns, out, status, start, stop)  # type: ignore[call-arg]

    with _compiling:  # nothing, by one thread: numba compiles both, or loads them, for these types. Two that do so at once may fail
        run(0, 0)
    list(pool.map(lambda start: run(start, min(start + step, n)), range(0, n, step)))
    return status


@contextmanager
def uncompiled() -> Iterator[None]:
    """Keep FFCV from compiling what it builds: our stages are compiled already, and cached on disk."""
    enabled, threads = Compiler.is_enabled, torch.get_num_threads()
    Compiler.set_enabled(False)
    try:
        yield
    finally:
        Compiler.set_enabled(enabled)
        torch.set_num_threads(threads)  # FFCV sets it to its num_workers


class EpochThread(EpochIterator):
    """FFCV's epoch thread, with its three traps closed.

    - An exception in the thread (a broken record, memory) is raised in the consumer; FFCV's would wait forever.
    - ``close`` ends the thread at once and waits for it; FFCV's stays, blocked on its full queue, when an epoch is
      abandoned.
    - ``run`` leaves torch's and numba's thread counts alone; FFCV's sets both to its ``num_workers``.

    Args:
        fetched: Record numbers of each batch, as they are to be decoded.
        batches: The same, for FFCV.
    """

    closed: bool

    def __init__(self, loader: ffcv.Loader, fetched: Iterator[np.ndarray], batches: list[np.ndarray]) -> None:
        self.fetched = fetched
        super().__init__(loader, np.concatenate(batches))  # this starts the thread

    def run(self) -> None:
        slots = len(self.cuda_streams)
        try:
            for b, records in enumerate(self.fetched):
                if self.terminate_event.is_set():
                    return
                self.output_queue.put(self.run_pipeline(b, records, b % slots, None)[0])
            self.output_queue.put(None)
        except BaseException as error:
            self.output_queue.put(error)

    def __next__(self) -> Any:
        while True:
            try:
                item = self.output_queue.get(timeout=1)
                break
            except Empty:
                if not self.is_alive():
                    raise BackendError("FFCV's thread has died") from None
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.terminate_event.set()
        while self.is_alive():
            with suppress(Empty):  # the thread may be blocked on its full queue
                self.output_queue.get(timeout=0.01)
        self.memory_context.__exit__(None, None, None)
