"""
Native core of dp4tl_fast. Private: use dp4tl_fast.kernels and dp4tl_fast.loaders.
"""

from collections.abc import Sequence
import enum
from typing import Annotated, Any

import numpy
from numpy.typing import NDArray
import torch


def isas() -> list[str]:
    """
    Names of the instruction sets that this CPU supports, from plain to best.
    """

def has_bf16_products() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware."""

def label_counts(logits: Annotated[torch.Tensor, dict(shape=(None, None), device='cpu', writable=False)], group: Annotated[torch.Tensor, dict(dtype='int64', shape=(None,), order='C', device='cpu', writable=False)] | None, counts: Annotated[torch.Tensor, dict(dtype='int64', shape=(None, None), order='C', device='cpu')], threads: int, isa: str = 'auto') -> int:
    """
    counts[group[i], argmax of row i] += 1; the first row with a NaN, or -1. See core/rows/counts.h.
    """

def update_best(products: Annotated[torch.Tensor, dict(shape=(None, None), device='cpu', writable=False)], offset: Annotated[torch.Tensor, dict(dtype='float32', shape=(None,), order='C', device='cpu', writable=False)], error: Annotated[torch.Tensor, dict(dtype='float32', shape=(None,), order='C', device='cpu', writable=False)], x: Annotated[torch.Tensor, dict(shape=(None, None), device='cpu', writable=False)], w: Annotated[torch.Tensor, dict(shape=(None, None), device='cpu', writable=False)], first: int, value: Annotated[torch.Tensor, dict(dtype='float32', shape=(None,), order='C', device='cpu')], index: Annotated[torch.Tensor, dict(dtype='int64', shape=(None,), order='C', device='cpu')], threads: int, isa: str = 'auto') -> int:
    """
    Running argmax over blocks of columns; how many scores were computed again. See core/rows/counts.h.
    """

def cluster_sums(x: Annotated[torch.Tensor, dict(shape=(None, None), device='cpu', writable=False)], index: Annotated[torch.Tensor, dict(dtype='int64', shape=(None,), order='C', device='cpu', writable=False)], sums: Annotated[torch.Tensor, dict(dtype='float64', shape=(None, None), order='C', device='cpu')], threads: int, isa: str = 'auto') -> None:
    """Sums of the rows of each cluster. See core/rows/counts.h."""

class Transform(enum.Enum):
    """How a view's rectangle is chosen."""

    random_resized_crop = 0

    center_crop = 1

    resize = 2

class DType(enum.Enum):
    """Type of the output's samples."""

    uint8 = 0

    float16 = 1

    bfloat16 = 2

    float32 = 3

class CropSpec:
    """Which rectangle of an image a view shows. See core/pixels/crop.h."""

    def __init__(self) -> None: ...

    @property
    def transform(self) -> Transform: ...

    @transform.setter
    def transform(self, arg: Transform, /) -> None: ...

    @property
    def scale(self) -> list[float]:
        """Smallest and largest share of the area."""

    @scale.setter
    def scale(self, arg: Sequence[float], /) -> None: ...

    @property
    def aspect(self) -> list[float]:
        """Smallest and largest width / height."""

    @aspect.setter
    def aspect(self, arg: Sequence[float], /) -> None: ...

    @property
    def crop_ratio(self) -> float:
        """Side of the centre crop as a share of the shorter side."""

    @crop_ratio.setter
    def crop_ratio(self, arg: float, /) -> None: ...

    @property
    def flip(self) -> bool:
        """Mirror with probability 1/2."""

    @flip.setter
    def flip(self, arg: bool, /) -> None: ...

    @property
    def seed(self) -> int: ...

    @seed.setter
    def seed(self, arg: int, /) -> None: ...

class Output:
    """What a view becomes. See core/pixels/pixels.h."""

    def __init__(self) -> None: ...

    @property
    def size(self) -> int:
        """Pixels per side."""

    @size.setter
    def size(self, arg: int, /) -> None: ...

    @property
    def dtype(self) -> DType: ...

    @dtype.setter
    def dtype(self, arg: DType, /) -> None: ...

    @property
    def scale(self) -> list[float]:
        """
        A sample x in 0..255 becomes x * scale + bias, per channel. Not for uint8.
        """

    @scale.setter
    def scale(self, arg: Sequence[float], /) -> None: ...

    @property
    def bias(self) -> list[float]:
        """See scale."""

    @bias.setter
    def bias(self, arg: Sequence[float], /) -> None: ...

class LoaderOptions:
    """See core/loader/loader.h. Loader checks the values."""

    def __init__(self) -> None: ...

    @property
    def crop(self) -> CropSpec: ...

    @crop.setter
    def crop(self, arg: CropSpec, /) -> None: ...

    @property
    def output(self) -> Output: ...

    @output.setter
    def output(self, arg: Output, /) -> None: ...

    @property
    def views(self) -> int:
        """Views per record."""

    @views.setter
    def views(self, arg: int, /) -> None: ...

    @property
    def threads(self) -> int: ...

    @threads.setter
    def threads(self, arg: int, /) -> None: ...

    @property
    def batch_size(self) -> int: ...

    @batch_size.setter
    def batch_size(self, arg: int, /) -> None: ...

    @property
    def depth(self) -> int:
        """Batches that are decoded ahead of the consumer."""

    @depth.setter
    def depth(self, arg: int, /) -> None: ...

    @property
    def skip(self) -> bool:
        """Leave out records that cannot be decoded, instead of failing."""

    @skip.setter
    def skip(self, arg: bool, /) -> None: ...

    @property
    def exact(self) -> bool:
        """Decode every JPEG by libjpeg-turbo to RGB."""

    @exact.setter
    def exact(self, arg: bool, /) -> None: ...

    @property
    def lent(self) -> bool:
        """
        Batches are written to memory that lend() brings, not to the loader's own.
        """

    @lent.setter
    def lent(self, arg: bool, /) -> None: ...

    @property
    def isa(self) -> str:
        """Instruction set of the hot loops: one of isas(), or auto."""

    @isa.setter
    def isa(self, arg: str, /) -> None: ...

class Beton:
    """The checked tables of a .beton file, and the file, open for reading."""

    def __init__(self, path: str) -> None:
        """RuntimeError: the file cannot be read, or is damaged."""

    def __len__(self) -> int: ...

class Loader:
    """Threads that fill a ring of batches. See dp4tl_fast.loaders.native."""

    def __init__(self, beton: Beton, options: LoaderOptions) -> None:
        """RuntimeError: an option has a value that it may not have."""

    def start(self, records: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], bounds: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], windows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], epoch: int, epochs: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> None:
        """
        Begin an epoch: batch b is records[bounds[b]:bounds[b + 1]]. Records of positions windows[w] to windows[w + 1] are read
        ahead together; no windows: each record is read when its turn comes. Views are drawn for the epoch, or for each record's own of epochs.
        """

    def lend(self, memory: object) -> None:
        """
        Memory for one more batch of this epoch: uint8 [bytes], in host memory. Batches take it in the order of the calls.
        """

    def next(self) -> tuple[Any, torch.Tensor, torch.Tensor, list[tuple[int, int, str]]] | tuple[int, str] | None:
        """
        (views, labels, index, failures as (record, row, message)); None at the end; (record, message) when a record failed.
        Record -1: there is no memory.
        Views are a list of tensors; of a loader with lent=True, the memory that was lent for the batch.
        """

    def stop(self) -> None:
        """Abandon the epoch."""

    def close(self) -> None:
        """End the threads."""

    def profile(self) -> dict[str, float]:
        """
        Seconds of the running or last epoch, summed over threads: read (explicit reads; cached pages are used in place), decode,
        resize, idle (threads waited for the consumer). starve: the consumer waited for a batch.
        """

    @property
    def isa(self) -> str: ...

def permute(out: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')], seed: int, epoch: int) -> None:
    """
    Fill out, int64 [n], with the permutation of 0 .. n - 1 that loaders/order.py defines, its reference.
    """

def sample_crops(spec: CropSpec, widths: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], heights: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], records: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], epoch: int, view: int) -> Annotated[NDArray[numpy.int64], dict(shape=(None, None))]:
    """
    x, y, width, height, flip of every sample's view: int64 [n, 5]. loaders/augment.py is the reference.
    """

def jpeg_make_sequential(data: bytes) -> bytes:
    """
    The same coefficients as a baseline JPEG: pixels are identical. RuntimeError: not a JPEG, or damaged.
    """

def jpeg_checked(payloads: Sequence[bytes], pixels: Sequence[int], all: bool = True) -> list[bytes | str]:
    """
    Pass over all of several JPEGs, which takes less time than one by one. Of each: a string that says what is wrong, if libjpeg
    refuses its headers, or its entropy-coded data are damaged, end early or continue behind the last block. Else the same JPEG
    with one more segment: an index of places about every `pixels[i]` pixels of a row where the native loader can begin to
    decode. The very same object if none is wanted (0), if it has such places (an index, restart markers), or if it is no
    ordinary sequential JPEG. all=False: what is none is not checked.
    """

def jpeg_add_index(data: bytes, pixels: int = 64) -> bytes:
    """
    `jpeg_checked` of one, which stays as it is if it is no ordinary sequential JPEG. RuntimeError: what is wrong.
    """

def jpeg_check(data: bytes) -> None:
    """`jpeg_checked` of one. RuntimeError: what is wrong."""

def jpeg_end(data: bytes, start: int) -> int:
    """
    The position behind the first FFD9 from `start` on, or 0 if there is none. Faster than bytes.find.
    """

def jpeg_shrink(data: bytes, width: int, height: int, to_width: int, to_height: int, quality: int) -> bytes:
    """
    An ordinary JPEG of width x height, resized with antialiasing and encoded as 4:2:0 (or grey). Empty if the JPEG is unusual
    or damaged: decode it by other means.
    """

def byte_views(buffer: object, offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], sizes: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> list:
    """
    Pieces of a buffer, nothing copied: a list of uint8 [sizes[i]] that speak DLPack and the buffer protocol. They are only
    for reading: writing to a piece of a read-only mapping ends the process. IndexError: a piece is not inside the buffer.
    """

def has_fast_crc32() -> bool:
    """
    Whether the CPU multiplies without carry; zlib is faster where it does not.
    """

def crc32(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], value: int = 0) -> int:
    """zlib.crc32."""

def crc32s(payloads: Sequence[Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]]) -> list[int]:
    """zlib.crc32 of each."""

def keep_freed_memory() -> None:
    """
    For the rest of this process, keep up to 64 MiB of freed memory for reuse, and large pieces, too. Without glibc nothing happens.
    """
