"""What a network sees in photos: a row for each, whatever happens to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp4tl_fast.common import cli
from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import check_outputs
from dp4tl_fast.inference.photos import STDIN, find
from dp4tl_fast.inference.tables import FORMATS, open_table

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.inference.network import Network
    from dp4tl_fast.inference.stream import Row


def predict(
    checkpoint: str,
    photos: list[str],
    *,
    out: str = "predictions.csv",
    arch: str | None = None,
    top: int = 5,
    probabilities: bool = False,
    features: bool = False,
    tta: str = "none",
    exif_orientation: str = "ignore",
    batch_size: int = 64,
    size: int = 0,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    backend: str = "native",
    device: str = "auto",
    workers: int = 0,
) -> dict[str, Any]:
    """Say what is in photos, without converting them first: a row of OUT for each, with its error where it is no image.

    Args:
        checkpoint: Run folder (its last checkpoint), checkpoint folder (``RUN/checkpoint/best``), or weights file.
        photos: Image files, folders of them (flat or nested), tars, .beton files, and - for a list of files on stdin.
        out: predictions.csv, .jsonl or .parquet, as its name ends.
        arch: Architecture, where the checkpoint does not say.
        top: How many of the likeliest classes to name.
        probabilities: Also give the probability of every class.
        features: Give the penultimate features instead of classes: of any network, also one trained without labels.
        tta: none, or flip: average the probabilities of each image and its mirror image.
        exif_orientation: ignore, as convert does by default, or apply.
        batch_size: Images at a time.
        size: Side of the images; 0 is the checkpoint's.
        mean: Mean of the channels that the network wants, three values, instead of the checkpoint's.
        std: Standard deviation, likewise.
        backend: What decodes: native, ffcv, dali or torchvision (slow).
        device: auto, cpu, cuda, cuda:1, ...
        workers: Decoding threads; 0 means one per core.

    Returns:
        ``images``, of which ``failed``, ``seconds`` and ``images_per_s``.

    Raises:
        Dp4tlError: The checkpoint is bad, or there are no photos at all; a bad photo is a row.
    """
    start = time.perf_counter()
    require(top >= 1, "top", top, "at least 1")
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    require(workers >= 0, "workers", workers, "0 (one per core) or more")
    require_one_of("tta", tta, ("none", "flip"))
    require_one_of("exif_orientation", exif_orientation, ("ignore", "apply"))
    if Path(out).suffix.lower() not in FORMATS:
        raise UsageError(f"`out={out}`: must end in one of {', '.join(FORMATS)}")
    if features and (probabilities or tta != "none"):
        raise UsageError("`features`: are given instead of classes. Drop `probabilities` and `tta`")
    betons = [place for place in photos if place.endswith(".beton")]
    if betons and len(betons) < len(photos):
        raise UsageError("`photos`: .beton files and others in one call. Give the .beton files in a call of their own")
    check_outputs([("out", out)], [place for place in photos if place != STDIN])
    found = [] if betons else find(photos)

    from dp4tl_fast.beton import Beton
    from dp4tl_fast.inference.network import open_network
    from dp4tl_fast.inference.stream import file_rows, photo_rows
    from dp4tl_fast.training.trial import try_forward

    network = open_network(checkpoint, arch, device=device, size=size, mean=mean, std=std)
    if not features:
        network.check_classifier("predict")
    try_forward(network.model, network.meta["arch"], network.pixels.size, network.device)
    how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "backend": backend}
    files = [Beton(path) for path in betons]
    total = sum(file.num_samples for file in files) if betons else len(found)
    failed = done = 0
    with ExitStack() as stack:
        of, width = _output(network, features, tta, stack)
        table = stack.enter_context(open_table(Path(out), _columns(network, top, probabilities, features, width)))
        bar = stack.enter_context(cli.progress(None, desc="predict", unit="image", total=total))

        def everything() -> Iterator[tuple[str, Row]]:
            for file in files:
                for record, row in file_rows(network, file, of, **how):
                    yield f"{file.path}#{record}", row
            yield from photo_rows(network, found, of, orientation=exif_orientation, **how)

        for name, (row, error) in everything():
            table.write({"path": name, "error": error, **_cells(row, network, top, probabilities, features)})
            done, failed = done + 1, failed + bool(error)
            bar.update()
    seconds = time.perf_counter() - start
    cli.message(f"{out}: {done:,} images, {failed:,} of them unreadable" if failed else f"{out}: {done:,} images")
    return {
        "kind": "predict", "out": out, "checkpoint_sha256": network.sha256, "images": done, "failed": failed, "seconds": seconds,
        "images_per_s": done / max(seconds, 1e-9),
    }  # fmt: skip


def _output(network: Network, features: bool, tta: str, stack: ExitStack) -> tuple[Any, int]:
    """What is computed of normalised images, ``[b, 3, size, size]`` -> ``[b, width]``, and the width."""
    from dp4tl_fast.inference.passes import TTA
    from dp4tl_fast.training import models

    if not features:
        logits = TTA[tta](network.model)
        return (lambda images: logits(images).float().softmax(1)), len(network.names)
    tap = stack.enter_context(models.FeatureTap(network.model))
    return (lambda images: tap(images)[1]), models.feature_width(network.model)


def _columns(network: Network, top: int, probabilities: bool, features: bool, width: int) -> dict[str, Any]:
    """Name -> type: str, float, or the names of several numbers."""
    columns: dict[str, Any] = {"path": str, "error": str}
    if features:
        return columns | {"features": [f"f{i}" for i in range(width)]}
    for k in range(1, min(top, width) + 1):
        columns |= {f"class_{k}": str, f"p_{k}": float}
    return columns | ({"probabilities": [f"p({name})" for name in network.names]} if probabilities else {})


def _cells(row: torch.Tensor | None, network: Network, top: int, probabilities: bool, features: bool) -> dict[str, Any]:
    if row is None:
        return {}
    if features:
        return {"features": row.tolist()}
    values, classes = row.topk(min(top, len(row)))
    cells: dict[str, Any] = {}
    for k, (p, c) in enumerate(zip(values.tolist(), classes.tolist(), strict=True), 1):
        cells |= {f"class_{k}": network.names[c], f"p_{k}": p}
    return cells | ({"probabilities": row.tolist()} if probabilities else {})
