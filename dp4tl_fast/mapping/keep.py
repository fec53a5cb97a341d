"""How many units to keep. A unit is what a method scores: a class, a cluster or a single record."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from dp4tl_fast.common.errors import UsageError

AUTO_SHARE, CONFIDENCE, RESAMPLES = 0.9, 0.95, 200
REPEATS = 12.0  # epochs in which an image teaches 63 % of what it can
AMOUNTS = re.compile(r"(\d+\.?\d*|\.\d+) ?(epochs?|images?|hours?)?")  # "8", "8epochs", "500000images", "1.5 hours"


@dataclass(frozen=True, slots=True)
class Keep:
    """A rule, parsed.

    Attributes:
        rule: ``fraction`` of the units (rounded up, so that at least one is kept); ``count`` of them; ``samples``, the
            fewest units with at least that fraction of all records; ``budget``, the most units with at most that fraction
            (the cost of an epoch is proportional to its records); or ``auto``, see ``auto_cut``.
        value: The fraction, the number, or the share of the votes.
        text: As it was given.
    """

    rule: str
    value: float
    text: str

    @staticmethod
    def parse(text: str) -> Keep:
        """``0.4``, ``400`` (``1`` is one unit, ``1.0`` all), ``samples:F``, ``budget:F``, ``auto`` or ``auto:F``.

        Raises:
            UsageError: It is none of these.
        """
        rule, colon, value = text.partition(":")
        if rule == "auto":
            return Keep("auto", _fraction(text, value) if colon else AUTO_SHARE, text)
        if rule in ("samples", "budget"):
            return Keep(rule, _fraction(text, value), text)
        if text.strip().isdigit():
            if int(text) == 0:
                raise UsageError("`keep=0`: keeps nothing. Give a whole number from 1, or a fraction above 0")
            return Keep("count", int(text), text)
        fraction = _number(text)
        if not 0 < fraction <= 1:
            raise UsageError(
                f"`keep={text}`: give a fraction above 0 and at most 1.0, a whole number of classes (clusters, records), "
                "samples:FRACTION, budget:FRACTION, auto or auto:FRACTION"
            )
        return Keep("fraction", fraction, text)

    @staticmethod
    def within(budget: str, images_per_s: float) -> Keep:
        """The cut that is best for a budget of pretraining (``budget_cut``): ``8`` or ``8epochs`` of the full source,
        ``500000images``, or ``1.5hours`` at ``images_per_s``.

        Raises:
            UsageError: It is none of these, or 0; or hours without a rate.
        """
        match = AMOUNTS.fullmatch(budget)
        value, unit = (_number(match[1]), (match[2] or "epochs").rstrip("s")) if match else (0.0, "")
        if not 0 < value < math.inf:
            raise UsageError(f"`budget={budget}`: give epochs of the full source (8epochs), images (500000images) or hours above 0")
        if unit == "epoch":
            return Keep("epochs", value, f"auto within {budget}")
        if unit == "hour":
            if not images_per_s > 0:
                raise UsageError(f"`budget={budget}`: how many images are that? Give `images_per_s`, the rate of the pretraining")
            value *= 3600 * images_per_s
        return Keep("images", value, f"auto within {budget}")

    def images(self, records: int) -> int:
        """Images that a budget allows, of a source of so many ``records``; 0 for other rules."""
        return int(self.value * (records if self.rule == "epochs" else 1)) if self.rule in ("epochs", "images") else 0

    def cut(
        self, order: np.ndarray, sizes: np.ndarray, votes: np.ndarray | None, unit: str = "classes", seed: int = 0
    ) -> int:
        """How many units of ``order`` to keep.

        Args:
            order: Ids of the units that have records, the best first.
            sizes: Records per unit, int64 ``[units]``.
            votes: Target images that chose each unit, int64 ``[units]``; ``None`` for methods without votes.
            unit: Name of the units, for messages.
            seed: Of the bootstrap of ``auto``.

        Raises:
            UsageError: The rule cannot be satisfied, or needs votes.
        """
        if self.rule == "auto":
            if votes is None:
                raise UsageError("`keep=auto`: this method has no votes to decide by. Give a fraction or a number")
            return auto_cut(order, votes, self.value, seed)
        if images := self.images(int(sizes.sum())):
            if votes is None:
                raise UsageError("`keep=auto`: this method has no votes to decide by. Give a fraction or a number")
            return budget_cut(order, votes, sizes, images, unit)
        if self.rule == "fraction":
            return max(1, math.ceil(self.value * len(order) - 1e-9))
        if self.rule == "count":
            if self.value > len(order):
                raise UsageError(
                    f"`keep={self.text}`: a number of {unit} must be from 1 to the source's {len(order)} that have records"
                )
            return int(self.value)
        limit, total = self.value * sizes.sum(), np.cumsum(sizes[order])
        if self.rule == "samples":
            return min(int((total < limit - 1e-9).sum()) + 1, len(order))
        count = int((total <= limit + 1e-9).sum())
        if count == 0:
            raise UsageError(
                f"`keep={self.text}`: keeps nothing, as the first of the {unit} alone has {total[0]} of {sizes.sum()} records"
            )
        return count


def auto_cut(order: np.ndarray, votes: np.ndarray, share: float, seed: int = 0) -> int:
    """The number of units that have ``share`` of the votes, with confidence over the choice of target images.

    The target set is a sample. The bootstrap draws as many votes again from the observed distribution (``RESAMPLES``
    times), ranks the units by the draw, and counts how many of the first ones are needed to have ``share`` of the
    *observed* votes: a draw that ranks the tail wrongly needs more. The result is the ``CONFIDENCE`` quantile of these
    counts: in that proportion of the draws, the kept units would have been enough. A target whose votes spread over many
    classes keeps many, and so does a small target, whose ranking is uncertain.
    """
    ranked = votes[order]  # draws are ranked stably: equal votes keep the order of the scores
    n = int(ranked.sum())
    if n == 0:
        raise UsageError("`keep=auto`: no target image voted for a unit that has records. Give a fraction or a number")
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(n, ranked / n, size=RESAMPLES)
    needed = []
    for draw in draws:
        carried = np.cumsum(ranked[np.argsort(-draw, kind="stable")])
        needed.append(int((carried < share * n - 1e-9).sum()) + 1)
    return int(np.quantile(needed, CONFIDENCE, method="higher"))


def budget_cut(order: np.ndarray, votes: np.ndarray, sizes: np.ndarray, images: int, unit: str = "classes") -> int:
    """Units worth keeping for a pretraining that sees ``images`` images, repeated ones counted: the k of the largest

        U(k) = V(k) (1 - exp(-E(k) / REPEATS)),   E(k) = images / S(k)

    for the share V(k) of the votes that the first k carry and the number S(k) of their records: what fraction of the target the
    kept classes serve, times how much of what they can teach is learned in the E(k) epochs that the budget allows. The less time
    there is, the fewer classes are kept (arXiv 2305.12224 on classes against images per class; the exponential of repeats is
    that of arXiv 2305.16264). A cut is at least two units and one epoch of them.

    REPEATS was set by hand by the sweeps of ``python -m benchmarks end_to_end``: five targets of Tiny-ImageNet, budgets of two and
    four epochs, a surrogate of 12 % top-1. With 30 the cut was too narrow for most of them.

    Raises:
        UsageError: No vote, or not even one epoch of the first two fits.
    """
    ranked, records = votes[order].astype(np.float64), np.cumsum(sizes[order]).astype(np.float64)
    if ranked.sum() == 0:
        raise UsageError("`keep=auto`: no target image voted for what has records. Give a fraction or a number")
    least = min(2, len(order))
    fits = (records <= images) & (np.arange(1, len(order) + 1) >= least)
    if not fits.any():
        raise UsageError(
            f"`budget`: {images} images are not one epoch of the first two {unit}, which have {int(records[least - 1])} records. "
            "Give a larger one"
        )
    worth = np.cumsum(ranked) / ranked.sum() * -np.expm1(-images / records / REPEATS)
    return int(np.where(fits, worth, -1).argmax()) + 1


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _fraction(text: str, value: str) -> float:
    fraction = _number(value)
    if not 0 < fraction <= 1:
        raise UsageError(f"`keep={text}`: the part after the colon must be a fraction above 0 and at most 1")
    return fraction
