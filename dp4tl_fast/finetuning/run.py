"""What a pretrained network is worth on the target, and the network that comes of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.splits import few_shots, hold_out
from dp4tl_fast.finetuning.targets import target_path
from dp4tl_fast.inference import accuracy
from dp4tl_fast.remote.url import shown
from dp4tl_fast.runs.folder import CONTENTS, FREE, check_folder, defaults_of, owned
from dp4tl_fast.runs.trackers import Callback
from dp4tl_fast.training.ranks import on_rank_zero, process_group, rank, world_size

if TYPE_CHECKING:
    from dp4tl_fast.finetuning.probes import Result

# Settings that the summary repeats, besides ``size``: what two finetunings must share to be compared.
IN_SUMMARY = (
    "mode", "seeds", "epochs", "lr", "schedule", "warmup_epochs", "optimizer", "weight_decay", "layer_decay", "label_smoothing",
    "clip_norm", "ema_decay", "batch_size", "min_scale", "flip", "augment", "mix", "tta", "val_share", "shots", "neighbours",
    "temperature", "backend", "precision",
)  # fmt: skip
# Flags that may differ between a run and its continuation: they do not change what is computed. More seeds join those done.
FREE_ON_RESUME = FREE | {"save", "seeds", "checkpoint"}


@process_group()
def finetune(config: FinetuneConfig, *, callback: Callback | None = None) -> dict[str, Any]:
    """Train a fresh classifier on the target, keep the network, and report test accuracy over seeds.

    lp (linear probe) freezes the network and trains the classifier on its features, which are computed once; ff (full
    finetuning) trains everything; knn trains nothing and lets the nearest training features vote. The main result is the
    accuracy of the last epoch, with that of the best epoch beside it; without --val or --val-share the best epoch is chosen on
    the test set, so its accuracy is optimistic. OUT/seed-0/checkpoint holds the network, for `dp4tl-fast evaluate`, `predict`
    and `export`. --resume continues an interrupted run (Ctrl-C, SIGTERM, a crash). Under torchrun, the processes share each
    batch. Shipped recipes (the paper's), for --config NAME: lp, ff, and ff_sgd for Food101, StanfordCars and SUN397.

    Args:
        config: What to finetune, on what, how.
        callback: In Python: called on the first process with a seed's folder and the metrics of every epoch, by their names in
            metrics.jsonl. What it raises ends the run, which can be resumed.

    Returns:
        ``summary.json``: settings, ``top_1`` of each seed, mean and spread, accuracy by class and by group.

    Raises:
        Dp4tlError: A file is bad, or the settings do not fit it; nothing is written then.
    """
    start = time.perf_counter()
    out, target = Path(config.out), Path(config.out) / "summary.json"
    if target.exists() and not config.resume:
        raise UsageError(f"{target} exists. Remove it, or give another `out`")
    files = _open_files(config)
    if config.groups:  # fail now, not after the last seed
        accuracy.read_groups(config.groups, files["test"])
    drawn = config.mode != "knn" or config.shots > 0
    seeds = range(config.seeds if drawn else 1)
    chosen = [_split(files["train"], config, seed) for seed in seeds]

    from dp4tl_fast.finetuning.start import HASH, pinned

    settings: dict[str, Any] = {k: v for k, v in asdict(config).items() if k not in FREE_ON_RESUME}
    settings |= {name: shown(getattr(config, name)) for name in files}
    hashes = {f"{name}_records_sha256": beton.records_sha256 for name, beton in files.items()}
    paths = {f"{name}_records_sha256": shown(getattr(config, name)) for name in files} | {HASH: config.checkpoint}
    contents = {f"{name}{CONTENTS}": beton.contents_sha256 for name, beton in files.items()}
    paths |= {f"{name}{CONTENTS}": shown(getattr(config, name)) for name in files}
    settings |= {HASH: pinned(config), **hashes, **contents}
    defaults = {k: v for k, v in defaults_of(FinetuneConfig).items() if k not in FREE_ON_RESUME}

    def finished() -> dict[str, Any] | None:
        found = check_folder(out, settings, config.resume, paths, defaults, FREE_ON_RESUME)
        return found if found is not None and found.get("seeds") == len(seeds) else None

    complete = on_rank_zero(finished)
    if complete is None:
        with owned(out) as guard:
            complete = on_rank_zero(finished)  # another may have ended meanwhile
            if complete is None:
                return _work(config, settings, files, chosen, start, guard, callback)
    if rank() == 0:
        cli.message(f"{out}: this finetuning is complete; nothing to do")
    return complete


def _work(
    config: FinetuneConfig, settings: dict[str, Any], files: dict[str, Beton], chosen: list[Any], start: float,
    guard: Callable[[], None], callback: Callback | None,
) -> dict[str, Any]:  # fmt: skip
    """All seeds, each on its records to train and to validate on; the summary is written."""
    from dp4tl_fast.finetuning.start import HASH, read_start
    from dp4tl_fast.finetuning.work import Work

    train_set, test_set = files["train"], files["test"]
    groups = accuracy.read_groups(config.groups, test_set) if config.groups else None
    origin = read_start(config)
    settings[HASH] = origin.sha256
    work = Work(config, settings, origin, files, guard, callback)
    results = [work.result(seed, *records) for seed, records in enumerate(chosen)]
    summary: dict[str, Any] = {
        "kind": "finetune",
        "checkpoint": str(Path(config.checkpoint).resolve()) if config.checkpoint else None,
        HASH: origin.sha256,
        "arch": origin.meta["arch"],
        "train": str(train_set.path),
        "train_records_sha256": train_set.records_sha256,
        "test": str(test_set.path),
        "test_records_sha256": test_set.records_sha256,
        **{name: value for name, value in asdict(config).items() if name in IN_SUMMARY},
        "seeds": len(chosen),
        "size": work.pixels.size,
        "best_on": "val" if config.val or config.val_share else "test",
        **_over_seeds(results),
        **accuracy.summary(np.stack([r.predicted.numpy() for r in results]), test_set, groups),
        "bad_records": len(work.bad.known),
        "processes": world_size(),
        "seconds": time.perf_counter() - start,
    }

    def finish() -> None:
        guard()
        _finish(Path(config.out) / "summary.json", summary)

    on_rank_zero(finish)
    return summary


def _open_files(config: FinetuneConfig) -> dict[str, Beton]:
    """The target's files by their parameter, which must number their classes alike."""
    names = {"train": config.train, "test": config.test} | ({"val": config.val} if config.val else {})
    paths = on_rank_zero(lambda: {name: target_path(spec, config.out) for name, spec in names.items()})
    files = {name: Beton(path, **config.cached) for name, path in paths.items()}
    for name in set(files) - {"train"}:
        files["train"].check_split(files[name])
    return files


def _split(train_set: Beton, config: FinetuneConfig, seed: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Records of ``train_set`` to train and to validate on; ``None`` for all, and for none."""
    records = few_shots(train_set, config.shots, seed) if config.shots else None
    return hold_out(train_set, records, config.val_share, seed) if config.val_share else (records, None)


def _over_seeds(results: list[Result]) -> dict[str, Any]:
    """Means and spread."""
    averaged = [r.ema for r in results if r.ema is not None]
    return {
        "top_1_mean": fmean(r.last for r in results),
        "top_1_std": stdev(r.last for r in results) if len(results) > 1 else 0.0,
        "top_1_best_mean": fmean(r.best for r in results),
        "top_1": [r.last for r in results],
        **({"ema_top_1": averaged, "ema_top_1_mean": fmean(averaged)} if averaged else {}),
    }


def _finish(target: Path, summary: dict[str, Any]) -> None:
    from dp4tl_fast.finetuning.kept import FOLDER
    from dp4tl_fast.finetuning.start import START

    write_atomically(target, json.dumps(summary, indent=1) + "\n")
    (target.parent / START).unlink(missing_ok=True)
    shutil.rmtree(target.parent / FOLDER, ignore_errors=True)
    if rank() == 0:
        _tell(summary)


def _tell(summary: dict[str, Any]) -> None:
    best = "best epoch" if summary["best_on"] == "test" else "epoch chosen on validation"
    cli.message(
        f"{summary['mode']} top-1 {100 * summary['top_1_mean']:.2f} ± {100 * summary['top_1_std']:.2f} % over {summary['seeds']} "
        f"seeds, last epoch ({best} {100 * summary['top_1_best_mean']:.2f} %)"
    )
    if "worst_group_mean" in summary:
        cli.message(f"worst group {100 * summary['worst_group_mean']:.2f} ± {100 * summary['worst_group_std']:.2f} %")
