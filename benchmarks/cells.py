"""What a study runs, and what comes of it: cells, runs of them, outcomes."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from benchmarks.harness import Suite
from benchmarks.recipes import Options
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping.registry import METHODS


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to pretrain on, for a share of the full run's steps.

    Attributes:
        name: As tables show it.
        budget: Share of the full run's steps.
        prune: Options of ``prune``; without them the full source is read. A random choice is drawn anew for every seed.
        fresh: Share of the records that every epoch draws anew (RS2, arXiv 2305.18424); 0 reads all that is kept.
        surrogate: Name of the surrogate that scores.
        train: Options of ``pretrain`` that are this cell's own.
    """

    name: str
    budget: float = 1.0
    prune: Options | None = None
    fresh: float = 0.0
    surrogate: str = "surrogate"
    train: Options = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name in file names and for ``--cells``: ``lm-12.5`` for ``lm 12.5 %``."""
        return "-".join(re.findall(r"[\w.]+", self.name))

    @property
    def id(self) -> str:
        return f"{self.slug}@{self.budget:g}"

    @property
    def shared(self) -> bool:
        """Whether one run serves all targets."""
        return self.prune is None or "target" not in METHODS[self.prune["method"]].needs


def chosen(method: str, share: float, *, budget: float = 1.0, name: str = "", **options: Any) -> Cell:
    """What ``method`` keeps of at most ``share`` of the records."""
    return Cell(
        name=f"{name or method} {100 * share:g} %", budget=budget, prune={"method": method, "keep": f"budget:{share:g}", **options}
    )


@dataclass(frozen=True)
class Job:
    """A cell's run with one seed, for one target, or for all where ``target`` is empty; and the targets that it is tested on."""

    cell: Cell
    target: str
    seed: int
    probed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run, and what it is worth on one target.

    Attributes:
        top_1: Percentage of the target's test images, by way to finetune.
        images: Seen in pretraining.
        pretrain_s, scoring_s, surrogate_s: Seconds: of pretraining, of everything in ``prune``, of training the
            surrogate.
    """

    cell: str
    name: str
    budget: float
    target: str
    seed: int
    top_1: dict[str, float]
    classes: int
    samples: int
    images: int
    pretrain_s: float
    scoring_s: float
    surrogate_s: float


def part_of(
    suite: Suite, cells: Sequence[Cell], targets: Sequence[str], seeds: Sequence[int]
) -> tuple[list[Cell], list[str], Sequence[int]]:
    """What ``--cells``, ``--targets`` and ``--seeds`` leave of these, for ``Study.run``.

    Raises:
        UsageError: They leave nothing, or name what is not there.
    """
    part = suite.part
    unknown = [t for t in part.targets if t not in targets]
    if unknown:
        raise UsageError(f"--targets {','.join(unknown)}: suite {suite.name!r} has {', '.join(targets)}")
    some = [cell for cell in cells if not part.cells or any(fnmatch(cell.id, pattern) for pattern in part.cells)]
    if not some:
        raise UsageError(f"--cells {','.join(part.cells)}: suite {suite.name!r} has {', '.join(cell.id for cell in cells)}")
    return some, [t for t in targets if not part.targets or t in part.targets], part.seeds or seeds


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
