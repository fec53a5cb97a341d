"""Work done by several threads, results in the order of the jobs, memory bounded by the number of jobs in flight."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

J = TypeVar("J")
R = TypeVar("R")


def ordered_map(function: Callable[[J], R], jobs: Iterable[J], workers: int = 0) -> Iterator[R]:
    """``map`` by ``workers`` threads (0: one per core), at most ``2 * workers`` results ahead of the consumer.

    The first exception, in job order, is raised in the consumer; jobs that have not begun are dropped then.
    """
    workers = workers or len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dp4tl-convert")
    waiting: deque[Future[R]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def chunk_bounds(sizes: np.ndarray, max_bytes: int, max_items: int) -> list[int]:
    """Where chunks of consecutive items start, and the end: at most ``max_items`` and about ``max_bytes`` each."""
    total = sizes.cumsum()
    bounds = [0]
    while (start := bounds[-1]) < len(sizes):
        limit = (total[start - 1] if start else 0) + max_bytes
        by_bytes = max(start + 1, int(total.searchsorted(limit, "right")))
        bounds.append(min(start + max_items, by_bytes, len(sizes)))
    return bounds
