"""The network that finetuning starts from: read once, and kept in the run folder until every seed is done."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from dp4tl_fast.common.errors import CheckpointError
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.training import checkpoint, models

START = "start.safetensors"  # what was read, so that a run that still trains, or moves, changes no later seed
HASH = "checkpoint_sha256"


@dataclass
class Start:
    """A network on the CPU, in eval mode.

    Attributes:
        meta: What its checkpoint says, with ``arch``.
        sha256: Of its weights file; ``None`` from scratch.
    """

    model: nn.Module | None
    meta: dict[str, Any]
    sha256: str | None

    def fresh(self, seed: int, num_classes: int, size: int) -> nn.Module:
        """A network of a seed's own with a fresh classifier of ``num_classes``; from scratch, with fresh weights."""
        if self.model is None:
            torch.manual_seed(seed)
            model = models.build(self.meta["arch"], num_classes, size=size)
            self.meta |= models.size_meta(model)
            return model
        model = copy.deepcopy(self.model)
        torch.manual_seed(seed)
        models.replace_head(model, num_classes)
        return model

    def keep(self, out: Path) -> None:
        """Write it to the run folder."""
        if self.model is not None and not (out / START).exists():
            checkpoint.save_weights(out / START, self.model, self.meta)


def read_start(config: FinetuneConfig) -> Start:
    """What ``config`` starts from; in a folder that is resumed, what it started from.

    Raises:
        CheckpointError: The weights cannot be read, or the folder lacks those that it was started with.
    """
    if config.from_scratch:
        assert config.arch is not None  # checked by the config
        return Start(None, {"arch": config.arch}, None)
    out, expected = Path(config.out), pinned(config)
    if expected is not None and (out / START).is_file():
        return Start(*checkpoint.load_model(out / START, config.arch), expected)
    weights = checkpoint.pin_weights(config.checkpoint)
    model, meta = checkpoint.load_model(weights, config.arch)
    found = checkpoint.weights_hash(weights, model)
    if expected not in (None, found):
        raise CheckpointError(
            f"{out}: was started from other weights than {weights} now holds (SHA-256 {str(expected)[:12]}..., not "
            f"{found[:12]}...). Restore those, or give another `out`"
        )
    return Start(model, meta, found)


def pinned(config: FinetuneConfig) -> str | None:
    """The SHA-256 of the weights that a folder to be resumed was started from; ``None`` where none has begun."""
    path = Path(config.out) / "config.yaml"
    try:
        return (yaml.safe_load(path.read_text()) or {}).get(HASH) if config.resume and path.exists() else None
    except (yaml.YAMLError, AttributeError) as error:
        raise CheckpointError(f"{path}: not readable as YAML ({error})") from None
