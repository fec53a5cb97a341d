"""What all training runs are told alike."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Protocol

from dp4tl_fast.common.checks import require
from dp4tl_fast.common.errors import UsageError


@dataclass(kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and which stay.

    Args:
        every: Save every this many epochs, and after the last.
        keep_last: Number of newest checkpoints to keep; the best (by val_top_1, else the lowest loss) is kept as well.
    """

    every: int = 1
    keep_last: int = 2

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "at least 1")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")


def signals(names: str) -> list[signal.Signals]:
    """``USR1,HUP`` -> the signals.

    Raises:
        UsageError: There is none of that name, or it cannot be caught.
    """
    found = []
    for name in filter(None, (part.strip().upper().removeprefix("SIG") for part in names.split(","))):
        number = getattr(signal.Signals, f"SIG{name}", None)
        if number is None or number in (signal.SIGKILL, signal.SIGSTOP):
            raise UsageError(f"`stop_signals={names}`: {name} is not a signal that can be caught. Use some like USR1,USR2,HUP")
        found.append(number)
    return found


class Plan(Protocol):
    """What a ``Session`` asks of its settings; a command's config has these under the same names."""

    epochs: int
    batch_size: int
    accumulate: int
    schedule: str
    warmup_epochs: float
    tensorboard: bool
    track: str
    profile: bool
    resume: bool
    stop_signals: str
    max_bad: int

    @property
    def saving(self) -> CheckpointConfig: ...
    @property
    def peak_lr(self) -> float: ...
