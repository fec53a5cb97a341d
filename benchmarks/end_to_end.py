"""Is pretraining on a selection worth it? One source, five targets, at equal numbers of training steps and at equal time.

Full source, a fresh random subset in every epoch (RS2), random classes, label mapping, feature mapping, soft mapping and label
mapping reversed, at a quarter, a half and all of the full run's steps; linear probes. Each seed has a surrogate of its own, so
that the intervals hold its chance, too. The runs that need no target are shared by all. About 50 minutes per seed on two CPU
cores with ``--recipe small-16``; run parts of it with ``--cells``, ``--targets`` and ``--seeds`` and the same ``--work``, and at
the end ``--cells clock`` while the machine does nothing else: it measures what the times are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import fmean

from benchmarks.cells import Cell, chosen
from benchmarks.harness import Suite
from benchmarks.paired import Outcomes, total
from benchmarks.recipes import find
from benchmarks.study import Study, study
from dp4tl_fast.selection import Selection

TARGETS = ("carnivores", "vehicles", "food", "flowers", "cifar10")
SEEDS = (0, 1, 2)
QUARTER, BETWEEN, HALF, WHOLE = 0.25, 0.375, 0.5, 1.0
LARGE, MIDDLE, SMALL = 0.25, 0.125, 0.06  # shares of the records kept
LOSS = 0.5  # points of accuracy that count as nothing lost
LABELS = {QUARTER: "a quarter", BETWEEN: "three eighths", HALF: "half", WHOLE: "all"}  # of the full run's steps
BUDGETS = (QUARTER, HALF, WHOLE)  # of the full source; selections are also tried between
SPEED_UP_GOAL, POINTS_GOAL, INFOBATCH_GOAL = 2.0, 2.0, 1.3
CLOSE, AUTO_GOAL = 1.0, 4  # points; targets


def full(budget: float) -> Cell:
    return Cell(name="full", budget=budget)


def cells() -> list[Cell]:
    """All that is compared, in the order in which it is run: what answers the question comes first."""
    each = [cell for budget in (QUARTER, HALF) for cell in _short(budget)]
    each.insert(len(each) // 2, chosen("lm", LARGE, budget=QUARTER, name="lm reversed", reverse=True))
    longest = [chosen(method, share, budget=WHOLE) for method, share in (("lm", LARGE), ("lm", MIDDLE), ("random", LARGE))]
    between = [chosen("lm", share, budget=BETWEEN) for share in (LARGE, MIDDLE)]
    return [full(WHOLE), *each, *longest, *between, infobatch(QUARTER), infobatch(HALF)]


def automatic(epochs: float) -> Cell:
    """Label mapping with the cut that ``prune`` chooses for these epochs of the full source. It is not trained on: it is one of the
    sweep's, or ``_auto`` leaves it out."""
    return Cell(name=f"auto {epochs:g}", prune={"method": "lm", "keep": "auto", "budget": f"{epochs:g}epochs"})


def infobatch(budget: float) -> Cell:
    """Label mapping, and records that are learned are skipped: fewer images in as many epochs."""
    cell = chosen("lm", LARGE, budget=budget)
    return replace(cell, name=f"{cell.name} infobatch", train={"dynamic": "infobatch"})


def _short(budget: float) -> list[Cell]:
    weighted = {"method": "lm", "sample": "weighted", "keep": f"budget:{LARGE:g}"}
    return [
        full(budget),
        *(chosen(method, share, budget=budget) for share in (LARGE, MIDDLE) for method in ("random", "lm")),
        chosen("lm", SMALL, budget=budget),
        chosen("fm", LARGE, budget=budget),
        Cell(name="soft", budget=budget, prune=weighted),
        Cell(name="rs2", budget=budget, fresh=LARGE),
    ]


def run(suite: Suite) -> None:
    recipe = find(suite.recipe)
    with study(suite, recipe, TARGETS, ("lp",)) as work:
        every = cells()
        work.run_part(suite, every, TARGETS, SEEDS)
        seeds = sorted({*SEEDS, *suite.part.seeds})
        found = Outcomes(work.outcomes(every, seeds), len(TARGETS))
        _record(suite, work, found, every)
        for target in TARGETS:
            _compare(suite, found, every, target)
        _auto(suite, work, found, every)
        _infobatch(suite, found)
        work.describe(suite, seeds=len({o.seed for o in found.rows}))
        suite.tables["outcomes"] = [asdict(o) for o in found.rows]


def _record(suite: Suite, work: Study, found: Outcomes, every: Sequence[Cell]) -> None:
    """Rows of accuracies, times, and the surrogate."""
    for target in TARGETS:
        for budget, label in LABELS.items():
            runs = {c.name: list(o.values()) for c in every if c.budget == budget and (o := found.of(c.id, target))}
            if runs:
                case = f"{target}, {label} of the full run's steps"
                suite.add(case, {name: [o.top_1["lp"] for o in each] for name, each in runs.items()}, "% top-1")
                times = {name: [total(o, 1 / found.sharing) for o in each] for name, each in runs.items()}
                suite.add(f"{case}: time, surrogate shared", times, "s")
    if known := work.known("surrogate", sorted({o.seed for o in found.rows})):
        suite.add("surrogate's training", {"surrogate": [k["pretrain_s"] for k in known]}, "s")
        top_1 = [100 * k["val_top_1"] for k in known]
        suite.add("surrogate on the source's validation images", {"surrogate": top_1}, "% top-1")


def pruned(every: Sequence[Cell]) -> list[str]:
    """Cells that the mapping methods chose."""
    return [c.id for c in every if not c.shared and "reversed" not in c.name]


def sweep(budget: float, every: Sequence[Cell]) -> list[Cell]:
    """The cuts of label mapping that ``auto`` chooses from."""
    cuts = [chosen("lm", share, budget=budget).id for share in (LARGE, MIDDLE, SMALL)]
    return [cell for cell in every if cell.id in cuts]


def rivals(cell: Cell) -> list[str]:
    """What a cell is compared with: the full source, and the random choice of as much, for as many steps."""
    if cell.train:  # what it adds to the same selection
        return [chosen("lm", LARGE, budget=cell.budget).id]
    method, _, share = cell.slug.rpartition("-")
    other = {"lm": "random", "fm": "random", "lm-reversed": "lm"}.get(method)
    same = [f"{other}-{share}@{cell.budget:g}"] if other else []
    return ([full(cell.budget).id] if cell.prune or cell.fresh else []) + same


def _compare(suite: Suite, found: Outcomes, every: Sequence[Cell], target: str) -> None:
    """Paired differences, times to accuracy, and goals of one target, as far as their runs are finished."""
    differences = suite.tables.setdefault("differences", [])
    for cell in every:
        for against in rivals(cell):
            if difference := found.paired(cell.id, against, target):
                differences.append({"target": target, "cell": cell.id, "against": against, **asdict(difference)})
    main, fulls = chosen("lm", LARGE, budget=QUARTER).id, [full(budget).id for budget in BUDGETS]
    if difference := found.paired(main, chosen("random", LARGE, budget=QUARTER).id, target):
        suite.goal(f"vs-random-{target}", goal=POINTS_GOAL, measured=difference.points, unit="points at equal steps")
    if difference := found.over_equal_time(main, fulls, target, 1 / found.sharing):
        differences.append({"target": target, "cell": main, "against": "full, equal time", **asdict(difference)})
        suite.goal(f"vs-full-equal-time-{target}", goal=POINTS_GOAL, measured=difference.points, unit="points, everything counted")
    tried_longer = any(found.of(cell.id, target) for cell in every if cell.id in pruned(every) and cell.budget > QUARTER)
    if found.of(full(WHOLE).id, target) and tried_longer:  # else most times to an accuracy are longer than any run
        shares = {"without the surrogate": 0.0, "surrogate shared by all targets": 1 / found.sharing, "surrogate for this one": 1.0}
        first = {name: found.first_within(LOSS, full(WHOLE).id, pruned(every), target, s) for name, s in shares.items()}
        case = f"{target}: full run's time over the time to its accuracy less {LOSS}"
        suite.add(case, {name: [x] for name, (_, x) in first.items()}, "x")
        suite.tables.setdefault("speed-ups", []).extend(
            {"target": target, "counted": name, "cell": cell, "speed_up": x} for name, (cell, x) in first.items()
        )
        shared = first["surrogate shared by all targets"][1]
        suite.goal(f"lossless-speedup-{target}", goal=SPEED_UP_GOAL, measured=shared, unit="x, everything counted")


def _auto(suite: Suite, work: Study, found: Outcomes, every: Sequence[Cell]) -> None:
    """On how many targets the cut that ``prune`` chooses comes close to the best of the sweep."""
    for budget in BUDGETS:
        best, label = {}, LABELS[budget]
        for target in TARGETS:
            cuts = [cell for cell in sweep(budget, every) if found.of(cell.id, target)]
            picked = _picked(work, found, cuts, target) if len(cuts) > 1 else []
            if picked:
                best[target] = fmean(picked) - max(found.accuracy(cell.id, target) for cell in cuts)
        if best:
            case = f"auto less the best cut, {label} of the full run's steps"
            suite.add(case, {t: [points] for t, points in best.items()}, "points")
            close = sum(points >= -CLOSE for points in best.values())
            suite.goal(f"auto-{budget:g}", goal=AUTO_GOAL, measured=close, unit=f"targets within {CLOSE:g} point of the best cut")


def _picked(work: Study, found: Outcomes, cuts: Sequence[Cell], target: str) -> list[float]:
    """Accuracies of the cut that is ``automatic`` with each seed; none if it is not among these for one."""
    accuracies, auto = [], automatic(cuts[0].budget * work.network["epochs"])
    for seed in found.of(cuts[0].id, target):
        paths = [work.select(cell, target, seed) for cell in (auto, *cuts)]
        kept, *of_cuts = [Selection.load(path).kept_classes for path in paths if path]
        same = [cell.id for cell, its in zip(cuts, of_cuts, strict=True) if its == kept]
        if not same or seed not in found.of(same[0], target):
            return []
        accuracies.append(found.of(same[0], target)[seed].top_1["lp"])
    return accuracies


def _infobatch(suite: Suite, found: Outcomes) -> None:
    """How many fewer images are read, and what it costs, over all targets."""
    for budget, label in LABELS.items():
        cell, without = infobatch(budget).id, chosen("lm", LARGE, budget=budget).id
        targets = [t for t in TARGETS if found.of(cell, t) and found.of(without, t)]
        if targets:
            points = fmean(found.accuracy(cell, t) - found.accuracy(without, t) for t in targets)
            images = [fmean(o.images for t in targets for o in found.of(c, t).values()) for c in (without, cell)]
            case, fewer = f"infobatch, {label} of the full run's steps", images[0] / images[1]
            suite.add(f"{case}: accuracy less that without", {"all targets": [points]}, "points")
            suite.add(f"{case}: images without over images with", {"all targets": [fewer]}, "x")
            lossless = fewer if points >= -LOSS else 1.0
            suite.goal(f"infobatch-{budget:g}", goal=INFOBATCH_GOAL, measured=lossless, unit=f"x fewer images within {LOSS} points")
