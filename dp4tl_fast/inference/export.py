"""A network in a form that others run: what is written was run first and gave the network's own outputs."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import CheckpointError
from dp4tl_fast.common.files import check_outputs, commit, partial_path
from dp4tl_fast.inference.config import ENDINGS, ExportConfig

if TYPE_CHECKING:
    from dp4tl_fast.inference.network import Network

CHECKED = 3  # images of the batch that both run: not the number that it is traced with
TOLERANCE = 1e-4  # of the largest logit: sums of float32 in another order


def export(config: ExportConfig) -> dict[str, Any]:
    """Export a network for other programs, with its preprocessing and class names in the file.

    onnx and torch-export: the input is ``images``, uint8 ``[n, 3, size, size]``, RGB, already cropped and resized, for any n;
    normalisation is part of the network; the output is ``logits``, float32 ``[n, classes]``. Class names, size, crop and
    interpolation are in the file's metadata, as JSON under ``dp4tl``. torchvision: a dictionary that
    ``torch.load(weights_only=True)`` reads: ``state_dict`` for torchvision's own model, ``arch``, ``class_names`` and
    ``preprocessing``.

    Returns:
        ``out``, ``to``, ``bytes`` and ``largest_difference`` of the logits on a batch of noise.

    Raises:
        CheckpointError: It has no trained classifier, or the exported network gives other outputs.
        UsageError: The form does not know this architecture, or its library is missing.
    """
    out, to = config.out, config.to
    check_outputs([("out", out)], [config.checkpoint])

    from dp4tl_fast.inference.network import open_network
    from dp4tl_fast.training.trial import try_forward

    network = open_network(config, "cpu")
    network.check_classifier("export")
    try_forward(network.model, network.meta["arch"], network.pixels.size, network.device)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    from dp4tl_fast.inference import forms

    folder = Path(tempfile.mkdtemp(prefix=".dp4tl-export-", dir=path.parent))
    try:
        made = folder / f"network{ENDINGS[to]}"
        difference = forms.FORMS[to](network, made, describe(network))
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"{out}: not written: the exported network's logits differ from the original's by {difference:.2g} of the largest"
            )
        made.replace(partial_path(path))
        with open(partial_path(path), "rb+") as file:
            forms.sync(file)
        commit(partial_path(path), path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        partial_path(path).unlink(missing_ok=True)
    cli.message(f"{out}: {to}, {len(network.names)} classes; outputs equal the network's to within {difference:.1g} of the largest")
    return {"kind": "export", "out": out, "to": to, "bytes": path.stat().st_size, "largest_difference": difference}


def describe(network: Network) -> dict[str, Any]:
    """What a user of the exported network must know."""
    return {"arch": network.meta["arch"], "class_names": network.names, "preprocessing": network.pixels.meta(),
            "weights_sha256": network.sha256}  # fmt: skip


def as_json(about: dict[str, Any]) -> str:
    """For a file's metadata."""
    return json.dumps(about, ensure_ascii=False)
