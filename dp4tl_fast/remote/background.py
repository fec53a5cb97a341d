"""Coroutines beside the program: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from dp4tl_fast.common.errors import BetonError

T = TypeVar("T")


class Background:
    """Begins its thread when there is something to do. Ends with this object, or with the process."""

    def __init__(self) -> None:
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
                thread = threading.Thread(target=self._loop.run_forever, name="dp4tl-remote", daemon=True)
                thread.start()
                weakref.finalize(self, _end, self._loop, thread, self._process)
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

    async def cancel() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await loop.shutdown_asyncgens()
        loop.stop()

    if thread.is_alive():
        asyncio.run_coroutine_threadsafe(cancel(), loop)
        if thread is not threading.current_thread():
            thread.join()
            loop.close()
