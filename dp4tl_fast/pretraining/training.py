"""A pretraining run as it goes: what it measures after an epoch, and how its resolution grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import CheckpointError
from dp4tl_fast.loaders import BaseLoader, IndexedBatch
from dp4tl_fast.pretraining.batches import open_eval, size_at
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.runs.session import Learner, Session
from dp4tl_fast.runs.trackers import Callback
from dp4tl_fast.selection import Selection
from dp4tl_fast.training.infobatch import InfoBatch
from dp4tl_fast.training.state import Run


class Training(Session):
    """A pretraining run: its resolution may grow, its epochs may skip records, and it is validated on the classes that it keeps."""

    loader: BaseLoader[IndexedBatch]

    def __init__(
        self,
        config: PretrainConfig,
        settings: dict[str, Any],
        selection: Selection | None,
        learner: Learner,
        loader: BaseLoader[IndexedBatch],
        guard: Callable[[], None] = lambda: None,
        callback: Callback | None = None,
    ) -> None:
        super().__init__(Path(config.out), config, settings, learner, loader, guard, callback)
        self.config, self.selection = config, selection
        # Once: each opening of a file elsewhere asks the server.
        self.val = Beton(config.val, **config.cached) if config.val else None
        if config.val:
            self.best_of = ("val_top_1", 1)
        self.pool, self.steps = loader.records, len(loader)  # of an epoch that reads everything

    def measure(self, run: Run, metrics: dict[str, float]) -> dict[str, float]:
        """Accuracies of the network, and of its average where there is one, in the epochs that are validated."""
        from dp4tl_fast.training.loop import evaluate

        config = self.config
        if self.val is None or not (run.epoch == config.epochs or run.epoch % config.val_every == 0):
            return {}
        models = {"val": run.model} | ({"val_ema": run.ema.model} if run.ema else {})
        found: dict[str, float] = {}
        with open_eval(self.val, self.selection, config) as val:
            for prefix, model in models.items():
                scores = evaluate(model, self.agreed(val), self.learner.normalise, run.objective.score)  # type: ignore[attr-defined]
                found |= {f"{prefix}_{name}": value for name, value in scores.items()}
            self.bad.note("val", val)
        return found

    def begin_epoch(self) -> None:
        """Give the loader the resolution of the coming epoch."""
        size = size_at(self.learner.run.epoch, self.config)
        if self.loader.spec.size != size:
            self.loader.set_size(size)
        self._choose_records()

    def _choose_records(self) -> None:
        objective, epoch = self.learner.run.objective, self.learner.run.epoch
        if not isinstance(objective, InfoBatch) or epoch >= self.config.epochs:
            return
        records = objective.choose(self.pool, epoch, self.config.epochs)
        if not np.array_equal(records, self.loader.records):  # else a continued epoch would begin again
            self.loader.set_records(records)

    def restore(self, state: dict[str, Any]) -> None:
        """The records of the epoch that was saved: the loader's place is one among them."""
        objective = self.learner.run.objective
        if isinstance(objective, InfoBatch):
            try:
                objective.load_state_dict(state["objective"])
            except (KeyError, RuntimeError):
                raise CheckpointError(
                    f"{self.out}: its checkpoint lacks the losses of these records, which `dynamic=infobatch` needs to continue. "
                    "Train from the beginning in another folder"
                ) from None
            self.loader.set_records(np.flatnonzero(objective.kept.cpu().numpy()))

    def _rate(self, step: int) -> float:
        """Where epochs differ in length, the rate follows the share of the epoch that is done, and not the steps."""
        run = self.learner.run
        if isinstance(run.objective, InfoBatch):
            step = int(self.steps * (run.epoch + run.tally.batches / max(1, len(self.loader))))
        return self._rate_at(step, self.steps)
