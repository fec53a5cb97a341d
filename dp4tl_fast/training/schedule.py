"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math

from dp4tl_fast.common.errors import UsageError

SCHEDULES = ("triangular", "cosine", "step", "constant")


def learning_rate(
    step: int, *, schedule: str, peak: float, total_steps: int, warmup_steps: int, floor: float = 1e-4
) -> float:
    """The rate of optimiser step ``step`` (from 0).

    ``triangular`` is the paper's: ``floor`` -> ``peak`` over the warm-up, then straight back to ``floor``. ``cosine`` warms
    up the same way and falls on a half cosine to 0. (The published ViT schedule ran both at once, so that its rate rose at
    the end; here the two phases follow each other.) ``step`` warms up alike and falls to a tenth at half and at three quarters
    of what follows.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"unknown schedule {schedule!r}. Known: {', '.join(SCHEDULES)}")
    if schedule == "constant":
        return peak
    floor = min(floor, peak)
    if step < warmup_steps:
        return floor + (peak - floor) * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "triangular":
        return peak + (floor - peak) * progress
    if schedule == "step":
        return peak * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
