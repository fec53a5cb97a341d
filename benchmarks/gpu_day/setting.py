"""What every part of a stage is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

Size = TypeVar("Size")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a part runs, and how large it is.

    Attributes:
        folder: Of the stage: its parts put there what they share.
        rehearsal: On the CPU, Triton interpreted, at sizes that show nothing but that the code runs.
    """

    folder: Path
    rehearsal: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    def size(self, real: Size, rehearsed: Size) -> Size:
        return rehearsed if self.rehearsal else real

    def wait(self) -> None:
        """Until the device has done all it was told."""
        if not self.rehearsal:
            torch.cuda.synchronize()
