"""From what was chosen to a selection, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping.shares import apportion, shares
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.selection import Selection

if TYPE_CHECKING:
    from dp4tl_fast.pruning.choose import Choice, KeptVotes
    from dp4tl_fast.pruning.scoring import SourceInputs


def draw(config: PruneConfig, choice: Choice, sizes: np.ndarray) -> np.ndarray | None:
    """Records that an epoch draws of every class or cluster, int64 ``[units]``; ``None``: all that is kept, once.

    An epoch has as many as the hard cut keeps; a cap on every class takes some of them away where it is not soft.

    Raises:
        UsageError: The method has no votes, or chooses single records.
    """
    if config.sample == "whole" and not config.per_class:
        return None
    if choice.scores.unit == "samples":
        what = "per_class" if config.sample == "whole" else "sample=weighted"
        raise UsageError(f"`{what}`: method {config.method} chooses single records. Use one that scores classes or clusters")
    kept = np.zeros(len(sizes), bool)
    kept[choice.kept] = True
    if config.sample == "whole":
        return np.where(kept, np.minimum(sizes, config.per_class), 0)
    votes = choice.scores.votes
    if config.shares == "votes" and votes is None:
        raise UsageError(f"`sample=weighted`: method {config.method} has no votes. Use lm or fm, or `shares=equal`")
    mass = sizes * kept if votes is None or config.shares == "equal" else votes
    return apportion(shares(mass, sizes, config.smooth), int(sizes[kept].sum()), config.per_class or None)


def make(
    path: Path, beton: Beton, inputs: SourceInputs, choice: Choice, weights: np.ndarray | None, *,
    parameters: dict[str, Any], **about: Any,
) -> Selection:  # fmt: skip
    """Classes stay classes; clusters become the records in them, and are saved beside the selection (for ``path``)."""
    scores, kept = choice.scores, choice.kept if weights is None else np.flatnonzero(weights)
    if scores.unit == "classes":
        made = Selection.of_classes(
            beton, kept, scores=scores.values, tie_breaks=scores.tie_breaks, parameters=parameters, **about
        )
        return made if weights is None else made.weighted(weights)
    if scores.unit == "samples":
        return Selection.of_records(beton, kept, parameters=parameters, **about)
    from dp4tl_fast.pruning.scoring import save_groups

    groups, file = inputs.groups(), path.with_name(path.name + ".groups.npz")
    digest = save_groups(file, groups, scores.values, about["surrogate"])
    index = groups.index.cpu().numpy()
    records = np.flatnonzero(np.isin(index, kept))
    parameters = parameters | {
        "groups": "kmeans", "clusters": len(groups.centroids), "groups_file": file.name, "groups_sha256": digest,
        "kept_clusters": np.sort(kept).tolist(), "cluster_votes": scores.values.tolist(),
    }  # fmt: skip
    made = Selection.of_records(beton, records, parameters=parameters, **about)
    return made if weights is None else made.weighted(weights, index[records].astype(np.int64))


def tell(selection: Selection, choice: Choice, names: list[str], served: dict[str, KeptVotes], out: str) -> None:
    unit, source = choice.scores.unit, selection.source
    cut = "" if unit == "classes" else f" ({len(choice.kept):,} of {len(choice.order):,} {unit})"
    budget = f" for {selection.epochs} epoch{'s' * (selection.epochs > 1)}" if selection.epochs else ""
    drawn = f", every epoch draws {selection.epoch_size:,} of them" if selection.weights else ""
    first = ", ".join(names[c] for c in choice.order[: min(len(choice.kept), 10)]) if unit == "classes" else ""
    cli.message(
        f"kept {len(selection.kept_classes)} of {source['classes']} classes, {selection.kept_samples:,} of "
        f"{source['samples']:,} samples{cut}{drawn}{budget} -> {out}" + (f"\nfirst: {first}" if first else "")
    )
    for path, found in served.items():
        cli.message(f"{Path(path).name}: the kept {unit} have {found}")


def tell_seconds(profile: dict[str, float]) -> None:
    share = f"; everything but start and forward is {100 * profile['overhead']:.1f} % of forward" if "overhead" in profile else ""
    cli.message("seconds: " + ", ".join(f"{name} {profile[name]:.2f}" for name in profile if name != "overhead") + share)
