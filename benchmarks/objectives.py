"""Does pruning carry over to pretraining without labels, and to robust pretraining? As ``end_to_end``, at 50 and 70 % pruned.

``moco``: MoCo v2 on everything, on feature mapping's K-means clusters from a MoCo surrogate, and on random classes; judged by a
linear probe and nearest neighbours. No label of the source is used for what is kept. ``adversarial``: PGD as in the paper (radius
3/255, 3 steps), label mapping and random; linear probe and full finetuning. A *short run* on a CPU: about 40 minutes, 3 seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness import Suite
from benchmarks.recipes import Options, Recipe, find
from benchmarks.study import Case, shown, study
from dp4tl_fast.pretraining.config import MocoConfig

KEEP = ("0.5", "0.3")
SEEDS = (0, 1, 2)
CLUSTERS = 200
MOCO: Options = {
    "objective": "moco", "lr": 0.06, "schedule": "cosine", "moco": MocoConfig(queue=8192, momentum=0.99), "min_scale": 0.2,
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
    return {
        "moco": Objective(
            network={**recipe.network, **MOCO, "epochs": recipe.moco_epochs},
            surrogate={**recipe.surrogate, **MOCO},
            prune={"method": "fm", "groups": "kmeans", "clusters": CLUSTERS},
            modes=("lp", "knn"),
        ),
        "adversarial": Objective(
            network={**recipe.network, "objective": "adversarial", "epochs": recipe.adversarial_epochs},
            surrogate=recipe.surrogate,
            prune={"method": "lm"},
            modes=("lp", "ff"),
        ),
    }


def run(suite: Suite) -> None:
    recipe = find(suite.recipe)
    for name, objective in objectives(recipe).items():
        run_objective(suite, recipe, name, objective)


def run_objective(suite: Suite, recipe: Recipe, name: str, how: Objective) -> None:
    """The rows of one objective; the suite's settings gain an entry of its name."""
    part = Suite(name=f"{suite.name}/{name}", data=suite.data, work=suite.work)
    with study(part, recipe, how.modes, how.network) as work:
        work.surrogate("surrogate", **how.surrogate)
        cases = [Case(name="full")]
        for keep in KEEP:
            chosen = {**how.prune, "keep": f"samples:{keep}"}
            cases += [
                Case(name=shown(chosen["method"], keep), prune=chosen),
                Case(name=shown("random", keep), prune={"method": "random", "keep": f"samples:{keep}"}),
            ]
        work.run(cases, SEEDS)
        work.record(part, "full")
        work.describe(part, SEEDS, surrogate=how.surrogate, prune=how.prune)
    suite.rows += part.rows
    suite.settings[name] = part.settings
