"""``python -m dp4tl_fast.prune``: score source classes for a target, keep the best, write a selection."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast import cli
from dp4tl_fast.beton import Beton
from dp4tl_fast.errors import UsageError
from dp4tl_fast.mapping.keep import num_kept
from dp4tl_fast.selection import Selection, rank

METHODS = ("lm", "random")


def prune(
    *,
    source: str,
    out: str,
    keep: str,
    target: list[str] = [],  # noqa: B006 (read only; the parser needs the list type)
    surrogate: str | None = None,
    arch: str | None = None,
    method: str = "lm",
    reverse: bool = False,
    seed: int = 0,
    backend: str = "native",
    batch_size: int = 256,
    size: int = 0,
    device: str = "auto",
    workers: int = 0,
) -> dict[str, Any]:
    """Choose the source classes worth pretraining on for a target.

    Label mapping (lm) counts, for every source class, the target images that a surrogate trained on the source puts into
    it, and keeps the classes with most votes. Equal votes (most classes get none) are ranked by the mean probability that
    the surrogate gives the class, then by class id.

    Args:
        source: Source .beton.
        out: Selection to write (.json).
        keep: How much to keep: a fraction of the classes (0.4), or a number of classes (400).
        target: Target *training* .beton; give it again for several targets, whose votes are added up.
        surrogate: Run folder or weights of a small network trained on the source.
        arch: The surrogate's architecture, where its file does not say.
        method: lm or random.
        reverse: Keep the lowest classes instead (an ablation).
        seed: For the random method.
        backend: What reads the target: native, ffcv, dali or torchvision.
        batch_size: Images a forward pass.
        size: Side of the images the surrogate sees; 0 is what it was trained with, else 224.
        device: auto, cpu, cuda, ...
        workers: Loader threads; 0 is one a core.
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise UsageError(f"--method {method}: known are {', '.join(METHODS)}")
    beton = Beton(source)
    count = num_kept(keep, beton.num_classes)
    targets = [Beton(path) for path in target]
    parameters: dict[str, Any] = {"keep": keep, "reverse": reverse}
    identity: dict[str, Any] = {}
    tie_breaks = None
    if method == "random":
        from dp4tl_fast.mapping.baselines import random_classes

        scores: np.ndarray = random_classes(beton.num_classes, seed)
        parameters["seed"] = seed
    else:
        if not targets or surrogate is None:
            raise UsageError(
                "--method lm needs --target T.beton and --surrogate W (a small network trained on the source)"
            )
        scores, tie_breaks, identity = _label_mapping(
            beton,
            targets,
            surrogate,
            arch,
            backend=backend,
            batch_size=batch_size,
            size=size,
            device=device,
            workers=workers,
        )
    order = rank(scores, tie_breaks)
    has_samples = beton.class_counts[order] > 0  # a class of an unused id must not take a place
    order = order[has_samples][::-1] if reverse else order[has_samples]
    selection = Selection.of_classes(
        beton,
        order[:count],
        method=method,
        scores=scores,
        tie_breaks=tie_breaks,
        parameters=parameters,
        surrogate=identity,
        targets=[{"name": t.path.name, **t.fingerprint} for t in targets],
        seconds={**surrogate_seconds(surrogate), "scoring": time.perf_counter() - start},
    )
    selection.save(out)
    names = beton.class_names
    cli.message(
        f"kept {len(selection.kept_classes)} of {beton.num_classes} classes, {selection.kept_samples:,} of "
        f"{beton.num_samples:,} samples -> {out}\nfirst: " + ", ".join(names[c] for c in order[: min(count, 10)])
    )
    return {"kind": "prune", **selection.to_dict()}


def surrogate_seconds(surrogate: str | None) -> dict[str, float]:
    """What training the surrogate took, where its run folder is at hand."""
    summary = Path(surrogate or "") / "summary.json"
    return (
        {"surrogate": float(json.loads(summary.read_text())["pretrain_s"])} if surrogate and summary.is_file() else {}
    )


def _label_mapping(
    source: Beton, targets: list[Beton], surrogate: str, arch: str | None, *, size: int, device: str, **loading: Any
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Votes and mean probabilities over all targets, and who the surrogate was."""
    from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD
    from dp4tl_fast.mapping.label_mapping import label_mapping
    from dp4tl_fast.training import checkpoint
    from dp4tl_fast.training.device import pick_device
    from dp4tl_fast.training.loop import Normalise

    model, meta = checkpoint.load_model(surrogate, arch)
    if meta["num_classes"] != source.num_classes:
        raise UsageError(
            f"--surrogate {surrogate} knows {meta['num_classes']} classes, but {source.path} has {source.num_classes}. "
            "Use one trained on this source, without --compact-labels"
        )
    place = pick_device(device)
    model.to(place)
    size = size or meta.get("size", 224)
    normalise = Normalise(tuple(meta.get("mean", IMAGENET_MEAN)), tuple(meta.get("std", IMAGENET_STD)), place)
    votes, mass, n = np.zeros(source.num_classes, np.int64), np.zeros(source.num_classes), 0
    for target in targets:
        result = label_mapping(model, _images(target, size, normalise, **loading), source.num_classes)
        votes, mass, n = votes + result.votes, mass + result.probability * target.num_samples, n + target.num_samples
    if n == 0:
        raise UsageError("the target has no images; label mapping needs some")
    identity = {"arch": meta["arch"], "size": size, "weights_sha256": checkpoint.weights_hash(surrogate)}
    return votes, mass / n, identity


def _images(target: Beton, size: int, normalise: Any, *, backend: str, batch_size: int, workers: int) -> Any:
    """All target images once, as the surrogate wants them (the evaluation transform, no augmentation)."""
    from dp4tl_fast.loaders import LoaderSpec, open_loader
    from dp4tl_fast.pretrain import crop_ratio

    spec = LoaderSpec(batch_size=batch_size, size=size, crop_ratio=crop_ratio(size), workers=workers)
    with open_loader(target, None, spec, backend) as loader:
        for images, _ in cli.progress(loader, desc=f"score {target.path.name}", unit="batch", total=len(loader)):
            yield normalise(images)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(prune, argv)


if __name__ == "__main__":
    sys.exit(main())
