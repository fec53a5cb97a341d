"""Put finished runs side by side: what each kept, cost and reached."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from dp4tl_fast.reporting.runs import Runs, flat

MODES = ("lp", "ff", "knn")
# What two finetunings must share besides the target for a mean over them to mean something.
FINETUNING = (
    "test_records_sha256", "epochs", "lr", "schedule", "warmup_epochs", "optimizer", "weight_decay", "layer_decay",
    "label_smoothing", "clip_norm", "ema_decay", "batch_size", "size", "min_scale", "flip", "augment", "mix", "tta", "val_share",
    "shots", "neighbours", "temperature", "backend", "precision",
)  # fmt: skip
NOT_TOLD = "not recorded"  # by a run of an older version

def recipe(row: dict[str, Any]) -> tuple[Any, ...]:
    """What two rows must share for one to be faster than the other: architecture, objective, epochs, all other settings."""
    return row["arch"], row.get("objective") or "supervised", row.get("epochs") or 0, tuple(sorted(_settings(row).items()))


def _settings(of: dict[str, Any]) -> dict[str, Any]:
    """Settings without a column of their own; older runs and rows do not tell."""
    return flat(of.get("settings") or {})


@dataclass(frozen=True)
class Group:
    """Finished runs of the same recipe on the same selection: they differ in the seed alone.

    Attributes:
        trained: All that decides what a run on the same records computes, and where it ran.
        method: The selection's; ``full`` without one.
        name: The method, and the selection's file where the method does not tell it from another group's.
        settings: Those that differ between groups, and have no column of their own.
    """

    trained: tuple[Any, ...]
    method: str
    name: str
    settings: dict[str, Any]
    runs: Runs


def group(runs: Runs) -> list[Group]:
    """The pretraining runs, by recipe and selection. Random choices of as much count as one selection."""
    found: dict[tuple[Any, ...], Runs] = {}
    for folder, summary in runs:
        if summary["kind"] == "pretrain":
            found.setdefault((_trained(summary), _chosen(summary)), []).append((folder, summary))
    told = _telling([_all_settings(members[0][1]) for members in found.values()])
    names = _names(found)
    return [
        Group(key[0], members[0][1]["method"], name, settings, members)
        for (key, members), name, settings in zip(found.items(), names, told, strict=True)
    ]


def _telling(every: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each, the settings in which they differ."""
    keys = sorted({key for known in every for key in known})
    tell = [k for k in keys if len({str(known.get(k, NOT_TOLD)) for known in every if known}) > 1]
    nothing = {"settings": NOT_TOLD} if any(every) else {}
    return [{k: known.get(k, NOT_TOLD) for k in tell} if known else nothing for known in every]


def _names(found: dict[tuple[Any, ...], Runs]) -> list[str]:
    """The shortest name of each group that sets it apart from those of the same recipe, method and number of classes."""

    def name(members: Runs, parts: int) -> str:
        method, file = members[0][1]["method"], members[0][1].get("selection")
        if not parts or not file:
            return method
        if parts == 3:
            return f"{method} ({str(members[0][1].get('selection_sha256'))[:8]})"
        return f"{method} ({'/'.join(Path(file).with_suffix('').parts[-parts:])})"

    names = [""] * len(found)
    alike = [(trained, chosen[:2]) for trained, chosen in found]
    for parts in range(4):
        taken = Counter(zip(alike, names, strict=True))
        for i, members in enumerate(found.values()):
            if not names[i] or taken[alike[i], names[i]] > 1:
                names[i] = name(members, parts)
    return names


def _all_settings(summary: dict[str, Any]) -> dict[str, Any]:
    """Of a run that tells its settings: settings without a column, what it read, and where it ran."""
    if not _settings(summary):
        return {}
    source = {"source": Path(summary["source"]).name, "source_records": summary["source_records_sha256"][:8]}  # wherever it lay
    return _settings(summary) | source | {key: summary[key] for key in ("device", "processes")}


def _trained(summary: dict[str, Any]) -> tuple[Any, ...]:
    return recipe(summary | {"settings": {k: str(v) for k, v in _all_settings(summary).items()}})


def _chosen(summary: dict[str, Any]) -> tuple[Any, ...]:
    """The method, how much it keeps, and just what, except of random choices, which are drawn anew for every seed."""
    method = summary["method"]
    if method == "random":  # classes, which may differ in size
        return method, summary["classes_kept"]
    what = None if method == "random-samples" else summary.get("selection_sha256")
    return method, summary["classes_kept"], summary["samples"], what


def compare(runs: Runs) -> list[dict[str, Any]]:
    """One row for each recipe, selection, and target: medians of cost and means of accuracy over its runs.

    ``speedup`` is the full run's pretraining time over this one's; ``speedup_with_pruning`` adds what the selection cost
    (training the surrogate, scoring, selecting; by stage in ``pruning_stages_s``), as the paper does. Both are ``None``
    without a full run of the same recipe, that is with the same settings on the same kind of device. ``gpu_hours`` and
    ``energy_wh`` are of the pretraining alone, and ``None`` where a run's machine did not tell. ``settings`` holds what
    differs between rows; ``target`` what the checkpoints were finetuned for, and how if that differs.
    """
    groups, finetunings = group(runs), _finetunings(runs)
    full_s = {g.trained: median(s["pretrain_s"] for _, s in g.runs) for g in groups if g.method == "full"}
    rows = [row for each in groups for row in _rows(each, full_s.get(each.trained), finetunings)]
    order = ("arch", "objective", "epochs", "settings", "target")
    return sorted(rows, key=lambda r: (*(str(r[k]) if k == "settings" else r[k] for k in order),
                                       r["method"] != "full", -r["classes_kept"], r["name"]))  # fmt: skip


@dataclass(frozen=True)
class Finetuning:
    """A finetuning, the folder of the run whose checkpoint it started from, and what to call its target."""

    run: Path
    target: str
    summary: dict[str, Any]


def _rows(group: Group, full_s: float | None, finetunings: list[Finetuning]) -> list[dict[str, Any]]:
    """What the runs of a group cost, once for each target that they were finetuned for."""
    summaries = [summary for _, summary in group.runs]
    folders = {folder for folder, _ in group.runs}
    arch, objective, epochs, _ = recipe(summaries[0])

    def middle(name: str) -> Any:
        values = [s.get(name) for s in summaries]
        return None if None in values else median(v for v in values if v is not None)

    seconds, pruning = middle("pretrain_s"), middle("pruning_s")
    stages = [s.get("pruning_stages_s", {}) for s in summaries]
    cost = {
        "name": group.name,
        "method": group.method,
        "arch": arch,
        "objective": objective,
        "epochs": epochs,
        "settings": group.settings,
        "classes_kept": summaries[0]["classes_kept"],
        "classes": summaries[0].get("classes"),
        "samples": int(middle("samples")),
        "runs": len(summaries),
        "pretrain_s": seconds,
        "pruning_s": pruning,
        "pruning_stages_s": {n: median(s.get(n, 0.0) for s in stages) for n in sorted({n for s in stages for n in s})},
        "speedup": full_s and full_s / seconds,
        "speedup_with_pruning": full_s and full_s / (seconds + pruning),
        "samples_per_s": middle("samples_per_s"),
        "data_wait_share": middle("data_wait_share"),
        "bytes_read": middle("bytes_read"),
        "gpu_hours": middle("gpu_hours"),
        "energy_wh": middle("energy_wh"),
        **_mean_and_spread("val", [s["val_top_1"] for s in summaries if "val_top_1" in s]),
    }
    mine = [f for f in finetunings if f.run in folders]
    return [
        {**cost, "target": target, **_accuracies([f.summary for f in mine if f.target == target])}
        for target in sorted({f.target for f in mine} or {""})
    ]


def _finetunings(runs: Runs) -> list[Finetuning]:
    """Those that started from one of the runs. Different targets, and different settings for one, have different names."""
    pretrained = {folder: s for folder, s in runs if s["kind"] == "pretrain"}
    started = []
    for _, summary in runs:
        origin = _origin(summary, pretrained) if summary["kind"] == "finetune" else None
        if origin is not None:
            started.append((origin[0], summary | {"weights": origin[1]}))
    files = {_target(s): Path(s.get("train", "")) for _, s in started}
    result = []
    for run, one in started:
        like = [s for _, s in started if (s["mode"], _target(s)) == (one["mode"], _target(one))]
        telling = [k for k in ("weights", *FINETUNING) if len({str(s.get(k)) for s in like}) > 1]
        words = [_file_name(_target(one), files), *(_in_words(one, k) for k in telling)]
        result.append(Finetuning(run, ", ".join(words), one))
    return result


def _origin(finetuning: dict[str, Any], pretrained: dict[Path, dict[str, Any]]) -> tuple[Path, str] | None:
    """The run whose weights a finetuning started from, and which of them: a path in its folder, empty for the last ones.

    Weights are known by their hash: a folder may be moved, and weights that a run had halfway are not those it ended with.
    Runs and finetunings of older versions do not tell it; there the path decides.
    """
    if not finetuning.get("checkpoint"):
        return None  # from scratch
    path, sha256 = Path(finetuning["checkpoint"]).resolve(), finetuning.get("checkpoint_sha256")
    here = next((p for p in (path, *path.parents) if p in pretrained), None)
    if sha256 is not None:
        for run in sorted(pretrained, key=lambda run: run != here):  # of equal weights those that were named
            kept = pretrained[run].get("weights_sha256") or {}
            if (part := next((part for part, known in kept.items() if known == sha256), None)) is not None:
                return run, "" if part == next(iter(kept)) else part
        if here is not None and "weights_sha256" in pretrained[here]:
            return None
    if here is None:
        return None
    return here, str(path.relative_to(here)) if path != here else ""  # checkpoint/best/ema.safetensors, say


def _target(finetuning: dict[str, Any]) -> tuple[str, str]:
    """The same target, wherever its file lay."""
    return Path(finetuning.get("train", "")).name, finetuning.get("train_records_sha256", "")


def _file_name(target: tuple[str, str], files: dict[tuple[str, str], Path]) -> str:
    """The shortest name that no other target has: the file's, with its folder, with what is in it."""
    path = files[target]
    for form in (lambda p: p.stem, lambda p: f"{p.parent.name}/{p.stem}"):
        if sum(form(p) == form(path) for p in files.values()) == 1:
            return form(path)
    return f"{path.parent.name}/{path.stem} {target[1][:8]}"


def _in_words(finetuning: dict[str, Any], key: str) -> str:
    value = finetuning.get(key, NOT_TOLD)
    if key == "test_records_sha256":
        return f"tested on {Path(finetuning.get('test', '')).stem} {str(value)[:8]}"
    if key == "weights":
        return f"weights {value or 'last'}"
    return f"{key.replace('_', ' ')} {value}"


def _accuracies(finetunings: list[dict[str, Any]]) -> dict[str, float | None]:
    """Of the last epoch, over all seeds."""
    result: dict[str, float | None] = {}
    for mode in MODES:
        result |= _mean_and_spread(mode, [v for s in finetunings if s["mode"] == mode for v in s["top_1"]])
    return result


def _mean_and_spread(name: str, values: list[float]) -> dict[str, float | None]:
    return {
        f"{name}_mean": fmean(values) if values else None,
        f"{name}_std": stdev(values) if len(values) > 1 else None,
    }
