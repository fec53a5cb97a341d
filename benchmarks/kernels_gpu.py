"""The GPU half of suite ``kernels``: two regimes, 1.28 million rows (the kernel) and 50,000 (launches, recompilation).

Limits, measured in the same run: the bandwidth of a copy (reading plus writing), the rate of a large bfloat16 product.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.harness import Suite, interleave, ratio
from dp4tl_fast.kernels import label_counts, nearest_centroid
from dp4tl_fast.kernels.label_counts import tuning as label_tuning
from dp4tl_fast.kernels.label_counts.triton_impl import label_counts as triton_label_counts
from dp4tl_fast.kernels.linear_argmax import tuning
from dp4tl_fast.kernels.linear_argmax.triton_impl import linear_argmax as triton_linear_argmax
from dp4tl_fast.kernels.precision import squared_norms

OURS = "dp4tl_fast"
ROUNDS = 7
MANY, FEW = 1_280_000, 50_000
SHAPES = [(k, depth) for k in (1_000, 2_000) for depth in (512, 2_048)]
CHUNK = 1 << 17  # rows per chunk of the torch peers: the scores of a chunk take 262 MB in bfloat16 at 1,000 centroids

Subjects = dict[str, Callable[[], object]]


def run_gpu(suite: Suite) -> None:
    torch.manual_seed(0)
    _label_counts(suite)
    rate = _matrix_rate(suite)
    shares, against_peers = [], []
    for k, depth in SHAPES:
        share, against = _nearest_centroid(suite, k, depth, rate)
        shares.append(share)
        against_peers.append(against)
        torch.cuda.empty_cache()
    suite.goal("nearest_centroid-gpu-gemm-share", goal=0.7, measured=min(shares), unit="x bf16 matrix rate")
    suite.goal("nearest_centroid-gpu", goal=1.0, measured=min(against_peers), unit="x best peer")
    _few_rows(suite)
    _from_host(suite)


def cuda_timed(function: Callable[[], object], repeat: int = 3) -> Callable[[], float]:
    """Seconds of one run on the GPU, between two events."""

    def seconds() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeat):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeat

    return seconds


def _interleave(subjects: Subjects) -> dict[str, list[float]]:
    """Time those subjects that run here; the others are named on stderr with the reason."""
    runnable = {}
    for name, subject in subjects.items():
        try:
            subject()
            torch.cuda.synchronize()
            runnable[name] = cuda_timed(subject)
        except Exception as error:  # a peer or a tile size that this GPU or version cannot run is no result of ours
            if name == OURS:
                raise
            print(f"skipped {name!r}: {type(error).__name__}: {str(error).splitlines()[0][:150]}", file=sys.stderr)
    return interleave(runnable, rounds=ROUNDS)


def _label_counts(suite: Suite, classes: int = 1_000) -> None:
    def argmax_bincount(logits: torch.Tensor) -> torch.Tensor:
        return torch.bincount(logits.argmax(1), minlength=classes)

    compiled = torch.compile(argmax_bincount)
    shares = []
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        logits = torch.randn(MANY, classes, device="cuda", dtype=dtype)
        size = logits.numel() * logits.element_size()
        source = torch.empty(1 << 30, dtype=torch.int32, device="cuda")
        target = torch.empty_like(source)
        subjects: Subjects = {
            "copy": partial(target.copy_, source),
            "torch argmax+bincount": partial(argmax_bincount, logits),
            "torch.compile": partial(compiled, logits),
            OURS: partial(label_counts, logits, classes),
        }
        for tile in label_tuning.CANDIDATES:
            subjects[f"tile {tuple(tile)}"] = partial(triton_label_counts, logits, None, 1, tile)
        seconds = _interleave(subjects)
        moved = {subject: 2 * source.numel() * 4 if subject == "copy" else size for subject in seconds}
        rates = {subject: [moved[subject] / 1e9 / t for t in times] for subject, times in seconds.items()}
        rows = suite.add(f"label_counts-gpu-{name}-{MANY}x{classes}", rates, "GB/s", ratio_to="copy")
        shares.append(rows[OURS].ratio or 0.0)
        del logits, source, target, subjects
        torch.cuda.empty_cache()
    suite.goal("label_counts-gpu-copy-share", goal=0.9, measured=min(shares), unit="x copy bandwidth")


def _matrix_rate(suite: Suite, size: int = 8_192) -> float:
    """FLOP/s of a square bfloat16 product by cuBLAS, and what float32 kernels may be held against."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = _interleave({"matrix product bf16": lambda: a @ b})
    rates = {name: [2 * size**3 / 1e12 / t for t in times] for name, times in seconds.items()}
    return suite.add(f"matrix-gpu-{size}", rates, "TFLOP/s")["matrix product bf16"].value


def _peers(x: torch.Tensor, c: torch.Tensor) -> Subjects:
    """Nearest centroid and counts in torch, chunked, and by flash-kmeans (which gets ‖x‖² for nothing)."""
    k, half_norms = len(c), squared_norms(c) / 2

    def assign(chunk: torch.Tensor) -> torch.Tensor:
        return torch.addmm(-half_norms.to(chunk.dtype), chunk, c.T).argmax(1)

    compiled = torch.compile(assign, dynamic=True)

    def chunked(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.bincount(torch.cat([function(chunk) for chunk in x.split(CHUNK)]), minlength=k)

    norms = squared_norms(x)[None]

    def flash_kmeans() -> torch.Tensor:
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton

        return torch.bincount(euclid_assign_triton(x[None], c[None], norms)[0], minlength=k)

    return {
        "cuBLAS+argmax": lambda: chunked(assign),
        "torch.compile": lambda: chunked(compiled),
        "flash-kmeans": flash_kmeans,
    }


def _nearest_centroid(suite: Suite, k: int, depth: int, rate: float) -> tuple[float, float]:
    """Share of the matrix rate, and ratio to the best peer, for bfloat16 features in GPU memory."""
    x = torch.randn(MANY, depth, device="cuda", dtype=torch.bfloat16)
    c = torch.randn(k, depth, device="cuda", dtype=torch.bfloat16)
    peers = _peers(x, c)
    offset = -squared_norms(c) / 2
    subjects: Subjects = {**peers, OURS: lambda: nearest_centroid(x, c)}
    for tile in dict.fromkeys(tuning.CANDIDATES):
        name = f"tile {tile.rows}x{tile.columns}x{tile.depth}, {tile.warps} warps, {tile.stages} stages"
        subjects[name] = partial(triton_linear_argmax, x, c, offset, None, 1, tile)
    seconds = _interleave(subjects)
    work = 2 * MANY * k * depth / 1e12
    rates = {name: [work / t for t in times] for name, times in seconds.items()}
    rows = suite.add(f"nearest_centroid-gpu-bf16-{MANY}x{k}x{depth}", rates, "TFLOP/s", ratio_to="cuBLAS+argmax")
    against = min(ratio(seconds[OURS], seconds[peer], "s") for peer in peers if peer in seconds)
    return rows[OURS].value / rate, against


def _few_rows(suite: Suite, k: int = 1_000, depth: int = 2_048) -> None:
    """A new number of rows at every call: what launches and any recompilation cost."""
    x = torch.randn(FEW + 1_000, depth, device="cuda", dtype=torch.bfloat16)
    c = torch.randn(k, depth, device="cuda", dtype=torch.bfloat16)
    half_norms = (squared_norms(c) / 2).bfloat16()
    sizes = itertools.cycle(range(FEW, FEW + 1_000))
    compiled = torch.compile(lambda rows: torch.addmm(-half_norms, rows, c.T).argmax(1), dynamic=True)
    subjects: Subjects = {
        "cuBLAS+argmax": lambda: torch.bincount(torch.addmm(-half_norms, x[: next(sizes)], c.T).argmax(1), minlength=k),
        "torch.compile": lambda: torch.bincount(compiled(x[: next(sizes)]), minlength=k),
        OURS: lambda: nearest_centroid(x[: next(sizes)], c),
    }
    suite.add(f"nearest_centroid-gpu-bf16-about{FEW}x{k}x{depth}", _interleave(subjects), "s", ratio_to="cuBLAS+argmax")


def _from_host(suite: Suite, rows: int = 400_000, k: int = 1_000, depth: int = 2_048) -> None:
    """Features in host memory: copies overlap the work, and GPU memory stays bounded."""
    x = torch.randn(rows, depth).bfloat16()
    c = torch.randn(k, depth, device="cuda", dtype=torch.bfloat16)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    streamed = nearest_centroid(x, c)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    if not torch.equal(streamed.index, nearest_centroid(x.cuda(), c).index):
        raise SystemExit("nearest_centroid differs between features in host memory and on the GPU")
    subjects: Subjects = {"copy, then assign": lambda: nearest_centroid(x.cuda(), c), OURS: lambda: nearest_centroid(x, c)}
    case = f"nearest_centroid-gpu-from-host-{rows}x{k}x{depth}"
    suite.add(case, _interleave(subjects), "s", ratio_to="copy, then assign")
    suite.add(f"{case}-memory", {OURS: [peak]}, "MiB")
