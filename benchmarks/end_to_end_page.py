"""The README's part on ``end_to_end``: tables and a picture, from a committed result file of that suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.cells import Outcome
from benchmarks.end_to_end import BUDGETS, LABELS, LARGE, LOSS, QUARTER, SPEED_UP_GOAL, WHOLE, chosen, full
from benchmarks.paired import Outcomes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "docs/end-to-end.png"
NAMES = {"full": "full", "rs2": "RS2", "soft": "soft"}
MAIN = chosen("lm", LARGE, budget=QUARTER)
# Of the columns.
ORDER = ("full", "rs2", "random 25 %", "random 12.5 %", "lm 25 %", "lm 12.5 %", "lm 6 %", "fm 25 %", "soft")
LEFT_OUT = ("reversed", "infobatch")  # RESULTS.md has them
WIDER = (*LEFT_OUT, "rs2", "random 12.5", "fm", "soft")  # what the table of the wider network leaves out
LINES = ("full", "rs2", "random 25 %", "lm 25 %", "lm 12.5 %", "lm 6 %", "fm 25 %", "soft")  # of the picture, in their colours
COLOURS = ("#7a7a7a", "#b9a26a", "#d0472f", "#2f7fd0", "#1f5a96", "#7fb4e6", "#1a9e7a", "#a06cd5")
MARKERS = ("D", "v", "s", "o", "o", "o", "^", "P")

Table = tuple[list[str], list[list[str]]]  # header, lines


def outcomes(result: dict[str, Any]) -> list[Outcome]:
    return [Outcome(**row) for row in result["tables"]["end_to_end"]["outcomes"]]


def markdown(result: dict[str, Any]) -> str:
    """Accuracies at a quarter of the full run's steps, what that means, and what was measured."""
    rows, tables, settings = outcomes(result), result["tables"]["end_to_end"], result["settings"]["end_to_end"]
    targets = list(dict.fromkeys(o.target for o in rows))
    found = f"{_headline(tables, targets)} {_auto(result['goals'], targets)}".strip()
    return "\n".join([
        found, "", _table(*_accuracies(rows, targets, LEFT_OUT)), "", _table(*_gains(rows, tables, targets)), "",
        f"![Linear-probe accuracy against total time, for every target]({PICTURE})", "",
        _about(rows, settings, result["environment"]["machine"]), "",
    ])  # fmt: skip


def wider(result: dict[str, Any]) -> str:
    """The same for another network, shorter: the columns that answer the question, and one table."""
    rows, tables, settings = outcomes(result), result["tables"]["end_to_end"], result["settings"]["end_to_end"]
    targets = list(dict.fromkeys(o.target for o in rows))
    seeds = len({o.seed for o in rows})
    columns, lines = _accuracies(rows, targets, WIDER)
    gained, gains = _gains(rows, tables, targets)
    more = [i for i, name in enumerate(gained) if i and "equal" not in name]
    header = [*columns, *(f"{_shown(MAIN.name)} {gained[i]}" if i == more[0] else gained[i] for i in more)]
    table = _table(header, [[*line, *(gain[i] for i in more)] for line, gain in zip(lines, gains, strict=True)])
    text = (
        f"The same for {settings['network']['arch']}, which is twice as wide, at a quarter of the full run's steps (means of "
        f"{seeds} seed{'s' if seeds > 1 else ''}; differences in points, with 95 % intervals; speed-ups by the fastest of all runs "
        "on a selection)."
    )
    if close := _close(result["goals"], targets):
        text += (
            " The constants of `prune --keep auto` were set on the runs above, and the one for long runs on these, too: its cut is "
            f"within a point of the best of those tried on {close} of the steps."
        )
    return "\n".join([text, "", table, ""])


def _headline(tables: dict[str, Any], targets: Sequence[str]) -> str:
    """What was found, in two sentences."""
    alike = [s for s in tables.get("speed-ups", []) if s["counted"] == "surrogate shared by all targets"]
    speed_ups = {s["target"]: s["speed_up"] for s in alike}
    faster = {t: x for t, x in speed_ups.items() if x >= SPEED_UP_GOAL}
    slower = [f"{t} ({x:.1f} times)" if x else f"{t} (not reached)" for t, x in speed_ups.items() if t not in faster]
    points = {key: _range(tables.get("differences", []), *key) for key in (
        (MAIN.id, chosen("random", LARGE, budget=QUARTER).id), (chosen("lm", LARGE, budget=WHOLE).id, full(WHOLE).id)
    )}  # fmt: skip
    at_quarter, at_whole = points.values()
    sentences = []
    if faster:
        times = f"{min(faster.values()):.1f} to {max(faster.values()):.1f} times"
        sentences.append(
            f"**Pretraining on a selection comes within {LOSS} points of the full run's linear-probe accuracy {times} as fast on "
            f"{len(faster)} of {len(targets)} targets, all costs included**{'; not on ' + ', '.join(slower) if slower else ''}."
        )
    if at_quarter:
        main = f"At {LABELS[QUARTER]} of the full run's steps, {_shown(MAIN.name)}"
        sentences.append(f"{main} gains {at_quarter} points over a random selection of the same size.")
    if at_whole:
        sentences.append(f"Trained for as many steps as the full run, it gains {at_whole} points over that run.")
    return " ".join(sentences)


def _auto(goals: Sequence[dict[str, Any]], targets: Sequence[str]) -> str:
    """How good the cut is that ``prune`` chooses."""
    if not (close := _close(goals, targets)):
        return ""
    return (
        "The cut chosen by `prune --keep auto`, whose constants were set on these runs, is within a point of the best of the "
        f"three cuts on {close} of the steps."
    )


def _close(goals: Sequence[dict[str, Any]], targets: Sequence[str]) -> str:
    """On how many targets ``auto`` comes close to the best cut, at each length of the runs."""
    measured = {goal["id"]: goal["measured"] for goal in goals}
    close = {LABELS[b]: measured[f"end_to_end/auto-{b:g}"] for b in BUDGETS if f"end_to_end/auto-{b:g}" in measured}
    return ", ".join(f"{n:.0f} of {len(targets)} targets at {label}" for label, n in close.items())


def _range(differences: Sequence[dict[str, Any]], cell: str, against: str) -> str:
    points = [d["points"] for d in differences if (d["cell"], d["against"]) == (cell, against)]
    return f"{min(points):+.1f} to {max(points):+.1f}" if points else ""


def _accuracies(rows: Sequence[Outcome], targets: Sequence[str], left_out: Sequence[str]) -> Table:
    order = {name: i for i, name in enumerate(ORDER)}
    names = {o.name for o in rows if o.budget == QUARTER and not any(word in o.name for word in left_out)}
    short = sorted(names, key=lambda name: (order.get(name, len(order)), name))
    found = Outcomes(rows, len(targets))
    header = ["linear probe, %", *(_shown(name) for name in short), "full, 4x the steps"]
    lines = []
    for target in targets:
        means = [_mean(found, f"{_slug(rows, name)}@{QUARTER:g}", target) for name in short]
        best = max(m for m in means if m is not None)
        cells = ["" if m is None else f"**{m:.1f}**" if m == best else f"{m:.1f}" for m in means]
        whole = _mean(found, full(WHOLE).id, target)
        lines.append([target, *cells, "" if whole is None else f"{whole:.1f}"])
    return header, lines


def _gains(rows: Sequence[Outcome], tables: dict[str, Any], targets: Sequence[str]) -> Table:
    """Paired differences with their intervals, and the times to the full run's accuracy."""
    differences = {(d["target"], d["cell"], d["against"]): d for d in tables.get("differences", [])}
    speed_ups = {(s["target"], s["counted"]): s for s in tables.get("speed-ups", [])}
    random = chosen("random", LARGE, budget=QUARTER).id
    header = [
        f"{_shown(MAIN.name)}, points", "over random", "over full, equal steps", "over full, equal time",
        f"speed-up to full's accuracy less {LOSS}", "for one target alone", "reached by",
    ]  # fmt: skip
    lines = []
    for target in targets:
        points = [_points(differences.get((target, MAIN.id, other))) for other in (random, full(QUARTER).id, "full, equal time")]
        shared = speed_ups.get((target, "surrogate shared by all targets"))
        alone = speed_ups.get((target, "surrogate for this one"))
        by = next((_shown(o.name) + _of_steps(o) for o in rows if shared and o.cell == shared["cell"]), "")
        lines.append([target, *points, _speed_up(shared), _speed_up(alone), by])
    return header, lines


def _of_steps(outcome: Outcome) -> str:
    return f", {LABELS[outcome.budget]} of the steps"


def _points(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    interval = "" if difference["low"] is None else f" [{difference['low']:+.1f}, {difference['high']:+.1f}]"
    return f"{difference['points']:+.1f}{interval}"


def _speed_up(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['speed_up']:.1f}x" if row["cell"] else "not reached"


def _about(rows: Sequence[Outcome], settings: dict[str, Any], machine: str) -> str:
    alike: dict[str, list[str]] = {}
    for name, what in settings["targets"].items():
        alike.setdefault(what, []).append(name)
    targets = "; ".join(f"{', '.join(names)}: {what}" for what, names in alike.items())
    network, seeds = settings["network"], len({o.seed for o in rows})
    sharing = len(settings["targets"])
    surrogate = fmean(o.surrogate_s for o in rows if o.surrogate_s) if any(o.surrogate_s for o in rows) else 0.0
    whole = [o.pretrain_s for o in rows if o.cell == full(WHOLE).id]
    share = f", {100 * surrogate / fmean(whole):.0f} % of the full run's time" if whole else ""
    return (
        f"{network['arch']} is pretrained on Tiny-ImageNet ({settings['source']}) at {network['size']} pixels; the full run takes "
        f"{network['epochs']} epochs. Means of {seeds} pretraining seed{'s' if seeds > 1 else ''}; differences are paired by seed, "
        f"with 95 % intervals (Student's t) in brackets. In the first table, all columns but the last use the same number of "
        f"steps. Times ({settings['times']}) include training the surrogate ({surrogate:.0f} s{share}; shared by {sharing} "
        f"targets, or for one alone), scoring and pretraining. The last three columns of the second table are for the fastest of "
        f"all runs on a selection, chosen by the same accuracies. Targets: {targets}. {machine}."
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Linear probe over time, everything counted; a panel per target."""
    from dp4tl_fast.reporting import plots

    plots.save(figure(outcomes(result)), path)


def figure(rows: Sequence[Outcome]) -> Figure:
    from matplotlib.figure import Figure

    targets = list(dict.fromkeys(o.target for o in rows))
    found = Outcomes(rows, len(targets))
    result = Figure(figsize=(4.0 * min(3, len(targets)), 3.1 * -(-len(targets) // 3)), layout="constrained")
    panels = result.subplots(-(-len(targets) // 3), min(3, len(targets)), squeeze=False).flat
    for target, axes in zip(targets, panels, strict=False):
        for name, colour, marker in zip(LINES, COLOURS, MARKERS, strict=True):
            cells = [c for c in dict.fromkeys(o.cell for o in rows if o.name == name) if found.of(c, target)]
            points = sorted((found.seconds(c, target, 1 / found.sharing), found.accuracy(c, target)) for c in cells)
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, ms=4.5, lw=1.3, color=colour, label=_shown(name))
        if (whole := _mean(found, full(WHOLE).id, target)) is not None:
            axes.axhline(whole - LOSS, color=COLOURS[0], ls="--", lw=0.9, label=f"full run's accuracy less {LOSS}")
        axes.set_title(target, fontsize=10)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds, everything counted")
        axes.set_ylabel("linear probe, %")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in result.axes[len(targets) :]:
        axes.set_axis_off()
    handles, labels = result.axes[0].get_legend_handles_labels()
    free = len(result.axes) > len(targets)  # a panel without a target has room for the legend
    result.axes[-1 if free else 0].legend(handles, labels, frameon=False, fontsize=9, loc="center" if free else "best")
    return result


def _mean(found: Outcomes, cell: str, target: str) -> float | None:
    return found.accuracy(cell, target) if found.of(cell, target) else None


def _slug(rows: Sequence[Outcome], name: str) -> str:
    return next(o.cell for o in rows if o.name == name).split("@")[0]


def _shown(name: str) -> str:
    return NAMES.get(name, name.replace("lm", "LM").replace("fm", "FM"))


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = [":--"] + ["--:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))
