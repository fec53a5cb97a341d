"""The kernels against their peers: two regimes, 1.28 million rows (the kernel) and 50,000 (launches, recompilation).

Limits, measured in the same run: the bandwidth of a copy (reading plus writing), the rate of a large bfloat16 product. Peers that
are not installed, or cannot run here, are left out by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu_day.setting import Setting
from benchmarks.harness import Suite, interleave, ratio, timed
from dp4tl_fast.kernels import label_counts, nearest_centroid
from dp4tl_fast.kernels.label_counts import tuning as label_tuning
from dp4tl_fast.kernels.label_counts.triton_impl import label_counts as triton_label_counts
from dp4tl_fast.kernels.linear_argmax import tuning
from dp4tl_fast.kernels.linear_argmax.triton_impl import linear_argmax as triton_linear_argmax
from dp4tl_fast.kernels.precision import squared_norms

OURS = "dp4tl_fast"
ROUNDS = 7
CHUNK = 1 << 17  # rows per chunk of the torch peers: the scores of a chunk take 262 MB in bfloat16 at 1,000 centroids
MATRIX_SHARE = 0.76  # FlashLib's published best on an H200, 603 TFLOP/s, of the rate of a bfloat16 product there
AGREED = 0.99  # share of the rows for which a peer that sums in float32 must name our centroid

Subjects = dict[str, Callable[[], object]]


def _many(setting: Setting) -> int:
    return setting.size(1_280_000, 300)


def cuda_timed(function: Callable[[], object], repeat: int = 3) -> Callable[[], float]:
    """Seconds of one run on the GPU, between two events, after one that is not timed."""

    def seconds() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        function()
        start.record()
        for _ in range(repeat):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeat

    return seconds


def _interleave(suite: Suite, subjects: Subjects, setting: Setting) -> dict[str, list[float]]:
    """Time those subjects that run here; the others are left out, with the reason."""
    runnable = {}
    for name, subject in subjects.items():
        try:
            subject()
            setting.wait()
            runnable[name] = timed(subject) if setting.rehearsal else cuda_timed(subject)
        except Exception as error:  # a peer or a tile size that this GPU or version cannot run is no result of ours
            if name == OURS:
                raise
            suite.leave_out(name, error)
    return interleave(runnable, rounds=setting.size(ROUNDS, 5), warmup=setting.size(1, 0))


def counts(suite: Suite, setting: Setting) -> None:
    """``label_counts`` against the copy bandwidth."""
    classes, rows_ = setting.size(1_000, 40), _many(setting)

    def argmax_bincount(logits: torch.Tensor) -> torch.Tensor:
        return torch.bincount(logits.argmax(1), minlength=classes)

    fused = torch.compile(argmax_bincount)
    shares = []
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        logits = torch.randn(rows_, classes, device=setting.device).to(dtype)
        size = logits.numel() * logits.element_size()
        source = torch.empty(setting.size(1 << 30, 1 << 16), dtype=torch.int32, device=setting.device)
        target = torch.empty_like(source)
        subjects: Subjects = {
            "copy": partial(target.copy_, source),
            "torch argmax+bincount": partial(argmax_bincount, logits),
            "torch.compile": partial(fused, logits),
            OURS: partial(label_counts, logits, classes, implementation="triton"),
        }
        for tile in setting.size(label_tuning.CANDIDATES, label_tuning.CANDIDATES[:1]):
            subjects[f"tile {tuple(tile)}"] = partial(triton_label_counts, logits, None, 1, tile)
        seconds = _interleave(suite, subjects, setting)
        moved = {subject: 2 * source.numel() * 4 if subject == "copy" else size for subject in seconds}
        rates = {subject: [moved[subject] / 1e9 / t for t in times] for subject, times in seconds.items()}
        rows = suite.add(f"label_counts-gpu-{name}-{rows_}x{classes}", rates, "GB/s", ratio_to="copy")
        shares.append(rows[OURS].ratio or 0.0)
        del logits, source, target, subjects
        _empty(setting)
    suite.goal("label_counts-gpu-copy-share", goal=0.9, measured=min(shares), unit="x copy bandwidth")


def _empty(setting: Setting) -> None:
    if not setting.rehearsal:
        torch.cuda.empty_cache()


def _matrix_rate(suite: Suite, setting: Setting) -> float:
    """TFLOP/s of a square bfloat16 product by cuBLAS: what a nearest centroid is held against."""
    size = setting.size(8_192, 64)
    a, b = (torch.randn(size, size, device=setting.device).bfloat16() for _ in range(2))
    seconds = _interleave(suite, {"matrix product bf16": lambda: a @ b}, setting)
    rates = {name: [2 * size**3 / 1e12 / t for t in times] for name, times in seconds.items()}
    return suite.add(f"matrix-gpu-{size}", rates, "TFLOP/s")["matrix product bf16"].value


def _by_flash_kmeans(x: torch.Tensor, c: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    return euclid_assign_triton(x[None], c[None], norms[None])[0]


def _by_flashlib(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    from flashlib.primitives.kmeans import euclid_assign_triton

    return euclid_assign_triton(x[None], c[None])[0]


def _by_flashlib_cutedsl(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    import cutlass  # noqa: F401 - without it, and above 512 columns, FlashLib would run its Triton kernel instead
    from flashlib.primitives.kmeans import cutedsl_assign_euclid

    if x.shape[1] > 512:
        raise ValueError("has no kernel for more than 512 columns")
    return cutedsl_assign_euclid(x[None], c[None])[0]


def _peers(x: torch.Tensor, c: torch.Tensor, setting: Setting) -> Subjects:
    """Nearest centroid and counts in torch, chunked, by flash-kmeans (which gets ‖x‖² for nothing) and by FlashLib."""
    k, half_norms = len(c), squared_norms(c) / 2

    def assign(chunk: torch.Tensor) -> torch.Tensor:
        return torch.addmm(-half_norms.to(chunk.dtype), chunk, c.T).argmax(1)

    fused = torch.compile(assign, dynamic=True)

    def chunked(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.bincount(torch.cat([function(chunk) for chunk in x.split(CHUNK)]), minlength=k)

    norms, ours = squared_norms(x), nearest_centroid(x, c, implementation="triton").index

    def counted(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> Callable[[], torch.Tensor]:
        checked: list[float] = []

        def subject() -> torch.Tensor:
            index = function(*arguments)
            if not checked:
                checked.append(float((index == ours).float().mean()))
                if checked[0] < AGREED:
                    raise ValueError(f"agrees with our kernel on {checked[0]:.1%} of the rows")
            return torch.bincount(index, minlength=k)

        return subject

    return {
        "cuBLAS+argmax": lambda: chunked(assign),
        "torch.compile": lambda: chunked(fused),
        "flash-kmeans": counted(_by_flash_kmeans, x, c, norms),
        "FlashLib, Triton": counted(_by_flashlib, x, c),
        "FlashLib, CuteDSL": counted(_by_flashlib_cutedsl, x, c),
    }


def nearest(suite: Suite, setting: Setting, k: int, depth: int) -> None:
    """Share of the matrix rate, and ratio to the best peer, for bfloat16 features in GPU memory."""
    k, depth, many = *setting.size((k, depth), (k // 50, depth // 32)), _many(setting)
    rate = _matrix_rate(suite, setting)
    x, c = (torch.randn(n, depth, device=setting.device).bfloat16() for n in (many, k))
    peers = _peers(x, c, setting)
    offset = -squared_norms(c) / 2
    subjects: Subjects = {**peers, OURS: lambda: nearest_centroid(x, c, implementation="triton")}
    for tile in dict.fromkeys(setting.size(tuning.CANDIDATES, (tuning.SMALL,))):
        name = f"tile {tile.rows}x{tile.columns}x{tile.depth}, {tile.warps} warps, {tile.stages} stages"
        subjects[name] = partial(triton_linear_argmax, x, c, offset, None, 1, tile)
    seconds = _interleave(suite, subjects, setting)
    work = 2 * many * k * depth / 1e12
    rates = {name: [work / t for t in times] for name, times in seconds.items()}
    case = f"nearest_centroid-gpu-bf16-{many}x{k}x{depth}"
    rows = suite.add(case, rates, "TFLOP/s", ratio_to="cuBLAS+argmax")
    against = min(ratio(seconds[OURS], seconds[peer], "s") for peer in peers if peer in seconds)
    suite.goal(f"{case}-matrix-share", goal=MATRIX_SHARE, measured=rows[OURS].value / rate, unit="x bf16 matrix rate")
    suite.goal(case, goal=1.0, measured=against, unit="x best peer")


def few_rows(suite: Suite, setting: Setting) -> None:
    """A new number of rows at every call: what launches and any recompilation cost."""
    few, k, depth = setting.size((50_000, 1_000, 2_048), (100, 20, 64))
    x, c = (torch.randn(n, depth, device=setting.device).bfloat16() for n in (few + 1_000, k))
    half_norms = (squared_norms(c) / 2).bfloat16()
    sizes = itertools.cycle(range(few, few + 1_000))
    fused = torch.compile(lambda rows: torch.addmm(-half_norms, rows, c.T).argmax(1), dynamic=True)
    subjects: Subjects = {
        "cuBLAS+argmax": lambda: torch.bincount(torch.addmm(-half_norms, x[: next(sizes)], c.T).argmax(1), minlength=k),
        "torch.compile": lambda: torch.bincount(fused(x[: next(sizes)]), minlength=k),
        OURS: lambda: nearest_centroid(x[: next(sizes)], c, implementation="triton"),
    }
    seconds = _interleave(suite, subjects, setting)
    suite.add(f"nearest_centroid-gpu-bf16-about{few}x{k}x{depth}", seconds, "s", ratio_to="cuBLAS+argmax")


def from_host(suite: Suite, setting: Setting) -> None:
    """Features in host memory: copies overlap the work, and GPU memory stays bounded."""
    rows, k, depth = setting.size((400_000, 1_000, 2_048), (200, 20, 64))
    x = torch.randn(rows, depth).bfloat16()
    c = torch.randn(k, depth, device=setting.device).bfloat16()
    ours = partial(nearest_centroid, implementation="triton")
    peak = 0.0
    if not setting.rehearsal:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    streamed = ours(x, c)
    if not setting.rehearsal:
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    if not torch.equal(streamed.index, ours(x.to(setting.device), c).index):
        raise SystemExit("nearest_centroid differs between features in host memory and on the GPU")
    subjects: Subjects = {"copy, then assign": lambda: ours(x.to(setting.device), c), OURS: lambda: ours(x, c)}
    case = f"nearest_centroid-gpu-from-host-{rows}x{k}x{depth}"
    suite.add(case, _interleave(suite, subjects, setting), "s", ratio_to="copy, then assign")
    suite.add(f"{case}-memory", {OURS: [peak]}, "MiB")
