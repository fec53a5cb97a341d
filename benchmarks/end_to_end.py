"""Is it faster with nothing lost? Tiny-ImageNet to CIFAR-10, by full pretraining, label mapping, feature mapping and random choice.

The whole chain of ``benchmarks.study``: surrogate, prune, pretrain, finetune; 20 to 80 % of the classes pruned, linear probe and
full finetuning, 3 seeds. Beside the sweep: what ``--keep auto`` cuts, and selections trained on as many *images* as the full run
sees, which tells classes that are missed from steps that are missed. About 85 minutes on two CPU cores.
"""

from __future__ import annotations

from benchmarks.harness import Suite
from benchmarks.recipes import find
from benchmarks.study import Case, Study, shown, study, votes_carried
from dp4tl_fast.reporting.compare import compare
from dp4tl_fast.reporting.runs import find_runs

METHODS = ("lm", "fm", "random")
KEEP = ("0.8", "0.6", "0.4", "0.2")
SEEDS = (0, 1, 2)
RULES = ("auto:0.75", "auto")  # of the votes
LONGER = (("lm", "0.4"), ("random", "0.4"), ("lm", "0.2"), ("random", "0.2"))  # also trained on as many images as the full run
LOSS = 0.5  # points of accuracy that count as nothing lost
FULL = Case(name="full")


def run(suite: Suite) -> None:
    recipe = find(suite.recipe)
    with study(suite, recipe, ("lp", "ff")) as work:
        # Its time counts, and ``sensitivity`` found that what it learns after an epoch is worth nothing to the target.
        brief = {**recipe.surrogate, **recipe.brief}
        work.surrogate("surrogate", **brief)
        sweep = [Case(name=shown(m, k), prune={"method": m, "keep": k}) for k in KEEP for m in METHODS]
        sweep += [Case(name=f"lm {rule}", prune={"method": "lm", "keep": rule}) for rule in RULES]
        work.run([FULL, *sweep, *(_longer(recipe.network["epochs"], *which) for which in LONGER)], SEEDS)
        work.record(suite, FULL.name)
        mapped = [case for case in sweep if case.prune and case.prune["method"] == "lm"]
        suite.add("votes carried", {case.name: [votes_carried(work.chosen(case))] for case in mapped}, "%")
        work.describe(suite, SEEDS, surrogate=brief)
        suite.comparison = compare(find_runs([work.root / "runs"]))
        _goals(suite, work)


def _longer(epochs: int, method: str, keep: str) -> Case:
    epochs = round(epochs / float(keep))
    name = f"{shown(method, keep)}, {epochs} epochs"
    return Case(name=name, prune={"method": method, "keep": keep}, network={"epochs": epochs})


def _goals(suite: Suite, work: Study) -> None:
    """The paper's claims, asked of this run: pruning 40 to 80 % of the classes is lossless and 2 to 5 times as fast."""
    least = min(KEEP, key=float)
    row = next(r for r in suite.rows if r.case == "pretraining with pruning" and r.subject == shown("lm", least))
    assert row.ratio is not None
    suite.goal(f"speedup-at-{100 - 100 * float(least):.0f}", goal=2.0, measured=row.ratio, unit="x full, pruning included")
    for method in METHODS[:2]:
        pruned = [
            1 - float(keep) for keep in KEEP if work.mean(FULL.name, "lp") - work.mean(shown(method, keep), "lp") <= LOSS
        ]
        suite.goal(f"lossless-ratio-{method}", goal=0.4, measured=max(pruned, default=0.0), unit="of the classes, linear probe")
