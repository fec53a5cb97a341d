"""What a pretrained network is worth on the target."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.finetuning import accuracy
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.few_shots import few_shots
from dp4tl_fast.finetuning.targets import open_target

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.finetuning.probes import Result
    from dp4tl_fast.loaders import BaseLoader

    Features = tuple[torch.Tensor, torch.Tensor]

# Settings that the summary repeats, besides ``size``: what two finetunings must share to be compared.
IN_SUMMARY = (
    "mode", "seeds", "epochs", "lr", "optimizer", "weight_decay", "batch_size", "min_scale", "flip", "shots", "neighbours",
    "temperature", "backend", "precision",
)  # fmt: skip


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train a fresh classifier on the target and report test accuracy over seeds.

    lp (linear probe) freezes the network and trains the classifier on its features, computed once; ff (full finetuning)
    trains everything; knn trains nothing and lets the nearest training features vote. The accuracy of the last epoch comes
    first; the best epoch's, which is chosen on the test set and therefore flatters, stands beside it. Shipped recipes (the
    paper's), for --config NAME: lp, ff, and ff_sgd for Food101, StanfordCars and SUN397.

    Returns:
        ``summary.json``: settings, ``top_1`` of each seed, mean and spread, accuracy by class and by group.

    Raises:
        Dp4tlError: A file is bad, or the settings do not fit it; nothing is written then.
    """
    start = time.perf_counter()
    target = Path(config.out) / "summary.json"
    if target.exists():
        raise UsageError(f"{target} exists. Remove it, or give another `out`")
    train_set, test_set = open_target(config.train, config.out), open_target(config.test, config.out)
    train_set.check_split(test_set)
    groups = accuracy.read_groups(config.groups, test_set) if config.groups else None
    drawn = config.mode != "knn" or config.shots > 0
    seeds = range(config.seeds if drawn else 1)
    chosen = [few_shots(train_set, config.shots, seed) if config.shots else None for seed in seeds]

    finetuning = Finetuning(config, train_set, test_set)
    with cli.progress(None, desc=f"{Path(config.out).name} ({config.mode})", unit="epoch", total=config.epochs * len(seeds)) as bar:
        results = [finetuning.result(seed, records, bar.update) for seed, records in zip(seeds, chosen, strict=True)]
    summary: dict[str, Any] = {
        "kind": "finetune",
        "checkpoint": str(Path(config.checkpoint).resolve()),
        "train": str(train_set.path),
        "train_records_sha256": train_set.records_sha256,
        "test": str(test_set.path),
        "test_records_sha256": test_set.records_sha256,
        **{name: value for name, value in asdict(config).items() if name in IN_SUMMARY},
        "seeds": len(seeds),
        "size": finetuning.size,
        "top_1_mean": fmean(r.last for r in results),
        "top_1_std": stdev(r.last for r in results) if len(seeds) > 1 else 0.0,
        "top_1_best_mean": fmean(r.best for r in results),
        "top_1": [r.last for r in results],
        **accuracy.summary(np.stack([r.predicted.numpy() for r in results]), test_set, groups),
        "seconds": time.perf_counter() - start,
    }
    write_atomically(target, json.dumps(summary, indent=1) + "\n")
    _tell(summary)
    return summary


class Finetuning:
    """The network, the target, and what the seeds share: features, for the modes that freeze the network."""

    def __init__(self, config: FinetuneConfig, train_set: Beton, test_set: Beton) -> None:
        from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD
        from dp4tl_fast.training import checkpoint, loop
        from dp4tl_fast.training.device import pick_device

        self.config, self.train_set, self.test_set = config, train_set, test_set
        self.device = pick_device(config.device)
        self.model, meta = checkpoint.load_model(config.checkpoint, config.arch)
        self.model.to(self.device)
        self.normalise = loop.Normalise(
            tuple(meta.get("mean", IMAGENET_MEAN)), tuple(meta.get("std", IMAGENET_STD)), self.device
        )
        self.size: int = config.size or meta.get("size", 224)
        self._features: tuple[Features, Features] | None = None

    def result(self, seed: int, records: np.ndarray | None, on_epoch: Any) -> Result:
        """One seed, on these training records (``None``: all). ``on_epoch`` is called after each epoch."""
        if self.config.mode == "ff":
            return self._finetuned(seed, records, on_epoch)
        if self._features is None:
            self._features = self._frozen(self.train_set), self._frozen(self.test_set)
        return self._probed(seed, records, on_epoch)

    def _loader_options(self) -> dict[str, Any]:
        config = self.config
        return {
            "batch_size": config.batch_size, "size": self.size, "workers": config.workers, "pinned": self.device.type == "cuda",
        }  # fmt: skip

    def _plain(self, beton: Beton) -> BaseLoader:
        from dp4tl_fast.loaders import LoaderSpec, open_loader

        return open_loader(beton, None, LoaderSpec.evaluation(**self._loader_options()), self.config.backend)

    def _frozen(self, beton: Beton) -> Features:
        from dp4tl_fast.finetuning import probes

        with self._plain(beton) as loader:
            return probes.features(self.model, loader, self.normalise)

    def _probed(self, seed: int, records: np.ndarray | None, on_epoch: Any) -> Result:
        from dp4tl_fast.finetuning import probes

        assert self._features is not None  # computed by ``result``
        config, (train, test) = self.config, self._features
        x, y = train if records is None else (tensor[records] for tensor in train)
        classes = self.train_set.num_classes
        if config.mode == "knn":
            return probes.knn_probe((x, y), test, classes, neighbours=config.neighbours, temperature=config.temperature)
        return probes.linear_probe(
            (x, y), test, classes, seed=seed, epochs=config.epochs, lr=config.lr, batch_size=config.batch_size,
            optimizer=config.optimizer, weight_decay=config.weight_decay, on_epoch=on_epoch,
        )  # fmt: skip

    def _finetuned(self, seed: int, records: np.ndarray | None, on_epoch: Any) -> Result:
        from dp4tl_fast.finetuning import probes
        from dp4tl_fast.loaders import LoaderSpec, open_loader
        from dp4tl_fast.training import checkpoint
        from dp4tl_fast.training.device import pick_precision

        config = self.config
        spec = LoaderSpec(
            **self._loader_options(), transform="random_resized_crop", scale=(config.min_scale, 1.0), flip=config.flip,
            shuffle=True, seed=seed, with_index=True,
        )  # fmt: skip
        fresh, _ = checkpoint.load_model(config.checkpoint, config.arch)
        with open_loader(self.train_set, records, spec, config.backend) as loader, self._plain(self.test_set) as test_loader:
            return probes.full_finetune(
                fresh.to(self.device), loader, test_loader, self.normalise, self.train_set.num_classes,
                seed=seed, epochs=config.epochs, lr=config.lr, optimizer=config.optimizer, weight_decay=config.weight_decay,
                precision=pick_precision(config.precision, self.device), on_epoch=on_epoch,
            )  # fmt: skip


def _tell(summary: dict[str, Any]) -> None:
    cli.message(
        f"{summary['mode']} top-1 {100 * summary['top_1_mean']:.2f} ± {100 * summary['top_1_std']:.2f} % over {summary['seeds']} "
        f"seeds, last epoch (best epoch {100 * summary['top_1_best_mean']:.2f} %)"
    )
    if "worst_group_mean" in summary:
        cli.message(f"worst group {100 * summary['worst_group_mean']:.2f} ± {100 * summary['worst_group_std']:.2f} %")
