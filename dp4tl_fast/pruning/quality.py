"""Is a surrogate worth asking? How often it is right on images of its own source, and what chance alone would give.

Measured by hand: at 20 times chance (10 % of 202 classes) the selection for a narrow target is nearly that of a strong network; at
10 times chance it is hardly better than a random one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError

if TYPE_CHECKING:
    from dp4tl_fast.pruning.scoring import SourceInputs

IMAGES, AT_LEAST, AT_MOST = 2000, 2, 100  # images that the classifier is tried on, and of each class
WEAK, USELESS = (20.0, 0.5), (5.0, 0.1)  # times chance; or, with few classes, the share of the way from chance to 1
TRAIN_LONGER = "Train it longer or at a larger size (`train_surrogate` does what is needed)"
# After ``train_surrogate``, which has done what it can with its settings.
TRAIN_ANOTHER = "Train a better one in another folder: for longer (`surrogate_epochs`), or with a larger `arch` or `size`"


@dataclass(frozen=True)
class Accuracy:
    """How often a surrogate is right.

    Attributes:
        measure: ``classifier`` (argmax of the logits), or ``class means`` (the nearest mean of features) where no method uses
            the classifier.
        top_1: Share of the images that come out in their own class.
        chance: What always naming the most frequent class would reach.
        images: How many were tried.
        on: ``held out`` images, those it was ``trained on``, or ``unknown``.
        renumbered: ``top_1`` once the outputs are given other numbers, fitted to the other half of the images. Much more than
            ``top_1`` tells of weights whose classes are numbered in another order.
    """

    measure: str
    top_1: float
    chance: float
    images: int
    on: str
    renumbered: float

    @property
    def weak(self) -> bool:
        return self.top_1 < _bar(self.chance, *WEAK)

    @property
    def useless(self) -> bool:
        return self.top_1 < _bar(self.chance, *USELESS)

    @property
    def misnumbered(self) -> bool:
        """Three standard errors better and by a third, which chance does not do, of a network that has learned something."""
        half = max(1, self.images // 2)
        error = (self.renumbered * (1 - self.renumbered) + self.top_1 * (1 - self.top_1) + 1 / half) ** 0.5 / half**0.5
        learned = self.renumbered >= _bar(self.chance, *(USELESS if self.useless else WEAK))
        return learned and self.renumbered - self.top_1 > 3 * error and self.top_1 < 0.75 * self.renumbered

    def words(self) -> str:
        where = {"held out": "held-out images", "trained on": "images it was trained on", "unknown": "images"}[self.on]
        how = "" if self.measure == "classifier" else f", by {self.measure}"
        tried = f"{self.images:,} {where} of its own source{how}"
        return f"{100 * self.top_1:.1f} % top-1 on {tried} (chance: {100 * self.chance:.1f} %)"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _bar(chance: float, times: float, share: float) -> float:
    return min(times * chance, chance + share * (1 - chance))


def spread(labels: np.ndarray, per_class: int) -> np.ndarray:
    """At most ``per_class`` records of each class, spread evenly over the file: ascending int64."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    places = [np.linspace(0, n - 1, min(n, per_class)).astype(np.int64) for n in counts.tolist()]  # distinct: steps of at least 1
    return np.sort(order[np.concatenate([start + at for start, at in zip(starts, places, strict=True)])])


def of_classifier(found: np.ndarray, labels: np.ndarray, on: str) -> Accuracy:
    """From what the classifier said of images, int64 ``[n]`` each."""
    first = _first_half(labels)
    renumber = _best_numbers(found[first], labels[first], max(found.max(), labels.max()) + 1)
    rest = ~first if (~first).any() else first
    return Accuracy(
        "classifier", float((found == labels).mean()), _chance(labels), len(labels), on,
        float((renumber[found[rest]] == labels[rest]).mean()),
    )  # fmt: skip


def of_features(inputs: SourceInputs, val: Beton | None, on: str) -> Accuracy:
    """From the source's features: the nearest of the class means of one half, for the images of the other (or of ``val``)."""
    import torch

    from dp4tl_fast.mapping.feature_mapping import class_means, nearest_groups

    rows = spread(inputs.beton.labels, int(np.clip(10 * IMAGES // inputs.num_classes, 2 * AT_LEAST, AT_MOST)))
    features = inputs.features
    if inputs.bad is not None:
        rows = rows[~inputs.bad.cpu().numpy()[rows]]  # those have the mean of their class for a feature
    y = inputs.beton.labels[rows].astype(np.int64)
    x = features[torch.from_numpy(rows).to(inputs.place)]
    fit = _first_half(y) if val is None else np.ones(len(y), bool)
    there = np.unique(y[fit])
    means = class_means(x[torch.from_numpy(fit)], torch.from_numpy(y[fit]).to(x.device), inputs.num_classes)[there]
    if val is None:
        tried, wanted = x[torch.from_numpy(~fit)], y[~fit]
    else:
        target = inputs.target(val)
        tried, wanted = target.features, target.labels.cpu().numpy()
    found = there[nearest_groups(tried, means).index.cpu().numpy()]
    right = float((found == wanted).mean())
    return Accuracy("class means", right, _chance(wanted), len(wanted), on, right)


def _chance(labels: np.ndarray) -> float:
    return float(np.bincount(labels).max() / len(labels))


def _first_half(labels: np.ndarray) -> np.ndarray:
    """Every other record of each class, from its first on: bool ``[n]``."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.empty(len(labels), bool)
    first[order] = place % 2 == 0
    return first


def _best_numbers(found: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """Output -> class, one to one, the most frequent pairs first: int64 ``[n]``; -1 for outputs that get none."""
    pairs, times = np.unique(found * n + labels, return_counts=True)
    numbers, taken = np.full(n, -1, np.int64), np.zeros(n, bool)
    for pair in pairs[np.argsort(-times, kind="stable")].tolist():
        output, label = divmod(pair, n)
        if numbers[output] < 0 and not taken[label]:
            numbers[output], taken[label] = label, True
    return numbers


def measure(inputs: SourceInputs, classifier: bool, val: Beton | None) -> Accuracy | None:
    """The accuracy of the surrogate of ``inputs``; ``None`` where the source's labels cannot tell (a single class)."""
    surrogate, source = inputs.surrogate, inputs.beton
    assert surrogate is not None
    if np.count_nonzero(source.class_counts) < 2 or source.num_samples < 4:
        return None
    of = source if val is None else val
    on = "trained on" if surrogate.records == of.records_sha256 else "unknown" if val is None else "held out"
    if not classifier:
        return of_features(inputs, val, on)
    rows = spread(of.labels, int(np.clip(IMAGES // of.num_classes, AT_LEAST, AT_MOST)))
    found, saved = surrogate.predictions(of, rows, inputs.cache)
    inputs.saved += saved
    good = found >= 0  # can be decoded
    if not good.any():
        raise UsageError(f"{of.path}: none of {len(rows)} records to try the surrogate on can be decoded. Convert its source again")
    return of_classifier(found[good], of.labels[rows[good]].astype(np.int64), on)


def check(accuracy: Accuracy, path: str, source: Beton, accept: bool, remedy: str) -> None:
    """Refuse, or with ``accept`` warn of, a surrogate that cannot choose; warn of a weak one. ``remedy`` makes it better.

    Raises:
        UsageError: It is hardly better than chance, or its classes are numbered in another order.
    """
    said = accuracy.words()
    problem = ""
    if accuracy.misnumbered:
        problem = (
            f"`surrogate={path}`: {said}, but {100 * accuracy.renumbered:.1f} % once its outputs are renumbered: its "
            f"classes are in another order than those of {source.path} (natural instead of text order, say), or its last layer was "
            "never trained. Convert the source in that order (`convert --class-order`), or use a surrogate trained on this source"
        )
    elif accuracy.useless:
        problem = (
            f"`surrogate={path}`: {said}: that is hardly better than guessing, and its choice would be no better. {remedy}"
        )
    if problem and not accept:
        raise UsageError(f"{problem}; `accept_surrogate` continues anyway")
    if problem:
        cli.message(f"warning: {problem}")
    elif accuracy.weak:
        cli.message(
            f"warning: surrogate {path}: {said}. Below {100 * _bar(accuracy.chance, *WEAK):.1f} % it chooses hardly better than at "
            f"random for narrow targets. {remedy}"
        )
    else:
        cli.message(f"surrogate {path}: {said}")
