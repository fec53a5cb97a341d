"""The table of a comparison: on the page, in the terminal, in README.md, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dp4tl_fast.reporting.runs import flat

SPREAD = {"lp_mean": "lp_std", "ff_mean": "ff_std", "knn_mean": "knn_std", "val_mean": "val_std"}  # standard deviations


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: Of a row's value, dotted where it lies deeper: ``settings.lr``.
        form, scale: The cell is the value times ``scale`` in this form; empty where the row has no such value.
        always: Shown even where no row has a value.
        wide: Shown in the wide table only.
        cost: What the training cost: on the page in a table of its own.
    """

    title: str
    key: str
    form: str = "{}"
    scale: float = 1
    always: bool = True
    wide: bool = False
    cost: bool = False

    def value(self, row: dict[str, Any]) -> Any:
        """What rows are sorted by; ``None`` where there is none."""
        outer, _, inner = self.key.partition(".")
        found = row.get(outer)
        return (found or {}).get(inner) if inner else found

    def cell(self, row: dict[str, Any]) -> str:
        """The text of a row's cell, with the spread over seeds where there is one."""
        value, spread = self.value(row), row.get(SPREAD.get(self.key, ""))
        if value is None:
            return ""
        shown = self.form.format(value if self.scale == 1 else self.scale * value)
        return shown if spread is None else f"{shown} ± {self.form.format(self.scale * spread)}"


NAME = Column("selection", "name")
COLUMNS = (
    NAME,
    Column("LP %", "lp_mean", "{:.1f}", 100),
    Column("FF %", "ff_mean", "{:.1f}", 100),
    Column("kNN %", "knn_mean", "{:.1f}", 100, always=False),
    Column("val %", "val_mean", "{:.1f}", 100, always=False, wide=True),
    Column("with pruning", "speedup_with_pruning", "{:.2f}x"),
    Column("speed-up", "speedup", "{:.2f}x"),
    Column("classes", "classes_kept"),
    Column("samples", "samples", "{:,}"),
    Column("pretraining", "pretrain_s", "{:.1f} s"),
    Column("pruning", "pruning_s", "{:.1f} s", wide=True, cost=True),
    Column("images/s", "samples_per_s", "{:,.0f}", always=False, wide=True, cost=True),
    Column("data wait", "data_wait_share", "{:.1f} %", 100, always=False, wide=True, cost=True),
    Column("bytes read", "bytes_read", "{:,.1f} MB", 1e-6, cost=True),
    Column("GPU-hours", "gpu_hours", "{:.3g}", always=False, wide=True, cost=True),
    Column("energy", "energy_wh", "{:,.3g} Wh", always=False, wide=True, cost=True),
)
# Columns that set recipes and targets apart, shown where the rows differ in it; settings follow.
RECIPE = (Column("network", "arch"), Column("objective", "objective"), Column("epochs", "epochs"))
TARGET = Column("target", "target")


def _differences(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns that tell rows of one name apart."""
    keys = sorted({key for row in rows for key in (row.get("settings") or {})})
    settings = [Column(key.replace("_", " "), f"settings.{key}") for key in keys]
    return [c for c in (*RECIPE, *settings, TARGET) if len({c.cell(row) for row in rows}) > 1]


def columns(rows: Sequence[dict[str, Any]], wide: bool = False) -> list[Column]:
    """What is shown of these rows; ``wide`` adds what the training cost besides time, and what sets recipes apart."""
    chosen = [c for c in COLUMNS if wide or not c.wide]
    if wide:
        chosen[1:1] = _differences(rows)
    return [c for c in chosen if (c.always and not wide) or any(map(c.cell, rows))]


def main_and_cost(rows: Sequence[dict[str, Any]]) -> tuple[list[Column], list[Column]]:
    """The wide table in two: what was reached, and what the training cost; both say which rows these are."""
    shown, apart = columns(rows, wide=True), _differences(rows)
    return [c for c in shown if not c.cost], [NAME, *apart, *(c for c in shown if c.cost or c.key == "pretrain_s")]


def table_rows(rows: list[dict[str, Any]], wide: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and cells as text."""
    shown = columns(rows, wide)
    return [c.title for c in shown], [[c.cell(row) for c in shown] for row in rows]


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """All that is known of the rows, numbers as they are: fractions, seconds, bytes. Deeper values have dotted names."""
    table = [flat(row) for row in rows]
    header = list(dict.fromkeys(key for row in table for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


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
