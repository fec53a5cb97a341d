"""Suite ``kernels``: the mapping operations against their peers and against the limit of the machine, on the CPU (on a GPU:
``gpu_day``). Nothing is timed before the kernels have agreed with their references on this machine.

Limits, measured beside the subjects: reading the logits once (``label_counts``), the matrix product alone
(``nearest_centroid``; 2 * rows * centroids * depth operations).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import kernels_forced
from benchmarks.harness import Suite, interleave, percentile, ratio, timed
from benchmarks.kernel_checks import check_kernels
from dp4tl_fast.kernels import kmeans, label_counts, linear_label_counts, nearest_centroid
from dp4tl_fast.kernels.nearest_centroid.reference import nearest_centroid as nearest_reference

OURS = "dp4tl_fast"
PRODUCTS = ("matrix product fp32", "matrix product bf16")
ROUNDS = 9
ROWS, CLASSES, DEPTH = 50_000, 1_000, 512
CHUNK = 8_192  # rows per chunk of the torch peers
WORSE_INERTIA = 1.01  # k-means runs are compared at equal quality: within 1 %

Subjects = dict[str, Callable[[], object]]


def run(suite: Suite) -> None:
    for peer in ("faiss", "fastkmeans", "sklearn"):
        importlib.import_module(peer)  # a missing one ends the suite now, not after minutes
    check_kernels("cpu")
    _label_counts(suite)
    _nearest_centroid(suite)
    _linear_label_counts(suite)
    _kmeans(suite)
    kernels_forced.run(suite)


def best_peer(samples: dict[str, list[float]], peers: list[str], unit: str = "s") -> float:
    """How many times as good as the best of ``peers`` ours is."""
    return min(ratio(samples[OURS], samples[peer], unit) for peer in peers)


def _label_counts(suite: Suite) -> None:
    shares = []
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(ROWS, CLASSES).to(dtype)
        words = logits.view(torch.int32)  # the same bytes: what it costs to read them
        subjects: Subjects = {
            "read alone": words.amax,
            "torch argmax+bincount": partial(_argmax_bincount, logits),
            OURS: partial(label_counts, logits, CLASSES),
        }
        if dtype == torch.float32:
            subjects["numpy"] = partial(_numpy_argmax_bincount, logits.numpy())
        samples = _interleave(subjects, rounds=2 * ROUNDS + 1)
        case = f"label_counts-cpu-{_name(dtype)}-{ROWS}x{CLASSES}"
        rows = suite.add(case, samples, "s", ratio_to="read alone")
        shares.append(rows[OURS].ratio or 0.0)
    suite.goal("label_counts-cpu-floor-share", goal=0.85, measured=min(shares), unit="x read floor")


def _argmax_bincount(logits: torch.Tensor) -> torch.Tensor:
    return torch.bincount(logits.argmax(1), minlength=CLASSES)


def _numpy_argmax_bincount(logits: np.ndarray) -> np.ndarray:
    return np.bincount(logits.argmax(1), minlength=CLASSES)


def _nearest_centroid(suite: Suite) -> None:
    import faiss
    from sklearn.metrics import pairwise_distances_argmin

    features, centroids = torch.randn(ROWS, DEPTH), torch.randn(CLASSES, DEPTH)
    half, half_centroids = features.bfloat16(), centroids.bfloat16()
    index = faiss.IndexFlatL2(DEPTH)
    index.add(centroids.numpy())
    subjects: Subjects = {
        **_products(features, centroids),
        "faiss": lambda: index.search(features.numpy(), 1),
        "torch addmm+argmin": lambda: _chunked_argmin(features, centroids),
        "torch addmm+argmin bf16": lambda: _chunked_argmin(half, half_centroids),
        OURS: lambda: nearest_centroid(features, centroids),
        f"{OURS} bf16": lambda: nearest_centroid(half, half_centroids),
    }
    slow: Subjects = {
        "scikit-learn": lambda: pairwise_distances_argmin(features.numpy(), centroids.numpy()),
        "torch cdist+argmin": lambda: torch.cdist(features, centroids).argmin(1),
        OURS: subjects[OURS],
    }
    case = f"nearest_centroid-cpu-{ROWS}x{CLASSES}x{DEPTH}"
    samples = _interleave(subjects, rounds=ROUNDS)
    suite.add(case, samples, "s", ratio_to="faiss")
    if (neighbours := _intelex(suite, "neighbors")) is not None:
        fitted = neighbours.NearestNeighbors(n_neighbors=1, algorithm="brute").fit(centroids.numpy())
        slow["scikit-learn-intelex"] = lambda: fitted.kneighbors(features.numpy(), return_distance=False)
    others = _interleave(slow, rounds=5)
    suite.add(f"{case}-slow-peers", others, "s", ratio_to="scikit-learn")
    work = 2 * ROWS * CLASSES * DEPTH / 1e9
    suite.add(f"{case}-rate", {name: [work / t for t in times] for name, times in samples.items()}, "GFLOP/s")
    measured = min(
        best_peer(samples, ["faiss", "torch addmm+argmin"]), best_peer(others, [name for name in slow if name != OURS])
    )
    suite.goal("nearest_centroid-cpu", goal=1.0, measured=measured, unit="x best peer")
    measured = ratio(samples[f"{OURS} bf16"], samples["faiss"], "s")
    suite.goal("nearest_centroid-cpu-bf16", goal=1.5, measured=measured, unit="x faiss")
    suite.goal("nearest_centroid-cpu-gemm-share", goal=0.85, measured=matrix_share(samples), unit="x the faster matrix product")


def _products(features: torch.Tensor, columns: torch.Tensor) -> Subjects:
    """The limit: the matrix product alone, in either precision."""
    pairs = ((features, columns), (features.bfloat16(), columns.bfloat16()))
    outs = [x.new_empty(len(x), len(w)) for x, w in pairs]
    return {name: partial(torch.mm, x, w.T, out=out) for name, (x, w), out in zip(PRODUCTS, pairs, outs, strict=True)}


def matrix_share(samples: dict[str, list[float]]) -> float:
    """The speed of ours in float32 and in bfloat16, the lower of the two, as a share of the faster matrix product."""
    faster = min(PRODUCTS, key=lambda name: percentile(samples[name], 0.5))
    return min(ratio(samples[name], samples[faster], "s") for name in (OURS, f"{OURS} bf16"))


def _linear_label_counts(suite: Suite) -> None:
    features, weight, bias = torch.randn(ROWS, DEPTH), torch.randn(CLASSES, DEPTH), torch.randn(CLASSES)

    def torch_linear() -> torch.Tensor:
        counts = torch.zeros(CLASSES, dtype=torch.int64)
        for chunk in features.split(CHUNK):
            logits = torch.nn.functional.linear(chunk, weight, bias)
            counts += torch.bincount(logits.argmax(1), minlength=CLASSES)
        return counts

    subjects: Subjects = {
        **_products(features, weight),
        "torch linear+argmax": torch_linear,
        OURS: lambda: linear_label_counts(features, weight, bias),
    }
    samples = _interleave(subjects, rounds=5)
    case = f"linear_label_counts-cpu-{ROWS}x{CLASSES}x{DEPTH}"
    suite.add(case, samples, "s", ratio_to="torch linear+argmax")
    measured = best_peer(samples, ["torch linear+argmax"])
    suite.goal("linear_label_counts-cpu", goal=1.0, measured=measured, unit="x torch linear+argmax")


def _kmeans(suite: Suite, rows: int = 30_000, depth: int = 128, k: int = 256) -> None:
    import faiss
    from fastkmeans import FastKMeans
    from sklearn.cluster import KMeans

    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.randn(2 * k, depth, generator=generator)  # overlapping, and more of them than clusters
    label = torch.randint(0, 2 * k, (rows,), generator=generator)
    features = centers[label] + 1.5 * torch.randn(rows, depth, generator=generator)
    data = features.numpy()
    found: dict[str, list[torch.Tensor]] = {}
    seeds = iter(range(10_000))

    def judged(name: str, fit: Callable[[int], torch.Tensor]) -> Callable[[], object]:
        def subject() -> None:
            found.setdefault(name, []).append(fit(next(seeds)))

        return subject

    def faiss_fit(seed: int) -> torch.Tensor:
        model = faiss.Kmeans(depth, k, niter=25, seed=seed, max_points_per_centroid=rows)
        model.train(data)
        return torch.from_numpy(model.centroids)

    def fastkmeans_fit(seed: int) -> torch.Tensor:
        model = FastKMeans(depth, k, niter=25, seed=seed, gpu=False, device="cpu")
        model.train(data)
        return torch.from_numpy(np.asarray(model.centroids))

    fits: dict[str, Callable[[int], torch.Tensor]] = {
        "scikit-learn": lambda seed: torch.from_numpy(
            KMeans(k, n_init=1, random_state=seed).fit(data).cluster_centers_
        ),
        "faiss": faiss_fit,
        "fastkmeans": fastkmeans_fit,
        OURS: lambda seed: kmeans(features, k, seed).centroids,
    }
    if (cluster := _intelex(suite, "cluster")) is not None:
        fits["scikit-learn-intelex"] = lambda seed: torch.from_numpy(
            cluster.KMeans(k, n_init=1, random_state=seed).fit(data).cluster_centers_
        )
    samples = _interleave({name: judged(name, fit) for name, fit in fits.items()}, rounds=5)
    case = f"kmeans-cpu-{rows}x{k}x{depth}"
    suite.add(case, samples, "s", ratio_to="faiss")
    # [1:] leaves out the warm-up.
    inertia = {name: [_mean_distance(features, c) for c in runs[1:]] for name, runs in found.items()}
    suite.add(f"{case}-quality", inertia, "mean squared distance", ratio_to="faiss")
    quality = {name: percentile(values, 0.5) for name, values in inertia.items()}
    # Ahead means faster at equal quality: a peer that we trail in quality by more than 1 % counts as not beaten.
    peers = [name for name in fits if name != OURS]
    beaten = [quality[OURS] <= WORSE_INERTIA * quality[peer] for peer in peers]
    measured = best_peer(samples, peers) if all(beaten) else 0.0
    suite.goal("kmeans-cpu", goal=1.0, measured=measured, unit="x best peer at equal inertia")


def _intelex(suite: Suite, module: str) -> Any:
    """A module of scikit-learn-intelex; ``None`` where it is not installed."""
    try:
        return importlib.import_module(f"sklearnex.{module}")
    except ImportError as error:
        suite.leave_out("scikit-learn-intelex", error)
        return None


def _mean_distance(features: torch.Tensor, centroids: torch.Tensor) -> float:
    return float(nearest_reference(features, centroids.float())[1].mean())


def _chunked_argmin(features: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """The nearest centroid as one writes it in torch without the whole matrix."""
    norms = centroids.float().square().sum(1).to(features.dtype)
    return torch.cat([torch.addmm(norms, x, centroids.T, alpha=-2).argmin(1) for x in features.split(CHUNK)])


def _interleave(subjects: Subjects, rounds: int) -> dict[str, list[float]]:
    return interleave({name: timed(subject) for name, subject in subjects.items()}, rounds=rounds)


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
