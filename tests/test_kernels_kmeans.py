"""``kmeans`` and its parts: sums against the reference, quality against scikit-learn, the same bits on every run."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DTYPES, IMPLEMENTATIONS, LAYOUTS, SEEDS, SOME, device_of, generator, integers, strided
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels import _native, kmeans, nearest_centroid
from dp4tl_fast.kernels.cluster_sums import cluster_sums
from dp4tl_fast.kernels.cluster_sums.reference import cluster_sums as reference_sums
from dp4tl_fast.kernels.kmeans import _restart_empty
from dp4tl_fast.kernels.kmeans.shard import Shard


def blobs(rows: int, depth: int, k: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    x, label = make_blobs(rows, depth, centers=k, cluster_std=spread, random_state=seed)
    return torch.from_numpy(x).float(), label


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@SOME
@given(
    rows=st.sampled_from([0, 1, 5, 33, 200]), depth=st.sampled_from([1, 3, 16, 17, 130]),
    clusters=st.sampled_from([1, 2, 9]), dtype=st.sampled_from(DTYPES), layout=LAYOUTS, seed=SEEDS,
)  # fmt: skip
def test_cluster_sums_are_exact_on_integers(implementation, rows, depth, clusters, dtype, layout, seed):
    device = device_of(implementation)
    x = strided(integers(seed, rows, depth, high=100).to(dtype).to(device), layout)
    index = torch.randint(0, clusters, (rows,), generator=generator(seed)).to(device)
    assert torch.equal(cluster_sums(x, index, clusters, implementation), reference_sums(x, index, clusters))


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cluster_sums_of_every_instruction_set_and_number_of_threads(isa, dtype):
    x = torch.randn(1000, 77, generator=generator(0)).to(dtype)
    index = torch.randint(0, 5, (1000,), generator=generator(1))
    expected = torch.empty(5, 77, dtype=torch.float64)
    _native.cluster_sums(x, index, expected, 1, "baseline")
    # Runs of 64 rows are summed in float32: the error, relative to the sum of magnitudes, stays below 64 * 2^-24.
    bound = 64 * 2**-24 * reference_sums(x.abs(), index, 5)
    assert bool(((expected - reference_sums(x, index, 5)).abs() <= bound).all())
    for threads in (1, 2, 5):
        sums = torch.empty_like(expected)
        _native.cluster_sums(x, index, sums, threads, isa)
        assert torch.equal(sums, expected)  # bit for bit


def test_native_sums_check_the_cluster_ids():
    with pytest.raises(RuntimeError, match=r"cluster 3 of row 0 is out of range: it must lie in \[0, 3\)"):
        _native.cluster_sums(torch.zeros(1, 2), torch.tensor([3]), torch.empty(3, 2, dtype=torch.float64), 1)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_separated_blobs_give_the_partition_of_scikit_learn(implementation, dtype):
    x, label = blobs(600, 8, 12, 0.3)
    got = kmeans(x.to(dtype).to(device_of(implementation)), 12, seed=1, implementation=implementation)
    expected = KMeans(12, n_init=5, random_state=0).fit(x.numpy())
    assert adjusted_rand_score(expected.labels_, got.index.cpu()) == 1.0 == adjusted_rand_score(label, got.index.cpu())
    # float32 centroids of rounded rows: the inertia agrees to the rounding of the rows
    assert got.inertia == pytest.approx(expected.inertia_, rel=4 * torch.finfo(dtype).eps + 1e-5)


def test_quality_over_ten_seeds_is_that_of_scikit_learn():
    x, _ = blobs(3000, 8, 10, 3.0)
    ours = np.mean([kmeans(x, 10, seed, tolerance=1e-6).inertia for seed in range(10)])
    theirs = np.mean([KMeans(10, n_init=1, random_state=seed, tol=1e-6).fit(x.numpy()).inertia_ for seed in range(10)])
    assert ours <= 1.01 * theirs


@SOME
@given(
    rows=st.integers(1, 80), depth=st.sampled_from([1, 2, 9]), dtype=st.sampled_from(DTYPES), seed=SEEDS, data=st.data()
)  # fmt: skip
def test_inertia_never_rises_and_the_result_is_consistent(rows, depth, dtype, seed, data):
    k = data.draw(st.integers(1, rows))
    x = torch.randn(rows, depth, generator=generator(seed)).to(dtype)
    seen = []
    got = kmeans(x, k, seed, tolerance=0, progress=lambda i, inertia: seen.append((i, inertia)))
    assert seen == list(enumerate(got.history))
    assert all(after <= before for before, after in zip(got.history, got.history[1:], strict=False))
    assert got.inertia == got.history[-1] and int(got.counts.sum()) == rows
    again = nearest_centroid(x, got.centroids)
    assert torch.equal(again.index, got.index) and torch.equal(again.counts, got.counts)
    assert got.centroids.dtype == torch.float32 and got.centroids.shape == (k, depth)


def test_the_same_seed_gives_the_same_bits_whatever_the_threads():
    x, _ = blobs(2000, 33, 20, 5.0)
    threads = torch.get_num_threads()
    runs = []
    try:
        for number in (threads, 1, threads, 3):
            torch.set_num_threads(number)
            runs.append(kmeans(x, 20, seed=7))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert torch.equal(run.centroids, runs[0].centroids) and run.history == runs[0].history
    assert not torch.equal(kmeans(x, 20, seed=8).centroids, runs[0].centroids)


def test_empty_clusters_restart_at_the_farthest_rows():
    x, label = blobs(300, 4, 3, 0.2)
    start = torch.full((3, 4), 1e3)  # the third centroid wins nothing at first
    start[:2] = torch.stack([x[label == 0][0], x[label == 1][0]])
    got = kmeans(x, 3, seed=0, centroids=start)
    assert bool((got.counts == 100).all()) and adjusted_rand_score(label, got.index) == 1.0


def test_restart_takes_rows_from_clusters_that_keep_others():
    x = torch.tensor([[0.0], [10.0], [20.0], [21.0], [30.0]])
    index = torch.tensor([0, 1, 1, 1, 1])
    distances = torch.tensor([500.0, 1.0, 4.0, 9.0, 100.0])  # row 0 is farthest, but alone in its cluster
    sums = reference_sums(x, index, 4)
    counts = _restart_empty(x, distances, index, sums, torch.bincount(index, minlength=4), Shard(False))
    assert counts.tolist() == [1, 2, 1, 1]
    assert sums[:, 0].tolist() == [0.0, 30.0, 30.0, 21.0]


def test_fewer_distinct_rows_than_clusters():
    got = kmeans(torch.ones(10, 3), 4, seed=0)
    assert got.inertia == 0 and got.counts.tolist() == [10, 0, 0, 0] and bool((got.centroids == 1).all())


MAPPED = """
import resource, sys
import numpy as np, torch
from dp4tl_fast.kernels import kmeans
x = torch.from_numpy(np.load(sys.argv[1], mmap_mode="c"))
kmeans(x[:20_000], 10, seed=0, max_iterations=2)  # load the libraries, start the threads
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + (64 << 20),) * 2)
print(kmeans(x, 10, seed=0, max_iterations=3).counts.sum().item())
"""


def test_mapped_features_are_never_copied(tmp_path):
    # 256 MB of features in a file, of which 64 MB of memory could not hold a copy in any dtype.
    rows, depth = 1_000_000, 64
    features = np.lib.format.open_memmap(tmp_path / "features.npy", "w+", np.float32, (rows, depth))
    features[:] = np.random.default_rng(0).standard_normal((1000, depth), np.float32)[np.arange(rows) % 1000]
    features.flush()
    command = [sys.executable, "-c", MAPPED, str(tmp_path / "features.npy")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kmeans(torch.zeros(3, 2), 4, 0), "k=4 clusters of 3 rows"),
        (lambda: kmeans(torch.zeros(3, 2), 0, 0), "k must be from 1"),
        (lambda: kmeans(torch.zeros(3, 2), 2, 0, centroids=torch.zeros(3, 2)), r"expected \[2, 2\]"),
        (lambda: kmeans(torch.tensor([[0.0], [torch.nan]]), 1, 0), "row 1 of features has a NaN, an infinity"),
        (lambda: kmeans(torch.zeros(3, 2), 1, 0, distributed=True), "torchrun"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(UsageError, match=message):
        call()


# Integer rows: sums are exact in any order, so two processes must give the bits of one.
TWO_PROCESSES = """
import torch, torch.distributed as dist
from dp4tl_fast.kernels import kmeans
dist.init_process_group("gloo")
rank = dist.get_rank()
x = torch.randint(-50, 50, (1001, 5), generator=torch.Generator().manual_seed(0)).float()
start = torch.full((9, 5), 1e4) if {empties} else None  # empty clusters restart at rows of either process
if start is not None:
    start[0] = 0
shard = x[:333] if rank == 0 else x[333:]
got = kmeans(shard, 9, seed=5, distributed=True, centroids=start)
alone = kmeans(x, 9, seed=5, centroids=start)
assert torch.equal(got.centroids, alone.centroids) and torch.equal(got.counts, alone.counts)
assert torch.equal(got.index, alone.index[:333] if rank == 0 else alone.index[333:])
assert abs(got.inertia - alone.inertia) <= 1e-12 * alone.inertia
assert int(got.counts.min()) > 0
import os
os._exit(0)  # gloo's threads abort some ends of the interpreter
"""


@pytest.mark.parametrize("empties", [False, True])
def test_two_processes_give_the_result_of_one(tmp_path, empties):
    script = tmp_path / "two_processes.py"
    script.write_text(TWO_PROCESSES.format(empties=empties))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
