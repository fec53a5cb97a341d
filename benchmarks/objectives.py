"""Does pruning carry over to pretraining without labels, and to robust pretraining? As ``end_to_end``, on two targets.

``moco``: MoCo v2 on everything, on feature mapping's K-means clusters from a MoCo surrogate, and on random classes; judged by a
linear probe and nearest neighbours. No label of the source is used for what is kept. ``adversarial``: PGD as in the paper (radius
3/255, 3 steps), label mapping and random; linear probe and full finetuning. On a CPU a *short run*: few epochs of a small network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from benchmarks.cells import Cell, chosen
from benchmarks.end_to_end import LABELS, QUARTER, WHOLE, full
from benchmarks.harness import Suite
from benchmarks.paired import Outcomes, total
from benchmarks.recipes import Options, Recipe, find
from benchmarks.study import MODES, study

TARGETS = ("vehicles", "cifar10")
SEEDS = (0, 1, 2)
KEEP = 0.25
CLUSTERS = 200
MOCO: Options = {
    "objective": "moco", "lr": 0.06, "schedule": "cosine", "moco": {"queue": 8192, "momentum": 0.99}, "min_scale": 0.2,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How one objective is studied: options of ``pretrain`` and ``prune``, and the ways to judge the result."""

    network: Options
    surrogate: Options
    prune: Options
    modes: tuple[str, ...]


def objectives(recipe: Recipe) -> dict[str, Objective]:
    """By name."""
    network = {**recipe.network, "epochs": recipe.objective_epochs}
    return {
        "moco": Objective(
            network={**network, **MOCO},
            surrogate={**recipe.surrogate, **MOCO},
            prune={"method": "fm", "groups": "kmeans", "clusters": CLUSTERS},
            modes=("lp", "knn"),
        ),
        "adversarial": Objective(
            network={**network, "objective": "adversarial"},
            surrogate=recipe.surrogate,
            prune={"method": "lm"},
            modes=("lp", "ff"),
        ),
    }


def cells(objective: Objective) -> list[Cell]:
    mapping = chosen(share=KEEP, budget=QUARTER, **objective.prune)
    return [full(WHOLE), full(QUARTER), chosen("random", KEEP, budget=QUARTER), mapping]


def run(suite: Suite) -> None:
    recipe = find(suite.recipe)
    for name, objective in objectives(recipe).items():
        run_objective(suite, recipe, name, objective)


def run_objective(suite: Suite, recipe: Recipe, name: str, how: Objective) -> None:
    """The rows of one objective; the suite's settings and tables gain entries of its name."""
    part = replace(suite, name=f"{suite.name}/{name}", settings={}, tables={}, left_out={}, rows=[], goals=[])
    with study(part, recipe, TARGETS, how.modes, network=how.network, surrogates={"surrogate": how.surrogate}) as work:
        every = cells(how)
        work.run_part(part, every, TARGETS, SEEDS)
        rows = work.outcomes(every, sorted({*SEEDS, *suite.part.seeds}))
        for target in TARGETS:
            found = Outcomes(rows, len(TARGETS))
            names = {f"{c.name}, {LABELS[c.budget]} of the steps": found.of(c.id, target) for c in every}
            runs = {name: list(by_seed.values()) for name, by_seed in names.items() if by_seed}
            for mode in how.modes:
                part.add(f"{target}: {MODES[mode]}", {name: [o.top_1[mode] for o in r] for name, r in runs.items()}, "% top-1")
            part.add(f"{target}: time, everything counted", {name: [total(o, 1.0) for o in r] for name, r in runs.items()}, "s")
        differences = [
            {"target": target, "mode": mode, "cell": every[-1].id, "against": against.id, **asdict(difference)}
            for target in TARGETS
            for mode in how.modes
            for against in every[1:-1]
            if (difference := Outcomes(rows, len(TARGETS), mode).paired(every[-1].id, against.id, target))
        ]
        work.describe(part, seeds=len({o.seed for o in rows}), prune=how.prune)
    suite.rows += part.rows
    suite.settings[name] = part.settings
    suite.tables |= {f"{name}/outcomes": [asdict(o) for o in rows], f"{name}/differences": differences}
