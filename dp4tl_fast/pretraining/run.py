"""Train on a source, or on a selection of it, and measure."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import Dp4tlError, TrainingError
from dp4tl_fast.common.files import npy_bytes, write_atomically
from dp4tl_fast.pretraining import energy
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.folder import Log, Quiet, check_batch, check_folder, open_source, settings_of, summarise
from dp4tl_fast.selection import Selection
from dp4tl_fast.training.ranks import Votes, on_rank_zero, process_group, rank, world_size

if TYPE_CHECKING:
    from dp4tl_fast.loaders import BaseLoader, IndexedBatch
    from dp4tl_fast.pretraining.learner import Learner
    from dp4tl_fast.pretraining.profiling import Profiler
    from dp4tl_fast.training.state import Run
    from dp4tl_fast.training.watch import NonFiniteLoss


@process_group()
def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train a network on the surviving classes of a source and measure what it cost.

    Reads only the records of the selection. Interrupted runs (Ctrl-C, SIGTERM, a crash) are continued by --resume. Under torchrun
    the processes share each batch, and the first writes the run folder. Shipped recipes, for --config NAME: resnet18,
    resnet50, resnet101, resnet152, vit_b_16, adversarial_resnet18 and moco_v2_resnet101 (the paper's), moco_v3_vit_b_16,
    fast_resnet50, small_32px, small_64px.
    """
    if config.compare:
        from dp4tl_fast.pretraining.side_by_side import side_by_side

        return side_by_side(config, pretrain)
    source, selection = open_source(config)
    out, settings = Path(config.out), settings_of(config, source, selection)
    finished = on_rank_zero(lambda: check_folder(out, settings, config.resume))
    if finished is not None:
        if rank() == 0:
            cli.message(f"{out}: this run is complete; nothing to do")
        return finished

    from dp4tl_fast.pretraining.batches import open_eval, open_train
    from dp4tl_fast.pretraining.learner import build

    if config.val:  # fail now, not after an epoch
        with open_eval(config.val, selection, config) as val:
            source.check_split(val.beton)
    with open_train(config, source, selection) as loader:
        check_batch(config, len(loader.records))
        learner = build(config, source, selection, len(loader) * config.epochs)
        Training(config, settings, selection, learner, loader).run()

    def finish() -> dict[str, Any]:
        if config.forgetting:
            write_atomically(out / "forgetting.npy", npy_bytes(learner.run.objective.counts()))  # type: ignore[attr-defined]
        summary = summarise(out, config, source, selection, learner.how.precision, learner.normalise.device)
        write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

    return on_rank_zero(finish)


class Training:
    """One run from where its folder stands to its end: the loop's callbacks, and what they need."""

    def __init__(
        self,
        config: PretrainConfig,
        settings: dict[str, Any],
        selection: Selection | None,
        learner: Learner,
        loader: BaseLoader[IndexedBatch],
    ) -> None:
        self.config, self.settings, self.selection, self.learner, self.loader = config, settings, selection, learner, loader
        self.out = Path(config.out)
        self.first = rank() == 0
        self.total = len(loader) * config.epochs
        self.votes = Votes()
        self.energy = energy.meter(learner.normalise.device)
        self.log: Log | Quiet = Quiet()
        self.profiler: Profiler | Quiet = Quiet()

    def run(self) -> None:
        """Train to the end, or save and raise ``cli.Terminated``."""
        import yaml

        from dp4tl_fast.training import loop

        config, run = self.config, self.learner.run
        if config.resume:
            self._resume()
        self._grow()
        if self.first:  # only now: all input is good
            write_atomically(self.out / "config.yaml", yaml.safe_dump(self.settings, sort_keys=False))
        with contextlib.ExitStack() as stack:
            self.stopped = stack.enter_context(loop.graceful_stop())
            if self.first:
                self.log = stack.enter_context(Log(self.out, config, self.total, run))
            if self.first and config.profile:
                from dp4tl_fast.pretraining.profiling import Profiler

                device = self.learner.normalise.device
                self.profiler = Profiler(self.out, run, self.loader, device, self.total - run.step)
            done = self._train()
            self.votes.close()
        if not done:
            self._save()
            raise cli.Terminated(f"{self.out}: saved at step {run.step} of {self.total}; continue with `resume`")

    def _train(self) -> bool:
        """Whether the end was reached. What stops the loop is put into words here."""
        from dp4tl_fast.training import loop, memory
        from dp4tl_fast.training.watch import NonFiniteLoss

        try:
            return loop.train(
                self.learner.run, self.loader, self.learner.prepare, self._rate, epochs=self.config.epochs,
                how=self.learner.how, on_step=self._on_step, on_epoch=self._on_epoch, energy=self.energy,
            )  # fmt: skip
        except NonFiniteLoss as error:
            raise self._explain(error) from None
        except OSError as error:  # a log on a full disk, a file system that went away
            where = f"{self.out}: stopped at step {self.learner.run.step}"
            raise TrainingError(f"{where}: {error}. Fix the problem and rerun with `resume`") from None
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        raise TrainingError(self._what_fits())  # here, where the failed step's tensors are gone

    def _rate(self, step: int) -> float:
        from dp4tl_fast.training.schedule import learning_rate

        config = self.config
        warmup = round(len(self.loader) * config.warmup_epochs)
        return learning_rate(
            step, schedule=config.schedule, peak=config.peak_lr, total_steps=self.total, warmup_steps=warmup
        )

    def _on_step(self, run: Run) -> bool:
        self.log.step(run)
        self.profiler.step(run)
        self.energy.keep_up()
        return self.votes.any(self.stopped())

    def _on_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        config, last = self.config, run.epoch == self.config.epochs
        if config.val and (last or run.epoch % config.val_every == 0):
            try:
                metrics.update(self._validate())
            except Dp4tlError:  # a corrupt image, say: the epoch was good
                if world_size() == 1:
                    self.log.epoch(metrics)
                    self._save()
                raise
        self.log.epoch(metrics)
        best = self._is_best(metrics)
        if last or best or run.epoch % config.checkpoint.every == 0:
            self._save()
        self._grow()

    def _validate(self) -> dict[str, float]:
        """Accuracies of the network, and of its average where there is one."""
        from dp4tl_fast.pretraining.batches import open_eval
        from dp4tl_fast.training.loop import evaluate

        run = self.learner.run
        models = {"val": run.model} | ({"val_ema": run.ema.model} if run.ema else {})
        found: dict[str, float] = {}
        assert self.config.val is not None
        with open_eval(self.config.val, self.selection, self.config) as val:
            for prefix, model in models.items():
                scores = evaluate(model, val, self.learner.normalise, run.objective.score)  # type: ignore[attr-defined]
                found |= {f"{prefix}_{name}": value for name, value in scores.items()}
        return found

    def _is_best(self, metrics: dict[str, float]) -> bool:
        """Whether no epoch before was better; of the epochs that were validated, where there is a validation set."""
        name, sign = ("val_top_1", 1) if self.config.val else ("loss", -1)
        best = self.learner.run.best
        if name not in metrics or (best and sign * metrics[name] <= sign * best["value"]):
            return False
        self.learner.run.best = {"step": self.learner.run.step, "value": metrics[name]}
        return True

    def _explain(self, error: NonFiniteLoss) -> TrainingError:
        """Which images the loss failed on, and where to continue from."""
        from dp4tl_fast.training import checkpoint

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
        from dp4tl_fast.training import memory

        spec, config, ranks = self.loader.spec, self.config, world_size()
        mine = spec.batch_size // config.accumulate  # images that this process tried to hold at a time
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
            f"`accumulate={parts}`, which keeps the batch of {config.batch_size}, or `batch_size={fit * ranks}`"
        )

    def _grow(self) -> None:
        """Give the loader the resolution of the coming epoch."""
        from dp4tl_fast.pretraining.batches import size_at

        size = size_at(self.learner.run.epoch, self.config)
        if self.loader.spec.size != size:
            self.loader.set_size(size)

    def _save(self) -> None:
        """Called on every rank; the first writes."""
        from dp4tl_fast.training import checkpoint

        run = self.learner.run
        state = run.state_dict(self.loader)
        if self.first:
            checkpoint.save(
                self.out / "checkpoint", run.step, run.model, self.learner.meta, state,
                keep=self.config.checkpoint.keep_last, best=int(run.best.get("step", -1)), ema=run.ema.model if run.ema else None,
            )  # fmt: skip

    def _resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        from dp4tl_fast.training import checkpoint

        run = self.learner.run
        found = on_rank_zero(lambda: checkpoint.checkpoints(self.out / "checkpoint")[-1:])
        for newest in found:
            checkpoint.load_into(run.model, checkpoint.read_weights(newest)[0], f"{newest} ({self.config.arch})")
            if run.ema is not None:
                checkpoint.load_into(run.ema.model, checkpoint.read_weights(newest / checkpoint.EMA)[0], f"{newest} (average)")
            run.load_state_dict(checkpoint.load_state(newest), self.loader)
            if self.first:
                cli.message(f"resuming {self.out} at epoch {run.epoch}, step {run.step} of {self.total}")

