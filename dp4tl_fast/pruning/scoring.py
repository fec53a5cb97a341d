"""What the methods of ``mapping.registry`` look at, read from files and computed when it is first asked for."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.fingerprint import difference
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.mapping.feature_mapping import Groups, class_groups, kmeans_groups, nearest_groups
from dp4tl_fast.pruning.cache import shared
from dp4tl_fast.pruning.surrogate import Surrogate
from dp4tl_fast.training.ranks import rank, world_size


@dataclass(frozen=True)
class TargetFeatures:
    features: torch.Tensor  # [m, d]
    labels: torch.Tensor  # int64 [m]


@dataclass
class SourceInputs:
    """``mapping.registry.Inputs`` over a source .beton.

    Attributes:
        group_rule: ``classes``, ``kmeans``, or a ``.npz`` file of clusters that an earlier run saved.
        num_clusters: K of K-means.
        table: CSV or Parquet file of imported scores.
        saved: Seconds that earlier runs spent on what came out of the cache.
    """

    beton: Beton
    surrogate: Surrogate | None
    cache: Path | None
    group_rule: str
    num_clusters: int
    seed: int
    picked: list[str]
    table: str

    def __post_init__(self) -> None:
        if self.group_rule == "kmeans":
            self._check_clusters()  # before any image is read
        self.num_classes = self.beton.num_classes
        self.class_names = self.beton.class_names
        self.saved = 0.0
        self.bad: torch.Tensor | None = None  # bool [n], once the features are there
        self.place = self.surrogate.place if self.surrogate else torch.device("cpu")
        self.labels = torch.from_numpy(self.beton.labels.astype(np.int64)).to(self.place)
        self.head: Any = self.surrogate.head if self.surrogate else None

    @cached_property
    def features(self) -> torch.Tensor:
        """A record that cannot be decoded has the mean of its class, which stays as it is."""
        found = self._features(self.beton)
        self.bad = torch.isnan(found[:, 0])
        found = found.clone() if bool(self.bad.any()) else found
        for record in self.bad.nonzero()[:, 0].tolist():
            others = found[(self.labels == self.labels[record]) & ~self.bad]
            if len(others) == 0:
                label = int(self.labels[record])
                raise UsageError(f"{self.beton.path}: no record of class {label} ({self.class_names[label]!r}) can be decoded")
            found[record] = others.mean(0)
        return found

    def target(self, beton: Beton) -> TargetFeatures:
        """Without images that cannot be decoded."""
        labels = torch.from_numpy(beton.labels.astype(np.int64)).to(self.place)
        found = self._features(beton)
        good = ~torch.isnan(found[:, 0])
        return TargetFeatures(found, labels) if bool(good.all()) else TargetFeatures(found[good], labels[good])

    def check_complete(self, unit: str, method: str) -> None:
        """Refuse to score single records of which some cannot be decoded."""
        if unit == "samples" and self.bad is not None and bool(self.bad.any()):
            raise UsageError(
                f"`method={method}`: scores every record, but some of {self.beton.path} cannot be decoded. Convert its source again"
            )

    def _features(self, beton: Beton) -> torch.Tensor:
        assert self.surrogate is not None  # prune has checked that the method's needs are there
        features, seconds = self.surrogate.features(beton, self.cache)
        self.saved += seconds
        return features.to(self.place)

    def groups(self) -> Groups:
        return class_groups(self.features, self.labels, self.num_classes) if self.group_rule == "classes" else self.clusters()

    def clusters(self) -> Groups:
        return self._clusters

    @cached_property
    def _clusters(self) -> Groups:
        if self.group_rule not in ("classes", "kmeans"):
            assert self.surrogate is not None
            return nearest_groups(self.features, load_centroids(self.group_rule, self.surrogate.identity).to(self.place))
        self._check_clusters()
        k, width = self.num_clusters, self.features.shape[1]

        def compute(out: np.ndarray) -> None:
            part = self.features.tensor_split(world_size())[rank()]
            centroids = kmeans_groups(part, k, self.seed, distributed=world_size() > 1).centroids
            if rank() == 0:  # the parts are added, and all processes have the same centroids
                out[:] = centroids.cpu().numpy()

        assert self.surrogate is not None
        path = self.cache and self.cache / f"kmeans-{k}-{self.seed}-{self.surrogate.key(self.beton, 'features')}.npy"
        stored = shared(path, (k, width), np.dtype("<f4"), compute, self.surrogate.waiting)
        self.saved += stored.saved
        return nearest_groups(self.features, torch.from_numpy(stored.array).to(self.place))

    def _check_clusters(self) -> None:
        if not 1 <= self.num_clusters <= self.beton.num_samples:
            raise UsageError(
                f"`clusters={self.num_clusters}`: must be from 1 to the {self.beton.num_samples} records of {self.beton.path}"
            )

    def sizes(self, unit: str) -> np.ndarray:
        """Records of every class, cluster or sample, int64 ``[units]``."""
        if unit == "clusters":
            return self.groups().sizes.cpu().numpy()
        return self.beton.class_counts if unit == "classes" else np.ones(self.beton.num_samples, np.int64)

    def gradient_norms(self) -> np.ndarray:
        assert self.surrogate is not None
        norms, seconds = self.surrogate.gradient_norms(self.beton, self.cache)
        self.saved += seconds
        self.bad = torch.from_numpy(np.isnan(norms))
        return norms

    def forgetting(self) -> np.ndarray:
        assert self.surrogate is not None
        path = Path(self.surrogate.path) / "forgetting.npy"
        try:
            counts = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path}: no forgetting counts ({error}). Train the surrogate with `dp4tl-fast pretrain --forgetting`, or by "
                "`train_surrogate`"
            ) from None
        other = self.surrogate.records not in (None, self.beton.records_sha256)
        if other or difference(self.surrogate.source or {}, self.beton.fingerprint):
            raise UsageError(
                f"{path}: counts the records of another file, or of this one in another order. Give the `source` that "
                f"{self.surrogate.path} was trained on"
            )
        if counts.shape != (self.beton.num_samples,):
            raise UsageError(f"{path}: has counts for {len(counts)} records, but {self.beton.path} has {self.beton.num_samples}")
        return counts.astype(np.float64)

    def imported(self) -> tuple[str, np.ndarray]:
        from dp4tl_fast.pruning.score_table import read_scores

        return read_scores(self.table, self.beton)


def save_groups(path: Path, groups: Groups, votes: np.ndarray, surrogate: dict[str, Any]) -> str:
    """Write centroids ``[k, d]``, every record's cluster ``[n]``, the votes ``[k]`` and whose features they are of.

    Returns the file's SHA-256.
    """
    buffer = io.BytesIO()
    index = groups.index.cpu().numpy().astype("<i4")
    centroids = groups.centroids.cpu().numpy().astype("<f4")
    np.savez(buffer, centroids=centroids, index=index, votes=votes.astype("<i8"), surrogate=np.array(_features_of(surrogate)))
    write_atomically(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _features_of(surrogate: dict[str, Any]) -> str:
    """Names a space of features: images of this size as these weights see them."""
    return f"{surrogate['weights_sha256']} at {surrogate['size']} pixels"


def load_centroids(path: str, surrogate: dict[str, Any]) -> torch.Tensor:
    """The centroids of a file of ``save_groups``, float32 ``[k, d]``, which must be of this surrogate's features."""
    try:
        with np.load(path, allow_pickle=False) as file:
            centroids, of = file["centroids"], str(file["surrogate"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UsageError(f"`groups={path}`: must be classes, kmeans, or the .groups.npz of an earlier run ({error})") from None
    except Exception as error:  # zipfile's own errors
        raise UsageError(f"`groups={path}`: not the .groups.npz of an earlier run ({error})") from None
    if centroids.ndim != 2 or centroids.dtype != np.float32 or 0 in centroids.shape or not np.isfinite(centroids).all():
        raise UsageError(f"`groups={path}`: its centroids must be a finite float32 [k, d] array")
    if of != _features_of(surrogate):
        raise UsageError(
            f"`groups={path}`: its centroids are of other features (weights {of}) than the surrogate's "
            f"({_features_of(surrogate)}). Use the surrogate that it was made with, or `groups=kmeans`"
        )
    return torch.from_numpy(centroids)
