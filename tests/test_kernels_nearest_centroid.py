"""``nearest_centroid`` and ``linear_label_counts``: exact on integers, near ties alone may differ on floats."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    DTYPES,
    IMPLEMENTATIONS,
    LAYOUTS,
    ROWS,
    SEEDS,
    SIZES,
    SOME,
    assert_winners,
    device_of,
    dot_error,
    generator,
    group_ids,
    integers,
    strided,
)

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels import _native, linear_label_counts, nearest_centroid
from dp4tl_fast.kernels.linear_argmax.native_impl import linear_argmax as native_argmax
from dp4tl_fast.kernels.linear_argmax.native_impl import product_error
from dp4tl_fast.kernels.linear_label_counts.reference import linear_label_counts as linear_reference
from dp4tl_fast.kernels.nearest_centroid.reference import nearest_centroid as reference

DEPTHS = st.sampled_from([1, 2, 3, 17, 31, 64, 65, 130])


def almost_orthogonal(x: torch.Tensor, wanted: torch.Tensor, seed: int) -> torch.Tensor:
    """Random columns [len(wanted), depth] whose products with x / ‖x‖ are ``wanted``, up to rounding."""
    w = torch.randn(len(wanted), len(x), generator=generator(seed)).double()
    direction = x.double() / x.double().norm()
    return (w + (wanted - w @ direction)[:, None] * direction).float()


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles of scores on the CPU, ragged in both directions."""
    monkeypatch.setattr("dp4tl_fast.kernels.linear_argmax.native_impl.TILE_ROWS", 24)
    monkeypatch.setattr("dp4tl_fast.kernels.linear_argmax.native_impl.TILE_COLUMNS", 20)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@SOME
@given(
    rows=ROWS, k=SIZES, depth=DEPTHS, dtype=st.sampled_from(DTYPES), layout=LAYOUTS, grouped=st.booleans(), seed=SEEDS
)  # fmt: skip
def test_nearest_is_exact_on_integers(implementation, rows, k, depth, dtype, layout, grouped, seed):
    device = device_of(implementation)
    features = strided(integers(seed, rows, depth).to(dtype).to(device), layout)
    centroids = strided(integers(seed + 1, k, depth).to(dtype).to(device), layout)
    group = group_ids(seed, rows, 3).to(device) if grouped else None
    got = nearest_centroid(
        features, centroids, group, True, True, groups=3 if grouped else None, implementation=implementation
    )
    index, distances = reference(features, centroids)
    assert torch.equal(got.index, index)
    assert torch.equal(got.distances, distances.float())
    cells = index if group is None else group * k + index
    expected = torch.bincount(cells, minlength=(3 if grouped else 1) * k)
    assert torch.equal(got.counts, expected.view(3, k) if grouped else expected)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@SOME
@given(
    rows=ROWS, k=SIZES, depth=DEPTHS, dtype=st.sampled_from(DTYPES), seed=SEEDS,
    scale=st.sampled_from([1e-3, 1.0, 30.0]), shift=st.sampled_from([0.0, 5.0]),
)  # fmt: skip
def test_nearest_differs_in_near_ties_alone(implementation, rows, k, depth, dtype, seed, scale, shift):
    device = device_of(implementation)
    features = (scale * torch.randn(rows, depth, generator=generator(seed)) + shift).to(dtype).to(device)
    centroids = (scale * torch.randn(k, depth, generator=generator(seed + 1)) + shift).to(dtype).to(device)
    got = nearest_centroid(features, centroids, return_distances=True, implementation=implementation)
    x, c = features.double(), centroids.double()
    half_norms = c.square().sum(dim=1) / 2
    error = dot_error(features, centroids, half_norms)
    assert_winners(got.index, x @ c.T - half_norms, error)
    assert torch.equal(got.counts, torch.bincount(got.index, minlength=k))
    exact = (x - c[got.index]).square().sum(dim=1)
    allowed = 2 * error + dot_error(features, features, torch.zeros(rows, device=device)) if rows else error
    assert bool(((got.distances - exact).abs() <= allowed + 2.0**-23 * exact).all())


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@SOME
@given(
    rows=ROWS, classes=SIZES, depth=DEPTHS, dtype=st.sampled_from(DTYPES), layout=LAYOUTS, bias=st.booleans(),
    seed=SEEDS,
)  # fmt: skip
def test_linear_label_counts_is_exact_on_integers(implementation, rows, classes, depth, dtype, layout, bias, seed):
    device = device_of(implementation)
    features = strided(integers(seed, rows, depth).to(dtype).to(device), layout)
    weight = strided(integers(seed + 1, classes, depth).to(device), layout)  # rounded to dtype, exactly
    offset = integers(seed + 2, 1, classes)[0].to(device) if bias else None
    group = group_ids(seed, rows, 4).to(device)
    got = linear_label_counts(features, weight, offset, group, groups=4, implementation=implementation)
    assert torch.equal(got, linear_reference(features, weight, offset, group, 4)[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_near_ties_of_16_bit_products_are_decided_in_float32(implementation, dtype):
    # Scores around 2^15 whose winners differ by 1/4: rounded to 16 bits, hundreds of columns would tie.
    depth, k = 32, 500
    features = torch.ones(40, depth)
    centroids = torch.full((k, depth), 32.0)
    centroids[:, 0] = 32 + integers(3, k, 1, high=8)[:, 0] / 4
    x, c = (t.to(dtype).to(device_of(implementation)) for t in (features, centroids))
    bias = -integers(4, 1, k, high=40)[0].to(x.device) / 8
    got = linear_label_counts(x, c, bias, implementation=implementation)
    assert torch.equal(got, linear_reference(x, c, bias, None, 1)[0][0])
    assert torch.equal(nearest_centroid(x, c, implementation=implementation).index, reference(x, c)[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_norms_beyond_float16_do_not_matter(implementation):
    # ‖x‖² is 4 * 200² = 160,000 > 65,504: kept in float16, every distance would be infinite and centroid 0 win.
    centroids = torch.tensor([[200.0] * 4, [-200.0] * 4, [0.0] * 4], dtype=torch.float16)
    features = centroids[[1, 2, 0, 1]].to(device_of(implementation))
    centroids = centroids.to(features.device)
    got = nearest_centroid(features, centroids, return_distances=True, implementation=implementation)
    assert got.index.tolist() == [1, 2, 0, 1] and got.distances.tolist() == [0.0] * 4


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_and_nans(implementation, dtype):
    device = device_of(implementation)
    inf, nan = torch.inf, torch.nan
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [inf, 1.0], [nan, 0.0], [2.0, 2.0]], dtype=dtype, device=device)
    weight = torch.tensor([[1.0, 1.0], [2.0, -1.0], [-1.0, 3.0]], dtype=dtype, device=device)
    bias = torch.tensor([0.0, 0.0, -inf], device=device)  # a class that is masked out
    with pytest.raises(UsageError, match="row 3 of features' logits has a NaN"):
        linear_label_counts(features, weight, bias, implementation=implementation)
    # Row 2 has scores inf, inf, -inf: the lowest of the two largest.
    assert linear_label_counts(features, weight, bias, nan="skip", implementation=implementation).tolist() == [3, 1, 0]
    got = nearest_centroid(features, weight, nan="skip", return_distances=True, implementation=implementation)
    assert got.index[3] == -1 and bool(got.distances[3].isnan()) and got.counts.sum() == 4


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equal_rows_go_to_centroid_zero(implementation):
    ones = torch.ones(150, 5, device=device_of(implementation))
    assert nearest_centroid(ones[:7], ones, implementation=implementation).counts[0] == 7


def test_float32_stays_float32_under_reduced_matmul_precision():
    x, c = torch.randn(2000, 64, generator=generator(0)), torch.randn(500, 64, generator=generator(1))
    exact = nearest_centroid(x, c, return_distances=True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        reduced = nearest_centroid(x, c, return_distances=True)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(exact.distances, reduced.distances)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_centroid(torch.zeros(2, 3), torch.zeros(2, 4)), "features have 3 columns, centroids 4"),
        (lambda: nearest_centroid(torch.zeros(2, 3), torch.zeros(0, 3)), "centroids has no rows"),
        (lambda: nearest_centroid(torch.zeros(2, 3).int(), torch.zeros(1, 3)), "features is torch.int32"),
        (lambda: nearest_centroid(torch.zeros(2, 3), torch.zeros(1, 3), torch.tensor([0, 2]), groups=2), "must lie in"),
        (lambda: linear_label_counts(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3)), r"bias .* expected \[4\]"),
        (lambda: linear_label_counts(torch.zeros(2, 3), torch.zeros(4, 3), nan="drop"), "use 'error' or 'skip'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(UsageError, match=message):
        call()


MEMORY = """
import resource, torch
from dp4tl_fast.kernels import nearest_centroid
rows, k, depth = 20_000, 20_000, 8
x, c = torch.randn(rows, depth).to(torch.{dtype}), torch.randn(k, depth)
nearest_centroid(x[:4096], c[:2048])  # load the libraries, start the threads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest_centroid(x, c, return_distances=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_bounded(dtype):
    # The whole matrix of scores would be 1,600 MiB in float32. Allowed: a few tiles of 8 MiB and a thread's stacks.
    run = subprocess.run([sys.executable, "-c", MEMORY.format(dtype=dtype)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("isa", _native.isas())
@SOME
@given(
    rows=ROWS, k=SIZES, depth=DEPTHS, dtype=st.sampled_from(DTYPES), seed=SEEDS, shift=st.sampled_from([0.0, 4.0, 100.0]),
    special=st.booleans(),
)  # fmt: skip
def test_products_and_threads_do_not_change_a_bit(isa, rows, k, depth, dtype, seed, shift, special):
    # A shift makes products large against their differences: screening in bfloat16 can tell few columns apart, and
    # float32 products in another order of summation would decide some near ties differently.
    x = (torch.randn(rows, depth, generator=generator(seed)) + shift).to(dtype)
    w = (torch.randn(k, depth, generator=generator(seed + 1)) + shift).to(dtype)
    offset = torch.randn(k, generator=generator(seed + 2))
    if special:
        x[::5, 0], x[1::7, 0], offset[::3] = torch.inf, torch.nan, -torch.inf
    index, value, _ = native_argmax(x, w, offset, None, 1, isa, "float32")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again, same, _ = native_argmax(x, w, offset, None, 1, isa, "bfloat16")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, index) and torch.equal(same.view(torch.int32), value.view(torch.int32))
    if not special:
        scores = x.double() @ w.double().T + offset
        error = dot_error(x, w, offset)
        assert_winners(index, scores, error)
        assert bool(((value - scores.gather(1, index[:, None])[:, 0]).abs() <= error).all())


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("seed", range(5))
def test_products_and_tiles_do_not_decide_near_ties(monkeypatch, isa, seed):
    # Columns almost orthogonal to all rows: their products, at most 1e-6, are within the rounding errors of their sums.
    x = torch.randn(1, 130, generator=generator(seed)).repeat(40, 1)
    w = almost_orthogonal(x[0], torch.linspace(-1e-6, 1e-6, 210)[torch.randperm(210, generator=generator(seed))], seed)
    first = native_argmax(x, w, torch.zeros(210), None, 1, isa, "float32")
    for products, rows, columns in (("float32", 7, 33), ("bfloat16", 8192, 1024), ("bfloat16", 40, 11)):
        monkeypatch.setattr("dp4tl_fast.kernels.linear_argmax.native_impl.TILE_ROWS", rows)
        monkeypatch.setattr("dp4tl_fast.kernels.linear_argmax.native_impl.TILE_COLUMNS", columns)
        again = native_argmax(x, w, torch.zeros(210), None, 1, isa, products)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, first, strict=True))


def test_undecided_tiles_turn_screening_off(monkeypatch):
    # Columns that differ by less than bfloat16 resolves: every one of them is a candidate for every row.
    w = 1 + torch.randn(300, 40, generator=generator(0)) / 1e4
    x = torch.randn(100, 40, generator=generator(1))
    dtypes = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: dtypes.append(a.dtype) or product(a, b, out=out))
    monkeypatch.setattr("dp4tl_fast.kernels.linear_argmax.native_impl.TILE_ROWS", 30)
    index, *_ = native_argmax(x, w, torch.zeros(300), None, 1, products="bfloat16")
    assert dtypes == [torch.bfloat16] + 3 * [torch.float32]
    assert_winners(index, x.double() @ w.double().T, dot_error(x, w, torch.zeros(300)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(10))
def test_screening_allows_for_the_rounding_of_its_factors(dtype, seed):
    # Columns almost orthogonal to the row: the products are tiny, the rounding errors of their terms are not.
    x = torch.randn(1, 130, generator=generator(seed)).to(dtype)
    wanted = torch.linspace(-0.05, 0.05, 60)[torch.randperm(60, generator=generator(seed))]
    w = almost_orthogonal(x[0], wanted, seed + 100).to(dtype)
    index, *_ = native_argmax(x, w, torch.zeros(60), None, 1, products="bfloat16")
    assert_winners(index, x.double() @ w.double().T, dot_error(x, w, torch.zeros(60)))


@pytest.mark.parametrize("depth", [1, 7, 300])
@pytest.mark.parametrize("scale", [1.0, 2.0**-70])  # whose rounding errors have squares below the smallest float32
@pytest.mark.parametrize("seed", range(5))
def test_no_product_is_off_by_more_than_its_error(depth, scale, seed):
    # Next to halfway between two numbers of bfloat16, and rounded the same way: all terms err by u, and add up.
    ulp = 2.0**-7
    x = (1 + ulp * (torch.randint(4, (20, depth), generator=generator(seed)) + 0.499)) * 2.0 ** (seed - 2)
    signs = torch.randint(2, (30, 1), generator=generator(seed + 50)) * 2 - 1
    w = torch.cat([x, torch.randn(30, depth, generator=generator(seed + 100)).abs()])[:30] * signs * scale
    rounded = x.bfloat16().double() @ w.bfloat16().double().T
    off = (rounded - x.double() @ w.double().T).abs() / x.double().norm(dim=1)[:, None]
    error = product_error(w, torch.bfloat16).double()
    assert (off <= error).all() and (off[0] > 0.9 * error).any()  # and it allows for little that cannot happen
    assert (product_error(w.bfloat16(), torch.bfloat16) < error / 10).all()  # such factors are not rounded
