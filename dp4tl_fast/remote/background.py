"""Coroutines beside the program: an event loop in a thread of its own.

At exit nothing new is begun, and requests that are under way may finish.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from dp4tl_fast.common.errors import BetonError

T = TypeVar("T")

FINISH_S = 3.0  # at exit, for requests that are under way
THREADS = 40  # that wait for answers
_open: weakref.WeakSet[Background] = weakref.WeakSet()


class Background:
    """Begins its thread when there is something to do. Ends with this object, or with the process.

    Attributes:
        ending: Set when the process ends: begin nothing new.
    """

    def __init__(self) -> None:
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Raises: BetonError, in a child after a fork, where the thread is not."""
        if os.getpid() != self._process:
            work.close()
            raise BetonError(f"a URL was opened by process {self._process}. Open it in the child (process {os.getpid()})")
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="dp4tl-remote"))
                thread = threading.Thread(target=self._loop.run_forever, name="dp4tl-remote", daemon=True)
                thread.start()
                self._end = weakref.finalize(self, _end, self._loop, thread, self._process)
                self._end.atexit = False
                _open.add(self)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What it returns, or raises."""
        future = self.start(work)
        try:
            return future.result()
        finally:
            future.cancel()  # where the wait was interrupted


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread, process: int) -> None:
    if os.getpid() != process:
        return

    async def finish() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, late = await asyncio.wait(others, timeout=FINISH_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await loop.shutdown_asyncgens()
        loop.stop()

    if thread.is_alive():
        asyncio.run_coroutine_threadsafe(finish(), loop)
        if thread is not threading.current_thread():
            thread.join()
            loop.close()


@atexit.register
def _at_exit() -> None:
    running = [background for background in _open if background._process == os.getpid()]
    for background in running:
        background.ending.set()
    for background in running:
        background._end()
