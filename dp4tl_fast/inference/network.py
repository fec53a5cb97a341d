"""A checkpoint opened for use: the network, the names of its classes, and what it wants to see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dp4tl_fast.common.errors import CheckpointError
from dp4tl_fast.inference.config import NetworkConfig
from dp4tl_fast.training import checkpoint, models
from dp4tl_fast.training.device import pick_device
from dp4tl_fast.training.preprocessing import Preprocessing


@dataclass
class Network:
    """See the module.

    Attributes:
        model: In eval mode, on ``device``.
        meta: What the checkpoint says: ``arch``, ``num_classes`` and more.
        names: Of its outputs; their numbers as text where the checkpoint does not say.
        sha256: Of the weights.
    """

    path: str
    model: nn.Module
    meta: dict[str, Any]
    names: list[str]
    pixels: Preprocessing
    device: torch.device
    sha256: str

    @property
    def named(self) -> bool:
        """Whether the checkpoint says what its classes are called."""
        return "class_names" in self.meta

    def check_classifier(self, what: str) -> None:
        """Refuse to ``what`` with a network whose classifier was never trained, or that has none."""
        if not checkpoint.classifies(self.meta):
            raise CheckpointError(
                f"{self.path}: was trained without labels ({self.meta.get('objective', 'its file has no classifier')}): it has no "
                f"classifier to {what} with. Finetune it first, or use its features: `dp4tl-fast predict --features`"
            )


def open_network(config: NetworkConfig, device: str) -> Network:
    """Open the run folder, checkpoint folder or weights file that ``config`` names.

    Raises:
        CheckpointError, UsageError: It cannot be read, or does not fit.
    """
    place = pick_device(device)
    weights = checkpoint.pin_weights(config.checkpoint)
    model, meta = checkpoint.load_model(weights, config.arch)
    sha256 = checkpoint.weights_hash(weights, model)
    names = meta.get("class_names") or [str(c) for c in meta.get("classes") or range(int(meta["num_classes"]))]
    pixels = Preprocessing.of(meta, config.size).changed(config.mean, config.std)
    models.resize(model, pixels.size)
    return Network(config.checkpoint, model.to(place).eval(), meta, list(names), pixels, place, sha256)
