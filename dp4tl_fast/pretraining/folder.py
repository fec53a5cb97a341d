"""What a pretraining run is told and what it tells: its settings and its summary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import machine
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.pretraining import initial
from dp4tl_fast.remote.url import shown
from dp4tl_fast.reporting.runs import flat, read_metrics
from dp4tl_fast.runs.folder import CONTENTS, FREE, check_folder, defaults_of
from dp4tl_fast.selection import Selection
from dp4tl_fast.training.ranks import world_size

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.pretraining.config import PretrainConfig

# Flags that may differ between a run and its continuation: they do not change what is computed. (A run under --compare is a
# run of its own, without it.)
FREE_ON_RESUME = FREE | {"compare", "checkpoint", "val_every"}


DEFAULT_EPOCHS = 16


def open_source(config: PretrainConfig) -> tuple[Beton, Selection | None]:
    """What to train on: the source, and the selection, which must be of it."""
    source = Beton(config.source, **config.cached)
    selection = Selection.load(config.selection) if config.selection else None
    if selection is not None:
        selection.check(source)
    return source, selection


def epochs_of(config: PretrainConfig, source: Beton, selection: Selection | None, compared: Selection | None = None) -> int:
    """Epochs of a run: those of ``config``, else as many as the selection's budget (or that of ``compared``) allows, else 16."""
    if config.epochs:
        return config.epochs
    cut = compared or selection
    if cut is None or not cut.budget:
        return DEFAULT_EPOCHS
    return max(1, cut.budget // epoch_size(config, source, selection))


def epoch_size(config: PretrainConfig, source: Beton, selection: Selection | None) -> int:
    """Records of an epoch.

    Raises:
        UsageError: They are fewer than a batch, or there are not so many.
    """
    survive = source.num_samples if selection is None else selection.kept_samples
    if config.epoch_samples and selection is not None and selection.weights:
        raise UsageError(
            f"`epoch_samples={config.epoch_samples}`: {config.selection} is weighted and already sets the epoch to "
            f"{selection.epoch_size} records. Drop one"
        )
    if config.dynamic != "none" and selection is not None and selection.weights:
        raise UsageError(
            f"`dynamic={config.dynamic}`: {config.selection} is weighted and already decides what an epoch reads. Drop one"
        )
    if config.epoch_samples > survive:
        raise UsageError(f"`epoch_samples={config.epoch_samples}`: more than the {survive} surviving records of {source.path}")
    size = config.epoch_samples or (survive if selection is None else selection.epoch_size)
    if size < config.batch_size:
        of = "surviving records" if size == survive else "records of an epoch"
        raise UsageError(f"`batch_size={config.batch_size}`: larger than the {size} {of} of {source.path}")
    left = int(size * (1 - config.dynamic_skip))
    if config.dynamic != "none" and left < config.batch_size:
        raise UsageError(
            f"`dynamic_skip={config.dynamic_skip}`: may leave an epoch only {left} of {size} records, fewer than a batch "
            f"of {config.batch_size} (`batch_size`)"
        )
    return size


# Besides these, what two runs that differ in the seed or the selection alone have in common. The summary names the rest itself.
NOT_RECIPE = FREE_ON_RESUME | {"init", "source", "val", "selection", "seed", "arch", "objective", "epochs"}


def settings_of(config: PretrainConfig, source: Beton, selection: Selection | None) -> dict[str, Any]:
    """All that decides what the run computes, and a continuation must share."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_ON_RESUME | {"init"}}
    settings |= {name: shown(settings[name]) for name in ("source", "val") if settings[name]}
    files = {"source": source} | ({"val": Beton(config.val, **config.cached)} if config.val else {})
    for name, beton in files.items():
        settings |= {f"{name}_records_sha256": beton.records_sha256, f"{name}{CONTENTS}": beton.contents_sha256}
    if config.init:  # known by its hash, wherever it lies
        settings[initial.HASH] = initial.initial_hash(config)
    return settings if selection is None else settings | selection.kept_hashes()


def check_run(config: PretrainConfig, settings: dict[str, Any]) -> dict[str, Any] | None:
    """``check_folder`` of this run's folder: the summary of a run that is already complete."""
    files = {"source_records_sha256": config.source, "val_records_sha256": config.val, "selection_classes_sha256": config.selection}
    files |= {f"source{CONTENTS}": config.source, f"val{CONTENTS}": config.val}
    hashes = {name: shown(file) for name, file in files.items() if file}
    defaults = {k: v for k, v in defaults_of(type(config)).items() if k not in FREE_ON_RESUME}
    older = {name: settings[name] for name in hashes if name != "selection_classes_sha256"}  # did not record these
    return check_folder(Path(config.out), settings, config.resume, hashes, {**defaults, **older}, FREE_ON_RESUME | {"init"})


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
        "source": shown(config.source),
        "source_records_sha256": source.records_sha256,
        "selection": config.selection,
        "selection_sha256": selection.kept_sha256 if selection else None,
        "settings": flat({k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_RECIPE}),
        "classes_kept": len(selection.kept_classes) if selection else source.num_classes,
        "classes": source.num_classes,
        "samples": epoch_size(config, source, selection),
        "epochs": config.epochs,
        "images": int(samples),
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
