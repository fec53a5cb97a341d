"""Blocking calls beside the program, in threads of their own.

Python waits for these threads at its end, as no thread may be inside obstore then. So whatever runs here looks now and then whether
the program is ``ending``, and begins nothing new. (An executor's threads are waited for before that can be seen.)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from dp4tl_fast.common.errors import BetonError

T = TypeVar("T")
LOOK_S = 0.1  # how often a wait looks whether the program ends


class Background:
    """``most`` calls at a time, each in a thread that ends with it."""

    def __init__(self, most: int) -> None:
        self._turn = threading.Semaphore(most)
        self._process = os.getpid()

    def check(self) -> None:
        """Raises: BetonError, in a child after a fork, where the threads are not."""
        if os.getpid() != self._process:
            raise BetonError(f"a URL was opened by process {self._process}. Open it in the child (process {os.getpid()})")

    def start(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        self.check()
        future: Future[T] = Future()
        threading.Thread(target=self._call, args=(future, work, arguments), name="dp4tl-remote", daemon=False).start()
        return future

    def _call(self, future: Future[T], work: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        while not self._turn.acquire(timeout=LOOK_S):
            if ending():
                future.cancel()
        try:
            if future.set_running_or_notify_cancel():
                future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)
        finally:
            self._turn.release()

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
