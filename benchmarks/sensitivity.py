"""How much does the surrogate matter? Surrogates from barely trained to ResNet-18, for narrow targets, at equal training steps.

Of every surrogate: how well it knows the source's validation images, what its training cost, how far its label mapping agrees with
the strongest one's, and what the network is worth on the target after a quarter of the full run's steps on its choice. Also
feature mapping by the strongest surrogate, to classes and to K-means clusters, and random classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.cells import Cell, chosen
from benchmarks.harness import Suite
from benchmarks.paired import Outcomes
from benchmarks.recipes import Options, Recipe, find
from benchmarks.study import Study, study
from dp4tl_fast.selection import Selection

TARGETS = ("carnivores", "vehicles", "food", "flowers")
SEEDS = (0, 1)
KEEP, BUDGET = 0.125, 0.25  # shares of the records and of the full run's steps
STRONG = "strong"
CLUSTERS = (50, 200, 800)


def surrogates(recipe: Recipe) -> dict[str, Options]:
    """By name, from weak to strong."""
    usual = recipe.surrogate
    return {
        "small-4, 1 epoch": {**usual, "arch": "small-4", "epochs": 1},
        "1 epoch": {**usual, "epochs": 1},
        "half as long": {**usual, "epochs": max(1, usual["epochs"] // 2)},
        "usual": usual,
        "twice as long": {**usual, "epochs": 2 * usual["epochs"]},
        "twice as long, at full size": {**usual, "epochs": 2 * usual["epochs"], "size": recipe.network["size"]},
        STRONG: recipe.strong,
    }


def mapped(names: Sequence[str]) -> dict[str, Cell]:
    """Label mapping by each surrogate."""
    options: Options = {"method": "lm", "keep": f"budget:{KEEP:g}", "accept_surrogate": True}
    return {name: Cell(name=f"lm by {name}", budget=BUDGET, prune=options, surrogate=name) for name in names}


def others() -> list[Cell]:
    fm: Options = {"method": "fm", "keep": f"budget:{KEEP:g}"}
    clustered = {f"fm, {k} clusters": {**fm, "groups": "kmeans", "clusters": k} for k in CLUSTERS}
    cells = {"fm, classes": fm, **clustered}
    made = [Cell(name=name, budget=BUDGET, prune=options, surrogate=STRONG) for name, options in cells.items()]
    return [*made, chosen("random", KEEP, budget=BUDGET)]


def run(suite: Suite) -> None:
    recipe = find(suite.recipe)
    known = surrogates(recipe)
    with study(suite, recipe, TARGETS, ("lp",), surrogates=known) as work:
        by = mapped(list(known))
        every = [*by.values(), *others()]
        work.run_part(suite, every, TARGETS, SEEDS)
        seeds = sorted({*SEEDS, *suite.part.seeds})
        found = Outcomes(work.outcomes(every, seeds), len(TARGETS))
        random = others()[-1].id
        for target in TARGETS:
            runs = {c.name: list(o.values()) for c in every if (o := found.of(c.id, target))}
            suite.add(f"{target}: linear probe", {name: [o.top_1["lp"] for o in each] for name, each in runs.items()}, "% top-1")
            suite.tables.setdefault("differences", []).extend(
                {"target": target, "cell": c.id, "against": random, **asdict(d)}
                for c in every if c.id != random and (d := found.paired(c.id, random, target))
            )  # fmt: skip
        _agreement(suite, work, by, found)  # first: it has the surrogates of earlier outcomes trained, too
        summaries = {name: s for name in known if (s := work.known(name, seeds))}
        accuracies = {name: [100 * s["val_top_1"] for s in each] for name, each in summaries.items()}
        suite.add("surrogate on the source's validation images", accuracies, "% top-1")
        suite.add("surrogate's training", {name: [s["pretrain_s"] for s in each] for name, each in summaries.items()}, "s")
        work.describe(suite, seeds=len({o.seed for o in found.rows}), keep=f"{100 * KEEP:g} % of the images", budget=BUDGET)
        suite.tables["outcomes"] = [asdict(o) for o in found.rows]


def _agreement(suite: Suite, work: Study, by: dict[str, Cell], found: Outcomes) -> None:
    """How much of what the strongest surrogate keeps the others keep."""
    for target in work.targets:
        same: dict[str, list[float]] = {}
        for seed in sorted(found.of(by[STRONG].id, target)):
            paths = {name: work.select(c, target, seed) for name, c in by.items() if seed in found.of(c.id, target)}
            kept = {name: Selection.load(path).kept_classes for name, path in paths.items() if path}
            for name, classes in kept.items():
                same.setdefault(name, []).append(100 * float(np.isin(kept[STRONG], classes).mean()))
        if same:
            suite.add(f"{target}: kept classes of the strong surrogate that are kept", same, "%")
