"""Every way that the CPU kernels can take, forced: instruction sets and products in float32 or bfloat16, at the shapes that matter.

What a machine would not choose here is what another one may: a regression of it shows on this one.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness import Suite, interleave, ratio, timed
from dp4tl_fast.kernels import _native
from dp4tl_fast.kernels.label_counts.native_impl import label_counts
from dp4tl_fast.kernels.linear_argmax.native_impl import PRODUCTS, linear_argmax
from dp4tl_fast.kernels.precision import squared_norms

CHOSEN, PEER = "chosen", "torch addmm+argmax"
ROWS, CLASSES = 50_000, 1_000
SHAPES = ((5_000, 1_000, 512), (50_000, 1_000, 2_048), (5_000, 21_000, 512), (1_280_000, 1_000, 64))  # rows, columns, depth
CHUNK = 8_192  # rows per chunk of the peer
NO_SLOWER = 0.95  # of the peer's speed: what every choice must reach


def run(suite: Suite) -> None:
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        _label_counts(suite, dtype, name)
    slowest = [_linear_argmax(suite, *shape) for shape in SHAPES]
    suite.goal("linear_argmax-cpu-every-choice", goal=NO_SLOWER, measured=min(slowest), unit="x torch addmm+argmax")


def _label_counts(suite: Suite, dtype: torch.dtype, name: str) -> None:
    """Each instruction set against reading the logits once; the goal is for all but the plain one, as below."""
    logits = torch.randn(ROWS, CLASSES).to(dtype)
    subjects = {"read alone": timed(logits.view(torch.int32).amax)}
    subjects |= {isa: timed(partial(label_counts, logits, None, 1, isa)) for isa in _native.isas()}
    case = f"label_counts-cpu-{name}-{ROWS}x{CLASSES}-forced"
    rows = suite.add(case, interleave(subjects, rounds=9), "s", ratio_to="read alone")
    shares = [rows[isa].ratio or 0.0 for isa in _native.isas() if isa != "baseline"]
    if shares:
        suite.goal(f"label_counts-cpu-{name}-every-isa", goal=0.85, measured=min(shares), unit="x read floor")


def _linear_argmax(suite: Suite, rows: int, columns: int, depth: int) -> float:
    """Each instruction set with each kind of products that the CPU has; returns how the slowest compares with the peer, the plain
    instruction set left out: no CPU that is fast lacks all others."""
    x, w = torch.randn(rows, depth), torch.randn(columns, depth)
    offset = -squared_norms(w) / 2

    def peer() -> torch.Tensor:
        return torch.cat([torch.addmm(offset, chunk, w.T).argmax(1) for chunk in x.split(CHUNK)])

    ways = {f"{isa}, {products}": (isa, products) for isa in _native.isas() for products in PRODUCTS}
    if not _native.has_bf16_products():
        ways = {name: way for name, way in ways.items() if way[1] == "float32"}
    subjects = {PEER: timed(peer), CHOSEN: timed(partial(linear_argmax, x, w, offset, None, 1))}
    subjects |= {name: timed(partial(linear_argmax, x, w, offset, None, 1, *way)) for name, way in ways.items()}
    samples = interleave(subjects)
    suite.add(f"linear_argmax-cpu-{rows}x{columns}x{depth}-forced", samples, "s", ratio_to=PEER)
    counted = [name for name, (isa, _) in ways.items() if isa != "baseline"] or list(ways)
    return min(ratio(samples[name], samples[PEER], "s") for name in (CHOSEN, *counted))
