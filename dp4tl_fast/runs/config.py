"""What all training runs are told alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dp4tl_fast.common.checks import require


@dataclass(kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and which stay.

    Args:
        every: Save every this many epochs, and after the last.
        keep_last: Checkpoints that stay, newest first; the best (val_top_1, else the lowest loss) stays besides.
    """

    every: int = 1
    keep_last: int = 2

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "at least 1")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")


class Plan(Protocol):
    """What a ``Session`` asks of its settings; a command's config has these under the same names."""

    epochs: int
    batch_size: int
    accumulate: int
    schedule: str
    warmup_epochs: float
    tensorboard: bool
    profile: bool
    resume: bool

    @property
    def saving(self) -> CheckpointConfig: ...
    @property
    def peak_lr(self) -> float: ...
