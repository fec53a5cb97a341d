"""Score source classes for a target, keep the best, write a selection."""

from __future__ import annotations

from collections.abc import Sequence
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
from dp4tl_fast.pruning import paths
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.write import draw, make, tell, tell_seconds
from dp4tl_fast.remote.url import shown
from dp4tl_fast.selection import Selection
from dp4tl_fast.selection.names import readable
from dp4tl_fast.training.ranks import process_group, rank, world_size

if TYPE_CHECKING:
    from dp4tl_fast.mapping.registry import Method, Scores
    from dp4tl_fast.pruning.choose import Choice, KeptVotes
    from dp4tl_fast.pruning.scoring import SourceInputs


@process_group()
def prune(config: PruneConfig) -> dict[str, Any]:
    """Choose the source classes worth pretraining on for a target.

    Methods that use a target: lm counts, for every source class, the target images that a surrogate trained on the source
    classifies as it; fm counts the target images nearest to each source class, or cluster, in the surrogate's feature space;
    ffmm is fm by the middle of each class; cmt and cmt-median rank by distance to the target's classes. Methods without a
    target: random, handpicked, influence (imported scores); and for single records random-samples, moderate, grand, el2n,
    forgetting, prototypes, ssl-prototypes.

    Ties (most classes get no vote) are broken by the surrogate's mean probability for the class (lm) or the smaller mean
    distance (fm), then by id.

    Under torchrun, the processes share the passes over images and K-means.

    Returns:
        The selection as written (of several cuts the first, and ``per_keep``, the files of each); ``profile`` (seconds);
        ``per_target``, the files of the selections for each of several targets; ``votes_kept``, the share of each target's
        votes that is kept, in all and per target class, for methods that count votes. Empty on ranks other than the first.

    Raises:
        Dp4tlError: A file is bad, or the settings do not fit it; nothing is written then.
    """
    watch = Stopwatch("start")
    from dp4tl_fast.mapping import registry

    method = registry.find(config.method)
    _check_given(config, method.needs)
    uses_targets = "target" in method.needs
    cuts = paths.cuts(config, uses_targets)
    _check_files(config, cuts)
    beton, targets = Beton(config.source, **config.cached), _open_targets(config)
    names = readable(beton.class_names, config.names)
    surrogate = _surrogate(config, method, beton, targets if uses_targets else [], watch)
    inputs = _inputs(config, method, beton, surrogate, watch)
    accuracy = _accuracy(config, method, inputs)
    with watch.section("counting"):
        all_scores = [method.score(inputs, inputs.target(t)) for t in targets] if uses_targets else [method.score(inputs)]
    inputs.check_complete(all_scores[0].unit, config.method)
    with watch.section("selection"):
        chosen = _choose(config, cuts, inputs.sizes(all_scores[0].unit), all_scores, targets if uses_targets else [])
        served = {cut.out: _served(config, targets, all_scores, chosen[cut.out]) for cut in cuts}
    if rank() != 0:  # one of torchrun's processes writes
        return {}
    about: dict[str, Any] = {
        "method": config.method,
        "seconds": _seconds(inputs, watch),
        "surrogate": inputs.surrogate.identity | ({"accuracy": accuracy} if accuracy else {}) if inputs.surrogate else {},
    }
    left_out = sorted(inputs.surrogate.bad) if inputs.surrogate else []
    lost = [{"file": file, "record": record, "class": label} for file, record, label in left_out]
    if inputs.surrogate and len(all_scores) > 1:
        about["surrogate"]["shared_by"] = len(all_scores)  # targets: its training is paid once for all
    written: dict[str, tuple[Selection, Choice]] = {}
    with watch.section("writing"):
        for path, (rule, choice, weights, of) in chosen.items():
            identities = [{"name": t.path.name, **t.fingerprint} for t in of]
            parameters = _parameters(config, rule, len(all_scores)) | _budget(rule, beton) | ({"bad_records": lost} if lost else {})
            selection = make(Path(path), beton, inputs, choice, weights, parameters=parameters, targets=identities, **about)
            selection.save(path)
            written[path] = selection, choice
    profile = _profile(watch)
    for cut in cuts:
        tell(*written[cut.out], names, served[cut.out], cut.out)
    tell_seconds(profile)
    _write_more(config, beton, written[cuts[0].out][0], list(written))
    results = {cut.text: _result(cut, written[cut.out][0], served[cut.out]) for cut in cuts}
    first = written[cuts[0].out][0].to_dict() | results[cuts[0].text]
    first |= {"bad_records": len(lost), "profile": profile}
    return {"kind": "prune", **first, **({"per_keep": results} if len(cuts) > 1 else {})}


# -- what is refused before anything expensive is done ---------------------------------------------------------------


def _check_given(config: PruneConfig, needs: Sequence[str]) -> None:
    given = {
        "target": config.target, "surrogate": config.surrogate or config.train_surrogate, "classes": config.classes,
        "scores": config.scores,
    }  # fmt: skip
    missing = [f"`{name}`" for name in needs if not given[name]]
    if missing:
        raise UsageError(f"`method={config.method}` needs {' and '.join(missing)}. `dp4tl-fast prune --help` says what they are")


def _check_files(config: PruneConfig, cuts: Sequence[paths.Cut]) -> None:
    outputs: list[tuple[str, str | Path]] = [("out", path) for cut in cuts for path in cut.paths]
    outputs += [("report", config.report), ("materialize", config.materialize)]
    if (cache := _cache_folder(config)) is not None and not cache.is_dir():  # one that may only be read is read
        outputs.append(("cache", cache / "features"))
    inputs = [config.source, *config.target, config.surrogate, config.surrogate_val, config.scores]
    check_outputs([(name, path) for name, path in outputs if path], [path for path in inputs if path])


def _cache_folder(config: PruneConfig) -> Path | None:
    if config.cache == "none":
        return None
    return Path(config.cache) if config.cache else Path(config.out).parent / ".dp4tl-cache"


def _open_targets(config: PruneConfig) -> list[Beton]:
    real = [Path(path).resolve() for path in config.target]
    for i, path in enumerate(config.target):
        if real[i] in real[:i]:
            raise UsageError(f"`target={shown(path)}`: given twice")
    targets = [Beton(path, **config.cached) for path in config.target]
    for t in targets:
        if t.num_samples == 0:
            raise UsageError(f"{t.path}: the target has no images, but a method needs some to vote")
    return targets


# -- what the method looks at ----------------------------------------------------------------------------------------


def _surrogate(config: PruneConfig, method: Method, beton: Beton, targets: list[Beton], watch: Stopwatch) -> str | None:
    """The surrogate's file or folder, trained first if that was asked for; ``None`` for methods that need none."""
    if "surrogate" not in method.needs:
        return None
    if not config.train_surrogate:
        return config.surrogate
    if world_size() > 1:
        raise UsageError("`train_surrogate`: train it in one process first, then give it as `surrogate` under torchrun")
    from dp4tl_fast.pruning.train_surrogate import train

    with watch.section("training"):
        return train(beton, targets, config, _cache_folder(config))


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

    val = Beton(config.surrogate_val, **config.cached) if config.surrogate_val else None
    if val is not None:
        inputs.beton.check_split(val)
        if val.num_samples == 0:
            raise UsageError(f"`surrogate_val={shown(config.surrogate_val)}`: has no images to measure the surrogate's accuracy on")
    found = quality.measure(inputs, method.logits, val)
    if found is None:
        return {}
    labels_matter = method.logits or config.groups == "classes"  # clusters are for sources whose labels mean nothing
    if rank() == 0 or found.misnumbered or found.useless:
        remedy = quality.TRAIN_ANOTHER if config.train_surrogate else quality.TRAIN_LONGER
        quality.check(found, surrogate.path, inputs.beton, config.accept_surrogate or not labels_matter, remedy)
    return found.to_dict()


Chosen = tuple[Keep, "Choice", "np.ndarray | None", list[Beton]]  # by which rule, what, how much of each, for which targets


def _choose(
    config: PruneConfig, cuts: Sequence[paths.Cut], sizes: np.ndarray, scores: list[Scores], targets: list[Beton]
) -> dict[str, Chosen]:
    """What goes into each file: for every cut of all targets together, and of several targets of each by itself."""
    from dp4tl_fast.pruning.choose import choose

    for target, one in zip(targets, scores, strict=False):
        if one.votes is not None and one.votes[sizes > 0].sum() == 0:
            raise UsageError(
                f"{target.path}: none of its {target.num_samples} images is most like {one.unit} that have records in "
                f"{shown(config.source)}: nothing in it is for this target. Use another source, or another surrogate"
            )
    images = [t.num_samples for t in targets] or [1]
    alone = [([s], [1], "sum", [t]) for s, t in zip(scores, targets, strict=False)]
    chosen: dict[str, Chosen] = {}
    for cut in cuts:
        rule = cut.rule or Keep.parse(str(np.count_nonzero(scores[0].values[sizes > 0])))
        for path, (some, counts, merge, of) in zip(cut.paths, [(scores, images, config.merge, targets), *alone], strict=False):
            choice = choose(some, counts, sizes, rule, merge, config.reverse)
            chosen[path] = rule, choice, draw(config, choice, sizes), of
    return chosen


def _served(config: PruneConfig, targets: list[Beton], scores: list[Scores], chosen: Chosen) -> dict[str, KeptVotes]:
    """The votes of each target that a choice keeps, for methods that count them."""
    from dp4tl_fast.pruning.choose import kept_votes

    _, choice, weights, _ = chosen
    kept = choice.kept if weights is None else np.flatnonzero(weights)
    triples = zip(map(shown, config.target), targets, scores, strict=False)  # a method without targets may have been given some
    return {path: kv for path, t, s in triples if (kv := kept_votes(s, kept, t.class_names))}


# -- what is written -------------------------------------------------------------------------------------------------


def _result(cut: paths.Cut, selection: Selection, served: dict[str, KeptVotes]) -> dict[str, Any]:
    """What the command's result says of one cut."""
    votes = {path: asdict(share) for path, share in served.items()}
    return {"out": cut.out, "kept_samples": selection.kept_samples, "per_target": cut.per_target, "votes_kept": votes}


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


def _parameters(config: PruneConfig, rule: Keep, targets: int) -> dict[str, Any]:
    """What is needed to repeat it; of soft mapping only where it is used."""
    found: dict[str, Any] = {"keep": rule.text, "reverse": config.reverse, "seed": config.seed}
    if targets > 1:
        found["merge"] = config.merge
    if config.sample == "weighted":
        found |= {"sample": config.sample, "shares": config.shares, "smooth": config.smooth}
    if config.per_class:
        found["per_class"] = config.per_class
    return found


def _budget(rule: Keep, beton: Beton) -> dict[str, Any]:
    """For ``pretrain``, which takes its epochs from it."""
    images = rule.images(beton.num_samples)
    return {"budget_images": images} if images else {}


def _write_more(config: PruneConfig, beton: Beton, selection: Selection, files: Sequence[str]) -> None:
    """The pruned .beton and the page, where asked for."""
    if config.materialize:
        from dp4tl_fast.beton.copying import subset

        copied = subset(beton, selection.indices(beton), config.materialize)
        cli.message(f"copied {copied['samples']:,} records, {copied['bytes'] / 1e6:,.1f} MB -> {config.materialize}")
    if config.report:
        from dp4tl_fast.reporting.page import report_selections

        report_selections(files, beton, config.report, config.names)


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
