"""Put finished runs side by side: what each kept, cost and reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
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


def recipe(of: dict[str, Any]) -> tuple[str, str, int]:
    """What two runs, or two rows, must share for one to be faster than the other: architecture, objective, epochs."""
    return of["arch"], of.get("objective") or "supervised", of.get("epochs") or 0  # older ones do not name all


def compare(runs: list[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each (recipe, method, classes kept): medians of cost and means of accuracy over its runs.

    ``speedup`` is the full run's pretraining time over this one's; ``speedup_with_pruning`` adds what the selection cost
    (training the surrogate, scoring, selecting; by stage in ``pruning_stages_s``), as the paper does. Both are ``None``
    without a full run of the same recipe: the same architecture, objective and epochs. ``gpu_hours`` and ``energy_wh`` are
    of the pretraining alone, and ``None`` where a run's machine did not tell.
    """
    groups: dict[tuple[Any, ...], list[tuple[Path, dict[str, Any]]]] = {}
    for folder, summary in runs:
        if summary["kind"] == "pretrain":
            key = (*recipe(summary), summary["method"], summary["classes_kept"])
            groups.setdefault(key, []).append((folder, summary))
    full_s = {key[:3]: median(s["pretrain_s"] for _, s in g) for key, g in groups.items() if key[3] == "full"}
    rows = [_row(key, group, full_s.get(key[:3]), runs) for key, group in groups.items()]
    return sorted(rows, key=lambda r: (*recipe(r), r["name"] != "full", -r["classes_kept"], r["name"]))


def _row(
    key: tuple[Any, ...], group: list[tuple[Path, dict[str, Any]]], full_s: float | None, runs: list[tuple[Path, dict[str, Any]]]
) -> dict[str, Any]:
    """One row of ``compare`` from the runs of one group."""
    arch, objective, epochs, method, classes_kept = key
    summaries = [summary for _, summary in group]
    folders = {folder for folder, _ in group}

    def middle(name: str) -> float | None:
        values = [s.get(name) for s in summaries]
        return None if None in values else median(v for v in values if v is not None)

    seconds, pruning = (median(s[name] for s in summaries) for name in ("pretrain_s", "pruning_s"))
    stages = [s.get("pruning_stages_s", {}) for s in summaries]
    validated = [s["val_top_1"] for s in summaries if "val_top_1" in s]
    return {
        "name": method,
        "arch": arch,
        "objective": objective,
        "epochs": epochs,
        "classes_kept": classes_kept,
        "classes": summaries[0].get("classes"),
        "samples": summaries[0]["samples"],
        "runs": len(group),
        "pretrain_s": seconds,
        "pruning_s": pruning,
        "pruning_stages_s": {n: median(s.get(n, 0.0) for s in stages) for n in sorted({n for s in stages for n in s})},
        "speedup": full_s and full_s / seconds,
        "speedup_with_pruning": full_s and full_s / (seconds + pruning),
        "samples_per_s": middle("samples_per_s"),
        "data_wait_share": middle("data_wait_share"),
        "bytes_read": median(s["bytes_read"] for s in summaries),
        "gpu_hours": middle("gpu_hours"),
        "energy_wh": middle("energy_wh"),
        **_mean_and_spread("val", validated),
        **_accuracy("lp", runs, folders),
        **_accuracy("ff", runs, folders),
        **_accuracy("knn", runs, folders),
    }


def _accuracy(mode: str, runs: list[tuple[Path, dict[str, Any]]], folders: set[Path]) -> dict[str, float | None]:
    """Of the last epoch, over all seeds of the finetunings of these checkpoints."""
    values = [
        v
        for _, s in runs
        if s["kind"] == "finetune" and s["mode"] == mode and Path(s["checkpoint"]).resolve() in folders
        for v in s["top_1"]
    ]
    return _mean_and_spread(mode, values)


def _mean_and_spread(name: str, values: list[float]) -> dict[str, float | None]:
    return {
        f"{name}_mean": fmean(values) if values else None,
        f"{name}_std": stdev(values) if len(values) > 1 else None,
    }


@dataclass(frozen=True)
class Column:
    """A column of the table for people.

    Attributes:
        cell: A row's text; empty where the row has no such value.
        always: Shown even where no row has a value.
        wide: Shown in the wide table only.
    """

    title: str
    cell: Callable[[dict[str, Any]], str]
    always: bool = True
    wide: bool = False


def _number(key: str, form: str, scale: float = 1) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else form.format(scale * row[key])


def _percent(name: str) -> Callable[[dict[str, Any]], str]:
    mean, spread = _number(f"{name}_mean", "{:.1f}", 100), _number(f"{name}_std", " ± {:.1f}", 100)
    return lambda row: mean(row) and mean(row) + spread(row)


COLUMNS = (
    Column("selection", lambda row: row["name"]),
    Column("classes", _number("classes_kept", "{}")),
    Column("samples", _number("samples", "{:,}")),
    Column("pruning", _number("pruning_s", "{:.1f} s"), wide=True),
    Column("pretraining", _number("pretrain_s", "{:.1f} s")),
    Column("speed-up", _number("speedup", "{:.2f}x")),
    Column("with pruning", _number("speedup_with_pruning", "{:.2f}x")),
    Column("images/s", _number("samples_per_s", "{:,.0f}"), always=False, wide=True),
    Column("data wait", _number("data_wait_share", "{:.1f} %", 100), always=False, wide=True),
    Column("bytes read", _number("bytes_read", "{:,.1f} MB", 1e-6)),
    Column("GPU-hours", _number("gpu_hours", "{:.3g}"), always=False, wide=True),
    Column("energy", _number("energy_wh", "{:,.3g} Wh"), always=False, wide=True),
    Column("val %", _percent("val"), always=False, wide=True),
    Column("LP %", _percent("lp")),
    Column("FF %", _percent("ff")),
    Column("kNN %", _percent("knn"), always=False),
)
# What tells recipes apart, shown where the rows differ in it.
RECIPE = (
    Column("network", _number("arch", "{}")),
    Column("objective", _number("objective", "{}")),
    Column("epochs", _number("epochs", "{}")),
)


def table_rows(rows: list[dict[str, Any]], wide: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people; ``wide`` adds what the training cost besides time, and what tells recipes apart."""
    columns = [c for c in COLUMNS if wide or not c.wide]
    if wide:
        columns[1:1] = [c for c in RECIPE if len({c.cell(row) for row in rows}) > 1]
    shown = [c for c in columns if (c.always and not wide) or any(map(c.cell, rows))]
    return [c.title for c in shown], [[c.cell(row) for c in shown] for row in rows]


def print_table(rows: list[dict[str, Any]], title: str, wide: bool = False) -> None:
    """The table on stderr."""
    from rich.console import Console
    from rich.table import Table

    header, cells = table_rows(rows, wide)
    table = Table(title=title)
    for column in header:
        table.add_column(column, justify="left" if column == header[0] else "right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    needed = Console(width=1000).measure(table).maximum  # nothing is cut: where stderr is narrower, its lines wrap
    console = Console(stderr=True, width=max(needed, Console(stderr=True).width))
    console.print()
    console.print(table)
