"""Surrogates: where they come from, and what they make of a .beton, in one pass that is kept (``cache.py``)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.fingerprint import CLASS_NAMES, difference
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.stopwatch import Stopwatch
from dp4tl_fast.loaders import open_loader
from dp4tl_fast.loaders.decode import bad_record
from dp4tl_fast.loaders.epoch import sharding
from dp4tl_fast.loaders.order import rank_batches
from dp4tl_fast.pruning.cache import shared
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.train_surrogate import training_seconds
from dp4tl_fast.training import checkpoint, models
from dp4tl_fast.training.device import pick_device
from dp4tl_fast.training.preprocessing import Preprocessing
from dp4tl_fast.training.ranks import rank, world_size

Fill = Callable[[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor], None]  # (out, records, images, labels)


class Surrogate:
    """A small network trained on the source, in eval mode, and the images it wants."""

    def __init__(self, path: str, config: PruneConfig, watch: Stopwatch) -> None:
        self.path = path
        self.watch = watch  # tells ``loading``, ``forward`` and ``writing`` apart
        weights = checkpoint.pin_weights(path)  # a run that goes on writes newer ones meanwhile
        self._weights = Path(weights)
        self.model, meta = checkpoint.load_model(weights, config.arch)
        self.place = pick_device(config.device)
        self.model.to(self.place)
        self.num_classes: int = meta["num_classes"]
        self.compact = meta.get("classes") is not None
        self.source = meta.get("source")  # fingerprint of what it was trained on, where its file says
        self.records = meta.get("source_records_sha256")  # likewise, of those images in that order
        self.classifies = checkpoint.classifies(meta)  # else its last layer was never trained
        pixels = Preprocessing.of(meta, config.size).as_loaded(path)
        models.resize(self.model, pixels.size)
        self.size, mean, std = pixels.size, pixels.mean, pixels.std
        self.head = models.head(self.model)[1]
        on_cpu = self.place.type == "cpu"  # there the loader's threads normalise, while the network runs
        self._normalise = (lambda images: images) if on_cpu else pixels.normalise(self.place)
        self._spec = pixels.spec(
            batch_size=config.batch_size, workers=config.workers,
            rank=rank(), world_size=world_size(), dtype="float32" if on_cpu else "uint8", mean=mean, std=std,
            pinned=self.place.type == "cuda", on_error=config.on_bad_record,
        )  # fmt: skip
        self._max_bad = config.max_bad if config.on_bad_record == "skip" else None
        self.bad: set[tuple[str, int, int]] = set()  # file, record and class of those that could not be decoded, and were left out
        self._lost: list[int] = []  # records of the running pass that cannot be decoded
        self._backend = config.backend
        self.identity = {"arch": meta["arch"], "size": self.size, "weights_sha256": checkpoint.weights_hash(weights, self.model)}
        crop_ratio = self._spec.crop_ratio
        self._pixels = {"mean": mean, "std": std, "crop_ratio": crop_ratio, "backend": config.backend, "device": self.place.type}

    def check_classifier(self, beton: Beton) -> None:
        """Refuse, for methods that use its classifier, a surrogate that cannot know the classes of ``beton``."""
        if not self.classifies:
            raise UsageError(
                f"`surrogate={self.path}` was pretrained without labels: its classifier was never trained. "
                "Use `method=fm` with it, or a surrogate that was trained supervised"
            )
        if self.num_classes != beton.num_classes or self.compact:
            raise UsageError(
                f"`surrogate={self.path}` knows {self.num_classes} classes, but {beton.path} has {beton.num_classes}. "
                "Use one trained on this source, without `pretrain --compact-labels`"
            )
        trained_on = self.source
        if trained_on is None:
            return
        classes = {key: trained_on[key] for key in ("classes", CLASS_NAMES) if key in trained_on}
        if len(classes) == 2 and any(beton.fingerprint[key] != value for key, value in classes.items()):
            raise UsageError(
                f"`surrogate={self.path}` was trained on classes of other names or in another order than {beton.path} has. "
                "Use one trained on this source"
            )
        if difference(trained_on, beton.fingerprint):
            cli.message(f"note: {self.path} was not trained on {beton.path}; its classes must be the same, in this order")

    def training_seconds(self) -> dict[str, float]:
        """What training it took, as ``{"surrogate": seconds}``, where the folder of the run that trained these weights is at hand,
        whether the folder was named, one of its checkpoints, or a file in it; of rounds, all of them."""
        if self.path.startswith(checkpoint.PUBLISHED):
            return {}
        named = Path(self.path).absolute()
        for folder in [named, *self._weights.resolve().parents][:4]:
            try:
                summary = json.loads((folder / "summary.json").read_text())
                trained = summary.get("weights_sha256", {}).values()  # not told by older versions
            except (OSError, ValueError, AttributeError):
                continue
            if folder == named or self.identity["weights_sha256"] in trained:
                return {"surrogate": training_seconds(str(folder))}
        return {}

    def batches(
        self, beton: Beton, what: str, records: np.ndarray | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's images of a file (or of some records) once, in file order, normalised, and their labels; on the device."""
        with self.watch.section("loading"):
            loader = open_loader(beton, records, self._spec, self._backend)
        with loader:
            desc = f"{what.partition('-')[0]} {beton.path.name}"
            iterator = iter(cli.progress(loader, desc=desc, unit="batch", total=len(loader)))
            while True:
                with self.watch.section("loading"):
                    batch = next(iterator, None)
                    if batch is None:
                        return
                    self._lost = [record for record, _ in loader.skipped]
                    images, labels = self._normalise(batch.images), batch.labels.to(self.place)
                yield images, labels

    def key(self, beton: Beton, what: str) -> str:
        """Names what ``what`` computes from these bytes with these weights."""
        checksums = beton.checksums()
        contents = (beton.version.encode() or _sampled(beton.real_path)) + (b"" if checksums is None else checksums.tobytes())
        parts = {
            **beton.fingerprint, **self.identity, **self._pixels, "what": what,
            "bytes": beton.file_size,  # and not when it was written: a copy is the same
            "records_sha256": hashlib.sha256(np.ascontiguousarray(beton.metadata).tobytes()).hexdigest(),
            "checksums_sha256": hashlib.sha256(contents).hexdigest(),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def features(self, beton: Beton, cache: Path | None) -> tuple[torch.Tensor, float]:
        """Penultimate features, float32 ``[n, d]`` (mapped, on the CPU), and the seconds that the cache saved. NaN where a record
        cannot be decoded, under ``on_bad_record=skip``.

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
                    raise UsageError(f"`surrogate={self.path}`: its logits are not a linear layer of its features")
                out[records] = features.cpu().numpy()

            width = self.head.in_features
            with torch.inference_mode():
                found, seconds = self._pass(beton, "features", (beton.num_samples, width), np.dtype("<f4"), fill, cache)
            self._check_bad(beton, torch.isnan(found[:, 0]).nonzero()[:, 0].tolist())
            return found, seconds

    def _check_bad(self, beton: Beton, bad: list[int]) -> None:
        """Name the records that cannot be decoded, where there may be some and as many."""
        if not bad:
            return
        if self._max_bad is None:  # an earlier run, which skipped it, has filled the cache
            raise bad_record(beton, bad[0], "cannot be decoded")
        named = ", ".join(f"{r} (class {beton.labels[r]}, {beton.class_names[beton.labels[r]]!r})" for r in bad)
        told = f"{beton.path}: {len(bad)} record{'s' * (len(bad) > 1)} cannot be decoded"
        if len(bad) > self._max_bad:
            raise UsageError(f"{told}, more than `max_bad={self._max_bad}`: {named}")
        self.bad |= {(str(beton.path), record, int(beton.labels[record])) for record in bad}
        if rank() == 0:
            cli.message(f"note: {told}, left out: {named}")

    def predictions(self, beton: Beton, records: np.ndarray, cache: Path | None) -> tuple[np.ndarray, float]:
        """The class that the classifier puts each of these records (ascending) into, int64 ``[n]``, -1 where one cannot be decoded;
        and the seconds saved."""

        def fill(out: np.ndarray, some: np.ndarray, images: torch.Tensor, labels: torch.Tensor) -> None:
            logits = self.model(images)
            self._check(logits.isfinite().all(1).cpu().numpy(), "features or logits", some, beton)
            out[np.searchsorted(records, some)] = logits.argmax(1).cpu().numpy()

        what = f"predictions-{hashlib.sha256(records.tobytes()).hexdigest()[:16]}"
        with torch.inference_mode():
            classes, seconds = self._pass(beton, what, (len(records),), np.dtype("<i8"), fill, cache, records)
        found = classes.numpy()
        self._check_bad(beton, records[found < 0].tolist())
        return found, seconds

    def gradient_norms(self, beton: Beton, cache: Path | None) -> tuple[np.ndarray, float]:
        """GraNd of every record, float64 ``[n]``, and the seconds that the cache saved."""
        from dp4tl_fast.mapping.grand import grand

        def fill(out: np.ndarray, records: np.ndarray, images: torch.Tensor, labels: torch.Tensor) -> None:
            out[records] = grand(self.model, images, labels)
            self._check(np.isfinite(out[records]), "gradients", records, beton)

        norms, seconds = self._pass(beton, "grand", (beton.num_samples,), np.dtype("<f8"), fill, cache)
        self._check_bad(beton, torch.isnan(norms).nonzero()[:, 0].tolist())
        return norms.numpy(), seconds

    def _check(self, finite: np.ndarray, what: str, records: np.ndarray, beton: Beton) -> None:
        if not finite.all():
            raise UsageError(
                f"`surrogate={self.path}`: its {what} of record {records[finite.argmin()]} of {beton.path} are not finite. "
                "Train it again with a lower learning rate"
            )

    def waiting(self) -> AbstractContextManager[None]:
        """Around a wait for what another run computes: no cost of this one."""
        return self.watch.section("waiting")

    def _pass(
        self, beton: Beton, what: str, shape: tuple[int, ...], dtype: np.dtype, fill: Fill, cache: Path | None,
        records: np.ndarray | None = None,
    ) -> tuple[torch.Tensor, float]:
        if beton.num_samples == 0:
            raise UsageError(f"{beton.path} has no images; {what} need some")

        def compute(out: np.ndarray) -> None:
            spec, everything = self._spec, np.arange(beton.num_samples) if records is None else records
            mine = rank_batches(everything, **sharding(spec))
            for some, (images, labels) in zip(mine, self.batches(beton, what, records), strict=True):
                lost = np.isin(some, self._lost)
                if lost.any():
                    rows = some[lost] if records is None else np.searchsorted(records, some[lost])
                    out[rows] = -1 if dtype.kind == "i" else np.nan
                if len(labels):
                    with self.watch.section("forward"):
                        fill(out, some[~lost], images, labels)

        path = None if cache is None else cache / f"{what}-{self.key(beton, what)}.npy"
        with self.watch.section("writing"):  # all of it but computing, which is ``loading`` and ``forward``, and ``waiting``
            stored = shared(path, shape, dtype, compute, self.waiting)
        return torch.from_numpy(stored.array), stored.saved


def _sampled(path: Path) -> bytes:
    """4 KiB at each of 256 places: tells a file without checksums, or with another's, from others well enough, and reads 1 MiB."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return b"".join(os.pread(file.fileno(), 4096, size * i // 256) for i in range(256))
