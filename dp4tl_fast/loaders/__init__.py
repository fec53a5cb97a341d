"""One loader contract, several backends. ``open_loader`` is the way in; a backend is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.checks import distinct_numbers
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders.base import BaseLoader
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.contract import Batch, IndexedBatch, Loader
from dp4tl_fast.loaders.order import Draws
from dp4tl_fast.loaders.spec import IMAGENET_MEAN, IMAGENET_STD, LoaderSpec
from dp4tl_fast.loaders.transforms import Transform, Transforms

if TYPE_CHECKING:
    from dp4tl_fast.selection import Selection

__all__ = [
    "BACKENDS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "BaseLoader",
    "Batch",
    "Capabilities",
    "Draws",
    "IndexedBatch",
    "Loader",
    "LoaderSpec",
    "capabilities",
    "open_loader",
]

BACKENDS = {  # name -> (module, class); imported on use
    "native": ("dp4tl_fast.loaders.native", "NativeLoader"),
    "ffcv": ("dp4tl_fast.loaders.ffcv", "FfcvLoader"),
    "dali": ("dp4tl_fast.loaders.dali", "DaliLoader"),
    "torchvision": ("dp4tl_fast.loaders.torchvision", "TorchvisionLoader"),
}


def open_loader(
    source: str | Path | Beton,
    selection: Selection | np.ndarray | None = None,
    spec: LoaderSpec | None = None,
    backend: str = "native",
    *,
    transform: Transform | None = None,
    target_transform: Transform | None = None,
    cache_dir: str | Path = "",
    cache_limit: str | int = "",
) -> BaseLoader:
    """Open a ``.beton`` for reading batches.

    Args:
        source: Path or URL (``s3://``, ``gs://``, ``az://``, ``https://``), or an open ``Beton``.
        selection: What is read: the records of a ``Selection``, distinct record numbers in any order (integers ``[n]``), or
            ``None`` for all records. Of a weighted selection each epoch draws its own records (``order.Draws``).
        spec: What to load; the default is a centre crop of 224 pixels in file order.
        backend: One of ``BACKENDS``. There is no silent fall-back.
        transform: Called with the images of every batch, ``[batch, 3, size, size]`` on ``spec.device`` (with each view), and
            returns what is delivered in their place: a transform of torchvision v2, or any callable. Its random numbers, if they
            are torch's, are the same after a resume.
        target_transform: Called likewise with the labels, int64 ``[batch]``.
        cache_dir: Of a URL: the folder where what was fetched stays for later epochs and runs; the default is
            ``~/.cache/dp4tl_fast``.
        cache_limit: Most bytes in it, as ``"500GB"``; without one there is no limit.

    Raises:
        BackendError: Unknown backend, or one that cannot work here (the message says why).
        BetonError, SelectionError: The file or the selection is bad, or they do not belong together.
        UsageError: The spec is bad.
    """
    cls = backend_class(backend)
    beton = source if isinstance(source, Beton) else Beton(source, cache_dir=cache_dir, cache_limit=cache_limit)
    records: np.ndarray | None = None
    draws = None
    if selection is not None:
        from dp4tl_fast.selection import Selection  # takes milliseconds, and who reads a whole file needs none

        if isinstance(selection, Selection):
            records = selection.indices(beton)
            draws = Draws(*selection.draws(beton)) if selection.weights else None
        else:
            records = distinct_numbers(selection, beton.num_samples, f"{beton.path}: record")
    loader = cls(beton, records, spec or LoaderSpec())
    loader.transforms = Transforms(transform, target_transform)
    if draws is not None:
        loader.set_draws(draws)
    return loader


def backend_class(backend: str) -> type[BaseLoader]:
    """The loader class of a name in ``BACKENDS``. Imports our module, not yet the library that it wraps."""
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}. Known: {', '.join(BACKENDS)}")
    module, class_name = BACKENDS[backend]
    try:
        return getattr(import_module(module), class_name)
    except ImportError as error:
        raise BackendError(
            f"backend {backend!r} cannot be imported here: {error}. `dp4tl-fast doctor` says what to install"
        ) from error


def capabilities() -> dict[str, Capabilities]:
    """What each backend can do, as declared in its module. Imports neither torch nor FFCV nor DALI."""
    return {name: backend_class(name).capabilities for name in BACKENDS}
