"""What a network sees in photos: a row for each, whatever happens to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp4tl_fast.common import cli
from dp4tl_fast.common.files import check_outputs
from dp4tl_fast.inference.config import PredictConfig
from dp4tl_fast.inference.photos import STDIN, find
from dp4tl_fast.inference.tables import open_table

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.inference.network import Network
    from dp4tl_fast.inference.stream import Row


def predict(config: PredictConfig) -> dict[str, Any]:
    """Classify photos without converting them first. OUT gets a row for each, with the error if it cannot be read.

    Returns:
        ``images``, of which ``failed``, ``seconds`` and ``images_per_s``.

    Raises:
        Dp4tlError: The checkpoint is bad, or there are no photos at all; a bad photo is a row.
    """
    start = time.perf_counter()
    out, betons = Path(config.out), config.betons
    check_outputs([("out", out)], [place for place in config.photos if place != STDIN])
    found = [] if betons else find(config.photos)

    from dp4tl_fast.beton import Beton
    from dp4tl_fast.inference.network import open_network
    from dp4tl_fast.inference.stream import file_rows, photo_rows
    from dp4tl_fast.training.trial import try_forward

    network = open_network(config, config.device)
    if not config.features:
        network.check_classifier("predict")
    network.pixels = network.pixels.as_loaded(config.checkpoint)
    try_forward(network.model, network.meta["arch"], network.pixels.size, network.device)
    how: dict[str, Any] = {"batch_size": config.batch_size, "workers": config.workers, "backend": config.backend}
    files = [Beton(path) for path in betons]
    total = sum(file.num_samples for file in files) if betons else len(found)
    failed = done = 0
    with ExitStack() as stack:
        of, width = _output(network, config, stack)
        table = stack.enter_context(open_table(out, _columns(network, config, width)))
        bar = stack.enter_context(cli.progress(None, desc="predict", unit="image", total=total))

        def everything() -> Iterator[tuple[str, Row]]:
            for file in files:
                for record, row in file_rows(network, file, of, **how):
                    yield f"{file.path}#{record}", row
            yield from photo_rows(network, found, of, orientation=config.exif_orientation, **how)

        for name, (row, error) in everything():
            table.write({"path": name, "error": error, **_cells(row, network, config)})
            done, failed = done + 1, failed + bool(error)
            bar.update()
    seconds = time.perf_counter() - start
    cli.message(f"{out}: {done:,} images, {failed:,} of them unreadable" if failed else f"{out}: {done:,} images")
    return {
        "kind": "predict", "out": config.out, "checkpoint_sha256": network.sha256, "images": done, "failed": failed,
        "seconds": seconds, "images_per_s": done / max(seconds, 1e-9),
    }  # fmt: skip


def _output(network: Network, config: PredictConfig, stack: ExitStack) -> tuple[Any, int]:
    """What is computed of normalised images, ``[b, 3, size, size]`` -> ``[b, width]``, and the width."""
    from dp4tl_fast.inference.passes import TTA
    from dp4tl_fast.training import models

    if not config.features:
        logits = TTA[config.tta](network.model)
        return (lambda images: logits(images).float().softmax(1)), len(network.names)
    tap = stack.enter_context(models.FeatureTap(network.model))
    return (lambda images: tap(images)[1]), models.feature_width(network.model)


def _columns(network: Network, config: PredictConfig, width: int) -> dict[str, Any]:
    """Name -> type: str, float, or the names of several numbers."""
    columns: dict[str, Any] = {"path": str, "error": str}
    if config.features:
        return columns | {"features": [f"f{i}" for i in range(width)]}
    for k in range(1, min(config.top, width) + 1):
        columns |= {f"class_{k}": str, f"p_{k}": float}
    return columns | ({"probabilities": [f"p({name})" for name in network.names]} if config.probabilities else {})


def _cells(row: torch.Tensor | None, network: Network, config: PredictConfig) -> dict[str, Any]:
    if row is None:
        return {}
    if config.features:
        return {"features": row.tolist()}
    values, classes = row.topk(min(config.top, len(row)))
    cells: dict[str, Any] = {}
    for k, (p, c) in enumerate(zip(values.tolist(), classes.tolist(), strict=True), 1):
        cells |= {f"class_{k}": network.names[c], f"p_{k}": p}
    return cells | ({"probabilities": row.tolist()} if config.probabilities else {})
