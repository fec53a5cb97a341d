"""Rows of ``compare`` as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """A column of the table.

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
# Columns that set recipes and targets apart, shown where the rows differ in it; settings follow.
RECIPE = tuple(Column(t, _number(k, "{}")) for t, k in (("network", "arch"), ("objective", "objective"), ("epochs", "epochs")))
TARGET = Column("target", _number("target", "{}"))


def _setting(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: str((row.get("settings") or {}).get(key, ""))


def _differences(rows: list[dict[str, Any]]) -> list[Column]:
    """The columns that tell rows of one name apart."""
    keys = sorted({key for row in rows for key in (row.get("settings") or {})})
    settings = [Column(key.replace("_", " "), _setting(key)) for key in keys]
    return [c for c in (*RECIPE, *settings, TARGET) if len({c.cell(row) for row in rows}) > 1]


def table_rows(rows: list[dict[str, Any]], wide: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and cells as text; ``wide`` adds what the training cost besides time, and what sets recipes apart."""
    columns = [c for c in COLUMNS if wide or not c.wide]
    if wide:
        columns[1:1] = _differences(rows)
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
