"""Blocking calls beside the program, in threads of their own.

Python waits for these threads at its end, as no thread may be inside obstore then. So whatever runs here looks now and then whether
the program is ``ending``, and begins nothing new.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from dp4tl_fast.common.errors import BetonError

T = TypeVar("T")
LOOK_S = 0.1  # how often a pause looks whether the program ends


class Background:
    """Begins its threads when there is something to do. They end with this object, or with the process."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def check(self) -> None:
        """Raises: BetonError, in a child after a fork, where the threads are not."""
        if os.getpid() != self._process:
            raise BetonError(f"a URL was opened by process {self._process}. Open it in the child (process {os.getpid()})")

    def start(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        self.check()
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="dp4tl-remote")
            try:
                return self._pool.submit(work, *arguments)
            except RuntimeError:
                raise BetonError("the program ends: nothing more is fetched") from None

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """What it returns, or raises. Unlike a call in the main thread, the wait can be interrupted."""
        return self.start(work, *arguments).result()


def ending() -> bool:
    """Whether the program ends: Python waits for other threads now."""
    return not threading.main_thread().is_alive()


def pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not ending():
        time.sleep(min(left, LOOK_S))
