"""How many units to keep. A unit is what a method scores: a class, a cluster or a single record."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from dp4tl_fast.common.errors import UsageError

COVERED, ASKED_FOR, SEEN = 0.6, 1.5, 0.7  # of ``auto_cut``
AMOUNTS = re.compile(r"(\d+\.?\d*|\.\d+) ?(epochs?|images?|hours?)?")  # "8", "8epochs", "500000images", "1.5 hours"


@dataclass(frozen=True, slots=True)
class Keep:
    """A rule, parsed.

    Attributes:
        rule: ``fraction`` of the units (rounded up, so that at least one is kept); ``count`` of them; ``samples``, the
            fewest units with at least that fraction of all records; ``budget``, the most units with at most that fraction
            (the cost of an epoch is proportional to its records); or ``auto``, see ``auto_cut``.
        value: The fraction or the number.
        text: As it was given.
    """

    rule: str
    value: float
    text: str

    @staticmethod
    def parse(text: str) -> Keep:
        """``0.4``, ``400`` (``1`` is one unit, ``1.0`` all), ``samples:F``, ``budget:F`` or ``auto``.

        Raises:
            UsageError: It is none of these.
        """
        rule, colon, value = text.partition(":")
        if rule == "auto":
            if colon:
                raise UsageError(f"`keep={text}`: auto takes no number. Give auto, or a fraction of the classes")
            return Keep("auto", 0, text)
        if rule in ("samples", "budget"):
            return Keep(rule, _fraction(rule, value), text)
        if text.strip().isdecimal():
            if int(text) == 0:
                raise UsageError("`keep=0`: keeps nothing. Give a whole number from 1, or a fraction above 0")
            return Keep("count", int(text), text)
        fraction = _number(text)
        if not 0 < fraction <= 1:
            raise UsageError(
                f"`keep={text}`: give a fraction above 0 and at most 1.0, a whole number of classes (clusters, records), "
                "samples:FRACTION, budget:FRACTION or auto"
            )
        return Keep("fraction", fraction, text)

    @staticmethod
    def within(budget: str, images_per_s: float) -> Keep:
        """``auto`` for a pretraining of this length: ``8`` or ``8epochs`` of the full source, ``500000images``, or ``1.5hours`` at
        ``images_per_s``.

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
                raise UsageError(f"`budget={budget}`: hours need a rate. Give `images_per_s`, that of the pretraining")
            value *= 3600 * images_per_s
        return Keep("images", value, f"auto within {budget}")

    def images(self, records: int) -> int:
        """Images that a budget allows, of a source of so many ``records``; 0 for other rules."""
        return int(self.value * (records if self.rule == "epochs" else 1)) if self.rule in ("epochs", "images") else 0

    def most(self, records: int) -> float:
        """Records that an epoch may have under a budget of either kind, of a source of so many; no limit under other rules."""
        return self.value * records if self.rule == "budget" else self.images(records) or math.inf

    def cut(
        self, order: np.ndarray, sizes: np.ndarray, votes: np.ndarray | None, unit: str = "classes",
        probability: np.ndarray | None = None,
    ) -> int:  # fmt: skip
        """How many units of ``order`` to keep.

        Args:
            order: Ids of the units that have records, the best first.
            sizes: Records per unit, int64 ``[units]``.
            votes: Target images that chose each unit, int64 ``[units]``; ``None`` for methods without votes.
            unit: Name of the units, for messages.
            probability: What each unit has of the target by the surrogate's outputs, float64 ``[units]``; ``None`` where only votes
                are known.

        Raises:
            UsageError: The rule cannot be satisfied, or needs votes.
        """
        if self.rule in ("auto", "epochs", "images"):
            if votes is None:
                raise UsageError("`keep=auto`: this method has no votes to decide by. Give a fraction or a number")
            return auto_cut(order, sizes, votes, probability, self.images(int(sizes.sum())), unit)
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
                f"`budget={self.value:g}`: keeps nothing, as the first of the {unit} alone has {total[0]} of {sizes.sum()} "
                "records. Give a larger one"
            )
        return count


def auto_cut(
    order: np.ndarray, sizes: np.ndarray, votes: np.ndarray, probability: np.ndarray | None = None, images: int = 0,
    unit: str = "classes",
) -> int:  # fmt: skip
    """How many of the first units to keep: half of the records, a quarter, an eighth ...: what is nearest to the larger of

    - the fewest units that carry ``COVERED`` of the votes, so that most of the target is served;
    - as many as the target asks for: units g with P(g | target) >= ``ASKED_FOR`` P(g | source), an importance weight
      (arXiv 1811.07056). P(g | target) is the mean probability, or the share of the votes; P(g | source) the share of the records.

    Of a target that is like a few classes, a weak surrogate ranks those that are meant too far behind: the second keeps them. Of a
    broad target it is sure of nothing, and the second would keep few: the first does not.

    A long pretraining keeps more, but no more than half on this account: of n records, each is to be seen at most ``SEEN`` sqrt(n)
    times. Images that are repeated teach less and less, and few of them sooner: 5,000 taught narrow targets more 32 times than
    10,000 did 16 times, but a wider network less 64 times than 10,000 did 32 times; and 2,500 less 32 times than 5,000 did 16
    times.

    The constants were set by hand by the sweeps of ``python -m benchmarks end_to_end``: five targets of Tiny-ImageNet, two to eight
    epochs, two networks, a surrogate of 12 % top-1. Finer steps than halvings made no difference that they could show.

    Args:
        order, sizes, votes, probability, unit: As for ``Keep.cut``.
        images: That the pretraining sees, repeated ones counted: one epoch must fit. 0 if this is not known.

    Raises:
        UsageError: No vote, or not even one epoch of the first two units fits.
    """
    ranked, records = votes[order].astype(np.float64), np.cumsum(sizes[order]).astype(np.float64)
    if ranked.sum() == 0:
        raise UsageError("`keep=auto`: no target image voted for anything with records. Give a fraction or a number")
    covering = int((np.cumsum(ranked) < COVERED * ranked.sum() - 1e-9).sum()) + 1
    target = ranked if probability is None else probability[order]
    asked_for = int((target / target.sum() >= ASKED_FOR * sizes[order] / records[-1]).sum())
    halvings = round(-math.log2(records[max(covering, asked_for) - 1] / records[-1]))
    if images:
        fewest = (images / SEEN) ** (2 / 3)  # n of images = n * SEEN sqrt(n)
        halvings = min(halvings, max(1, math.floor(math.log2(records[-1] / fewest))))
    least, limit = min(2, len(order)), min(records[-1] / 2**halvings, images or math.inf)
    if images and records[least - 1] > images:
        raise UsageError(
            f"`budget`: {images} images are less than one epoch of the first two {unit}, which have {int(records[least - 1])} "
            "records. Give a larger one"
        )
    return max(least, int((records <= limit + 1e-9).sum()))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _fraction(rule: str, value: str) -> float:
    fraction = _number(value)
    if not 0 < fraction <= 1:
        if rule == "budget":
            raise UsageError(
                f"`budget={value}`: must be a share of an epoch, above 0 and at most 1. The length of a pretraining, such as "
                "8epochs, needs `keep=auto`"
            )
        raise UsageError(f"`keep={rule}:{value}`: the part after the colon must be a fraction above 0 and at most 1")
    return fraction
