"""Measure subjects side by side, keep medians and spread, state goals, write one JSON file.

A suite is a module of this package with ``run(suite: Suite) -> None``. It measures with ``interleave``, records with
``suite.add`` and states what the project asked for with ``suite.goal``. Nothing is compared across runs: peers and
limits are measured in the run that needs them, round by round, so that a noisy machine disturbs all of them alike.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from dp4tl_fast.common.errors import Dp4tlError

ROUNDS = 5  # the fewest rounds a committed number may rest on

# Units in which a smaller value is the better one. Everything else (samples/s, GB/s, GFLOP/s, accuracy ...) grows.
SMALLER_IS_BETTER = {"s", "ms", "us", "bytes", "MiB", "fraction of file", "mean squared distance"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One subject in one case. ``spread`` is (20th, 80th percentile) of the rounds, in ``unit``.

    ``ratio`` says how many times as good as ``ratio_to`` this subject is: above 1 is better, whatever the unit. It is
    the median of the ratios round by round, so it need not equal the quotient of the two medians.
    """

    suite: str
    case: str
    subject: str
    value: float
    unit: str
    spread: tuple[float, float]
    rounds: int
    ratio_to: str | None = None
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What an issue asked for and what this run measured. ``id`` is ``suite/case`` as in the issues."""

    id: str
    goal: float
    measured: float
    unit: str
    at_most: bool
    met: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What of a study to run now: patterns of cells' ids, targets and seeds. Nothing given means all."""

    cells: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(kw_only=True)
class Suite:
    """What a suite's ``run`` gets: its name, folders of data sets (``--data``) and for work that may continue later (``--work``).

    Attributes:
        recipe, part: Of ``benchmarks.recipes``, and what to run now, for suites that train.
        earlier: A result file of the same study: what it holds is not run again.
        minutes: For suites that last as long as they are told; 0 is their own default.
        settings: What a reader must know to judge the rows: seeds, epochs, images.
        tables: Further rows for F.json, by name: what the rows and goals were computed from.
        left_out: Subjects that do not run here, and why.
    """

    name: str
    data: Path | None = None
    work: Path | None = None
    recipe: str = "auto"
    part: Part = Part()
    earlier: Path | None = None
    minutes: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def require_data(self) -> Path:
        """The folder given with ``--data``, for suites that need real images."""
        if self.data is None:
            raise SystemExit(f"suite {self.name!r} needs real images: give their folder with --data DIR")
        return self.data

    def add(
        self, case: str, samples: Mapping[str, Sequence[float]], unit: str, *, ratio_to: str | None = None
    ) -> dict[str, Row]:
        """Record one case: subject -> its value in every round (paired up by round). Returns the rows by subject."""
        if ratio_to is not None and ratio_to not in samples:
            raise ValueError(f"ratio_to {ratio_to!r} is none of the subjects {sorted(samples)}")
        rows = {}
        for subject, values in samples.items():
            compared = ratio_to is not None and subject != ratio_to
            rows[subject] = Row(
                suite=self.name, case=case, subject=subject, value=median(values), unit=unit,
                spread=(percentile(values, 0.2), percentile(values, 0.8)), rounds=len(values),
                ratio_to=ratio_to if compared else None,
                ratio=ratio(values, samples[ratio_to], unit) if compared and ratio_to else None,
            )  # fmt: skip
            print(_line(rows[subject]), file=sys.stderr, flush=True)
        self.rows += rows.values()
        return rows

    def goal(self, case: str, *, goal: float, measured: float, unit: str, at_most: bool = False) -> None:
        """State a goal: ``measured`` (computed from rows of this run) must be at least ``goal``, or at most."""
        met = measured <= goal if at_most else measured >= goal
        name = f"{self.name}/{case}"
        self.goals.append(Goal(id=name, goal=goal, measured=measured, unit=unit, at_most=at_most, met=bool(met)))

    def leave_out(self, subject: str, why: object) -> None:
        """Say that a subject is not measured, and keep the reason: of a child's error its last line, of others the first."""
        lines = str(why).strip().splitlines() or [""]
        told = lines[-1] if isinstance(why, RuntimeError) else lines[0]
        kind = f"{type(why).__name__}: " if isinstance(why, Exception) and not isinstance(why, (RuntimeError, Dp4tlError)) else ""
        self.left_out[subject] = (kind + told)[:200]
        print(f"{self.name}: {subject} is left out: {self.left_out[subject]}", file=sys.stderr)

    def add_to(self, result: dict[str, Any]) -> None:
        """Put all this into F.json's contents."""
        result["rows"] += [{key: value for key, value in asdict(row).items() if value is not None} for row in self.rows]
        result["goals"] += [asdict(goal) for goal in self.goals]
        if self.settings:
            result.setdefault("settings", {})[self.name] = self.settings
        if self.tables:
            result.setdefault("tables", {})[self.name] = self.tables
        if self.left_out:
            result.setdefault("left_out", {})[self.name] = self.left_out


def interleave(
    subjects: Mapping[str, Callable[[], float]], *, rounds: int = ROUNDS, warmup: int = 1
) -> dict[str, list[float]]:
    """Call every subject once per round and keep what it returns (wrap it in ``timed`` to keep seconds).

    The starting subject rotates, so that nobody always runs on the cache or the clock frequency its neighbour left.
    """
    if rounds < ROUNDS:
        raise ValueError(f"{rounds} rounds: at least {ROUNDS} are needed for a median and a spread")
    names = list(subjects)
    for _ in range(warmup):
        for name in names:
            subjects[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(subjects[name]())
    return samples


def timed(function: Callable[[], object], *, repeat: int = 1) -> Callable[[], float]:
    """``function`` as a subject: a call runs it ``repeat`` times and returns the seconds of one run."""

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(repeat):
            function()
        return (time.perf_counter() - start) / repeat

    return seconds


def ratio(values: Sequence[float], reference: Sequence[float], unit: str) -> float:
    """Median over rounds of how many times as good as ``reference`` the ``values`` are."""
    if unit in SMALLER_IS_BETTER:
        values, reference = reference, values
    return median(a / b for a, b in zip(values, reference, strict=True))


def percentile(values: Sequence[float], fraction: float) -> float:
    """Linear interpolation between the order statistics (NumPy's default)."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def _line(row: Row) -> str:
    compared = f"{row.ratio:8.2f} x {row.ratio_to}" if row.ratio is not None else ""
    spread = f"[{row.spread[0]:.4g}, {row.spread[1]:.4g}]"
    return f"{row.suite}/{row.case:<34} {row.subject:<26} {row.value:>10.4g} {row.unit:<10} {spread:<22}{compared}"
