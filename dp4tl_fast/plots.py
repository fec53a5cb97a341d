"""Figures for reports, as matplotlib figures that work on light and dark backgrounds."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dp4tl_fast.selection import Selection

VOTING = ("lm", "fm", "ffmm")  # methods whose scores are target images
INK, KEPT, DROPPED, CUT = "#7a7a7a", "#2f7fd0", "#c2a27a", "#d0472f"  # readable on white and on near-black


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


def learning_curves(curves: dict[str, list[dict[str, float]]]) -> Figure:
    """Training loss over wall-clock seconds, one line a run; ``curves`` maps names to metrics.jsonl rows."""
    figure = _figure(9, 3.2)
    axes = figure.subplots()
    colours = {"full": "#7a7a7a", "lm": KEPT, "random": CUT}
    named: set[str] = set()
    for name, rows in curves.items():
        family = name.split("-")[0]
        label = family if family not in named else None
        named.add(family)
        seconds = np.cumsum([r["seconds"] for r in rows])
        axes.plot(seconds, [r["loss"] for r in rows], label=label, color=colours.get(family), lw=1.4, alpha=0.85)
    axes.set_xlabel("seconds of pretraining")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False, labelcolor=INK)
    _style(axes)
    figure.patch.set_alpha(0)
    return figure


def tradeoff(rows: list[dict[str, Any]], mode: str) -> Figure:
    """Accuracy on the target against seconds spent, selection included."""
    figure = _figure(4.4, 3.2)
    axes = figure.subplots()
    colours = {"full": "#7a7a7a", "lm": KEPT, "random": CUT}
    for row in rows:
        if row[f"{mode}_mean"] is None:
            continue
        x, y = row["pretrain_s"] + row["pruning_s"], 100 * row[f"{mode}_mean"]
        axes.errorbar(x, y, yerr=100 * (row[f"{mode}_std"] or 0), fmt="o", color=colours.get(row["name"]), capsize=3)
        axes.annotate(f" {row['name']} {row['classes_kept']}", (x, y), color=INK, fontsize=8, va="bottom")
    axes.set_xlim(left=0)
    axes.margins(x=0.2, y=0.2)
    axes.set_xlabel("seconds, selection included")
    axes.set_ylabel({"lp": "linear probe", "ff": "full finetuning"}[mode] + " top-1, %")
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
