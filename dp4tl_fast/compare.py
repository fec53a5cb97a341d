"""Put finished runs side by side: what each kept, cost and reached."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from dp4tl_fast.errors import UsageError


def find_runs(folders: list[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """All finished runs below these folders, as ``(folder, summary)``, in path order."""
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        for path in sorted(folder.rglob("summary.json")):
            try:
                summary = json.loads(path.read_text())
            except ValueError as error:
                raise UsageError(f"{path}: not readable ({error}). Run again what made it") from None
            if isinstance(summary, dict) and "kind" in summary:
                runs.append((path.parent.resolve(), summary))
    if not any(summary["kind"] == "pretrain" for _, summary in runs):
        raise UsageError(f"{', '.join(map(str, folders))}: no finished pretraining run there. Give run folders")
    return runs


def compare(runs: list[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each (method, architecture, classes kept): medians of cost and means of accuracy over its runs.

    ``speedup`` is the full run's pretraining time over this one's; ``speedup_with_pruning`` adds what the selection cost
    (training the surrogate, scoring, selecting), as the paper does. Both are ``None`` without a full run of the same
    architecture.
    """
    groups: dict[tuple[str, str, int], list[tuple[Path, dict[str, Any]]]] = {}
    for folder, summary in runs:
        if summary["kind"] == "pretrain":
            groups.setdefault((summary["arch"], summary["method"], summary["classes_kept"]), []).append(
                (folder, summary)
            )
    full_s = {a: median(s["pretrain_s"] for _, s in g) for (a, m, _), g in groups.items() if m == "full"}
    rows = []
    for (arch, method, classes), group in groups.items():
        seconds = median(s["pretrain_s"] for _, s in group)
        pruning = median(s["pruning_s"] for _, s in group)
        reference = full_s.get(arch)
        folders = {folder for folder, _ in group}
        rows.append(
            {
                "name": method,
                "arch": arch,
                "classes_kept": classes,
                "samples": group[0][1]["samples"],
                "runs": len(group),
                "pretrain_s": seconds,
                "pruning_s": pruning,
                "speedup": reference and reference / seconds,
                "speedup_with_pruning": reference and reference / (seconds + pruning),
                "bytes_read": median(s["bytes_read"] for _, s in group),
                **_accuracy("lp", runs, folders),
                **_accuracy("ff", runs, folders),
                **_accuracy("knn", runs, folders),
            }
        )
    return sorted(rows, key=lambda r: (r["arch"], r["name"] != "full", -r["classes_kept"], r["name"]))


def _accuracy(mode: str, runs: list[tuple[Path, dict[str, Any]]], folders: set[Path]) -> dict[str, float | None]:
    """Mean and spread of the last epoch's accuracy over all seeds of the finetunings of these checkpoints."""
    values = [
        v
        for _, s in runs
        if s["kind"] == "finetune" and s["mode"] == mode and Path(s["checkpoint"]).resolve() in folders
        for v in s["top_1"]
    ]
    return {
        f"{mode}_mean": fmean(values) if values else None,
        f"{mode}_std": stdev(values) if len(values) > 1 else None,
    }


def table_rows(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people."""

    def times(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}x"

    def percent(mean: float | None, std: float | None) -> str:
        return "" if mean is None else f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")

    header = [
        "selection",
        "classes",
        "samples",
        "pretraining",
        "speed-up",
        "with pruning",
        "bytes read",
        "LP %",
        "FF %",
        *(["kNN %"] if (knn := any(r.get("knn_mean") is not None for r in rows)) else []),
    ]
    cells = [
        [
            r["name"], str(r["classes_kept"]), f"{r['samples']:,}", f"{r['pretrain_s']:.1f} s", times(r["speedup"]),
            times(r["speedup_with_pruning"]), f"{r['bytes_read'] / 1e6:,.1f} MB",
            percent(r["lp_mean"], r["lp_std"]), percent(r["ff_mean"], r["ff_std"]),
            *([percent(r["knn_mean"], r["knn_std"])] if knn else []),
        ]
        for r in rows
    ]  # fmt: skip
    return header, cells
