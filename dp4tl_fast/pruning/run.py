"""Score source classes for a target, keep the best, write a selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import check_outputs
from dp4tl_fast.common.stopwatch import Stopwatch
from dp4tl_fast.mapping.keep import Keep
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.selection import Selection
from dp4tl_fast.selection.names import readable
from dp4tl_fast.training.ranks import process_group, rank, world_size

if TYPE_CHECKING:
    from dp4tl_fast.mapping.registry import Method
    from dp4tl_fast.pruning.choose import Choice, KeptVotes
    from dp4tl_fast.pruning.scoring import SourceInputs


@process_group()
def prune(config: PruneConfig) -> dict[str, Any]:
    """Choose the source classes worth pretraining on for a target.

    Methods with a target: lm counts, for every source class, the target images that a surrogate trained on the source
    puts into it; fm counts the target images nearest to each source class, or cluster, in the surrogate's feature space;
    ffmm is fm by the middle of each class; cmt and cmt-median rank by distance to the target's classes. Without one:
    random, handpicked, influence (imported scores); and for single records random-samples, moderate, grand, el2n,
    forgetting, prototypes, ssl-prototypes.

    Equal scores (most classes get no vote) are ranked by the surrogate's mean probability for the class (lm) or the
    smaller mean distance (fm), then by id.

    Under torchrun the passes over images and K-means are shared by the processes.

    Returns:
        The selection as written; ``profile`` (seconds); ``per_target``, the files of the selections for each of several
        targets; ``votes_kept``, the share of each target's votes that is kept, in all and per target class, for methods
        that count votes. Empty on ranks other than the first.

    Raises:
        Dp4tlError: A file is bad, or the settings do not fit it; nothing is written then.
    """
    watch = Stopwatch("start")
    from dp4tl_fast.mapping import registry
    from dp4tl_fast.pruning.choose import choose, kept_votes

    method = registry.find(config.method)
    _check_given(config, method.needs)
    uses_targets = "target" in method.needs
    each = _paths_for_each(config) if len(config.target) > 1 and uses_targets else {}
    _check_files(config, each)
    beton, targets = Beton(config.source), _open_targets(config.target)
    shown = readable(beton.class_names, config.names)
    surrogate = _surrogate(config, method, beton, watch)
    inputs = _inputs(config, method, beton, surrogate, watch)
    accuracy = _accuracy(config, method, inputs)
    with watch.section("counting"):
        all_scores = [method.score(inputs, inputs.target(t)) for t in targets] if uses_targets else [method.score(inputs)]
    with watch.section("selection"):
        sizes = inputs.sizes(all_scores[0].unit)
        rule = config.rule or Keep.parse(str(np.count_nonzero(all_scores[0].values[sizes > 0])))
        weights = [t.num_samples for t in targets] if uses_targets else [1]
        choice = choose(all_scores, weights, sizes, rule, config.merge, config.reverse, config.seed)
        triples = zip(config.target, targets, all_scores, strict=False)  # a method without targets may have been given some
        served = {path: kv for path, t, s in triples if (kv := kept_votes(s, choice.kept, t.class_names))}
    if rank() != 0:  # one of torchrun's processes writes
        return {}
    parameters: dict[str, Any] = {"keep": rule.text, "reverse": config.reverse, "seed": config.seed}
    if len(all_scores) > 1:
        parameters["merge"] = config.merge
    about: dict[str, Any] = {
        "method": config.method,
        "seconds": _seconds(inputs, watch),
        "surrogate": inputs.surrogate.identity | ({"accuracy": accuracy} if accuracy else {}) if inputs.surrogate else {},
        "parameters": parameters,
    }

    def write(path: str, choice: Choice, of: list[Beton]) -> Selection:
        identities = [{"name": t.path.name, **t.fingerprint} for t in of] if uses_targets else []
        selection = _selection(Path(path), beton, inputs, choice, targets=identities, **about)
        selection.save(path)
        return selection

    with watch.section("writing"):
        selection = write(config.out, choice, targets)
        for path, t, one in zip(each.values(), targets, all_scores, strict=False):
            write(path, choose([one], [1], sizes, rule, "sum", config.reverse, config.seed), [t])
    profile = _profile(watch)
    _tell(selection, shown, choice, served, config.out, profile)
    _write_more(config, beton, selection, each)
    votes_kept = {path: asdict(share) for path, share in served.items()}
    return {"kind": "prune", **selection.to_dict(), "profile": profile, "per_target": each, "votes_kept": votes_kept}


# -- what is refused before anything expensive is done ---------------------------------------------------------------


def _check_given(config: PruneConfig, needs: Sequence[str]) -> None:
    given = {
        "target": config.target, "surrogate": config.surrogate or config.train_surrogate, "classes": config.classes,
        "scores": config.scores,
    }  # fmt: skip
    missing = [f"`{name}`" for name in needs if not given[name]]
    if missing:
        raise UsageError(f"`method={config.method}` needs {' and '.join(missing)}. `dp4tl-fast prune --help` says what they are")


def _check_files(config: PruneConfig, each: Mapping[str, str]) -> None:
    outputs: list[tuple[str, str | Path]] = [("out", config.out), ("report", config.report), ("materialize", config.materialize)]
    outputs += [("out", path) for path in each.values()]
    if (cache := _cache_folder(config)) is not None and not cache.is_dir():  # one that may only be read is read
        outputs.append(("cache", cache / "features"))
    inputs = [config.source, *config.target, config.surrogate, config.surrogate_val, config.scores]
    check_outputs([(name, path) for name, path in outputs if path], [path for path in inputs if path])


def _cache_folder(config: PruneConfig) -> Path | None:
    if config.cache == "none":
        return None
    return Path(config.cache) if config.cache else Path(config.out).parent / ".dp4tl-cache"


def _open_targets(paths: list[str]) -> list[Beton]:
    real = [Path(path).resolve() for path in paths]
    for i, path in enumerate(paths):
        if real[i] in real[:i]:
            raise UsageError(f"`target={path}`: given twice")
    targets = [Beton(path) for path in paths]
    for t in targets:
        if t.num_samples == 0:
            raise UsageError(f"{t.path}: the target has no images, but a method needs some to vote")
    return targets


def _paths_for_each(config: PruneConfig) -> dict[str, str]:
    """Where the selection for each of several targets goes: beside ``out``, by the target's name."""
    stems = [Path(t).stem for t in config.target]
    names = stems if len(set(stems)) == len(stems) else [f"{i}-{stem}" for i, stem in enumerate(stems)]
    return {t: f"{config.out.removesuffix('.json')}.{name}.json" for t, name in zip(config.target, names, strict=True)}


# -- what the method looks at ----------------------------------------------------------------------------------------


def _surrogate(config: PruneConfig, method: Method, beton: Beton, watch: Stopwatch) -> str | None:
    """The surrogate's file or folder, trained first if that was asked for; ``None`` for methods that need none."""
    if "surrogate" not in method.needs:
        return None
    if not config.train_surrogate:
        return config.surrogate
    if world_size() > 1:
        raise UsageError("`train_surrogate`: train it in one process first, then give it by `surrogate` under torchrun")
    from dp4tl_fast.pruning.surrogate import train

    with watch.section("training"):
        return train(beton, config)


def _inputs(config: PruneConfig, method: Method, beton: Beton, surrogate: str | None, watch: Stopwatch) -> SourceInputs:
    from dp4tl_fast.pruning.scoring import SourceInputs

    network = None
    if surrogate is not None:
        from dp4tl_fast.pruning.surrogate import Surrogate

        network = Surrogate(surrogate, config, watch)
        if method.logits:
            network.check_classifier(beton)
    return SourceInputs(
        beton, network, _cache_folder(config), config.groups, config.clusters, config.seed, config.classes, config.scores
    )


def _accuracy(config: PruneConfig, method: Method, inputs: SourceInputs) -> dict[str, Any]:
    """How often the surrogate is right on its own source, for the selection; one that cannot choose is refused."""
    surrogate = inputs.surrogate
    if surrogate is None or config.method == "forgetting":  # its counts are of the training itself
        return {}
    from dp4tl_fast.pruning import quality

    val = Beton(config.surrogate_val) if config.surrogate_val else None
    if val is not None:
        inputs.beton.check_split(val)
    found = quality.measure(inputs, method.logits, val)
    if found is None:
        return {}
    labels_matter = method.logits or config.groups == "classes"  # clusters are for sources whose labels mean nothing
    if rank() == 0 or found.misnumbered or found.useless:
        quality.check(found, surrogate.path, inputs.beton, config.accept_surrogate or not labels_matter)
    return found.to_dict()


# -- what is written -------------------------------------------------------------------------------------------------


def _seconds(inputs: SourceInputs, watch: Stopwatch) -> dict[str, float]:
    """What the selection cost, by stage."""
    spent = watch.lap()
    seconds = {"scoring": sum(spent.values()) - spent.get("training", 0.0) - spent.get("waiting", 0.0)}
    if inputs.surrogate:
        seconds |= inputs.surrogate.training_seconds()
    if inputs.saved:
        seconds["cached"] = inputs.saved  # what an earlier run spent counts, too
    return seconds


# -- what is written -------------------------------------------------------------------------------------------------


def _selection(
    path: Path, beton: Beton, inputs: SourceInputs, choice: Choice, *, parameters: dict[str, Any], **about: Any
) -> Selection:
    """Classes stay classes; clusters become the records in them, and are saved beside the selection."""
    scores = choice.scores
    if scores.unit == "classes":
        return Selection.of_classes(
            beton, choice.kept, scores=scores.values, tie_breaks=scores.tie_breaks, parameters=parameters, **about
        )
    if scores.unit == "samples":
        return Selection.of_records(beton, choice.kept, parameters=parameters, **about)
    from dp4tl_fast.pruning.scoring import save_groups

    groups, file = inputs.groups(), path.with_name(path.name + ".groups.npz")
    digest = save_groups(file, groups, scores.values, about["surrogate"])
    records = np.flatnonzero(np.isin(groups.index.cpu().numpy(), choice.kept))
    parameters = parameters | {
        "groups": "kmeans", "clusters": len(groups.centroids), "groups_file": file.name, "groups_sha256": digest,
        "kept_clusters": np.sort(choice.kept).tolist(), "cluster_votes": scores.values.tolist(),
    }  # fmt: skip
    return Selection.of_records(beton, records, parameters=parameters, **about)


def _write_more(config: PruneConfig, beton: Beton, selection: Selection, each: Mapping[str, str]) -> None:
    """The pruned .beton and the page, where asked for."""
    if config.materialize:
        from dp4tl_fast.beton.copying import subset

        copied = subset(beton, selection.indices(beton), config.materialize)
        cli.message(f"copied {copied['samples']:,} records, {copied['bytes'] / 1e6:,.1f} MB -> {config.materialize}")
    if config.report:
        from dp4tl_fast.reporting.page import report_selections

        report_selections([config.out, *each.values()], config.source, config.report, config.names)


SECTIONS = ("start", "training", "waiting", "loading", "forward", "counting", "selection", "writing")


def _profile(watch: Stopwatch) -> dict[str, float]:
    """Seconds of each section, in ``total``, and ``overhead``: what besides the forward pass grows with the data, over it.

    ``start`` is what every command needs: importing torch, opening the files, reading the surrogate's weights.
    """
    spent = watch.lap()
    profile = {name: spent[name] for name in SECTIONS if name in spent} | {"total": sum(spent.values())}
    if spent.get("forward"):
        profile["overhead"] = sum(spent[name] for name in SECTIONS[3:] if name != "forward") / spent["forward"]
    return profile


def _tell(
    selection: Selection, names: list[str], choice: Choice, served: dict[str, KeptVotes], out: str, profile: dict[str, float]
) -> None:
    unit, source = choice.scores.unit, selection.source
    cut = "" if unit == "classes" else f" ({len(choice.kept):,} of {len(choice.order):,} {unit})"
    first = ", ".join(names[c] for c in choice.order[: min(len(choice.kept), 10)]) if unit == "classes" else ""
    cli.message(
        f"kept {len(selection.kept_classes)} of {source['classes']} classes, {selection.kept_samples:,} of "
        f"{source['samples']:,} samples{cut} -> {out}" + (f"\nfirst: {first}" if first else "")
    )
    for path, found in served.items():
        cli.message(f"{Path(path).name}: the kept {unit} have {found}")
    share = f"; all but start and forward is {100 * profile['overhead']:.1f} % of forward" if "overhead" in profile else ""
    cli.message("seconds: " + ", ".join(f"{name} {profile[name]:.2f}" for name in profile if name != "overhead") + share)

