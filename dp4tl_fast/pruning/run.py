"""Score source classes for a target, keep the best, write a selection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.fingerprint import CLASS_NAMES, difference
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import check_outputs
from dp4tl_fast.common.stopwatch import Stopwatch
from dp4tl_fast.selection import Selection
from dp4tl_fast.selection.names import readable
from dp4tl_fast.training.ranks import process_group, rank, world_size

if TYPE_CHECKING:
    from dp4tl_fast.pruning.choose import Choice
    from dp4tl_fast.pruning.scoring import SourceInputs


@process_group()
def prune(
    *,
    source: str,
    out: str,
    keep: str = "",
    budget: float = 0.0,
    target: list[str] = [],  # noqa: B006 (read only; the parser needs the list type)
    merge: str = "sum",
    surrogate: str | None = None,
    train_surrogate: str = "",
    surrogate_epochs: int = 4,
    arch: str | None = None,
    method: str = "lm",
    groups: str = "classes",
    clusters: int = 500,
    classes: list[str] = [],  # noqa: B006
    scores: str = "",
    reverse: bool = False,
    seed: int = 0,
    cache: str = "",
    materialize: str = "",
    report: str = "",
    names: str = "",
    backend: str = "native",
    batch_size: int = 256,
    size: int = 0,
    device: str = "auto",
    workers: int = 0,
) -> dict[str, Any]:
    """Choose the source classes worth pretraining on for a target.

    Methods with a target: lm counts, for every source class, the target images that a surrogate trained on the source
    puts into it; fm counts the target images nearest to each source class, or cluster, in the surrogate's feature space;
    ffmm is fm by the middle of each class; cmt and cmt-median rank by distance to the target's classes. Without one:
    random, handpicked, influence (imported scores); and for single records random-samples, moderate, grand, el2n,
    forgetting, prototypes, ssl-prototypes.

    Equal scores (most classes get no vote) are ranked by the surrogate's mean probability for the class (lm) or the
    smaller mean distance (fm), then by id.

    Under torchrun the passes over images and K-means are shared by the processes.

    Args:
        source: Source .beton.
        out: Selection to write (.json).
        keep: How much to keep: a fraction of the classes (0.4) or a number of them (400); samples:0.4 for the fewest
            classes with that share of the samples; auto (or auto:0.9) for the fewest that carry this share of the votes,
            with confidence. Counts clusters under --groups kmeans, and records for methods that score records.
        budget: Instead of --keep: the most classes whose samples cost at most this share of a full epoch (0.4).
        target: Target *training* .beton; give it again for several targets.
        merge: How several targets become one selection: sum (scores are added), union (of the selections for each), or
            turns (each in turn chooses its best class). The selections for each are written beside it.
        surrogate: Run folder or weights of a small network trained on the source; or torchvision:DEFAULT (or another name
            of published weights) with --arch.
        train_surrogate: Run folder to train a surrogate in, in a short run; reused when it is complete.
        surrogate_epochs: Length of that run.
        arch: The surrogate's architecture, where its file does not say.
        method: lm, fm, ffmm, cmt, cmt-median, random, handpicked, influence, random-samples, moderate, grand, el2n,
            forgetting, prototypes or ssl-prototypes.
        groups: What fm votes for: classes, kmeans (no labels needed), or the .groups.npz of an earlier run.
        clusters: K of K-means, for --groups kmeans and ssl-prototypes.
        classes: Names or ids for --method handpicked.
        scores: CSV or Parquet with a column score and one of class, record or index, for --method influence.
        reverse: Keep the lowest instead (an ablation).
        seed: For random, K-means and the bootstrap of --keep auto.
        cache: Folder for features, so that another method or ratio takes seconds; the default is .dp4tl-cache beside
            --out, none keeps nothing.
        materialize: Also copy the surviving records to this .beton.
        report: Also write this HTML page.
        names: Text file of names for people, for the page: the class's name, a tab, what to show (Tiny-ImageNet's words.txt).
        backend: What reads the images: native, ffcv, dali or torchvision.
        batch_size: Images a forward pass.
        size: Side of the images the surrogate sees; 0 is what it was trained with, else 224.
        device: auto, cpu, cuda, ...
        workers: Loader threads; 0 is one a core.
    """
    watch = Stopwatch("start")
    from dp4tl_fast.mapping import registry
    from dp4tl_fast.pruning.choose import check_merge, choose

    found = registry.find(method)
    keep = _keep_rule(keep, budget, method)
    check_merge(merge)
    given = {"target": target, "surrogate": surrogate or train_surrogate, "classes": classes, "scores": scores}
    _check_given(method, found.needs, given)
    if surrogate and train_surrogate:
        raise UsageError("--surrogate and --train-surrogate: give one of them")
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be at least 0")
    if surrogate_epochs < 1:
        raise UsageError(f"--surrogate-epochs {surrogate_epochs}: must be at least 1")
    cache_folder = None if cache == "none" else Path(cache) if cache else Path(out).parent / ".dp4tl-cache"
    each = _paths_for_each(out, target) if len(target) > 1 and "target" in found.needs else {}
    _check_files([source, *target, surrogate, scores], out, each, report, materialize, cache_folder)
    beton, targets = Beton(source), _open_targets(target)
    shown = readable(beton.class_names, names)
    uses_targets = "target" in found.needs
    first = rank() == 0  # of torchrun's processes: the one that writes
    if train_surrogate and "surrogate" in found.needs:
        if world_size() > 1:
            raise UsageError("--train-surrogate: train it in one process first, then give it by --surrogate under torchrun")
        from dp4tl_fast.pruning.surrogate import train_surrogate as train

        with watch.section("training"):
            surrogate = train(
                beton, train_surrogate, surrogate_epochs, arch, size=size,
                backend=backend, device=device, workers=workers, seed=seed,
            )  # fmt: skip
    inputs = _inputs(
        beton, found, surrogate, arch, watch,
        cache=cache_folder, groups=groups, clusters=clusters, seed=seed, picked=classes, table=scores,
        loading={"backend": backend, "batch_size": batch_size, "size": size, "device": device, "workers": workers},
    )  # fmt: skip
    with watch.section("counting"):
        all_scores = [found.score(inputs, inputs.target(t)) for t in targets] if uses_targets else [found.score(inputs)]
    with watch.section("selection"):
        sizes = inputs.sizes(all_scores[0].unit)
        keep = keep or str(np.count_nonzero(all_scores[0].values[sizes > 0]))
        weights = [t.num_samples for t in targets] if uses_targets else [1]
        choice = choose(all_scores, weights, sizes, keep, merge, reverse, seed)
    if not first:
        return {}
    spent = watch.lap()
    seconds = {"scoring": sum(spent.values()) - spent.get("training", 0.0)}
    if inputs.surrogate:
        seconds |= inputs.surrogate.training_seconds()
    if inputs.saved:
        seconds["cached"] = inputs.saved  # what an earlier run spent counts, too
    parameters = {"keep": keep, "reverse": reverse, "seed": seed} | ({"merge": merge} if len(all_scores) > 1 else {})
    identity = dict(inputs.surrogate.identity) if inputs.surrogate else {}
    about: dict[str, Any] = {"method": method, "seconds": seconds, "surrogate": identity}

    def write(path: Path, choice: Choice, of: list[Beton]) -> Selection:
        identities = [{"name": t.path.name, **t.fingerprint} for t in of] if uses_targets else []
        selection = _selection(path, beton, inputs, choice, parameters=parameters, targets=identities, **about)
        selection.save(path)
        return selection

    with watch.section("writing"):
        selection = write(Path(out), choice, targets)
        for path, t, one in zip(each.values(), targets, all_scores, strict=False):
            write(Path(path), choose([one], [1], sizes, keep, "sum", reverse, seed), [t])
    profile = _profile(watch)
    _tell(selection, shown, choice, out, profile)
    if materialize:
        from dp4tl_fast.beton.copying import subset

        copied = subset(beton, selection.indices(beton), materialize)
        cli.message(f"copied {copied['samples']:,} records, {copied['bytes'] / 1e6:,.1f} MB -> {materialize}")
    if report:
        from dp4tl_fast.reporting.page import report_selections

        report_selections([out, *each.values()], source, report, names)
    return {"kind": "prune", **selection.to_dict(), "profile": profile, "per_target": each}


def _check_given(method: str, needs: Sequence[str], given: dict[str, Any]) -> None:
    missing = [f"--{flag}" for flag in needs if not given[flag]]
    if missing:
        raise UsageError(f"--method {method} needs {' and '.join(missing)}. `dp4tl-fast prune --help` says what they are")


def _check_files(
    inputs: list[str | None], out: str, each: dict[str, str], report: str, materialize: str, cache: Path | None
) -> None:
    outputs: dict[str, str | Path] = {"--out": out, "--report": report, "--materialize": materialize}
    outputs |= {f"--out, for {target},": path for target, path in each.items()}
    if cache is not None:
        outputs["--cache"] = cache / "features"
    check_outputs({flag: path for flag, path in outputs.items() if path}, [path for path in inputs if path])


def _open_targets(paths: list[str]) -> list[Beton]:
    real = [Path(path).resolve() for path in paths]
    for i, path in enumerate(paths):
        if real[i] in real[:i]:
            raise UsageError(f"--target {path}: given twice")
    targets = [Beton(path) for path in paths]
    for t in targets:
        if t.num_samples == 0:
            raise UsageError(f"{t.path}: the target has no images, but a method needs some to vote")
    return targets


def _keep_rule(keep: str, budget: float, method: str) -> str:
    from dp4tl_fast.mapping.keep import check

    if keep and budget:
        raise UsageError("--keep and --budget: give one of them")
    if budget:
        keep = f"budget:{budget}"
    if not keep and method != "handpicked":  # which keeps what is picked
        raise UsageError("how much? Give --keep (a fraction, a number, samples:F, auto) or --budget F")
    if keep:
        check(keep)
    return keep


def _paths_for_each(out: str, targets: list[str]) -> dict[str, str]:
    """Where the selection for each of several targets goes: beside ``out``, by the target's name."""
    stems = [Path(t).stem for t in targets]
    names = stems if len(set(stems)) == len(stems) else [f"{i}-{stem}" for i, stem in enumerate(stems)]
    return {t: f"{out.removesuffix('.json')}.{name}.json" for t, name in zip(targets, names, strict=True)}


def _inputs(
    beton: Beton, found: Any, surrogate: str | None, arch: str | None, watch: Stopwatch, *, cache: Path | None, groups: str,
    clusters: int, seed: int, picked: list[str], table: str, loading: dict[str, Any],
) -> SourceInputs:  # fmt: skip
    """What the method may look at; the surrogate is loaded only for methods that need one."""
    from dp4tl_fast.pruning.scoring import SourceInputs

    network = None
    if surrogate is not None and "surrogate" in found.needs:
        from dp4tl_fast.pruning.surrogate import Surrogate

        network = Surrogate(surrogate, arch, watch, **loading)
        if found.logits and (network.num_classes != beton.num_classes or network.compact):
            raise UsageError(
                f"--surrogate {surrogate} knows {network.num_classes} classes, but {beton.path} has {beton.num_classes}. "
                "Use one trained on this source, without --compact-labels"
            )
        if found.logits and not network.classifies:
            raise UsageError(
                f"--surrogate {surrogate} was pretrained without labels: its classifier was never trained. "
                "Use --method fm with it, or a surrogate that was trained supervised"
            )
        if found.logits:
            _check_classes(surrogate, network.source, beton)
    return SourceInputs(beton, network, cache, groups, clusters, seed, picked, table)


def _check_classes(surrogate: str, trained_on: dict[str, Any] | None, beton: Beton) -> None:
    """Refuse a network that numbers other classes, as far as it says what it was trained on."""
    if trained_on is None:
        return
    classes = {key: trained_on[key] for key in ("classes", CLASS_NAMES) if key in trained_on}
    if len(classes) == 2 and any(beton.fingerprint[key] != value for key, value in classes.items()):
        raise UsageError(
            f"--surrogate {surrogate} was trained on classes of other names or in another order than {beton.path} has. "
            "Use one trained on this source"
        )
    if difference(trained_on, beton.fingerprint):
        cli.message(f"note: {surrogate} was not trained on {beton.path}; its classes must be the same, in this order")


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


SECTIONS = ("start", "training", "loading", "forward", "counting", "selection", "writing")


def _profile(watch: Stopwatch) -> dict[str, float]:
    """Seconds of each section, in ``total``, and ``overhead``: what besides the forward pass grows with the data, over it.

    ``start`` is what every command needs: importing torch, opening the files, reading the surrogate's weights.
    """
    spent = watch.lap()
    profile = {name: spent[name] for name in SECTIONS if name in spent} | {"total": sum(spent.values())}
    if spent.get("forward"):
        profile["overhead"] = sum(spent[name] for name in SECTIONS[2:] if name != "forward") / spent["forward"]
    return profile


def _tell(selection: Selection, names: list[str], choice: Choice, out: str, profile: dict[str, float]) -> None:
    unit, source = choice.scores.unit, selection.source
    cut = "" if unit == "classes" else f" ({len(choice.kept):,} of {len(choice.order):,} {unit})"
    first = ", ".join(names[c] for c in choice.order[: min(len(choice.kept), 10)]) if unit == "classes" else ""
    cli.message(
        f"kept {len(selection.kept_classes)} of {source['classes']} classes, {selection.kept_samples:,} of "
        f"{source['samples']:,} samples{cut} -> {out}" + (f"\nfirst: {first}" if first else "")
    )
    share = f"; all but start and forward is {100 * profile['overhead']:.1f} % of forward" if "overhead" in profile else ""
    cli.message("seconds: " + ", ".join(f"{name} {profile[name]:.2f}" for name in profile if name != "overhead") + share)

