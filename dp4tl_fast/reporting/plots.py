"""Figures for reports, as matplotlib figures that work on light and dark backgrounds."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dp4tl_fast.reporting.compare import recipe
from dp4tl_fast.selection import Selection

VOTING = ("lm", "fm", "ffmm")  # methods whose scores are target images
# Of Okabe and Ito's palette, which colour-blind readers tell apart; readable on white and on near-black.
INK, KEPT, DROPPED, CUT = "#7a7a7a", "#0072b2", "#c2a27a", "#d55e00"
COLOURS = {"full": INK, "lm": KEPT, "fm": "#009e73", "random": CUT}  # the same in every figure
MARKERS = {"full": "D", "lm": "o", "fm": "^", "random": "s"}
OTHERS = (("#c46a9b", "v"), ("#8a7a00", "P"), ("#3f8fc4", "X"), ("#7a5ad0", "*"))  # for further methods, in their order
STAGES = {"surrogate": "#c77c11", "scoring": "#a06cd5", "cached": "#b9a26a"}
MODES = {"lp": "linear probe", "ff": "full finetuning", "knn": "kNN probe"}


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.title.set_color(INK)
    axes.patch.set_alpha(0)


def class_scores(selection: Selection) -> Figure:
    """Score of every class from first to last kept, with the cut, and the share of all votes above each class."""
    order = selection.ranking()
    kept = np.isin(order, selection.kept_classes)
    label = "share of the class kept" if selection.records is not None else "score"
    label = "votes" if selection.method in VOTING and selection.records is None else label
    title = f"{selection.method}: {kept.sum()} of {len(order)} classes kept (blue)"
    return _bars(np.array(selection.scores)[order], kept, "source classes, by score", label, title)


def cluster_votes(selection: Selection) -> Figure | None:
    """Votes of every cluster, where clusters were voted for."""
    votes = np.array(selection.parameters.get("cluster_votes", []), float)
    if not len(votes):
        return None
    order = np.argsort(-votes, kind="stable")
    kept = np.isin(order, selection.parameters.get("kept_clusters", []))
    title = f"{selection.method}: {kept.sum()} of {len(order)} clusters kept (blue)"
    return _bars(votes[order], kept, "source clusters, by votes", "votes", title)


def _bars(scores: np.ndarray, kept: np.ndarray, x_label: str, y_label: str, title: str) -> Figure:
    """Bars from the first to the last unit and the cut behind the last kept one; below, the share of all votes so far."""
    places, cut = np.arange(len(scores)), int(np.flatnonzero(kept).max(initial=-1)) + 1
    shares = y_label == "votes" and scores.sum() > 0
    figure = _figure(9, 4.4 if shares else 3.2)
    axes, *below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2]) if shares else [figure.subplots()]
    axes.bar(places, scores, color=np.where(kept, KEPT, DROPPED), width=1.0)
    axes.set_ylabel(y_label)
    if y_label == "votes":
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
    for share in below:
        carried = 100 * np.cumsum(scores) / scores.sum()
        share.fill_between(places, carried, color=KEPT, alpha=0.25, where=places < cut, lw=0)
        share.plot(places, carried, color=KEPT, lw=1.6)
        share.plot([cut - 1], [carried[cut - 1]], "o", color=CUT, ms=5)
        share.set_ylabel("% of all votes")
        share.set_ylim(0, 105)
        title += f", with {100 * scores[kept].sum() / scores.sum():.0f} % of the votes"
    for each in (axes, *below):
        each.axvline(cut - 0.5, color=CUT, lw=1.2, ls="--")
        each.margins(x=0.01)
        _style(each)
    (below or [axes])[-1].set_xlabel(x_label)
    axes.set_title(title, fontsize=10)
    figure.patch.set_alpha(0)
    return figure


def _method(row: dict[str, Any]) -> str:
    return row.get("method") or row["name"]  # older rows are named by it


def _colours(methods: Iterable[str]) -> dict[str, str]:
    return COLOURS | {name: colour for name, (colour, _) in _others(methods).items()}


def _markers(methods: Iterable[str]) -> dict[str, str]:
    return MARKERS | {name: marker for name, (_, marker) in _others(methods).items()}


def _others(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of the methods that have none of their own."""
    return {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(sorted(set(methods) - COLOURS.keys()))}


def _clock(longest_s: float) -> tuple[float, str]:
    """Seconds in the unit for an axis that ends there, and the unit's name."""
    return (1, "seconds") if longest_s < 300 else (60, "minutes") if longest_s < 18_000 else (3600, "hours")


@dataclass(frozen=True)
class Curve:
    """One run over time: its selection's method, how to call it, seconds before its first step, its metrics.jsonl."""

    method: str
    name: str
    before_s: float
    epochs: list[dict[str, float]]


def learning_curves(curves: Sequence[Curve], value: str = "loss") -> Figure:
    """A metric (a name in metrics.jsonl) over wall-clock seconds, the selection's included; one line per run.

    Runs of one name look alike, and are named once.
    """
    figure = _figure(9, max(3.2, 0.6 + 0.17 * len({c.name for c in curves})))
    axes = figure.subplots()
    colours = _colours(c.method for c in curves)
    ends = {id(c): c.before_s + sum(r["seconds"] for r in c.epochs) for c in curves}
    unit, unit_name = _clock(max(ends.values()))
    percent = 1 if value == "loss" else 100
    names: dict[str, list[str]] = {}  # of each method: their dashes differ
    for curve in sorted(curves, key=lambda c: -ends[id(c)]):
        known = names.setdefault(curve.method, [])
        label = None if curve.name in known else curve.name
        known += [curve.name] if label else []
        clock = curve.before_s + np.cumsum([r["seconds"] for r in curve.epochs])
        at = [i for i, r in enumerate(curve.epochs) if value in r]
        axes.plot(
            clock[at] / unit, [percent * curve.epochs[i][value] for i in at], ("-", "--", "-.", ":")[known.index(curve.name) % 4],
            label=label, color=colours[curve.method], lw=1.4, alpha=0.85, marker="o" if len(at) < 2 else "", ms=4,
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{unit_name}, selection included")
    axes.set_ylabel("training loss" if value == "loss" else "validation top-1, %")
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _style(axes)
    figure.patch.set_alpha(0)
    return figure


def tradeoff(rows: list[dict[str, Any]], mode: str) -> Figure:
    """Accuracy on the target against time spent, selection included: one line per method, through the shares it keeps.

    The full run is a dashed line across, its spread over seeds a band. Rows of another recipe (architecture, objective,
    epochs) than the full run's are hollow, named by what differs, and joined only to their like.
    """
    rows = [r for r in rows if r.get(f"{mode}_mean") is not None]
    figure = _figure(6.4, 3.8)
    axes = figure.subplots()
    colours, markers, main = _colours(map(_method, rows)), _markers(map(_method, rows)), _main(rows)
    unit, unit_name = _clock(max(r["pretrain_s"] + r["pruning_s"] for r in rows))
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: r["classes_kept"]):
        lines.setdefault(", ".join([row["name"], *_apart(row, main)]), []).append(row)
    for label, line in sorted(lines.items(), key=lambda item: (item[0] != "full", rows.index(item[1][0]))):
        x = [(r["pretrain_s"] + r["pruning_s"]) / unit for r in line]
        y, spread = ([100 * (r[f"{mode}_{part}"] or 0) for r in line] for part in ("mean", "std"))
        method, apart = _method(line[0]), recipe(line[0]) != main
        colour = colours[method]
        axes.errorbar(x, y, yerr=spread, fmt=markers[method], ls=":" if apart else "-", ms=5, color=colour, lw=1.5,
                      elinewidth=1, capsize=3, mfc="none" if apart else colour, label=label)  # fmt: skip
        if label == "full":
            axes.axhline(y[0], color=colour, ls="--", lw=1)
            axes.axhspan(y[0] - spread[0], y[0] + spread[0], color=colour, alpha=0.12, lw=0)
        for row, *at, off in zip(line, x, y, spread, strict=True):
            above = _beside(row, rows, mode)
            if label != "full" and above is not None:
                axes.annotate(
                    _share(row, rows), (at[0], at[1] + (off if above else -off)), (0, 4 if above else -4), color=colour, fontsize=8,
                    textcoords="offset points", ha="center", va="bottom" if above else "top",
                )  # fmt: skip
    axes.set_xlim(left=0)
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel(f"{unit_name}, selection included")
    axes.set_ylabel(MODES[mode] + " top-1, %")
    legend = axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5),
                         title="% of classes kept", title_fontsize=8)  # fmt: skip
    legend.get_title().set_color(INK)
    _style(axes)
    figure.patch.set_alpha(0)
    return figure


def _main(rows: list[dict[str, Any]]) -> tuple[Any, ...]:
    """The recipe that a figure is about: the first full run's."""
    return recipe(next((r for r in rows if r["name"] == "full"), rows[0]))


def _apart(row: dict[str, Any], main: tuple[Any, ...]) -> list[str]:
    """What sets a row's recipe apart from the figure's, in words."""
    arch, objective, epochs, settings = recipe(row)
    words = [word for word, a, b in zip((arch, objective, f"{epochs} epochs"), recipe(row), main, strict=False) if a != b]
    return words + [f"{key.replace('_', ' ')} {value}" for key, value in settings if (key, value) not in main[-1]]


def described(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """What a row, or a run, is called among these rows."""
    return ", ".join([f"{row['name']} {_share(row, rows)}", *_apart(row, _main(rows))])


def _beside(row: dict[str, Any], rows: list[dict[str, Any]], mode: str) -> bool | None:
    """Where a point's label finds room: above the best of those that keep as much, below the worst, else nowhere."""
    like = [r for r in rows if r["classes_kept"] == row["classes_kept"] and recipe(r) == recipe(row)]
    like.sort(key=lambda r: -r[f"{mode}_mean"])
    return True if row is like[0] else False if row is like[-1] else None


def _share(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """How much of the classes a row keeps."""
    full = row.get("classes") or next((r["classes_kept"] for r in rows if r["name"] == "full"), None)
    return f"{100 * row['classes_kept'] / full:.0f} %" if full else f"{row['classes_kept']} classes"


def where_time_went(rows: list[dict[str, Any]]) -> Figure:
    """Stacked bars: each stage of the selection, and the pretraining, in percent of the full run's pretraining.

    In seconds where there is no full run, or one for some of several recipes only.
    """
    fulls = {recipe(r): r["pretrain_s"] for r in rows if r["name"] == "full"}
    whole = {recipe(r): next(iter(fulls.values())) if len(fulls) == 1 else fulls.get(recipe(r)) for r in rows}
    relative = None not in whole.values()
    figure = _figure(9, 0.9 + 0.3 * len(rows))
    axes = figure.subplots()
    colours, shown = _colours(map(_method, rows)), set[str]()
    for place, row in enumerate(rows):
        one, left = (whole[recipe(row)] or 0) / 100 if relative else 1.0, 0.0
        stages = row.get("pruning_stages_s") or {"selection": row["pruning_s"]}  # older rows have the sum alone
        for stage, seconds in sorted(stages.items(), key=lambda s: s[0] != "surrogate"):
            label = stage if seconds and stage not in shown else None
            shown |= {stage} if label else set()
            axes.barh(place, seconds / one, 0.7, left, label=label, color=STAGES.get(stage, DROPPED))
            left += seconds / one
        axes.barh(place, row["pretrain_s"] / one, 0.7, left, color=colours[_method(row)])
        left += row["pretrain_s"] / one
        faster = "" if row["speedup_with_pruning"] is None else f", {row['speedup_with_pruning']:.2f}x"
        axes.text(left, place, f"  {left:,.0f} {'%' if relative else 's'}{faster}", va="center", color=INK, fontsize=8)
    axes.set_yticks(range(len(rows)), [described(r, rows) for r in rows])
    axes.invert_yaxis()
    axes.margins(x=0.18)  # room for the numbers
    axes.set_xlabel("% of the full run's pretraining time" if relative else "seconds")
    if shown:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _style(axes)
    figure.patch.set_alpha(0)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save(figure: Figure, path: Path) -> None:
    """As PNG on white, for README files."""
    figure.patch.set_alpha(1)
    figure.patch.set_facecolor("white")
    figure.savefig(path, dpi=110)


def thumbnail(jpeg_or_rgb: np.ndarray, side: int = 48) -> str:
    """A data URI with an image scaled to ``side`` pixels. uint8 ``[h, w, 3]``."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(jpeg_or_rgb).resize((side, side), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
