"""All methods by name. Each is a function from the inputs that it may use to scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import nn

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping import baselines, feature_mapping, label_mapping
from dp4tl_fast.mapping.feature_mapping import Groups

CHUNK = 1 << 13  # rows of logits at a time


class Target(Protocol):
    """``features`` ``[m, d]`` and ``labels`` ``[m]`` of one target."""

    @property
    def features(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...


class Inputs(Protocol):
    """What a method may use; the expensive parts are computed on first use."""

    num_classes: int
    class_names: list[str]
    labels: torch.Tensor  # int64 [n], of the source
    head: nn.Linear  # features -> logits
    seed: int
    picked: list[str]

    @property
    def features(self) -> torch.Tensor: ...  # [n, d] of the source
    def groups(self) -> Groups: ...  # what feature mapping counts in: classes, or clusters
    def clusters(self) -> Groups: ...  # K-means of the source
    def gradient_norms(self) -> np.ndarray: ...  # [n], GraNd over the source's images
    def forgetting(self) -> np.ndarray: ...  # [n], counted while the surrogate trained
    def imported(self) -> tuple[str, np.ndarray]: ...  # unit, and scores from a table


@dataclass(frozen=True)
class Scores:
    """The result of a method.

    Attributes:
        values: float64 ``[units]``; the highest are kept first.
        unit: classes, clusters or samples.
        tie_breaks: float64 ``[units]``, rank equal values; where these are equal too, the lower id comes first.
        votes: int64 ``[units]``, target images, for methods that count them.
        probability: float64 ``[units]``, the surrogate's mean over the target images, for methods that use its classifier.
        votes_by_target_class: Computes int64 ``[target classes, units]``, for methods with votes.
    """

    values: np.ndarray
    unit: str = "classes"
    tie_breaks: np.ndarray | None = None
    votes: np.ndarray | None = None
    votes_by_target_class: Callable[[], np.ndarray] | None = None
    probability: np.ndarray | None = None


@dataclass(frozen=True)
class Method:
    score: Callable[..., Scores]  # takes (Inputs, Target) if ``needs`` has a target, else (Inputs)
    needs: tuple[str, ...] = ()  # flags that must be given: surrogate, target, classes, scores
    logits: bool = False  # uses the surrogate's classifier, whose classes must be the source's


def lm(i: Inputs, t: Target) -> Scores:
    result = label_mapping.label_mapping(i.head, t.features.split(CHUNK), i.num_classes)
    by_class = partial(label_mapping.votes_by_target_class, t.features, t.labels, i.head)
    return Scores(result.votes.astype(np.float64), "classes", result.probability, result.votes, by_class, result.probability)


def fm(i: Inputs, t: Target) -> Scores:
    return _votes(i.groups(), t)


def ffmm(i: Inputs, t: Target) -> Scores:
    return _votes(baselines.filtered_groups(i.features, i.labels, i.num_classes), t)


def _votes(groups: Groups, t: Target) -> Scores:
    result = feature_mapping.feature_mapping(t.features, groups)
    by_class = partial(feature_mapping.votes_by_target_class, t.features, t.labels, groups)
    unit = "classes" if groups.kind == "classes" else "clusters"
    return Scores(result.votes.astype(np.float64), unit, -result.distance, result.votes, by_class)


def cmt(i: Inputs, t: Target) -> Scores:
    return Scores(baselines.cmt(i.features, i.labels, i.num_classes, t.features, t.labels))


def cmt_median(i: Inputs, t: Target) -> Scores:
    return Scores(baselines.cmt(i.features, i.labels, i.num_classes, t.features, t.labels, median=True))


def el2n(i: Inputs) -> Scores:
    parts = zip(i.features.split(CHUNK), i.labels.split(CHUNK), strict=True)
    with torch.inference_mode():
        return Scores(np.concatenate([baselines.el2n(i.head(x), y) for x, y in parts]), "samples")


def influence(i: Inputs) -> Scores:
    unit, values = i.imported()
    return Scores(values, unit)


def _samples(function: Callable[[Inputs], np.ndarray]) -> Callable[[Inputs], Scores]:
    return lambda i: Scores(function(i), "samples")


METHODS: dict[str, Method] = {
    "lm": Method(lm, ("target", "surrogate"), logits=True),
    "fm": Method(fm, ("target", "surrogate")),
    "random": Method(lambda i: Scores(baselines.random_classes(i.num_classes, i.seed))),
    "random-samples": Method(_samples(lambda i: baselines.random_samples(len(i.labels), i.seed))),
    "moderate": Method(_samples(lambda i: baselines.moderate(i.features, i.labels, i.num_classes)), ("surrogate",)),
    "grand": Method(_samples(lambda i: i.gradient_norms()), ("surrogate",), logits=True),
    "el2n": Method(el2n, ("surrogate",), logits=True),
    "forgetting": Method(_samples(lambda i: i.forgetting()), ("surrogate",)),
    "prototypes": Method(_samples(lambda i: baselines.prototypes(i.features, i.labels, i.num_classes)), ("surrogate",)),
    "ssl-prototypes": Method(_samples(lambda i: baselines.ssl_prototypes(i.features, i.clusters())), ("surrogate",)),
    "ffmm": Method(ffmm, ("target", "surrogate")),
    "cmt": Method(cmt, ("target", "surrogate")),
    "cmt-median": Method(cmt_median, ("target", "surrogate")),
    "influence": Method(influence, ("scores",)),
    "handpicked": Method(lambda i: Scores(baselines.handpicked(i.picked, i.class_names)), ("classes",)),
}  # fmt: skip


def find(name: str) -> Method:
    """The method with this name. Raises UsageError with the known names for another one."""
    if name not in METHODS:
        raise UsageError(f"`method={name}`: must be one of {', '.join(METHODS)}")
    return METHODS[name]
