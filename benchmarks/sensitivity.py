"""How much do the choices matter? Surrogates from tiny to ResNet-18, the order reversed, the number of clusters.

As ``end_to_end``, all at 20 % of the samples kept, where the choice weighs most; linear probe. Of every surrogate also: how well it
knows the source's validation images, and how far its label mapping agrees with ResNet-18's. Times are ``end_to_end``'s matter, as
is what ``--keep auto`` cuts, which it measures beside the sweep. About 20 minutes on two CPU cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness import Suite
from benchmarks.recipes import Options, Recipe, find
from benchmarks.study import Case, Study, study

KEEP = "samples:0.2"
BEST = "resnet18"
CLUSTERS = (25, 100, 400, 1600)


def surrogates(recipe: Recipe) -> dict[str, Options]:
    """By name; the last is the strongest."""
    brief = {**recipe.surrogate, **recipe.brief}
    return {
        "small-4, 1 epoch": {**brief, "arch": "small-4"},
        "small-16, 1 epoch": {**brief, "arch": "small-16"},
        "surrogate": recipe.surrogate,
        "small-32": {**recipe.surrogate, "arch": "small-32"},
        BEST: {**recipe.surrogate, "arch": "resnet18", "size": recipe.network["size"], "epochs": recipe.strong_epochs},
    }


def run(suite: Suite) -> None:
    recipe = find(suite.recipe)
    with study(suite, recipe, ("lp",)) as work:
        recipes = surrogates(recipe)
        known = {name: work.surrogate(name, **options) for name, options in recipes.items()}
        by = {name: {"surrogate": str(work.root / name)} for name in recipes}
        mapped = {name: Case(name=f"lm by {name}", prune={"method": "lm", "keep": KEEP, **by[name]}) for name in recipes}
        other: dict[str, dict[str, Any]] = {
            "lm reversed": {"method": "lm", "reverse": True},
            "fm, class means": {"method": "fm"},
            **{f"fm, {k} clusters": {"method": "fm", "groups": "kmeans", "clusters": k} for k in CLUSTERS},
            "random": {"method": "random"},
        }
        cases = [*mapped.values(), *(Case(name=name, prune={"keep": KEEP, **how}) for name, how in other.items())]
        work.run(cases, recipe.seeds)
        work.record_accuracy(suite)
        suite.add("classes", work.collect(lambda r: r["classes_kept"]), "classes")
        suite.add("images the surrogate learned from", {n: [s["samples"] * s["epochs"]] for n, s in known.items()}, "images")
        suite.add("surrogate's top-1 on the source's validation images", {n: [100 * s["val_top_1"]] for n, s in known.items()}, "%")
        _agreement(suite, work, mapped)
        work.describe(suite, recipe.seeds, surrogates=recipes, keep=KEEP)


def _agreement(suite: Suite, work: Study, cases: dict[str, Case]) -> None:
    """How much of what the best surrogate keeps the others keep, and how alike they rank all classes."""
    from scipy.stats import spearmanr

    chosen = {name: work.chosen(case) for name, case in cases.items()}
    best = chosen[BEST]
    same = {n: [100 * np.isin(best.kept_classes, s.kept_classes).mean()] for n, s in chosen.items()}
    suite.add(f"kept classes of lm by {BEST} that are kept", same, "%")
    alike = {n: [spearmanr(s.scores, best.scores)[0]] for n, s in chosen.items()}
    suite.add(f"rank correlation of the votes with {BEST}'s", alike, "")
