"""Every method by name: one function from what it may look at to scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping import baselines
from dp4tl_fast.mapping.feature_mapping import Groups, feature_mapping
from dp4tl_fast.mapping.label_mapping import label_mapping

CHUNK = 1 << 13  # rows of logits at a time


class Target(Protocol):
    """``features`` ``[m, d]`` and ``labels`` ``[m]`` of one target."""

    @property
    def features(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...


class Inputs(Protocol):
    """What a method may look at; the expensive parts are computed when they are asked for."""

    num_classes: int
    class_names: list[str]
    labels: torch.Tensor  # int64 [n], of the source
    head: Callable[[torch.Tensor], torch.Tensor]  # features -> logits
    seed: int
    picked: list[str]

    @property
    def features(self) -> torch.Tensor: ...  # [n, d] of the source
    def groups(self) -> Groups: ...  # what feature mapping counts in: classes, or clusters
    def clusters(self) -> Groups: ...  # K-means of the source
    def gradient_norms(self) -> np.ndarray: ...  # [n], GraNd over the source's images
    def forgetting(self) -> np.ndarray: ...  # [n], counted while the surrogate trained
    def imported(self) -> tuple[str, np.ndarray]: ...  # unit and scores from a table


@dataclass(frozen=True)
class Scores:
    """``values`` float64 ``[units]``, the highest kept first; ``unit`` is classes, clusters or samples.

    ``tie_breaks`` rank equal values, then the lower id wins. ``votes`` are target images, for methods that count them.
    """

    values: np.ndarray
    unit: str = "classes"
    tie_breaks: np.ndarray | None = None
    votes: np.ndarray | None = None


@dataclass(frozen=True)
class Method:
    score: Callable[..., Scores]  # of (Inputs, Target) where ``needs`` has a target, else of (Inputs)
    needs: tuple[str, ...] = ()  # of surrogate, target, classes, scores: flags that must be given
    logits: bool = False  # uses the surrogate's classifier, which must then know the source's classes


def lm(i: Inputs, t: Target) -> Scores:
    result = label_mapping(i.head, t.features.split(CHUNK), i.num_classes)
    return Scores(result.votes.astype(np.float64), "classes", result.probability, result.votes)


def fm(i: Inputs, t: Target) -> Scores:
    return _votes(i.groups(), t)


def ffmm(i: Inputs, t: Target) -> Scores:
    return _votes(baselines.filtered_groups(i.features, i.labels, i.num_classes), t)


def _votes(groups: Groups, t: Target) -> Scores:
    result = feature_mapping(t.features, groups)
    unit = "classes" if groups.kind == "classes" else "clusters"
    return Scores(result.votes.astype(np.float64), unit, -result.distance, result.votes)


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
    """The method of a name; an unknown name lists the known ones."""
    if name not in METHODS:
        raise UsageError(f"`method={name}`: known are {', '.join(METHODS)}")
    return METHODS[name]
