"""A pretraining run's folder: its settings, its log, its summary."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli, machine
from dp4tl_fast.common.errors import CheckpointError, UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.reporting.runs import flat, read_metrics
from dp4tl_fast.selection import Selection
from dp4tl_fast.training.ranks import world_size

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.pretraining.config import PretrainConfig
    from dp4tl_fast.training.state import Run

# Flags that may differ between a run and its continuation: they do not change what is computed. (A run under --compare is a
# run of its own, without it.)
FREE_ON_RESUME = {"resume", "out", "compare", "workers", "tensorboard", "checkpoint", "val_every", "profile"}


def open_source(config: PretrainConfig) -> tuple[Beton, Selection | None]:
    """What to train on: the source, and the selection, which must be of it."""
    source = Beton(config.source)
    selection = Selection.load(config.selection) if config.selection else None
    if selection is not None:
        selection.check(source)
    return source, selection


def check_batch(config: PretrainConfig, records: int) -> None:
    """Refuse to train on so few records that none of the batches would be full."""
    if records < config.batch_size:
        raise UsageError(f"`batch_size={config.batch_size}`: larger than the {records} surviving records of {config.source}")


# Besides these, what two runs that differ in the seed or the selection alone have in common. The summary names the rest itself.
NOT_RECIPE = FREE_ON_RESUME | {"source", "val", "selection", "seed", "arch", "objective", "epochs"}


def settings_of(config: PretrainConfig, source: Beton, selection: Selection | None) -> dict[str, Any]:
    """All that decides what the run computes: config.yaml, and what a continuation must share."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_ON_RESUME}
    settings["source_records_sha256"] = source.records_sha256
    return settings if selection is None else settings | selection.kept_hashes()


def check_folder(out: Path, settings: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """Refuse a folder that holds another run. Returns the summary of a run that is already complete."""
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
    old.setdefault("source_records_sha256", settings["source_records_sha256"])  # not told by older versions
    was, now = flat(old), flat(settings)
    changed = sorted(k for k in now.keys() | was.keys() if now.get(k) != was.get(k))
    if changed:
        differences = "; ".join(f"{k} was {was.get(k)!r}, now {now.get(k)!r}" for k in changed)
        remedy = "Give another folder"
        if "source_records_sha256" in changed:
            remedy += f": {settings['source']} holds other images by now"
        raise UsageError(f"{out}: `resume` with other settings: {differences}. {remedy}")
    summary = out / "summary.json"
    return json.loads(summary.read_text()) if summary.exists() else None


class Log:
    """Progress bar, metrics.jsonl and TensorBoard of one run."""

    def __init__(self, out: Path, config: PretrainConfig, total: int, run: Run) -> None:
        self._path, self._config = out / "metrics.jsonl", config
        keep = [row for row in read_metrics(self._path) if row["epoch"] < run.epoch]
        write_atomically(
            self._path, "".join(json.dumps(row) + "\n" for row in keep)
        )  # a resumed run may have lost some
        self._bar = cli.progress(None, desc=out.name, unit="step", total=total, initial=run.step)
        self._board: Any = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out), purge_step=run.epoch)
        self._shown, self._ranks = 0.0, world_size()

    def step(self, run: Run) -> None:
        self._bar.update()
        now = time.monotonic()
        if now - self._shown > 2.0:  # reading the loss waits for the device: rarely
            self._shown, tally = now, run.tally  # of this rank alone, whose share is like the others'
            seconds = max(tally.seconds, 1e-9)
            self._bar.set_postfix_str(
                f"epoch {run.epoch + 1}/{self._config.epochs}, loss {float(tally.sums['loss']) / max(1, tally.samples):.3f}, "
                f"lr {run.optimizer.param_groups[0]['lr']:.3g}, {self._ranks * tally.samples / seconds:,.0f} images/s, "
                f"data wait {100 * tally.data_wait_s / seconds:.0f} %"
            )

    def epoch(self, metrics: dict[str, float]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, int(metrics["epoch"]))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()


class Quiet:
    """In place of ``Log``, and of the profiler, where nothing is written."""

    def step(self, run: Run) -> None:
        pass

    def epoch(self, metrics: dict[str, float]) -> None:
        pass


def summarise(
    out: Path, config: PretrainConfig, source: Beton, selection: Selection | None, precision: Any, device: torch.device
) -> dict[str, Any]:
    """What a finished run cost and reached. ``energy_wh`` is ``None`` where some part of the run was not metered."""
    rows = read_metrics(out / "metrics.jsonl")
    seconds, samples = sum(r["seconds"] for r in rows), sum(r["samples"] for r in rows)
    last, ranks = rows[-1], world_size()
    metered = all("energy_j" in r for r in rows)
    return {
        "kind": "pretrain",
        "arch": config.arch,
        "objective": config.objective,
        "backend": config.backend,
        "method": selection.method if selection else "full",
        "source": str(config.source),
        "source_records_sha256": source.records_sha256,
        "selection": config.selection,
        "selection_sha256": selection.kept_sha256 if selection else None,
        "settings": flat({k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_RECIPE}),
        "classes_kept": len(selection.kept_classes) if selection else source.num_classes,
        "classes": source.num_classes,
        "samples": selection.kept_samples if selection else source.num_samples,
        "epochs": config.epochs,
        "seed": config.seed,
        "pretrain_s": seconds,
        "pruning_s": sum(selection.seconds.values()) if selection else 0.0,
        "pruning_stages_s": dict(selection.seconds) if selection else {},
        "samples_per_s": samples / max(seconds, 1e-9),
        "data_wait_share": sum(r["data_wait_s"] for r in rows) / max(seconds, 1e-9),
        "bytes_read": int(sum(r["bytes_read"] for r in rows)),
        "device": machine.device_name(device, ranks),
        "processes": ranks,
        "gpu_hours": ranks * seconds / 3600 if device.type == "cuda" else None,
        "energy_wh": sum(r["energy_j"] for r in rows) / 3600 if metered else None,
        "precision": str(precision).removeprefix("torch.") if precision else "float32",
        **{k: last[k] for k in ("loss", "top_1", "top_5", "val_top_1", "val_top_5", "val_ema_top_1", "val_ema_top_5") if k in last},
    }
