"""What a surrogate makes of a .beton: one forward pass, kept in memory-mapped files for the next method or ratio."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from dp4tl_fast import cli, models
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.sidecars import read_checksums
from dp4tl_fast.errors import UsageError
from dp4tl_fast.files import commit, partial_path, write_atomically
from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD, LoaderSpec, open_loader
from dp4tl_fast.loaders.order import rank_batches
from dp4tl_fast.stopwatch import Stopwatch
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.device import pick_device
from dp4tl_fast.training.loop import Normalise
from dp4tl_fast.training.ranks import rank_and_ranks

Fill = Callable[[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor], None]  # (out, records, images, labels)


class Surrogate:
    """A small network trained on the source, in eval mode, and the images it wants."""

    def __init__(
        self, path: str, arch: str | None, watch: Stopwatch, *, size: int, device: str, backend: str, batch_size: int, workers: int
    ) -> None:  # fmt: skip
        self.path = path
        self.watch = watch  # tells ``loading``, ``forward`` and ``writing`` apart
        self.model, meta = checkpoint.load_model(path, arch)
        self.place = pick_device(device)
        self.model.to(self.place)
        self.num_classes: int = meta["num_classes"]
        self.compact = meta.get("classes") is not None
        self.size = size or meta.get("size", 224)
        self.head = models.head(self.model)[1]
        mean, std = tuple(meta.get("mean", IMAGENET_MEAN)), tuple(meta.get("std", IMAGENET_STD))
        on_cpu = self.place.type == "cpu"  # there the loader's threads normalise, while the network runs
        self._normalise = (lambda images: images) if on_cpu else Normalise(mean, std, self.place)
        crop_ratio = 224 / 256 if self.size > 64 else 1.0  # the evaluation transform: no augmentation
        rank, ranks = rank_and_ranks()
        self._spec = LoaderSpec(
            batch_size=batch_size, size=self.size, crop_ratio=crop_ratio, workers=workers, rank=rank, world_size=ranks,
            dtype="float32" if on_cpu else "uint8", mean=mean, std=std,
        )  # fmt: skip
        self._backend = backend
        self.identity = {"arch": meta["arch"], "size": self.size, "weights_sha256": checkpoint.weights_hash(path, self.model)}
        self._pixels = {"mean": mean, "std": std, "crop_ratio": crop_ratio, "backend": backend, "device": self.place.type}

    def batches(self, beton: Beton, what: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's images of a file once, in file order, normalised, and their labels; on the device."""
        with self.watch.section("loading"):
            loader = open_loader(beton, None, self._spec, self._backend)
        with loader:
            iterator = iter(cli.progress(loader, desc=f"{what} {beton.path.name}", unit="batch", total=len(loader)))
            while True:
                with self.watch.section("loading"):
                    batch = next(iterator, None)
                    if batch is None:
                        return
                    images, labels = self._normalise(batch[0]), batch[1].to(self.place)
                yield images, labels

    def key(self, beton: Beton, what: str) -> str:
        """Names what ``what`` computes from these bytes with these weights."""
        stat = beton.path.stat()
        checksums = read_checksums(beton.path, beton.num_samples)
        parts = {
            **beton.fingerprint, **self.identity, **self._pixels, "what": what,
            "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns,
            "records_sha256": hashlib.sha256(np.ascontiguousarray(beton.metadata).tobytes()).hexdigest(),
            "checksums_sha256": hashlib.sha256(b"" if checksums is None else checksums.tobytes()).hexdigest(),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def features(self, beton: Beton, cache: Path | None) -> tuple[torch.Tensor, float]:
        """Penultimate features, float32 ``[n, d]`` (mapped, on the CPU), and the seconds that the cache saved.

        Raises:
            UsageError: The network's output is not its last linear layer of these features, or a number is not finite.
        """
        with models.FeatureTap(self.model) as tap:

            def fill(out: np.ndarray, records: np.ndarray, images: torch.Tensor, labels: torch.Tensor) -> None:
                logits, features = tap(images)
                features = features.float()
                finite = features.isfinite().all(1) & logits.isfinite().all(1)
                self._check(finite.cpu().numpy(), "features or logits", records, beton)
                if records[0] == 0 and not torch.allclose(self.head(features), logits.float(), rtol=1e-3, atol=1e-3):
                    raise UsageError(f"--surrogate {self.path}: its logits are not a linear layer of its features")
                out[records[0] : records[-1] + 1] = features.cpu().numpy()  # in file order: one range

            width = self.head.in_features
            with torch.inference_mode():
                return self._pass(beton, "features", (beton.num_samples, width), np.dtype("<f4"), fill, cache)

    def gradient_norms(self, beton: Beton, cache: Path | None) -> tuple[np.ndarray, float]:
        """GraNd of every record, float64 ``[n]``, and the seconds that the cache saved."""
        from dp4tl_fast.mapping.grand import grand

        def fill(out: np.ndarray, records: np.ndarray, images: torch.Tensor, labels: torch.Tensor) -> None:
            out[records] = grand(self.model, images, labels)
            self._check(np.isfinite(out[records]), "gradients", records, beton)

        norms, seconds = self._pass(beton, "grand", (beton.num_samples,), np.dtype("<f8"), fill, cache)
        return norms.numpy(), seconds

    def _check(self, finite: np.ndarray, what: str, records: np.ndarray, beton: Beton) -> None:
        if not finite.all():
            raise UsageError(
                f"--surrogate {self.path}: its {what} of record {records[finite.argmin()]} of {beton.path} are not finite. "
                "Train it again with a lower learning rate"
            )

    def _pass(
        self, beton: Beton, what: str, shape: tuple[int, ...], dtype: np.dtype, fill: Fill, cache: Path | None
    ) -> tuple[torch.Tensor, float]:
        if beton.num_samples == 0:
            raise UsageError(f"{beton.path} has no images; {what} need some")

        def compute(out: np.ndarray) -> None:
            spec, everything = self._spec, np.arange(beton.num_samples)
            mine = rank_batches(
                everything, batch_size=spec.batch_size, rank=spec.rank, world_size=spec.world_size, drop_last=False
            )
            for records, (images, labels) in zip(mine, self.batches(beton, what), strict=True):
                with self.watch.section("forward"):
                    fill(out, records, images, labels)

        path = None if cache is None else cache / f"{what}-{self.key(beton, what)}.npy"
        with self.watch.section("writing"):  # all of it but computing, which is ``loading`` and ``forward``
            stored = shared(path, shape, dtype, compute)
        return torch.from_numpy(stored.array), stored.saved


@dataclass(frozen=True)
class Stored:
    array: np.ndarray  # mapped copy-on-write: the file never changes
    saved: float  # seconds that an earlier run spent on it; 0 if it was computed now


def shared(path: Path | None, shape: tuple[int, ...], dtype: np.dtype, compute: Callable[[np.ndarray], None]) -> Stored:
    """``cached`` for all processes of torchrun together, each of which returns the whole array.

    ``compute`` fills this process's part of an array of zeros; the parts are added. The first process keeps the file.
    """
    rank, ranks = rank_and_ranks()
    if ranks == 1:
        return cached(path, shape, dtype, compute)
    found = _open(path, shape, dtype) if path is not None and rank == 0 else None
    hit = torch.tensor([0.0 if found is None else 1.0, 0.0 if found is None else found.saved], dtype=torch.float64)
    dist.broadcast(hit, 0)
    array = np.zeros(shape, dtype) if found is None else np.array(found.array)
    if not hit[0]:
        compute(array)
    dist.all_reduce(torch.from_numpy(array))
    if not hit[0] and rank == 0 and path is not None:
        cached(path, shape, dtype, lambda out: np.copyto(out, array))
    return Stored(array, float(hit[1]))


def cached(path: Path | None, shape: tuple[int, ...], dtype: np.dtype, compute: Callable[[np.ndarray], None]) -> Stored:
    """An array that is computed once: ``compute`` fills it, unless ``path`` already holds it.

    The file is written under a temporary name, synced and renamed, so that one that is there is complete. Processes that
    want the same array at the same time wait for the first (the kernel drops the lock of one that dies). A file that is
    not such an array (a damaged disk) is computed again.
    """
    if path is None:
        array: np.ndarray = np.empty(shape, dtype)
        compute(array)
        return Stored(array, 0.0)
    start = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        found = _open(path, shape, dtype)
        if found is not None:
            return found
        partial = partial_path(path)
        mapped = np.lib.format.open_memmap(partial, "w+", dtype, shape)
        try:
            compute(mapped)
            mapped.flush()
        except BaseException:
            partial.unlink()
            raise
        del mapped
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        write_atomically(_seconds_path(path), json.dumps({"seconds": time.perf_counter() - start}))
        commit(partial, path)
        found = _open(path, shape, dtype)
        assert found is not None  # it was just written under the lock
        return Stored(found.array, 0.0)


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Stored | None:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        seconds = float(json.loads(_seconds_path(path).read_text())["seconds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        cli.message(f"{path}: damaged ({error}); computing it again")
        return None
    if array.shape != shape or array.dtype != dtype:
        cli.message(f"{path}: holds {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}; computing it again")
        return None
    return Stored(array, seconds)


def _seconds_path(path: Path) -> Path:
    return path.with_suffix(".json")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on this file; it stays, empty, for the next."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
