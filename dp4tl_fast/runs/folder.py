"""A training run's folder: the settings that it holds to, and its log."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import CheckpointError, UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.common.lock import Owner
from dp4tl_fast.reporting.runs import flat, read_metrics
from dp4tl_fast.runs.config import Plan
from dp4tl_fast.runs.trackers import Callback, Trackers
from dp4tl_fast.training.ranks import on_rank_zero, rank, world_size

if TYPE_CHECKING:
    from dp4tl_fast.training.state import Run


# Settings of every run that may differ between it and its continuation: they do not change what is computed, or, the last two, do
# so only where a run without them would end.
FREE = {
    "resume", "out", "workers", "tensorboard", "track", "profile", "stop_signals", "cache_dir", "cache_limit", "on_bad_record",
    "max_bad",
}  # fmt: skip


CONTENTS = "_contents_sha256"  # how settings end that a run holds to where they are known: what a file holds
NOT_TOLD = {"resume", "out", "profile", "compare"}  # by config.yaml: they are of one call


def told(config: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``config.yaml``: all that a run was told, so that ``--config`` repeats it. ``settings``: what a continuation shares."""
    free = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_TOLD}
    return {**free, **settings}


def defaults_of(config: type) -> dict[str, Any]:
    """What each setting of a config class is where nothing was said; those that must be given are left out."""
    found = {}
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
            nested = dataclasses.is_dataclass(value) and not isinstance(value, type)
            found[field.name] = dataclasses.asdict(value) if nested else value
    return found


def check_folder(
    out: Path, settings: dict[str, Any], resume: bool, hashes: Mapping[str, str], defaults: Mapping[str, Any] = {},
    free: Collection[str] = (),
) -> dict[str, Any] | None:  # fmt: skip
    """Refuse a folder that holds another run. Returns the summary of a run that is already complete.

    A file may lie elsewhere by now: where its contents were recorded, these are compared and not its name. A setting that the
    folder's version did not have counts as its default; one that this version no longer has is named and left out.

    Args:
        settings: All that decides what the run computes.
        hashes: Settings that are the hash of a file's contents, and the file's name.
        defaults: Values of settings that a folder written by an older version lacks.
        free: Settings that may be others now.

    Raises:
        UsageError: It holds a run, and this is no continuation, or one with other settings.
        CheckpointError: Its config.yaml cannot be read.
    """
    import yaml

    path = out / "config.yaml"
    if not path.exists():
        return None
    if not resume:
        raise UsageError(f"{out} already holds a run. Continue it with `resume`, or give another `out`")
    try:
        old = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: not readable as YAML ({error})") from None
    now = flat(settings)
    was = {k: value for k, value in flat(defaults).items() if k in now} | flat({k: v for k, v in old.items() if k not in free})
    files = {hashes[key] for key in hashes if key in old and hashes[key]}
    moved = {k for k, value in now.items() if value in files and k in was}
    unknown = sorted(k for k in was.keys() - now.keys() if not k.endswith(cli.HASH))
    if unknown and rank() == 0:
        cli.message(f"note: {path} has settings of another version, which are ignored: {', '.join(unknown)}")
    unsaid = {k for k in now.keys() | was.keys() if k.endswith(CONTENTS) and None in (now.get(k), was.get(k))}
    changed = sorted(k for k in (now.keys() | was.keys()) - moved - unsaid - set(unknown) if now.get(k) != was.get(k))
    if changed:
        differences = "; ".join(f"{k} was {was.get(k)!r}, now {now.get(k)!r}" for k in changed)
        remedy = "Give another folder"
        if others := [file for key, file in hashes.items() if key in changed]:
            remedy += f": {others[0]} now holds other images"
        raise UsageError(f"{out}: `resume` with other settings: {differences}. {remedy}")
    summary = out / "summary.json"
    return json.loads(summary.read_text()) if summary.exists() else None


@contextlib.contextmanager
def owned(out: Path) -> Iterator[Callable[[], None]]:
    """The run folder, owned by the first process of this run. Yields what to call before anything is written there.

    Raises:
        UsageError: On every rank: another run owns it.
    """
    owner = Owner(out)
    with contextlib.ExitStack() as stack:
        on_rank_zero(lambda: stack.enter_context(owner) and None)
        yield owner.check if rank() == 0 else lambda: None


class Log:
    """Progress bar, metrics.jsonl, trackers and callback of one run.

    Args:
        settings: The run's, for the trackers.
        callback: Called with the folder and the metrics of every epoch.

    Attributes:
        finished: Whether the run has reached its end; set by who knows it.

    Raises:
        UsageError: A tracker cannot be opened; nothing is written then.
    """

    def __init__(
        self, out: Path, plan: Plan, total: int, run: Run, settings: Mapping[str, Any], callback: Callback | None = None
    ) -> None:
        self._out, self._path, self._epochs, self._callback = out, out / "metrics.jsonl", plan.epochs, callback
        self.finished = False
        keep = [row for row in read_metrics(self._path) if row["epoch"] < run.epoch]  # a resumed run may have lost some
        self._trackers = Trackers(out, plan, settings, keep, run.epoch)
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in keep))
        self._bar = cli.progress(None, desc=out.name, unit="step", total=total, initial=run.step)
        self._shown, self._ranks = 0.0, world_size()

    def step(self, run: Run) -> None:
        self._bar.update()
        now = time.monotonic()
        if now - self._shown > 2.0:  # reading the loss waits for the device: rarely
            self._shown, tally = now, run.tally  # of this rank alone, whose share is like the others'
            seconds = max(tally.seconds, 1e-9)
            self._bar.set_postfix_str(
                f"epoch {run.epoch + 1}/{self._epochs}, loss {float(tally.sums['loss']) / max(1, tally.samples):.3f}, "
                f"lr {run.optimizer.param_groups[0]['lr']:.3g}, {self._ranks * tally.samples / seconds:,.0f} images/s, "
                f"data wait {100 * tally.data_wait_s / seconds:.0f} %"
            )

    def epoch(self, metrics: dict[str, float]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(metrics) + "\n")
        self._trackers.epoch(metrics)
        if self._callback is not None:
            self._callback(self._out, dict(metrics))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._bar.close()
        how = "stopped" if kind is None or issubclass(kind, KeyboardInterrupt) else "failed"
        self._trackers.close("finished" if self.finished else how)


class Quiet:
    """In place of ``Log``, and of the profiler, where nothing is written."""

    finished = False

    def step(self, run: Run) -> None:
        pass

    def epoch(self, metrics: dict[str, float]) -> None:
        pass
