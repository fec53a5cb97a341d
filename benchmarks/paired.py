"""What outcomes of a study say: differences paired by seed, with confidence intervals, and the time to an accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from benchmarks.cells import Outcome

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean difference in percentage points over seeds, and its confidence interval, for which two seeds are needed."""

    points: float
    low: float | None
    high: float | None
    seeds: int


def difference(values: Sequence[float]) -> Difference:
    """Of differences paired by seed: Student's t interval of their mean."""
    from scipy import stats

    low = high = None
    if len(values) > 1:
        spread = float(stats.sem(values))
        bounds = stats.t.interval(CONFIDENCE, len(values) - 1, fmean(values), spread) if spread else (fmean(values),) * 2
        low, high = map(float, bounds)
    return Difference(points=fmean(values), low=low, high=high, seeds=len(values))


@dataclass(frozen=True)
class Outcomes:
    """Finished runs of one study.

    Args:
        rows: Of all cells, targets and seeds that are finished.
        sharing: Targets that share one surrogate.
        mode: Way to finetune that is looked at.
    """

    rows: Sequence[Outcome]
    sharing: int
    mode: str = "lp"

    def of(self, cell: str, target: str) -> dict[int, Outcome]:
        """By seed."""
        return {o.seed: o for o in self.rows if (o.cell, o.target) == (cell, target)}

    def accuracy(self, cell: str, target: str) -> float:
        """Mean over seeds, in percent."""
        return fmean(o.top_1[self.mode] for o in self.of(cell, target).values())

    def seconds(self, cell: str, target: str, surrogate: float) -> float:
        """Median over seeds of pretraining, scoring and this share of the surrogate's training."""
        return median(total(o, surrogate) for o in self.of(cell, target).values())

    def paired(self, cell: str, against: str, target: str) -> Difference | None:
        """How much better ``cell`` is than ``against``, over the seeds that both have."""
        a, b = self.of(cell, target), self.of(against, target)
        seeds = sorted(a.keys() & b.keys())
        return difference([a[s].top_1[self.mode] - b[s].top_1[self.mode] for s in seeds]) if seeds else None

    def over_equal_time(self, cell: str, fulls: Sequence[str], target: str, surrogate: float) -> Difference | None:
        """How much better a cell is than the full source in the same time, everything counted.

        The full source's accuracy at that time lies on the lines through its runs (``fulls``), over the logarithm of the time;
        before the shortest run it is the shortest run's.
        """
        a, curves = self.of(cell, target), [self.of(full, target) for full in fulls]
        seeds = sorted(a.keys() & set.intersection(*(set(curve) for curve in curves)))
        if not seeds:
            return None
        times = [median(curve[s].pretrain_s for s in seeds) for curve in curves]
        order = np.argsort(times)
        at = np.log(median(total(a[s], surrogate) for s in seeds))

        def full(seed: int) -> float:
            accuracies = [curves[i][seed].top_1[self.mode] for i in order]
            return float(np.interp(at, np.log(np.array(times)[order]), accuracies))

        return difference([a[s].top_1[self.mode] - full(s) for s in seeds])

    def first_within(self, loss: float, full: str, cells: Sequence[str], target: str, surrogate: float) -> tuple[str, float]:
        """The cell that is first within ``loss`` points of the full run's accuracy, and how many times as fast it is.

        ``("", 0.0)`` where none is.
        """
        longest = self.seconds(full, target, 0.0)
        fast = [
            (longest / self.seconds(cell, target, surrogate), cell)
            for cell in cells
            if (over := self.paired(cell, full, target)) and over.points >= -loss
        ]
        speed_up, cell = max(fast, default=(0.0, ""))
        return cell, speed_up


def total(outcome: Outcome, surrogate: float) -> float:
    """Seconds of a run, with this share of its surrogate's training."""
    return outcome.pretrain_s + outcome.scoring_s + surrogate * outcome.surrogate_s
