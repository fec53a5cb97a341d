"""How much do the choices matter? Surrogates from tiny to ResNet-18, the order reversed, the number of clusters.

As ``end_to_end``, all at 20 % of the samples kept, where the choice weighs most; linear probe. Of every surrogate also: how well it
knows the source's validation images, and how far its label mapping agrees with ResNet-18's. Times are ``end_to_end``'s matter, as
is what ``--keep auto`` cuts, which it measures beside the sweep. About 20 minutes on two CPU cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness import Suite
from benchmarks.study import GPU, NETWORK, ONE_EPOCH, SURROGATE, Case, Study, study

SEEDS = (0, 1, 2) if GPU else (0, 1)
KEEP = "samples:0.2"
SURROGATES: dict[str, dict[str, Any]] = {
    "small-4, 1 epoch": {**SURROGATE, "arch": "small-4", **ONE_EPOCH},
    "small-16, 1 epoch": {**SURROGATE, "arch": "small-16", **ONE_EPOCH},
    "surrogate": SURROGATE,
    "small-32": {**SURROGATE, "arch": "small-32"},
    "resnet18": {**SURROGATE, "arch": "resnet18", "size": NETWORK["size"], "epochs": 40 if GPU else 4},
}
BEST = "resnet18"
CLUSTERS = (25, 100, 400, 1600)


def run(suite: Suite) -> None:
    with study(suite, NETWORK, ("lp",)) as work:
        known = {name: work.surrogate(name, **recipe) for name, recipe in SURROGATES.items()}
        by = {name: {"surrogate": str(work.root / name)} for name in SURROGATES}
        cases = [Case(name=f"lm by {name}", prune={"method": "lm", "keep": KEEP, **by[name]}) for name in SURROGATES]
        other: dict[str, dict[str, Any]] = {
            "lm reversed": {"method": "lm", "reverse": True},
            "fm, class means": {"method": "fm"},
            **{f"fm, {k} clusters": {"method": "fm", "groups": "kmeans", "clusters": k} for k in CLUSTERS},
            "random": {"method": "random"},
        }
        cases += [Case(name=name, prune={"keep": KEEP, **how}) for name, how in other.items()]
        work.run(cases, SEEDS)
        work.record_accuracy(suite)
        suite.add("classes", work.collect(lambda r: r["classes_kept"]), "classes")
        suite.add("images the surrogate learned from", {n: [s["samples"] * s["epochs"]] for n, s in known.items()}, "images")
        suite.add("surrogate's top-1 on the source's validation images", {n: [100 * s["val_top_1"]] for n, s in known.items()}, "%")
        _agreement(suite, work, cases[: len(SURROGATES)])
        work.describe(suite, SEEDS, surrogates=SURROGATES, keep=KEEP)


def _agreement(suite: Suite, work: Study, cases: list[Case]) -> None:
    """How much of what the best surrogate keeps the others keep, and how alike they rank all classes."""
    from scipy.stats import spearmanr

    chosen = {name: work.chosen(case) for name, case in zip(SURROGATES, cases, strict=True)}
    best = chosen[BEST]
    same = {n: [100 * np.isin(best.kept_classes, s.kept_classes).mean()] for n, s in chosen.items()}
    suite.add(f"kept classes of lm by {BEST} that are kept", same, "%")
    alike = {n: [spearmanr(s.scores, best.scores)[0]] for n, s in chosen.items()}
    suite.add(f"rank correlation of the votes with {BEST}'s", alike, "")
