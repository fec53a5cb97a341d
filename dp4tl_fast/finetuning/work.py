"""What the seeds of a finetuning share: the network they start from, the target's files, and features of a frozen network."""

from __future__ import annotations

import contextlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.finetuning import probes, tuning
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.probes import Result
from dp4tl_fast.finetuning.rows import Rows
from dp4tl_fast.finetuning.start import Start
from dp4tl_fast.loaders import BaseLoader, LoaderSpec, open_loader
from dp4tl_fast.runs.session import Learner
from dp4tl_fast.training import models
from dp4tl_fast.training.device import pick_device
from dp4tl_fast.training.placement import loader_share
from dp4tl_fast.training.preprocessing import Preprocessing
from dp4tl_fast.training.ranks import on_rank_zero, world_size
from dp4tl_fast.training.trial import try_out

SEED = "seed-{}"  # a seed's folder


class Work:
    """See the module. Nothing is written before the first seed begins, and not before a trial of two images.

    Args:
        settings: All that decides what is computed: config.yaml.
        files: The target's, by parameter: train, test, and val where there is one.
    """

    def __init__(self, config: FinetuneConfig, settings: dict[str, Any], origin: Start, files: dict[str, Beton]) -> None:
        self.config, self.settings, self.origin, self.files = config, settings, origin, files
        self.out = Path(config.out)
        self.device = pick_device(config.device)
        self.pixels = Preprocessing.of(origin.meta, config.size).changed(config.mean, config.std)
        if origin.model is not None and models.resize(origin.model, self.pixels.size):
            origin.meta["image_size"] = self.pixels.size
        self.normalise = self.pixels.normalise(self.device)
        self.classes = files["train"].num_classes
        self._share = loader_share(config.batch_size, config.accumulate, config.workers, self.device)
        self._begun = False

    def result(self, seed: int, records: np.ndarray | None, held: np.ndarray | None) -> Result:
        """One seed, trained on ``records`` of the training file (``None``: all), its best epoch chosen on ``held``."""
        if self.config.mode == "knn":
            return self._neighbours(records)
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
        self.out.mkdir(parents=True, exist_ok=True)
        if self.config.mode != "knn":
            self.origin.keep(self.out)
        write_atomically(self.out / "config.yaml", yaml.safe_dump(self.settings, sort_keys=False))

    def _learner(self, seed: int) -> Learner:
        model = self.origin.fresh(seed, self.classes, self.pixels.size)
        return tuning.learner(self.config, model, self.normalise, self._meta(seed), seed)

    def _meta(self, seed: int) -> dict[str, Any]:
        """What the checkpoints of a seed say of their network."""
        train = self.files["train"]
        return {
            "arch": self.origin.meta["arch"], "num_classes": self.classes, "class_names": list(train.class_names),
            **self.pixels.meta(), "classes": None, "blur_pool": bool(self.origin.meta.get("blur_pool")),
            "source": train.fingerprint, "source_records_sha256": train.records_sha256, "objective": "supervised",
            "mode": self.config.mode, "seed": seed, "start_sha256": self.origin.sha256,
            **{k: v for k, v in self.origin.meta.items() if k == "image_size"},
        }  # fmt: skip

    def _loader(self, beton: Beton, records: np.ndarray | None = None) -> BaseLoader:
        """Each record once, in file order, over all processes."""
        share = {**self._share, "batch_size": self._share["batch_size"] // self.config.accumulate}
        return open_loader(beton, records, self.pixels.spec(**share), self.config.backend)

    # -- frozen -------------------------------------------------------------------------------------------------------

    @cached_property
    def _features(self) -> dict[str, torch.Tensor]:
        """Of each file, float32 ``[n, d]`` on the device."""
        model = self.origin.model
        assert model is not None  # only full finetuning starts from scratch
        model.to(self.device)
        try_out(model, self.origin.meta["arch"], self.pixels.size, self.device)
        found = {}
        for name, beton in self.files.items():
            with self._loader(beton) as loader:
                found[name] = probes.features(model, loader, self.normalise)
        return found

    def _labelled(self, name: str, records: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self._features[name], torch.from_numpy(self.files[name].labels).to(self.device)
        return (x, y) if records is None else (x[records], y[records])

    def _neighbours(self, records: np.ndarray | None) -> Result:
        config = self.config
        train, test = self._labelled("train", records), self._labelled("test", None)
        self._begin()
        return probes.knn_probe(train, test, self.classes, neighbours=config.neighbours, temperature=config.temperature)

    def _probe(self, out: Path, seed: int, records: np.ndarray | None, val: Any, truth: dict[str, torch.Tensor]) -> Result:
        train = self.files["train"]
        numbers = np.arange(train.num_samples) if records is None else records
        spec = LoaderSpec(**self._share, seed=seed, drop_last=world_size() > 1)
        self._check_batches(len(numbers))
        parts = {"test": self._features["test"]}
        if val is not None:
            parts["val"] = self._labelled("val" if "val" in self.files else "train", val[1])[0]
        learner = self._learner(seed)
        self._begin()

        @torch.inference_mode()
        def predict(part: str, model: torch.nn.Module, watch: Any) -> torch.Tensor:
            return models.head(model)[1](parts[part]).argmax(1).cpu()

        loader = Rows(*self._labelled("train", records), train, numbers, spec)
        return tuning.Tuning(out, self.config, self.settings | {"seed": seed}, learner, loader, predict, truth).result()

    # -- all weights --------------------------------------------------------------------------------------------------

    def _finetune(self, out: Path, seed: int, records: np.ndarray | None, val: Any, truth: dict[str, torch.Tensor]) -> Result:
        config, train = self.config, self.files["train"]
        spec = LoaderSpec(
            **self._share, size=self.pixels.size, transform="random_resized_crop", scale=(config.min_scale, 1.0),
            flip=config.flip, shuffle=True, seed=seed, with_index=True, drop_last=world_size() > 1, on_error=config.on_bad_record,
        )  # fmt: skip
        least = self._check_batches(train.num_samples if records is None else len(records))
        learner = self._learner(seed)
        try_out(learner.run.model, self.origin.meta["arch"], self.pixels.size, self.device, least=least)
        with contextlib.ExitStack() as stack:
            loader = stack.enter_context(open_loader(train, records, spec, config.backend))
            loaders = {"test": stack.enter_context(self._loader(self.files["test"]))}
            if val is not None:
                loaders["val"] = stack.enter_context(self._loader(*val))
            self._begin()

            def predict(part: str, model: torch.nn.Module, watch: Any) -> torch.Tensor:
                return tuning.predicted_by(model, loaders[part], self.normalise, config.tta, watch)

            return tuning.Tuning(out, config, self.settings | {"seed": seed}, learner, loader, predict, truth).result()

    def _check_batches(self, records: int) -> int:
        """Images of the smallest part of a batch that will be trained on.

        Raises:
            UsageError: Several processes, of which one would have no image.
        """
        mine, parts = self._share["batch_size"], self.config.accumulate
        if world_size() > 1:  # an incomplete last batch cannot be shared evenly: it is left out
            if records < self.config.batch_size:
                raise UsageError(
                    f"`batch_size={self.config.batch_size}`: larger than the {records} training images, which {world_size()} "
                    f"processes share. Use {max(1, records // (world_size() * parts)) * world_size() * parts} or fewer processes"
                    if records >= world_size() * parts
                    else f"{world_size()} processes x {parts} parts cannot share {records} training images. Use fewer processes"
                )
            return mine // parts
        last = records % mine or mine
        return min(mine // parts, last // min(parts, last))
