"""Which records, in which order, in which batch: pure functions of (seed, epoch, rank). No state, clock or threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

BLOCK_BYTES = 1 << 20  # one read of slow storage; small, so that a shuffle buffer holds many places of the file


def generator(seed: int, epoch: int) -> np.random.Generator:
    """A counter-based generator keyed by (seed, epoch): no epoch's stream depends on another's."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))


@dataclass(frozen=True)
class Draws:
    """How much of each group of records an epoch reads: ``counts[g]`` records of ``groups[g]``.

    Each group has an endless stream of its records: a permutation of them, then another one, ... Every epoch takes on where the
    last one stopped, so that a large group is seen over several epochs and a small one several times in one. Which permutation
    that is follows from (seed, group, pass): nothing is remembered.

    Attributes:
        groups: Record numbers, int64 ascending, none in two groups.
        counts: At least 1 each.
    """

    groups: Sequence[np.ndarray]
    counts: Sequence[int]

    @property
    def total(self) -> int:
        """Records of an epoch, repeated ones counted as often."""
        return sum(self.counts)

    def of_epoch(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's records, ascending, and the pass that each belongs to: int64 ``[total]`` each.

        A pass counts how often the record was seen before, and so serves as the epoch of its augmentation.
        """
        records, passes = [], []
        for g, (group, count) in enumerate(zip(self.groups, self.counts, strict=True)):
            first, last, size = epoch * count, (epoch + 1) * count, len(group)
            for p in range(first // size, (last - 1) // size + 1):
                start, stop = max(first - p * size, 0), min(last - p * size, size)
                whole = stop - start == size
                records.append(group if whole else _stream(seed, g, p).permutation(group)[start:stop])
                passes.append(np.full(stop - start, p % 2**32, np.int64))
        found, seen = np.concatenate(records), np.concatenate(passes)
        order = np.lexsort((seen, found))
        return found[order], seen[order]


def _stream(seed: int, group: int, number: int) -> np.random.Generator:
    """A generator of its own for each pass over each group; ``generator`` counts from 0, and never gets to these counters."""
    key, counter = np.array([seed, number], np.uint64), np.array([0, 0, 0, group + 1], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def epoch_order(records: np.ndarray, *, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """The epoch's order over all ranks: a permutation of ``records`` (int64 ``[n]``), or ``records`` themselves."""
    return generator(seed, epoch).permutation(records) if shuffle else records


def epoch_places(n: int, *, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """``epoch_order(np.arange(n))``, int64 ``[n]``: natively where that is built, to the same bits in a fraction of the time."""
    if not shuffle:
        return np.arange(n)
    if n > 2**32:
        return epoch_order(np.arange(n), seed=seed, epoch=epoch, shuffle=True)
    try:
        from dp4tl_fast.kernels import _native
    except ImportError:
        return epoch_order(np.arange(n), seed=seed, epoch=epoch, shuffle=True)
    places = np.empty(n, np.int64)
    _native.permute(places, seed, epoch)
    return places


def block_shuffle(
    records: np.ndarray, sizes: np.ndarray, *, seed: int, epoch: int, block_bytes: int, buffer_bytes: int
) -> np.ndarray:
    """Shuffle for slow storage: a permutation of ``records`` that reads long runs.

    Blocks of consecutive records of about ``block_bytes`` are visited in random order from the whole file; every
    ``buffer_bytes`` worth of blocks is permuted as one buffer. With one buffer for all it is a uniform shuffle.

    Args:
        records: Record numbers in file order, int64 ``[n]``.
        sizes: Their stored bytes, int64 ``[n]``.
    """
    return block_buffers(
        records, sizes, seed=seed, epoch=epoch, block_bytes=block_bytes, buffer_bytes=buffer_bytes
    )[0]


def block_buffers(
    records: np.ndarray, sizes: np.ndarray, *, seed: int, epoch: int, block_bytes: int, buffer_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """``block_shuffle``, and where its buffers lie: buffer ``b`` is ``order[bounds[b] : bounds[b + 1]]``.

    A buffer holds at most ``buffer_bytes`` plus one block, a block at most ``block_bytes`` plus one record.
    """
    random = generator(seed, epoch)
    if len(records) == 0:
        return records, np.zeros(1, np.int64)
    # A new block starts whenever the running byte count crosses a multiple of block_bytes.
    block_of = (np.cumsum(sizes) - sizes) // max(1, block_bytes)
    starts = np.flatnonzero(np.diff(block_of, prepend=-1))
    stops = np.append(starts[1:], len(records))
    visit = random.permutation(len(starts))
    # A block is in one buffer: that of its first byte.
    ends = np.append(0, np.cumsum(sizes))
    block_sizes = (ends[stops] - ends[starts])[visit]
    buffer_of_block = (np.cumsum(block_sizes) - block_sizes) // max(1, buffer_bytes)
    counts = (stops - starts)[visit]
    visited = np.repeat(starts[visit] - (np.cumsum(counts) - counts), counts) + np.arange(len(records))
    buffer_of = np.repeat(buffer_of_block, counts)
    # Sorting by (buffer, random key) permutes each buffer and keeps the buffers in order.
    order = records[visited[np.lexsort((random.random(len(visited)), buffer_of))]]
    bounds = np.append(np.flatnonzero(np.diff(buffer_of, prepend=-1)), len(records))
    return order, bounds


def windows(sizes: np.ndarray, most: int) -> np.ndarray:
    """Where runs of records of at most ``most`` bytes each begin, int64; ``sizes``, int64 ``[n]``, in the order of reading.

    ``most`` is at least twice the largest size.
    """
    ends = np.cumsum(sizes)
    window_of = (ends - sizes) // (most - int(sizes.max(initial=0)))
    return np.flatnonzero(np.diff(window_of, prepend=-1))


def num_batches(n: int, *, batch_size: int, rank: int, world_size: int, drop_last: bool, min_batch: int = 1) -> int:
    """Batches that this rank gets from ``n`` records."""
    full, _, last = _cut(n, batch_size, world_size, min_batch)
    share = _share(last, rank, world_size)
    return full if drop_last else full + (share.stop > share.start)


def rank_batches(
    order: np.ndarray, *, batch_size: int, rank: int, world_size: int, drop_last: bool, min_batch: int = 1
) -> list[np.ndarray]:
    """This rank's batches of an epoch's order, as views.

    Global batch ``b`` is ``order[b * B * W : (b + 1) * B * W]`` and each rank takes its ``B`` of it, so that the global
    batches do not depend on the number of ranks at a fixed ``B * W``. What is left over is split as evenly as it goes:
    no record is dropped or repeated unless ``drop_last``.

    Args:
        min_batch: Records of a rank in an incomplete last batch, at least: what it lacks it takes from the batch before, if that
            keeps as many. Without ``drop_last``.
    """
    step = batch_size * world_size
    full, lent, last = _cut(len(order), batch_size, world_size, min_batch)
    ends = [(b + 1) * step for b in range(full)]
    if last and not drop_last:
        ends = [*ends[:-1], *(end - lent for end in ends[-1:]), len(order)]
    parts = [order[a:b][_share(b - a, rank, world_size)] for a, b in pairwise([0, *ends])]
    return [part for part in parts if len(part)]


def joined(batches: Sequence[np.ndarray]) -> np.ndarray:
    """The batches, at least one, one after another; not copied where they lie so already, as those of a single rank do."""
    base, starts = batches[0].base, [b.__array_interface__["data"][0] for b in batches]
    ends = [start + b.nbytes for start, b in zip(starts, batches, strict=True)]
    if base is None or base.ndim != 1 or not base.flags.c_contiguous or starts[1:] != ends[:-1]:
        return np.concatenate(batches)
    if any(b.base is not base for b in batches):  # neighbours by chance
        return np.concatenate(batches)
    first = (starts[0] - base.__array_interface__["data"][0]) // base.itemsize
    return base[first : first + sum(map(len, batches))]


def _cut(n: int, batch_size: int, world_size: int, min_batch: int) -> tuple[int, int, int]:
    """Whole global batches, how many records their last lends to the incomplete one that follows it, and the size of that."""
    step, least = batch_size * world_size, min_batch * world_size
    full, rest = divmod(n, step)
    lacks = max(0, least - rest) if rest and full and min_batch > 1 else 0
    lent = lacks if step - lacks >= least else 0
    return full, lent, rest + lent


def _share(n: int, rank: int, world_size: int) -> slice:
    """Rank's part of ``n`` items, sizes differing by at most one, earlier ranks larger."""
    small, larger = divmod(n, world_size)
    start = rank * small + min(rank, larger)
    return slice(start, start + small + (rank < larger))
