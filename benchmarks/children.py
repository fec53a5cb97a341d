"""What the suites ``io``, ``scale`` and ``startup`` run in fresh processes (``benchmarks.child.call``).

Every function imports what it measures itself: where start-up counts, nothing else may have imported it before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from dp4tl_fast.beton import Beton


# startup


def first_batch(subject: str, path: str, images: int) -> float:
    """Seconds from importing the loader to its first batch; torch and NumPy are imported before."""
    import numpy  # noqa: F401
    import torch  # noqa: F401

    from benchmarks.loader_subjects import SUBJECTS  # which imports no loader yet

    start = time.perf_counter()
    next(iter(SUBJECTS[subject]({"file": path, "threads": 2, "images": images, "size": 224})()))
    return time.perf_counter() - start


def open_file(path: str) -> dict[str, float]:
    """``seconds`` and private ``MiB`` that opening a file for loading takes."""
    import numpy  # noqa: F401

    from dp4tl_fast.beton import Beton
    from dp4tl_fast.kernels import _native

    before, start = _proc("smaps_rollup", "Private_Clean", "Private_Dirty"), time.perf_counter()
    beton, core = Beton(path), _native.Beton(path)
    _check(len(beton.sizes) == len(beton.labels) == len(core), path)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "MiB": (_proc("smaps_rollup", "Private_Clean", "Private_Dirty") - before) / 1024}


# io


def read_cold(path: str, keep: float, subject: str, max_ram: int, seed: int) -> dict[str, float]:
    """Bytes that an epoch over a random share of the classes reads from the device, the file not being in the page cache.

    Returns ``seconds`` of the epoch and, in bytes: ``read`` from the device, ``wanted`` (the records), ``file`` (all of it).
    """
    import os

    import numpy as np

    from dp4tl_fast.beton import Beton

    beton = Beton(path)
    kept = np.random.default_rng(seed).permutation(beton.num_classes)[: round(keep * beton.num_classes)]
    wanted = int(beton.sizes[np.isin(beton.labels, kept)].sum())
    loader = _loader(beton, kept, subject, max_ram)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # dirty pages cannot be dropped
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    before, start = _proc("io", "read_bytes"), time.perf_counter()
    for _ in loader:
        pass
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "read": _proc("io", "read_bytes") - before, "wanted": wanted, "file": beton.file_size}


def shuffle_buffer(max_ram: int) -> int:
    """Two of them, and batches of 256 images of 32 pixels, take ``max_ram``."""
    return max_ram // 2 - (6 << 20) if max_ram else 0


def _loader(beton: Beton, kept: np.ndarray, subject: str, max_ram: int) -> Any:
    """The loader of these classes: ``ours``, our FFCV and DALI backends (``backend-NAME``), or FFCV's own (``ffcv...``)."""
    import numpy as np

    records = np.flatnonzero(np.isin(beton.labels, kept))
    if subject in ("ffcv", "ffcv-quasi-random"):
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption

        quasi = subject == "ffcv-quasi-random"
        return Loader(
            str(beton.path), batch_size=256, num_workers=2, order=OrderOption.QUASI_RANDOM if quasi else OrderOption.RANDOM,
            os_cache=not quasi, indices=records, drop_last=False,
            pipelines={"image": [RandomResizedCropRGBImageDecoder((32, 32))], "label": [IntDecoder()], "index": None},
        )  # fmt: skip
    from dp4tl_fast.loaders import LoaderSpec, open_loader

    spec = LoaderSpec(
        batch_size=256, size=32, transform="random_resized_crop", shuffle=True, workers=2, max_ram=max_ram,
        shuffle_buffer=shuffle_buffer(max_ram),
    )  # fmt: skip
    backend = "native" if subject == "ours" else subject.removeprefix("backend-")
    return open_loader(beton, records, spec, backend)


def quasi_random_labels(path: str) -> list[int]:
    """Labels of all records in FFCV's quasi-random order."""
    from ffcv.fields.decoders import IntDecoder
    from ffcv.loader import Loader, OrderOption

    from dp4tl_fast.beton import Beton

    loader = Loader(
        path, batch_size=256, num_workers=2, order=OrderOption.QUASI_RANDOM, drop_last=False, seed=0,
        pipelines={"label": [IntDecoder()], "image": None, "index": None},
    )  # fmt: skip
    return Beton(path).labels[loader.next_traversal_order()].tolist()


# scale


def cost(task: str, **arguments: str) -> list[float]:
    """Seconds of a task of ``TASKS``, its imports included (of ``AFTER_TORCH`` not torch's); the process's peak memory in MiB."""
    if task in AFTER_TORCH:
        import torch  # noqa: F401
    start = time.perf_counter()
    TASKS[task](**arguments)
    # ru_maxrss would be the parent's: it survives exec.
    return [time.perf_counter() - start, _proc("status", "VmHWM") / 1024]


def convert_tree(tree: str, out: str) -> None:
    from dp4tl_fast.conversion.run import convert

    convert(tree, out, workers=2)


def open_for_loading(file: str) -> None:
    from dp4tl_fast.beton import Beton
    from dp4tl_fast.kernels import _native

    beton, core = Beton(file), _native.Beton(file)
    _check(len(core) == len(beton.labels) == len(beton.sizes) == beton.num_samples, file)


def select_a_fifth(file: str) -> None:
    import numpy as np

    from dp4tl_fast.beton import Beton
    from dp4tl_fast.selection import Selection

    beton = Beton(file)
    kept = np.arange(beton.num_classes // 5) * 5
    selection = Selection.of_classes(beton, kept, method="benchmark", scores=np.zeros(beton.num_classes))
    records = selection.indices(beton)
    _check(len(records) > 0 and beton.sizes[records].min() > 0, file)


def first_of_all(file: str) -> None:
    from dp4tl_fast.loaders import LoaderSpec, open_loader

    spec = LoaderSpec(batch_size=256, size=32, transform="random_resized_crop", shuffle=True, workers=2)
    with open_loader(file, None, spec) as loader:
        _check(len(next(iter(loader)).labels) == 256, file)


def verify_all(file: str) -> None:
    from dp4tl_fast.beton import Beton
    from dp4tl_fast.beton.verify import verify

    beton = Beton(file)
    _check(verify(beton, workers=2)["records"] == beton.num_samples, file)


TASKS: dict[str, Callable[..., None]] = {
    "convert": convert_tree, "open": open_for_loading, "select": select_a_fifth, "batch": first_of_all, "verify": verify_all,
}
AFTER_TORCH = ("batch",)  # tasks whose seconds do not contain importing it


def _proc(file: str, *keys: str) -> int:
    """Sum of these lines' numbers in ``/proc/self/FILE``."""
    with open(f"/proc/self/{file}") as lines:
        values = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(values[key].split()[0]) for key in keys)


def _check(right: bool, path: str) -> None:
    """A wrong result is not worth timing."""
    if not right:
        raise RuntimeError(f"{path}: not what was written there")
