"""Where a run's metrics go besides metrics.jsonl: TensorBoard, MLflow, Weights & Biases, Trackio, and a function in Python.

All get the same numbers under the same names, once an epoch. The libraries are imported when they are asked for, and their own
settings say where they log (``MLFLOW_TRACKING_URI``, ``WANDB_MODE`` ...).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import utf8_name, write_atomically
from dp4tl_fast.reporting.runs import flat

Metrics: TypeAlias = dict[str, float]
Callback: TypeAlias = Callable[[Path, Metrics], None]  # (run folder, an epoch's metrics)

PROJECT = "dp4tl_fast"  # where the library's own settings name no other
IDS = "trackers.json"  # what the trackers call this run, so that its continuation is the same run there
# Importable name -> what pip installs it by.
INSTALL = {"tensorboard": "tensorboard"} | {name: f"'dp4tl_fast[{name}]'" for name in ("mlflow", "wandb", "trackio")}


@dataclass(kw_only=True)
class TrackingConfig:
    """Where the metrics go besides metrics.jsonl.

    Args:
        tensorboard: Write TensorBoard event files.
        track: Also log to these trackers, separated by commas: tensorboard, mlflow, wandb, trackio.
    """

    tensorboard: bool = True
    track: str = ""

    def __post_init__(self) -> None:
        for name in chosen(self):
            if find_spec(name) is None:
                given = f"`track={self.track}`" if name in self.track else f"`{name}`"
                raise UsageError(f"{given}: {name} is not installed. pip install {INSTALL[name]}")


class Tracking(Protocol):
    """The settings that say where to log."""

    tensorboard: bool
    track: str


def chosen(config: Tracking) -> list[str]:
    """Names of the trackers, each once.

    Raises:
        UsageError: One is not known.
    """
    named = [name.strip() for name in config.track.split(",") if name.strip()]
    for name in named:
        if name not in INSTALL:
            raise UsageError(f"`track={config.track}`: {name} is not known. Name some of {', '.join(INSTALL)}, separated by commas")
    return list(dict.fromkeys([*named, *(["tensorboard"] if config.tensorboard else [])]))


class Tracker(Protocol):
    """One run in one tracker.

    Attributes:
        id: What it calls the run.
    """

    id: str

    def epoch(self, metrics: Metrics) -> None: ...
    def close(self, end: str) -> None:
        """``end``: finished, stopped or failed."""


class TensorBoard:
    """Event files in the run folder; those of epochs that a resumed run lost are hidden."""

    id = ""

    def __init__(self, out: Path, name: str, settings: Mapping[str, Any], known: str, first_epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        out.mkdir(parents=True, exist_ok=True)
        self._named = contextlib.ExitStack()
        self._board = SummaryWriter(self._named.enter_context(utf8_name(out)), purge_step=first_epoch)

    def epoch(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(name, value, int(metrics["epoch"]))

    def close(self, end: str) -> None:
        self._board.close()
        self._named.close()


class MLflow:
    """A run of the experiment ``MLFLOW_EXPERIMENT_NAME`` at ``MLFLOW_TRACKING_URI``."""

    def __init__(self, out: Path, name: str, settings: Mapping[str, Any], known: str, first_epoch: int) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if known:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(title)
        experiment = found.experiment_id if found else self._client.create_experiment(title)
        self.id = self._client.create_run(experiment, run_name=name).info.run_id
        self._client.log_batch(self.id, params=[Param(key, str(value)) for key, value in settings.items()])

    def epoch(self, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        now, step = int(1000 * time.time()), int(metrics["epoch"])
        self._client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def close(self, end: str) -> None:
        self._client.set_terminated(self.id, {"finished": "FINISHED", "stopped": "KILLED"}.get(end, "FAILED"))


class WandB:
    """A run of the project ``WANDB_PROJECT``; its files lie in the run folder."""

    def __init__(self, out: Path, name: str, settings: Mapping[str, Any], known: str, first_epoch: int) -> None:
        import wandb

        out.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=name, id=known or None, resume="allow", config=dict(settings),
            dir=str(out), settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self.id = self._run.id

    def epoch(self, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=int(metrics["epoch"]))

    def close(self, end: str) -> None:
        self._run.finish(exit_code=int(end != "finished"))


class Trackio:
    """A run of the project ``TRACKIO_PROJECT`` in Trackio's local database."""

    def __init__(self, out: Path, name: str, settings: Mapping[str, Any], known: str, first_epoch: int) -> None:
        import trackio

        self.id = known or f"{name} {os.urandom(4).hex()}"  # runs are known by their names
        self._run = trackio.init(
            os.environ.get("TRACKIO_PROJECT", PROJECT), self.id, config=dict(settings), resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def epoch(self, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=int(metrics["epoch"]))

    def close(self, end: str) -> None:
        self._run.finish()


KINDS: dict[str, Any] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB, "trackio": Trackio}


class Trackers:
    """Those of one run, opened. One that fails while the run goes on is left out from there; the run is worth more.

    Args:
        before: Metrics of the epochs that are done already: what a tracker is told that joins a continued run.

    Raises:
        UsageError: One cannot be opened.
    """

    def __init__(self, out: Path, config: Tracking, settings: Mapping[str, Any], before: list[Metrics], first_epoch: int) -> None:
        self._out, self._open = out, dict[str, Tracker]()
        path = out / IDS
        known = _ids(path)
        name = "/".join(out.resolve().parts[-2:])
        told = {key: value for key, value in flat(settings).items() if value is not None}
        for kind in chosen(config):
            try:
                with _off_stdout():
                    self._open[kind] = KINDS[kind](out, name, told, known.get(kind, ""), first_epoch)
            except Exception as error:  # of the libraries' own kinds: no credentials, no server, a bad address
                self.close("failed")
                given = f"`track={config.track}`" if kind in config.track else f"`{kind}`"
                raise UsageError(f"{given}: {kind} cannot log here: {_line(error)}. Set it up, or drop it") from None
            if kind != "tensorboard" and kind not in known:
                for metrics in before:
                    self.epoch(metrics, only=kind)
        ids = known | {kind: tracker.id for kind, tracker in self._open.items() if tracker.id}
        if ids != known:
            write_atomically(path, json.dumps(ids) + "\n")

    def epoch(self, metrics: Metrics, only: str = "") -> None:
        self._each(lambda tracker: tracker.epoch(metrics), [only] if only else list(self._open))

    def close(self, end: str) -> None:
        self._each(lambda tracker: tracker.close(end), list(self._open))

    def _each(self, call: Callable[[Tracker], None], names: list[str]) -> None:
        for name in names:
            try:
                with _off_stdout():
                    call(self._open[name])
            except Exception as error:
                del self._open[name]
                cli.message(f"note: {self._out}: {name} failed and is left out: {_line(error)}. metrics.jsonl has everything")


def _ids(path: Path) -> dict[str, str]:
    """What the trackers call the run, as far as it was logged before."""
    try:
        ids = json.loads(path.read_text()) if path.exists() else {}
        if not (isinstance(ids, dict) and all(isinstance(each, str) for each in ids.values())):
            raise ValueError("no table of names")
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read ({error}). Remove it; the trackers then show the rest as another run") from None
    return ids


def _off_stdout() -> contextlib.AbstractContextManager[Any]:
    """What a library has to say goes to stderr: stdout is for the command's result."""
    return contextlib.redirect_stdout(sys.stderr)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
