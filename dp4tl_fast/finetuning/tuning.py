"""One seed of a linear probe or a full finetuning: what is trained, and what is measured after an epoch.

LP trains the classifier alone, on features of the frozen network; FF trains all weights on augmented images (recipes of arXiv
2310.08782). Both go through the one training loop and leave the whole network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dp4tl_fast.common.errors import CheckpointError, TrainingError
from dp4tl_fast.common.files import npy_bytes, write_atomically
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.probes import Result
from dp4tl_fast.inference import passes
from dp4tl_fast.reporting.runs import read_metrics
from dp4tl_fast.runs.session import Learner, Session, Source
from dp4tl_fast.runs.trackers import Callback
from dp4tl_fast.training import augment, checkpoint, models
from dp4tl_fast.training.device import PRECISIONS, precision_of_run
from dp4tl_fast.training.ema import Ema
from dp4tl_fast.training.loop import Normalise, Stepping
from dp4tl_fast.training.optimizer import make_optimizer
from dp4tl_fast.training.ranks import on_rank_zero
from dp4tl_fast.training.state import Run
from dp4tl_fast.training.supervised import Supervised

RESULT, PREDICTED = "result.json", "predicted.npy"


class Tuning(Session):
    """One seed's run.

    Args:
        predict: ``(part, model, watch) -> classes``, int64 ``[n]`` on the CPU, for ``part`` in test and val: what the network of a
            run, or its average, predicts for the records of that part, whose batches go through ``watch``; -1 where one cannot be
            decoded.
        truth: Labels, int64 ``[n]``, of ``test``, and of ``val`` where the best epoch is chosen there.
    """

    def __init__(
        self, out: Path, config: FinetuneConfig, settings: dict[str, Any], learner: Learner, loader: Source,
        predict: Any, truth: dict[str, torch.Tensor], guard: Callable[[], None], callback: Callback | None = None,
    ) -> None:  # fmt: skip
        super().__init__(out, config, settings, learner, loader, guard, callback)
        self._predict, self._truth = predict, truth
        self._predicted: torch.Tensor | None = None
        self.best_of = ("val_top_1" if "val" in truth else "test_top_1", 1)

    def _top_1(self, part: str, predicted: torch.Tensor) -> float:
        read = int((predicted >= 0).sum())
        if read == 0:
            raise TrainingError(f"{self.out}: none of the {len(predicted)} records of the {part} set can be decoded")
        return int((predicted == self._truth[part]).sum()) / read

    def measure(self, run: Run, metrics: dict[str, float]) -> dict[str, float]:
        """Top-1 of the network, and of its average where there is one."""
        self._predicted = self._predict("test", run.model, self.agreed)
        found = {"test_top_1": self._top_1("test", self._predicted)}
        if "val" in self._truth:
            found["val_top_1"] = self._top_1("val", self._predict("val", run.model, self.agreed))
        if run.ema is not None:
            found["test_ema_top_1"] = self._top_1("test", self._predict("test", run.ema.model, self.agreed))
        return found

    def result(self) -> Result:
        """Train to the end and say what it reached; written to the folder by the first rank."""
        self.run()
        predicted = self._predict("test", self.learner.run.model, iter) if self._predicted is None else self._predicted

        def finish() -> Result:
            self.guard()
            name = self.best_of[0]
            rows = read_metrics(self.out / "metrics.jsonl")
            best, last = max(rows, key=lambda row: row[name]), rows[-1]
            result = Result(last["test_top_1"], best["test_top_1"], predicted, last.get("test_ema_top_1"), self.bad.known)
            write_atomically(self.out / PREDICTED, npy_bytes(predicted.numpy()))
            bad = [[part, *row] for (part, _), row in result.bad.items()]
            numbers = {"last": result.last, "best": result.best, "best_epoch": best["epoch"], "ema": result.ema, "bad_records": bad}
            write_atomically(self.out / RESULT, json.dumps(numbers) + "\n")  # last: a seed that has it is done
            return result

        return on_rank_zero(finish)


def finished(out: Path, records: int) -> Result | None:
    """What a seed that is done has reached."""
    if not (out / RESULT).exists():
        return None
    try:
        numbers = json.loads((out / RESULT).read_text())
        predicted = torch.from_numpy(np.load(out / PREDICTED, allow_pickle=False))
        if predicted.shape != (records,) or predicted.dtype != torch.int64:
            raise ValueError(f"holds {list(predicted.shape)} {predicted.dtype}")
        bad = {(part, row[0]): tuple(row) for part, *row in numbers.get("bad_records", [])}
        return Result(numbers["last"], numbers["best"], predicted, numbers["ema"], bad)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{out}: its result cannot be read ({error}). Remove {out / RESULT} to compute it again") from None


def learner(
    config: FinetuneConfig, model: nn.Module, normalise: Normalise, meta: dict[str, Any], seed: int, out: Path
) -> Learner:
    """What a seed trains in the folder ``out``, for a ``model`` with a fresh classifier, on the device of ``normalise``."""
    device = normalise.device
    model.to(device)
    frozen = config.mode == "lp"
    if frozen:
        model.eval().requires_grad_(False)
        network: nn.Module = models.head(model)[1].requires_grad_(True)
    else:
        network = model
    classes = models.head(model)[1].out_features
    mixes = config.mix != "none"
    objective = augment.Mixed(config.mix, classes, config.label_smoothing) if mixes else Supervised(config.label_smoothing)
    optimizer = make_optimizer(
        network.parameters(), config.optimizer, config.lr, config.weight_decay, decay_all=True,
        scales=None if config.layer_decay == 1 else models.layer_scales(network, config.layer_decay),
    )  # fmt: skip
    ema = Ema(model, config.ema_decay) if config.ema_decay else None
    precise = precision_of_run("fp32" if frozen else config.precision, device, out / "checkpoint")
    precision = PRECISIONS[precise]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    if config.compile:
        network.compile(dynamic=False)
    run = Run(model, objective, optimizer, scaler, network=network, ema=ema, seed=seed)
    prepare: Any = augment.Augment(config.augment, normalise) if config.augment != "none" else normalise
    if frozen:
        prepare = Given(device)
    how = Stepping(precision, config.accumulate, config.clip_norm)
    return Learner(run, normalise, prepare, how, {**meta, checkpoint.PRECISION: precise})


class Given:
    """In place of ``Normalise``: features are ready."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, rows: torch.Tensor, index: torch.Tensor | None = None, epoch: int = 0) -> torch.Tensor:
        return rows.to(self.device)


def predicted_by(model: nn.Module, loader: Any, normalise: Normalise, tta: str, watch: Any = iter) -> torch.Tensor:
    """The classes that ``model`` predicts for a loader's records, int64 ``[n]``."""
    model.eval()
    return passes.rows(passes.TTA[tta](model), loader, normalise, lambda logits: logits.argmax(1), watch)
