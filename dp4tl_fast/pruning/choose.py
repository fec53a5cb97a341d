"""From scores to what is kept, for one target or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping.keep import Keep
from dp4tl_fast.mapping.registry import Scores
from dp4tl_fast.selection import rank


@dataclass(frozen=True)
class Choice:
    """``scores`` of all targets together; unit ids ``order`` (the best first, only units with records) and ``kept``."""

    scores: Scores
    order: np.ndarray
    kept: np.ndarray


def choose(
    scores: Sequence[Scores], weights: Sequence[int], sizes: np.ndarray, keep: Keep, merge: str, reverse: bool
) -> Choice:
    """Decide what to keep.

    Args:
        scores: One for each target.
        weights: Images of each target: what its tie-breaks (means over images) weigh in the sum.
        sizes: Records of every unit; a unit without records is never kept, so that it takes no place.
        keep: How much.
        merge: ``sum`` adds the targets' scores and cuts once; ``union`` cuts for each target and keeps what any keeps;
            ``turns`` lets the targets choose their best unit in turn and cuts once, so that a small target has as much
            say as a large one.
        reverse: Keep the worst instead (an ablation).

    Raises:
        UsageError: The rule cannot be satisfied; or each target keeps to the budget, but their union does not.
    """
    unit = scores[0].unit
    total = _sum(scores, weights)
    orders = [_order(s, sizes, reverse) for s in scores]
    order = _order(total, sizes, reverse)
    if merge == "turns":
        order = in_turn(orders)
    if merge == "union":
        parts = [o[: keep.cut(o, sizes, s.votes, unit, s.probability)] for o, s in zip(orders, scores, strict=True)]
        kept = np.unique(np.concatenate(parts))
        records, most = int(sizes[kept].sum()), keep.most(int(sizes.sum()))
        if records > most + 1e-9:
            raise UsageError(
                f"`merge=union`: the targets together keep {records} records, but the budget allows an epoch of {int(most)}. "
                "Use `merge=sum` or `merge=turns`, or a larger `budget`"
            )
    else:
        kept = order[: keep.cut(order, sizes, total.votes, unit, total.probability)]
    return Choice(total, order, kept)


@dataclass(frozen=True)
class KeptVotes:
    """The share of one target's votes that went to what is kept: of all its images, and of each class that has any."""

    share: float
    per_class: dict[str, float]

    def __str__(self) -> str:
        worst = sorted(self.per_class, key=self.per_class.__getitem__)[:3]
        least = ", ".join(f"{name} {self.per_class[name]:.0%}" for name in worst if self.per_class[name] < self.share)
        return f"{self.share:.0%} of the votes" + (f"; least of {least}" if least else "")


def kept_votes(scores: Scores, kept: np.ndarray, class_names: Sequence[str]) -> KeptVotes | None:
    """How well the kept units serve each class of the target; ``None`` for methods without votes."""
    if scores.votes_by_target_class is None:
        return None
    votes = scores.votes_by_target_class()
    ours, total = votes[:, kept].sum(1), votes.sum(1)
    shares = {class_names[c]: float(ours[c] / total[c]) for c in np.flatnonzero(total).tolist()}
    return KeptVotes(float(ours.sum() / total.sum()), shares)


def in_turn(orders: Sequence[np.ndarray]) -> np.ndarray:
    """The first of each order, the second of each, ...; every unit once, where it comes first."""
    flat = np.stack(orders, axis=1).reshape(-1)  # all orders hold the same units
    _, first = np.unique(flat, return_index=True)
    return flat[np.sort(first)]


def _order(scores: Scores, sizes: np.ndarray, reverse: bool) -> np.ndarray:
    order = rank(scores.values, scores.tie_breaks)
    order = order[sizes[order] > 0]
    return order[::-1] if reverse else order


def _sum(scores: Sequence[Scores], weights: Sequence[int]) -> Scores:
    if len(scores) == 1:
        return scores[0]

    def mean(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
        there = [part * w for part, w in zip(parts, weights, strict=True) if part is not None]
        return np.sum(there, axis=0) / sum(weights) if there else None

    votes = [s.votes for s in scores if s.votes is not None]
    return Scores(
        np.sum([s.values for s in scores], axis=0),
        scores[0].unit,
        mean([s.tie_breaks for s in scores]),
        np.sum(votes, axis=0) if votes else None,
        probability=mean([s.probability for s in scores]),
    )
