"""What the seeds of a finetuning share: the network they start from, the target's files, and features of a frozen network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import RecordError, UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.finetuning import kept, probes, tuning
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.probes import Result
from dp4tl_fast.finetuning.rows import Rows
from dp4tl_fast.finetuning.start import Start
from dp4tl_fast.loaders import BaseLoader, LoaderSpec, open_loader
from dp4tl_fast.loaders.epoch import sharding
from dp4tl_fast.loaders.order import rank_batches
from dp4tl_fast.runs.bad_records import BadRecords
from dp4tl_fast.runs.config import signals
from dp4tl_fast.runs.folder import told
from dp4tl_fast.runs.session import Learner, Unmeasured, agreed
from dp4tl_fast.runs.trackers import Callback
from dp4tl_fast.training import loop, models
from dp4tl_fast.training.device import pick_device
from dp4tl_fast.training.placement import loader_share
from dp4tl_fast.training.preprocessing import Preprocessing, start_meta
from dp4tl_fast.training.ranks import on_rank_zero, world_size
from dp4tl_fast.training.trial import try_out

SEED = "seed-{}"  # a seed's folder


class Work:
    """See the module. Nothing is written before the first seed begins, and not before a trial of two images.

    Args:
        settings: All that decides what is computed.
        files: The target's, by parameter: train, test, and val where there is one.
        guard: Called before anything is written: raises where the folder is another process's by now.
        callback: As of ``finetune``.
    """

    def __init__(
        self, config: FinetuneConfig, settings: dict[str, Any], origin: Start, files: dict[str, Beton], guard: Callable[[], None],
        callback: Callback | None = None,
    ) -> None:  # fmt: skip
        self.config, self.settings, self.origin, self.files, self.guard = config, settings, origin, files, guard
        self.callback = callback
        self.out = Path(config.out)
        self.device = pick_device(config.device)
        self.pixels = Preprocessing.of(origin.meta, config.size).changed(config.mean, config.std).as_loaded(config.checkpoint)
        if origin.model is not None:
            models.resize(origin.model, self.pixels.size)
            origin.meta |= models.size_meta(origin.model)
        self.normalise = self.pixels.normalise(self.device)
        self.classes = files["train"].num_classes
        self._share = loader_share(config.batch_size, config.accumulate, config.workers, self.device)
        self.bad = BadRecords(config.max_bad)
        self._begun = False

    def result(self, seed: int, records: np.ndarray | None, held: np.ndarray | None) -> Result:
        """One seed, trained on ``records`` of the training file (``None``: all), its best epoch chosen on ``held``."""
        found = self._neighbours(records) if self.config.mode == "knn" else self._trained(seed, records, held)
        self.bad.add(found.bad)
        self._check_bad()
        return found

    def _check_bad(self) -> None:
        """List what could not be decoded so far, and stop where that is too much."""
        on_rank_zero(lambda: self.bad.write(self.out))
        if self.config.on_bad_record == "raise" and self.bad.known:  # of a run that left them out, and goes on
            raise RecordError(next(iter(self.bad.known.values()))[-1])
        self.bad.check(self.out)

    def _trained(self, seed: int, records: np.ndarray | None, held: np.ndarray | None) -> Result:
        out = self.out / SEED.format(seed)
        done = on_rank_zero(lambda: tuning.finished(out, self.files["test"].num_samples) if self.config.resume else None)
        if done is not None:
            return done
        truth = {"test": torch.from_numpy(self.files["test"].labels)}
        if (val := self._validation(held)) is not None:
            truth["val"] = torch.from_numpy(val[0].labels[slice(None) if val[1] is None else val[1]])
        return (self._probe if self.config.mode == "lp" else self._finetune)(out, seed, records, val, truth)

    def _validation(self, held: np.ndarray | None) -> tuple[Beton, np.ndarray | None] | None:
        if held is not None:
            return self.files["train"], held
        return (self.files["val"], None) if "val" in self.files else None

    def _begin(self) -> None:
        """All input is good: the folder may hold this run from now on."""
        if not self._begun:
            self._begun = True
            on_rank_zero(self._write)

    def _write(self) -> None:
        self.guard()
        self.out.mkdir(parents=True, exist_ok=True)
        if self.config.mode != "knn":
            self.origin.keep(self.out)
        write_atomically(self.out / "config.yaml", yaml.safe_dump(told(self.config, self.settings), sort_keys=False))

    def _learner(self, out: Path, seed: int) -> Learner:
        model = self.origin.fresh(seed, self.classes, self.pixels.size)
        return tuning.learner(self.config, model, self.normalise, self._meta(seed), seed, out)

    def _tuned(
        self, out: Path, seed: int, learner: Learner, loader: Any, predict: Any, truth: dict[str, torch.Tensor]
    ) -> tuning.Tuning:
        settings = self.settings | {"seed": seed}
        return tuning.Tuning(out, self.config, settings, learner, loader, predict, truth, self.guard, self.callback)

    def _meta(self, seed: int) -> dict[str, Any]:
        """What the checkpoints of a seed say of their network."""
        train = self.files["train"]
        return {
            "arch": self.origin.meta["arch"], "num_classes": self.classes, "class_names": list(train.class_names),
            **self.pixels.meta(), "classes": None, "blur_pool": bool(self.origin.meta.get("blur_pool")),
            "source": train.fingerprint, "source_records_sha256": train.records_sha256, "objective": "supervised",
            "mode": self.config.mode, "seed": seed, "start_sha256": self.origin.sha256,
            **{k: v for k, v in self.origin.meta.items() if k == "image_size"}, **start_meta(self.origin.meta),
        }  # fmt: skip

    def _loader(self, beton: Beton, records: np.ndarray | None = None) -> BaseLoader:
        """Each record once, in file order, over all processes."""
        share = {**self._share, "batch_size": self._share["batch_size"] // self.config.accumulate}
        return open_loader(beton, records, self.pixels.spec(**share, on_error=self.config.on_bad_record), self.config.backend)

    # -- frozen -------------------------------------------------------------------------------------------------------

    @cached_property
    def _features(self) -> dict[str, torch.Tensor]:
        """Of each file, float32 ``[n, d]`` on the device, NaN where a record cannot be decoded; what is computed is kept in the
        folder, whose run begins with it."""
        model = self.origin.model
        assert model is not None  # only full finetuning starts from scratch
        model.to(self.device)
        try_out(model, self.origin.meta["arch"], self.pixels.size, self.device)
        with contextlib.ExitStack() as stack:
            loaders = {name: stack.enter_context(self._loader(beton)) for name, beton in self.files.items()}
            self._begin()
            stopped = stack.enter_context(loop.graceful_stop(signals(self.config.stop_signals)))
            found = {name: self._pass(name, model, loader, stopped).to(self.device) for name, loader in loaders.items()}
            for name, loader in loaders.items():
                self.bad.note(name, loader)
        self.bad.pooled()
        self._check_bad()
        self.bad.tell()
        return found

    def _pass(self, name: str, model: nn.Module, loader: BaseLoader, stopped: Callable[[], bool]) -> torch.Tensor:
        """Features of a file on the CPU; those that the folder holds already are not computed again."""

        def compute() -> torch.Tensor:
            return probes.features(model, loader, self.normalise, lambda batches: agreed(batches, stopped, self.out))

        try:
            return kept.features(self.out / kept.FOLDER, name, loader, compute, self.guard)
        except Unmeasured as end:
            raise end.reason or cli.Terminated(f"{self.out}: the features so far are saved; continue with `resume`") from None

    def _rows(self, name: str, records: np.ndarray) -> torch.Tensor:
        """Features of these records, ascending; no copy of all of them."""
        features = self._features[name]
        return features if len(records) == len(features) else features[torch.from_numpy(records)]

    def _labelled(self, name: str, records: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return self._rows(name, records), torch.from_numpy(self.files[name].labels[records]).to(self.device)

    def _readable(self, name: str, records: np.ndarray | None) -> np.ndarray:
        """Of these records (``None``: all), those that have features."""
        total = len(self._features[name])  # before it is asked which are bad
        chosen = np.arange(total) if records is None else records
        kept = chosen[~self.bad.of(name, chosen)]
        if len(kept) == 0:
            raise UsageError(f"{self.files[name].path}: none of {len(chosen)} records can be decoded. Convert its source again")
        return kept

    def _measured(self, name: str, records: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of these records (``None``: all), and which of them have none: bool ``[n]`` on the CPU."""
        chosen = np.arange(self.files[name].num_samples) if records is None else records
        return self._rows(name, chosen), torch.from_numpy(self.bad.of(name, chosen))

    def _neighbours(self, records: np.ndarray | None) -> Result:
        config, test = self.config, self._readable("test", None)
        train = self._labelled("train", self._readable("train", records))
        found = probes.knn_probe(
            train, self._labelled("test", test), self.classes, neighbours=config.neighbours, temperature=config.temperature
        )
        predicted = torch.full((self.files["test"].num_samples,), -1)
        predicted[torch.from_numpy(test)] = found.predicted
        return replace(found, predicted=predicted)

    def _probe(self, out: Path, seed: int, records: np.ndarray | None, val: Any, truth: dict[str, torch.Tensor]) -> Result:
        train = self.files["train"]
        spec = LoaderSpec(**self._share, seed=seed, drop_last=world_size() > 1)  # an incomplete batch cannot be shared evenly
        self._check_batches(train.num_samples if records is None else len(records), spec)
        learner = self._learner(out, seed)
        numbers = self._readable("train", records)
        self._check_batches(len(numbers), spec)
        parts = {"test": self._measured("test", None)}
        if val is not None:
            parts["val"] = self._measured("val" if "val" in self.files else "train", val[1])

        @torch.inference_mode()
        def predict(part: str, model: torch.nn.Module, watch: Any) -> torch.Tensor:
            features, bad = parts[part]
            return torch.where(bad, -1, models.head(model)[1](features).argmax(1).cpu())

        loader = Rows(*self._labelled("train", numbers), train, numbers, spec)
        return self._tuned(out, seed, learner, loader, predict, truth).result()

    # -- all weights --------------------------------------------------------------------------------------------------

    def _finetune(self, out: Path, seed: int, records: np.ndarray | None, val: Any, truth: dict[str, torch.Tensor]) -> Result:
        config, train = self.config, self.files["train"]
        spec = LoaderSpec(
            **self._share, size=self.pixels.size, transform="random_resized_crop", scale=(config.min_scale, 1.0),
            flip=config.flip, shuffle=True, seed=seed, with_index=True, drop_last=world_size() > 1, on_error=config.on_bad_record,
            min_batch=2 * config.accumulate,  # of whose parts none is a single image, which batch normalisation fails on
        )  # fmt: skip
        least = self._check_batches(train.num_samples if records is None else len(records), spec)
        learner = self._learner(out, seed)
        try_out(learner.run.model, self.origin.meta["arch"], self.pixels.size, self.device, least=least)
        with contextlib.ExitStack() as stack:
            loader = stack.enter_context(open_loader(train, records, spec, config.backend))
            loaders = {"test": stack.enter_context(self._loader(self.files["test"]))}
            if val is not None:
                loaders["val"] = stack.enter_context(self._loader(*val))
            self._begin()

            def predict(part: str, model: torch.nn.Module, watch: Any) -> torch.Tensor:
                found = tuning.predicted_by(model, loaders[part], self.normalise, config.tta, watch)
                run.bad.note(part, loaders[part])
                return found

            run = self._tuned(out, seed, learner, loader, predict, truth)
            return run.result()

    def _check_batches(self, records: int, spec: LoaderSpec) -> int:
        """Images of the smallest part of a batch that will be trained on.

        Raises:
            UsageError: Several processes, of which one would have no image.
        """
        parts = self.config.accumulate
        if spec.drop_last and records < self.config.batch_size:
            raise UsageError(
                f"`batch_size={self.config.batch_size}`: larger than the {records} training images, which {world_size()} "
                f"processes share. Use {max(1, records // (world_size() * parts)) * world_size() * parts} or fewer processes"
                if records >= world_size() * parts
                else f"{world_size()} processes x {parts} parts cannot share {records} training images. Use fewer processes"
            )
        return min(len(batch) // min(parts, len(batch)) for batch in rank_batches(np.arange(records), **sharding(spec)))
