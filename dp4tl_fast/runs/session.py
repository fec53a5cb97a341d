"""A training run from where its folder stands to its end: it saves, stops, goes on, keeps the best, and explains what ends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import Dp4tlError, TrainingError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.loaders.contract import IndexedBatch, Loader
from dp4tl_fast.runs import energy
from dp4tl_fast.runs.bad_records import BadRecords
from dp4tl_fast.runs.config import Plan, signals
from dp4tl_fast.runs.folder import Log, Quiet, told
from dp4tl_fast.runs.trackers import Callback
from dp4tl_fast.training import checkpoint, loop, memory
from dp4tl_fast.training.loop import Normalise, Stepping
from dp4tl_fast.training.ranks import Votes, all_reduce_max, is_lost_peer, on_rank_zero, rank, world_size
from dp4tl_fast.training.schedule import learning_rate
from dp4tl_fast.training.state import Run
from dp4tl_fast.training.watch import NonFiniteLoss

if TYPE_CHECKING:
    from dp4tl_fast.runs.profiling import Profiler

T = TypeVar("T")


@dataclass
class Learner:
    """What is trained, how, and how batches reach it."""

    run: Run
    normalise: Normalise
    prepare: Any  # normalise, or what augments colours before it
    how: Stepping
    meta: dict[str, Any]  # what a checkpoint says of its network


class Source(Loader[IndexedBatch], Protocol):
    """A loader of training batches that says what file it reads."""

    beton: Any

    def set_size(self, size: int) -> None: ...


class Unmeasured(Exception):
    """A pass over images was broken off (an epoch's measuring, features). ``reason``: an error; ``None`` where a signal came."""

    def __init__(self, reason: Dp4tlError | None) -> None:
        super().__init__(str(reason))
        self.reason = reason


def agreed(batches: Iterable[T], stopped: Callable[[], bool], out: Path) -> Iterator[T]:
    """Batches, until one of the processes is told to stop, or cannot read its own.

    Raises:
        Unmeasured: At their end, on every rank, where that happened on any.
    """
    mine: Unmeasured | None = None
    try:
        for batch in batches:
            if stopped():
                mine = Unmeasured(None)
                break
            yield batch
    except Dp4tlError as error:
        mine = Unmeasured(error)
    worst = int(all_reduce_max(torch.tensor(0 if mine is None else 1 if mine.reason is None else 2)))
    if mine is not None and (mine.reason is not None or worst == 1):
        raise mine
    if worst:
        raise Unmeasured(TrainingError(f"{out}: another process could not read its images") if worst == 2 else None)


class Session:
    """One run from where its folder stands to its end: the loop's callbacks, and what they need.

    A subclass says what is measured after an epoch, and what is best.

    Args:
        out: The run folder.
        plan: Epochs, rates, when to save.
        settings: All that decides what the run computes.
        guard: Called before anything is written: raises where the folder is another process's by now (``folder.owned``).
        callback: Called on the first rank with the folder and the metrics of every epoch.
    """

    best_of: tuple[str, int] = ("loss", -1)  # the metric that tells the best epoch, and whether more of it is better

    def __init__(
        self, out: Path, plan: Plan, settings: dict[str, Any], learner: Learner, loader: Source,
        guard: Callable[[], None] = lambda: None, callback: Callback | None = None,
    ) -> None:  # fmt: skip
        self.callback = callback
        self.out, self.plan, self.settings, self.learner, self.loader = out, plan, settings, learner, loader
        self.guard = guard
        self.first = rank() == 0
        self.total = len(loader) * plan.epochs
        self.votes = Votes()
        self.energy = energy.meter(learner.normalise.device)
        self.log: Log | Quiet = Quiet()
        self.profiler: Profiler | Quiet = Quiet()
        self.bad = BadRecords(plan.max_bad, loader)

    # -- what a subclass says -----------------------------------------------------------------------------------------

    def measure(self, run: Run, metrics: dict[str, float]) -> dict[str, float]:
        """What an epoch's end adds to its metrics. Called on every rank; batches are taken through ``agreed``."""
        return {}

    def begin_epoch(self) -> None:
        """Called before the first step, and after every epoch."""

    def restore(self, state: dict[str, Any]) -> None:
        """What must be as it was when ``state`` was saved before the rest of it is loaded."""

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end, or save and raise ``cli.Terminated``."""
        plan, run = self.plan, self.learner.run
        if plan.resume:
            self._resume()
        self.begin_epoch()
        with contextlib.ExitStack() as stack:
            self.stopped = stack.enter_context(loop.graceful_stop(signals(plan.stop_signals)))
            on_rank_zero(lambda: self._open(stack))  # only now: all input is good
            done = self.log.finished = self._train()
            self.votes.close()
        if not done:
            self._save()
        self.bad.pooled()
        self.bad.check(self.out)
        if not done:
            raise cli.Terminated(f"{self.out}: saved at step {run.step} of {self.total}; continue with `resume`")

    def _open(self, stack: contextlib.ExitStack) -> None:
        """What the first rank writes to while the run goes on."""
        import yaml

        plan, run = self.plan, self.learner.run
        self.guard()
        self.log = stack.enter_context(Log(self.out, plan, self.total, run, self.settings, self.callback))
        write_atomically(self.out / "config.yaml", yaml.safe_dump(told(plan, self.settings), sort_keys=False))
        if plan.profile:
            from dp4tl_fast.runs.profiling import Profiler

            self.profiler = Profiler(self.out, run, self.loader, self.learner.normalise.device, self.total - run.step)

    def _train(self) -> bool:
        """Whether the end was reached. What stops the loop is put into words here."""
        try:
            if self.learner.run.pending is not None:
                self._end_epoch()
            return loop.train(
                self.learner.run, self.loader, self.learner.prepare, self._rate, epochs=self.plan.epochs,
                how=self.learner.how, on_step=self._on_step, on_epoch=self._on_epoch, energy=self.energy,
            )  # fmt: skip
        except Unmeasured as end:  # every rank comes here: the epoch was good, and is measured by the continuation
            if end.reason is None:
                return False
            self.votes.close()
            self._save()
            raise end.reason from None
        except NonFiniteLoss as error:
            raise self._explain(error) from None
        except OSError as error:  # a log on a full disk, a file system that went away
            where = f"{self.out}: stopped at step {self.learner.run.step}"
            raise TrainingError(f"{where}: {error}. Fix the problem and rerun with `resume`") from None
        except (RuntimeError, MemoryError) as error:
            if is_lost_peer(error):
                raise TrainingError(
                    f"{self.out}: stopped at step {self.learner.run.step}: another process has ended or does not answer. Its own "
                    "message says why; fix that and rerun with `resume`"
                ) from None
            if not memory.is_out_of_memory(error):
                raise
        raise TrainingError(self._what_fits())  # here, where the failed step's tensors are gone

    def _rate(self, step: int) -> float:
        return self._rate_at(step, len(self.loader))

    def _rate_at(self, step: int, steps_per_epoch: int) -> float:
        plan = self.plan
        warmup = round(steps_per_epoch * plan.warmup_epochs)
        return learning_rate(step, schedule=plan.schedule, peak=plan.peak_lr, total_steps=self.total, warmup_steps=warmup)

    def _on_step(self, run: Run) -> bool:
        self.log.step(run)
        self.profiler.step(run)
        self.energy.keep_up()
        return self.votes.any(self.stopped() or self.bad.too_many())

    def _on_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        run.pending = metrics
        self._end_epoch()

    def _end_epoch(self) -> None:
        """Measure, log and save an epoch that has been trained."""
        run = self.learner.run
        metrics = dict(run.pending or {})
        try:
            metrics |= self.measure(run, metrics)
        except Dp4tlError as error:
            if world_size() == 1:
                raise Unmeasured(error) from None
            raise
        run.pending = None
        self.guard()
        self.log.epoch(metrics)
        best = self._is_best(metrics)
        if run.epoch == self.plan.epochs or best or run.epoch % self.plan.saving.every == 0:
            self._save()
        self.begin_epoch()

    def agreed(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of a measurement, until one of the processes is told to stop, or cannot read its own."""
        return agreed(batches, self.stopped, self.out)

    def _is_best(self, metrics: dict[str, float]) -> bool:
        """Whether no epoch before was better; of the epochs that were measured."""
        name, sign = self.best_of
        best = self.learner.run.best
        if name not in metrics or (best and sign * metrics[name] <= sign * best["value"]):
            return False
        self.learner.run.best = {"step": self.learner.run.step, "value": metrics[name]}
        return True

    # -- what ends it -------------------------------------------------------------------------------------------------

    def _explain(self, error: NonFiniteLoss) -> TrainingError:
        """Which images the loss failed on, and where to continue from."""
        whose = "on another process"
        if error.index is not None:
            records = np.flatnonzero(np.isin(self.loader.beton.index, error.index.numpy())).tolist()
            whose = f"on records {', '.join(map(str, records))} of {self.loader.beton.path}"
        last = checkpoint.checkpoints(self.out / "checkpoint")[-1:]
        good = f"The last good checkpoint is {last[0]}" if last else "No checkpoint was written before"
        return TrainingError(
            f"{self.out}: the loss is not finite in step {error.step}, {whose}. {good}. Lower the learning rate (`lr`), clip "
            "the gradient (`clip_norm`), lengthen the warm-up, or use `precision=bf16` or fp32"
        )

    def _what_fits(self) -> str:
        """What to do after memory ran out."""
        spec, plan, ranks = self.loader.spec, self.plan, world_size()
        mine = spec.batch_size // plan.accumulate  # images that this process tried to hold at a time
        if ranks > 1:  # the others are waiting for this process's gradient: no trial
            fit, found = mine // 2, "would take half the memory"
        else:
            learner = self.learner
            fit = memory.most_that_fit(learner.run, learner.prepare, mine // 2, spec.size, spec.views, learner.how)
            found = "fit"
        if not fit:
            return (
                f"{self.out}: out of memory with {mine} images of {spec.size} pixels, and a single one does not fit. "
                "Use a smaller `size` or `arch`"
            )
        parts = next(n for n in range(1, spec.batch_size + 1) if spec.batch_size % n == 0 and spec.batch_size // n <= fit)
        return (
            f"{self.out}: out of memory with {mine} images of {spec.size} pixels at a time; {fit} {found}: use "
            f"`accumulate={parts}`, which keeps the batch of {plan.batch_size}, or `batch_size={fit * ranks}`"
        )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Called on every rank; the first writes."""
        run = self.learner.run
        run.bad = self.bad.pooled()
        state = run.state_dict(self.loader)
        if self.first:
            self.guard()
            self.bad.write(self.out)
            checkpoint.save(
                self.out / "checkpoint", run.step, run.model, self.learner.meta, state,
                keep=self.plan.saving.keep_last, best=int(run.best.get("step", -1)), ema=run.ema.model if run.ema else None,
            )  # fmt: skip

    def _resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        run = self.learner.run
        found = on_rank_zero(lambda: checkpoint.checkpoints(self.out / "checkpoint")[-1:])
        for newest in found:
            checkpoint.load_into(run.model, checkpoint.read_weights(newest)[0], f"{newest} ({self.learner.meta['arch']})")
            if run.ema is not None:
                checkpoint.load_into(run.ema.model, checkpoint.read_weights(newest / checkpoint.EMA)[0], f"{newest} (average)")
            state = checkpoint.load_state(newest)
            self.restore(state)
            run.load_state_dict(state, self.loader)
            self.bad.known = dict(run.bad)
            if self.first:
                cli.message(f"resuming {self.out} at epoch {run.epoch}, step {run.step} of {self.total}")
