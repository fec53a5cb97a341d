"""What a comparison found, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dp4tl_fast.reporting.compare import MODES, recipe

NAMES = {"lp": "in the linear probe", "ff": "after full finetuning", "knn": "by kNN", "val": "on the source's validation set"}
TOLERANCE = 0.005  # of accuracy: where seeds tell no larger spread, a loss below it is none


def finding(rows: Sequence[dict[str, Any]]) -> str:
    """The fastest pruned run that loses nothing to the full run, else the most accurate, beside the full run and chance.

    Losing nothing is an accuracy at most ``TOLERANCE``, or the full run's standard deviation over seeds, below the full run's.
    Times count everything: training the surrogate, scoring, selecting, pretraining. Of several targets it is the first.
    """
    full = next((r for r in rows if r["method"] == "full"), None)
    if full is None:
        return f"{_rows(rows)}, none of them on the full source: nothing to compare with." if rows else ""
    like = [r for r in rows if recipe(r) == recipe(full) and r["target"] == full["target"]]
    mode = next((m for m in (*MODES, "val") if all(_mean(r, m) is not None for r in like)), "")
    pruned = [r for r in like if r["method"] != "full" and r["speedup_with_pruning"]]
    chosen = [r for r in pruned if not r["method"].startswith("random")] or pruned
    if not chosen:
        reached = f": {_percent(full, mode)} {NAMES[mode]}" if mode else ""
        return f"{_rows(rows)}, none on a selection by the recipe of the full run{reached}."
    best = _best(chosen, full, mode)
    pace = f"{best['speedup_with_pruning']:.2f}x as fast as on all of them, everything counted"
    sentence = f"Pretraining on {_share(best)} of the classes ({best['name']}) was {pace}"
    if not mode:
        return f"{sentence}; no accuracy was measured for all of these runs."
    where = f" of {full['target']}" if len({r["target"] for r in rows}) > 1 else ""
    sentence += f", and reached {_percent(best, mode)} {NAMES[mode]}{where}, against {_percent(full, mode)} with all classes"
    chance = next((r for r in pruned if r["method"].startswith("random") and r["classes_kept"] == best["classes_kept"]), None)
    if chance is not None and chance is not best:
        sentence += f" and {_percent(chance, mode)} with as many at random"
    seeds = min(r["runs"] for r in (best, full, chance or full))
    return f"{sentence} ({seeds} seed{'s' * (seeds > 1)})."


def _best(rows: list[dict[str, Any]], full: dict[str, Any], mode: str) -> dict[str, Any]:
    if not mode:
        return max(rows, key=lambda r: r["speedup_with_pruning"])
    least = full[f"{mode}_mean"] - max(TOLERANCE, full[f"{mode}_std"] or 0)
    lossless = [r for r in rows if r[f"{mode}_mean"] >= least]
    if lossless:
        return max(lossless, key=lambda r: r["speedup_with_pruning"])
    return max(rows, key=lambda r: r[f"{mode}_mean"])


def _mean(row: dict[str, Any], mode: str) -> float | None:
    return row.get(f"{mode}_mean")


def _percent(row: dict[str, Any], mode: str) -> str:
    spread = row[f"{mode}_std"]
    return f"{100 * row[f'{mode}_mean']:.1f}{'' if spread is None else f' ± {100 * spread:.1f}'} %"


def _share(row: dict[str, Any]) -> str:
    kept, classes = row["classes_kept"], row["classes"]
    return f"{100 * kept / classes:.0f} %" if classes else str(kept)  # older runs do not tell


def _rows(rows: Sequence[dict[str, Any]]) -> str:
    runs = sum(r["runs"] for r in rows)
    return f"{runs} pretraining run{'s' * (runs != 1)}"
