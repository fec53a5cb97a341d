"""Does pruning carry over to pretraining without labels, and to robust pretraining? As ``end_to_end``, at 50 and 70 % pruned.

``moco``: MoCo v2 on everything, on feature mapping's K-means clusters from a MoCo surrogate, and on random classes; judged by a
linear probe and nearest neighbours. No label of the source is used for what is kept. ``adversarial``: PGD as in the paper (radius
3/255, 3 steps), label mapping and random; linear probe and full finetuning. A *short run* on a CPU: about 40 minutes, 3 seeds.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Suite
from benchmarks.study import GPU, NETWORK, SURROGATE, Case, shown, study
from dp4tl_fast.pretraining.config import MocoConfig

KEEP = ("0.5", "0.3")
SEEDS = (0, 1, 2)
CLUSTERS = 200
MOCO: dict[str, Any] = {"objective": "moco", "lr": 0.06, "schedule": "cosine", "moco": MocoConfig(queue=8192), "min_scale": 0.2}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "moco": {
        "network": {**NETWORK, **MOCO, "moco": MocoConfig(queue=8192, momentum=0.99), "epochs": 100 if GPU else 6},
        "surrogate": {**SURROGATE, **MOCO, "moco": MocoConfig(queue=8192, momentum=0.99)},
        "prune": {"method": "fm", "groups": "kmeans", "clusters": CLUSTERS},
        "modes": ("lp", "knn"),
    },
    "adversarial": {
        "network": {**NETWORK, "objective": "adversarial", "epochs": 40 if GPU else 4},
        "surrogate": SURROGATE,
        "prune": {"method": "lm"},
        "modes": ("lp", "ff"),
    },
}


def run(suite: Suite) -> None:
    for name in OBJECTIVES:
        run_objective(suite, name)


def run_objective(suite: Suite, name: str) -> None:
    """The rows of one objective; the suite's settings gain an entry of its name."""
    how = OBJECTIVES[name]
    part = Suite(name=f"{suite.name}/{name}", data=suite.data, work=suite.work)
    with study(part, how["network"], how["modes"]) as work:
        work.surrogate("surrogate", **how["surrogate"])
        cases = [Case(name="full")]
        for keep in KEEP:
            chosen = {**how["prune"], "keep": f"samples:{keep}"}
            cases += [
                Case(name=shown(chosen["method"], keep), prune=chosen),
                Case(name=shown("random", keep), prune={"method": "random", "keep": f"samples:{keep}"}),
            ]
        work.run(cases, SEEDS)
        work.record(part, "full")
        work.describe(part, SEEDS, surrogate=how["surrogate"], prune=how["prune"])
    suite.rows += part.rows
    suite.settings[name] = part.settings
