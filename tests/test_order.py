"""Order, batches and ranks as pure functions: every record once, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp4tl_fast.loaders.order import Draws, block_shuffle, epoch_order, epoch_places, joined, num_batches, rank_batches

RECORDS = st.lists(st.integers(0, 10**9), unique=True, max_size=200).map(lambda x: np.array(sorted(x), np.int64))
SEED, EPOCH = st.integers(0, 2**63 - 1), st.integers(0, 10_000)


@given(RECORDS, SEED, EPOCH)
def test_an_epoch_is_a_permutation_that_depends_on_its_key_alone(records: np.ndarray, seed: int, epoch: int) -> None:
    order = epoch_order(records, seed=seed, epoch=epoch, shuffle=True)
    assert sorted(order.tolist()) == records.tolist()
    assert (order == epoch_order(records.copy(), seed=seed, epoch=epoch, shuffle=True)).all()
    assert (epoch_order(records, seed=seed, epoch=epoch, shuffle=False) == records).all()


def test_epochs_and_seeds_differ() -> None:
    records = np.arange(100)
    orders = {tuple(epoch_order(records, seed=s, epoch=e, shuffle=True)) for s in range(5) for e in range(5)}
    assert len(orders) == 25


SIZES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 70)), min_size=1, max_size=6)


def drawing(sizes_and_counts: list[tuple[int, int]]) -> Draws:
    sizes = [size for size, _ in sizes_and_counts]
    numbers = np.random.default_rng(len(sizes)).permutation(sum(sizes))  # groups lie anywhere in the file
    groups = [np.sort(part) for part in np.split(numbers, np.cumsum(sizes)[:-1])]
    return Draws(groups, [count for _, count in sizes_and_counts])


@given(SIZES, st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_draws_go_on_where_the_last_epoch_stopped(sizes: list[tuple[int, int]], seed: int, start: int) -> None:
    """Over any stretch of epochs each record of a group comes as often as every other, give or take one; no pass shows it twice."""
    draws = drawing(sizes)
    epochs = [draws.of_epoch(seed, e) for e in range(start + 3)]
    for records, passes in epochs:
        assert len(records) == len(passes) == draws.total
        assert (np.lexsort((passes, records)) == np.arange(draws.total)).all()
    records, passes = (np.concatenate(parts) for parts in zip(*epochs, strict=True))
    assert len(np.unique(np.stack([records, passes]), axis=1).T) == len(records)
    for group, count in zip(draws.groups, draws.counts, strict=True):
        times = np.array([(records == r).sum() for r in group])
        assert times.sum() == (start + 3) * count and times.max() - times.min() <= 1
    again = draws.of_epoch(seed, start)  # without the epochs before it
    assert all((a == b).all() for a, b in zip(again, epochs[start], strict=True))


@given(RECORDS.filter(len), SEED, st.integers(0, 10_000))
def test_drawing_everything_is_the_plain_epoch(records: np.ndarray, seed: int, epoch: int) -> None:
    halves = [half for half in np.split(records, [len(records) // 3]) if len(half)]
    found, passes = Draws(halves, [len(half) for half in halves]).of_epoch(seed, epoch)
    assert found.tolist() == records.tolist() and (passes == epoch).all()


def test_passes_groups_and_seeds_have_permutations_of_their_own() -> None:
    draws = Draws([np.arange(50), np.arange(50, 100)], [25, 25])
    firsts = set()
    for seed in (0, 1):
        for epoch in (0, 2, 4):
            records, _ = draws.of_epoch(seed, epoch)
            firsts |= {tuple(records[:25].tolist()), tuple((records[25:] - 50).tolist())}
    assert len(firsts) == 12


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_ranks_partition_the_epoch(n: int, batch_size: int, world_size: int, drop_last: bool) -> None:
    order = np.random.default_rng(n).permutation(n)
    ranks = []
    for rank in range(world_size):
        sharding = {"batch_size": batch_size, "rank": rank, "world_size": world_size, "drop_last": drop_last}
        batches = rank_batches(order, **sharding)
        assert len(batches) == num_batches(n, **sharding)
        assert all(0 < len(b) <= batch_size for b in batches)
        assert all(len(b) == batch_size for b in batches[:-1])
        ranks.append([i for b in batches for i in b.tolist()])
    kept = n - n % (batch_size * world_size) if drop_last else n
    assert sorted(i for rank in ranks for i in rank) == sorted(order[:kept].tolist())
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 4), st.integers(2, 8))
def test_a_last_batch_takes_what_it_lacks_from_the_one_before(n: int, batch_size: int, world_size: int, least: int) -> None:
    """Where two batches have enough records for both; every record still comes once, and no batch is larger or more than before."""
    order, rows = np.random.default_rng(n).permutation(n), []
    full, rest = divmod(n, batch_size * world_size)
    enough = full > 0 and batch_size * world_size + rest >= 2 * least * world_size
    for rank in range(world_size):
        sharding = {"batch_size": batch_size, "rank": rank, "world_size": world_size, "drop_last": False}
        batches = rank_batches(order, **sharding, min_batch=least)
        sizes = [len(b) for b in batches]
        assert len(sizes) == num_batches(n, **sharding, min_batch=least)
        if enough and 0 < rest < least * world_size:
            assert sizes[-1] == least <= sizes[-2] and set(sizes[:-2]) <= {batch_size}
        else:
            assert sizes == [len(b) for b in rank_batches(order, **sharding)]
        rows += [i for b in batches for i in b.tolist()]
    assert sorted(rows) == list(range(n))


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 4))
def test_global_batches_do_not_depend_on_the_number_of_ranks(per_rank: int, ranks: int, batches: int) -> None:
    order = np.random.default_rng(0).permutation(per_rank * ranks * (batches + 1) - 1)
    shared = [
        rank_batches(order, batch_size=per_rank, rank=rank, world_size=ranks, drop_last=True) for rank in range(ranks)
    ]
    alone = rank_batches(order, batch_size=per_rank * ranks, rank=0, world_size=1, drop_last=True)
    assert len(alone) == batches
    for b, whole in enumerate(alone):
        assert np.concatenate([shared[rank][b] for rank in range(ranks)]).tolist() == whole.tolist()


@given(RECORDS, SEED, EPOCH, st.integers(1, 10_000), st.integers(1, 100_000))
def test_a_block_shuffle_is_a_permutation(records: np.ndarray, seed: int, epoch: int, block: int, buffer: int) -> None:
    sizes = np.random.default_rng(len(records)).integers(1, 500, len(records))
    options = {"seed": seed, "epoch": epoch, "block_bytes": block, "buffer_bytes": buffer}
    order = block_shuffle(records, sizes, **options)
    assert sorted(order.tolist()) == records.tolist()
    assert (order == block_shuffle(records, sizes, **options)).all()


def test_a_block_shuffle_reads_long_runs_and_mixes_classes() -> None:
    # 100 classes of 1,000 records of 1 KB on a class layout; blocks of 100 records, a buffer of 100 blocks.
    n, per_class = 100_000, 1_000
    sizes = np.full(n, 1_000)
    order = block_shuffle(np.arange(n), sizes, seed=0, epoch=0, block_bytes=100_000, buffer_bytes=10_000_000)
    buffer = order[:10_000]
    assert len(np.unique(buffer // 100)) <= 101  # it holds about 100 whole blocks
    uniform = 100 * (1 - 0.99**256)  # distinct classes among 256 uniform draws, expected: 92.4
    assert distinct_classes(order // per_class) > 0.6 * uniform
    whole = block_shuffle(np.arange(n), sizes, seed=0, epoch=0, block_bytes=100_000, buffer_bytes=10**9)
    assert distinct_classes(whole // per_class) == pytest.approx(uniform, rel=0.01)


def distinct_classes(labels: np.ndarray) -> float:
    """Mean number of classes in a batch of 256."""
    return float(np.mean([len(np.unique(labels[i : i + 256])) for i in range(0, len(labels) - 256, 256)]))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 63, 64, 65, 66, 127, 128, 129, 1000, 100_003])
@given(SEED, st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_native_order_is_numpys(n: int, seed: int, epoch: int) -> None:
    expected = epoch_order(np.arange(n), seed=seed, epoch=epoch, shuffle=True)
    found = epoch_places(n, seed=seed, epoch=epoch, shuffle=True)
    assert found.dtype == np.int64 and np.array_equal(found, expected)
    assert np.array_equal(epoch_places(n, seed=seed, epoch=epoch, shuffle=False), np.arange(n))


def test_a_long_native_order_is_numpys() -> None:
    """Long enough that the partners of a swap lie far apart."""
    for key in ((0, 0), (2**63 - 1, 2**32 - 1)):
        expected = epoch_order(np.arange(1_000_003), seed=key[0], epoch=key[1], shuffle=True)
        assert np.array_equal(epoch_places(1_000_003, seed=key[0], epoch=key[1], shuffle=True), expected)


def test_an_epoch_has_the_order_that_it_always_had() -> None:
    """Checkpoints continue in it: neither another NumPy nor another core may change it."""
    assert epoch_places(10, seed=7, epoch=3, shuffle=True).tolist() == [8, 4, 5, 3, 6, 0, 9, 7, 1, 2]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5), st.booleans())
def test_batches_joined_are_the_order_itself_where_nothing_lies_between(n, batch_size, ranks, start, drop_last):
    order = np.random.default_rng(n).permutation(n)
    sharding = {"batch_size": batch_size, "rank": ranks - 1, "world_size": ranks, "drop_last": drop_last}
    if batches := rank_batches(order, **sharding)[start:]:
        found = joined(batches)
        assert found.tolist() == np.concatenate(batches).tolist()
        assert ranks > 1 or found.base is order
        assert joined(batches[::-1]).tolist() == np.concatenate(batches[::-1]).tolist()
    apart = [order[:1].copy(), order[1:]]
    assert joined(apart).tolist() == order.tolist() and joined([order.copy()]).tolist() == order.tolist()
