"""In which precision a CPU trains faster. Unlike the other races, this one is between results that differ by rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch.nn import functional as F

from dp4tl_fast.kernels.rates import Race, forced

BATCH, CHANNELS, SIDE = 8, 64, 16


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache  # to look rates up means to make what would be measured
def faster() -> str:
    """``"fp32"`` or ``"bf16"``: CPUs that have bf16 products may still be slower with them."""
    return forced("training", ("fp32", "bf16")) or race().fastest()


def race() -> Race:
    """A convolution, forward and back, as small networks have them: where a training step spends its time. On one thread: which
    one is faster hardly depends on their number, and several wait for each other where the machine is busy."""
    generator = torch.Generator().manual_seed(0)  # a race draws nothing from the run's random numbers
    shapes = (BATCH, CHANNELS, SIDE, SIDE), (CHANNELS, CHANNELS, 3, 3)
    drawn = (torch.randn(shape, generator=generator) for shape in shapes)
    x, w = (t.to(memory_format=torch.channels_last).requires_grad_() for t in drawn)

    def step(bf16: bool) -> None:
        with one_thread(), torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            F.conv2d(x, w, padding=1).sum().backward()

    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    ways = {"fp32": partial(step, False)}
    if known.get("avx512_bf16") or known.get("amx_bf16"):  # without these torch emulates it, at a crawl
        ways["bf16"] = partial(step, True)
    work = 3 * 2e-9 * BATCH * SIDE * SIDE * CHANNELS * CHANNELS * 9  # forward, and back to inputs and weights
    return Race("training step, one thread", f"torch {torch.__version__}", ways, work)
