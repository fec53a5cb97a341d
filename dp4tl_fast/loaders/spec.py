"""What to load and how: the one description that every backend gets."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TRANSFORMS = ("random_resized_crop", "center_crop", "resize")
DTYPES = ("uint8", "float16", "bfloat16", "float32")


# Fields and the rules of their values
WHOLE = {
    "batch_size": 2**20, "size": 16384, "seed": 2**63 - 1, "workers": 2**16, "rank": 2**31, "world_size": 2**31, "views": 64,
    "max_ram": 2**63 - 1, "min_batch": 2**20, "shuffle_buffer": 2**63 - 1,
}  # fmt: skip
AT_LEAST_ONE = ("batch_size", "size", "world_size", "views", "min_batch")
FLAGS = ("flip", "shuffle", "drop_last", "pinned", "with_index", "exact")
NUMBERS = {"scale": 2, "aspect": 2, "mean": 3, "std": 3}
SMALL = 64  # pixels; up to here images are small already, and nothing is cut off their edges


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSpec:
    """Order, geometry, dtype and placement of the batches of one loader.

    Attributes:
        batch_size: Images per batch and rank.
        size: Output side in pixels; images are ``[batch, 3, size, size]``, channels-last in memory.
        transform: ``random_resized_crop`` (torchvision's sampling of area and aspect), ``center_crop`` (the centre
            square of side ``crop_ratio * min(h, w)``, resized to ``size``), or ``resize`` (the whole image, aspect not
            kept).
        scale: Range of the random resized crop's area, as a share of the image's.
        aspect: Range of its aspect, width over height.
        crop_ratio: Side of the centre crop as a share of the shorter side.
        flip: Horizontal flip with probability 1/2 (useful only with ``shuffle`` or a random crop).
        shuffle: A new order every epoch; else file order.
        drop_last: Drop an incomplete last batch.
        min_batch: Images of an incomplete last batch, at least: what it lacks it takes from the batch before it, if that keeps as
            many. 2 where batch normalisation would fail on a single image.
        dtype: ``uint8`` gives raw pixels; a float type gives ``(x / 255 - mean) / std``.
        seed: Order and augmentation are a pure function of (seed, epoch, sample index).
        workers: Decoding threads; 0 means one per core that this process may use.
        rank: This process's share of the records. Give ``world_size``, too, or neither: ``None`` is what torch.distributed says
            when the loader is opened, and the whole where no process group is initialised then.
        world_size: Processes that share the records.
        device: Where batches are delivered, as torch names it.
        pinned: Who takes the batches copies them to a GPU: ``native`` decodes into page-locked memory, which a GPU reads by
            itself, and refuses where there is none. Other backends leave their batches to be page-locked on the way.
            ``device=cuda`` implies it.
        with_index: Also yield each sample's ``index`` field.
        views: Independently augmented views of each image from one read.
        max_ram: Upper bound in bytes on the loader's own buffers; 0 leaves the choice to the backend. It changes no order.
        shuffle_buffer: With ``shuffle``: bytes of records that are mixed among themselves at a time, blocks of 1 MiB from all over
            the file. So slow storage has long reads, and classes that lie together mix less well. 0 mixes all records alike.
        on_error: ``raise``, or ``skip`` a record that cannot be decoded and report it.
        exact: JPEG pixels as libjpeg makes them (smooth chroma, colours converted before the resize): within one level
            of PIL and torchvision. Backends that resize otherwise refuse it.
    """

    batch_size: int = 256
    size: int = 224
    transform: str = "center_crop"
    scale: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    crop_ratio: float = 224 / 256
    flip: bool = False
    shuffle: bool = False
    drop_last: bool = False
    min_batch: int = 1
    dtype: str = "uint8"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    seed: int = 0
    workers: int = 0
    rank: int | None = None
    world_size: int | None = None
    device: str = "cpu"
    pinned: bool = False
    with_index: bool = False
    views: int = 1
    max_ram: int = 0
    shuffle_buffer: int = 0
    on_error: str = "raise"
    exact: bool = False

    @classmethod
    def evaluation(cls, *, size: int, **more: Any) -> LoaderSpec:
        """Each record once, in file order, without augmentation: the centre 224 of 256 pixels, or all of a small image.

        Args:
            size: Output side in pixels.
            more: Other fields.
        """
        return cls(size=size, crop_ratio=224 / 256 if size > SMALL else 1.0, **more)

    def __post_init__(self) -> None:
        for name, most in WHOLE.items():
            value = getattr(self, name)
            if value is None and name in ("rank", "world_size"):
                continue
            rule = f"a whole number from {int(name in AT_LEAST_ONE)} to {most}"
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            require(whole and int(name in AT_LEAST_ONE) <= value <= most, name, value, rule)
            object.__setattr__(self, name, int(value))  # NumPy's integers, say
        for name in FLAGS:
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        for name, count in NUMBERS.items():
            values = getattr(self, name)
            found = tuple(values) if isinstance(values, Iterable) else ()
            finite = len(found) == count and all(isinstance(v, Real) and math.isfinite(v) for v in found)
            require(finite, name, values, f"{count} finite numbers")
            object.__setattr__(self, name, tuple(map(float, found)))  # of a list, say
        require_one_of("transform", self.transform, TRANSFORMS)
        require_one_of("dtype", self.dtype, DTYPES)
        require_one_of("on_error", self.on_error, ("raise", "skip"))
        ratio = self.crop_ratio
        require(isinstance(ratio, Real) and 0 < ratio <= 1, "crop_ratio", ratio, "above 0 and at most 1")
        require(0 < self.scale[0] <= self.scale[1] <= 1, "scale", self.scale, "an increasing pair above 0 and at most 1")
        require(0 < self.aspect[0] <= self.aspect[1], "aspect", self.aspect, "an increasing pair above 0")
        require(all(s > 0 for s in self.std), "std", self.std, "above 0 in every channel")
        if self.rank is None or self.world_size is None:
            if self.rank is not self.world_size:
                given = f"`rank={self.rank}`" if self.world_size is None else f"`world_size={self.world_size}`"
                raise UsageError(f"{given}: is only half of this process's share. Give both `rank` and `world_size`, or neither")
        else:
            require(self.rank < self.world_size, "rank", self.rank, f"below world_size={self.world_size}")

    def placed(self) -> LoaderSpec:
        """The same, with ``rank`` and ``world_size`` as torch.distributed has them where neither was given."""
        if self.rank is not None:
            return self
        distributed = sys.modules.get("torch.distributed")  # what was never imported is not initialised
        if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
            return replace(self, rank=0, world_size=1)
        return replace(self, rank=distributed.get_rank(), world_size=distributed.get_world_size())

    @property
    def global_batch_size(self) -> int:
        """Images of a batch over all ranks."""
        return self.batch_size * (self.world_size or 1)

    @property
    def batch_bytes(self) -> int:
        """Bytes of the images of a whole batch, all views together."""
        return self.batch_size * self.views * 3 * self.size**2 * {"uint8": 1, "float32": 4}.get(self.dtype, 2)
