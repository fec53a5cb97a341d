"""``pretrain --init``: weights to continue from, pinned by their hash."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import CheckpointError
from dp4tl_fast.pretraining.config import PretrainConfig

if TYPE_CHECKING:
    from torch import nn

HASH = "init_sha256"


def initial_hash(config: PretrainConfig) -> str | None:
    """SHA-256 of the weights that a run continues from: in a folder that is resumed, of those that it did."""
    if not config.init:
        return None
    path = Path(config.out) / "config.yaml"
    if config.resume and path.is_file():
        try:
            return (yaml.safe_load(path.read_text()) or {}).get(HASH)
        except (yaml.YAMLError, AttributeError) as error:
            raise CheckpointError(f"{path}: not readable as YAML ({error})") from None
    from dp4tl_fast.training import checkpoint

    weights = checkpoint.pin_weights(config.init)
    if weights.startswith(checkpoint.PUBLISHED):
        return checkpoint.weights_hash(weights, checkpoint.load_model(weights, config.arch)[0])
    return checkpoint.weights_hash(weights)


def initialise(model: nn.Module, config: PretrainConfig, class_names: list[str], sha256: str | None) -> dict[str, Any]:
    """Copy the weights of ``config.init`` into ``model``; the classifier's only where it is for the same classes.

    Args:
        sha256: What the weights must be, see ``initial_hash``.

    Returns:
        Their metadata; empty without ``init``, and where a checkpoint of the run itself follows.

    Raises:
        CheckpointError: They are of another architecture, cannot be read, or have changed since the run began.
    """
    from dp4tl_fast.training import checkpoint, models

    if not config.init:
        return {}
    begun = config.resume and bool(checkpoint.checkpoints(Path(config.out) / "checkpoint"))
    weights = checkpoint.pin_weights(config.init)
    found, meta = checkpoint.load_model(weights, config.arch)
    if not begun and checkpoint.weights_hash(weights, found) != sha256:
        raise CheckpointError(f"{config.out}: was started from other weights than {weights} now holds. Give another `out`")
    models.resize(found, models.fixed_size(model) or config.size)
    state, own = found.state_dict(), model.state_dict()
    name = models.head(model)[0]
    classifier = {f"{name}.weight", f"{name}.bias"} & own.keys()
    same = all(state[k].shape == own[k].shape for k in classifier) and meta.get("class_names", class_names) == class_names
    if not (same and checkpoint.classifies(meta)):
        state |= {k: own[k] for k in classifier}
        cli.message(f"{config.init}: its classifier is for other classes; training a new one")
    checkpoint.load_into(model, state, f"{config.init} ({config.arch})")
    return meta
