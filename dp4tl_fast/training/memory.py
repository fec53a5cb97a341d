"""When a batch does not fit in memory: how many images would."""

from __future__ import annotations

import gc

import torch

from dp4tl_fast.loaders.contract import IndexedBatch
from dp4tl_fast.training.loop import Stepping, gradients
from dp4tl_fast.training.state import Run


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the GPU or the CPU (which torch reports as a plain RuntimeError)."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def most_that_fit(run: Run, prepare: object, at_most: int, side: int, views: int, how: Stepping) -> int:
    """Images of ``side`` pixels that a whole step can be taken with: ``at_most`` halved until it works; 0 if none.

    Spoils ``run``: its weights move. In one process only.
    """
    n = at_most
    while n >= 1:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        blank = tuple(torch.zeros(n, 3, side, side, dtype=torch.uint8) for _ in range(views))
        batch = IndexedBatch(blank if views > 1 else blank[0], torch.zeros(n, dtype=torch.long), torch.arange(n))
        try:
            gradients(run, prepare, batch, Stepping(how.precision))
            run.scaler.step(run.optimizer)
            return n
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        n //= 2
    return 0
