"""Notices that the loss stopped being finite, and on which images, without waiting for the device at every step."""

from __future__ import annotations

from collections import deque

import torch

from dp4tl_fast.common.errors import TrainingError
from dp4tl_fast.training import ranks

NEVER = 2**62


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite.

    Attributes:
        step: The first such step.
        index: Sample ids of this rank's batch in that step, int64 ``[n]``; ``None`` if it was finite on this rank.
    """

    def __init__(self, step: int, index: torch.Tensor | None) -> None:
        super().__init__(f"the loss is not finite in step {step}")
        self.step, self.index = step, index


class LossWatch:
    """``see`` every step, ``check`` at least every ``every`` steps, on all ranks at the same ones."""

    def __init__(self, device: torch.device, every: int) -> None:
        self._first = torch.full((), NEVER, device=device)
        self._recent: deque[tuple[int, torch.Tensor]] = deque(maxlen=every)

    def see(self, step: int, loss: torch.Tensor, index: torch.Tensor) -> None:
        """Step ``step`` had this mean loss on these samples."""
        self._recent.append((step, index))
        self._first = torch.where(loss.isfinite(), self._first, self._first.clamp(max=step))

    def check(self) -> None:
        """Raise ``NonFiniteLoss`` on every rank, once the loss of any was not finite."""
        step = -int(ranks.all_reduce_max(-self._first))
        if step != NEVER:
            mine = int(self._first) == step
            raise NonFiniteLoss(step, dict(self._recent)[step] if mine else None)
