"""One pass over a loader's batches: what the consumer calls ``next`` on."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders import lifetime
from dp4tl_fast.loaders.contract import B

if TYPE_CHECKING:
    from dp4tl_fast.loaders.base import BaseLoader, Epochs


class Iteration(Iterator[B]):
    """One pass over the batches; counts what was delivered. Ended early, it says so instead of looking complete.

    Attributes:
        tells_position: What it delivers moves the loader's position; until ``set_epoch`` and the like set another.
    """

    def __init__(self, loader: BaseLoader[B], batches: list[np.ndarray], epochs: list[Epochs]) -> None:
        self._loader, self._records = loader, iter(batches)
        self._left = len(batches)
        self._number = loader._delivered  # of the epoch, of the next batch
        self._loaded: Generator[Any, None, None] = loader._load(batches, epochs)
        self._ended_by = ""
        self._lock = threading.RLock()  # re-entrant: a signal handler may stop an iteration in the middle of ``next``
        self._busy = False
        self.tells_position = True

    def __next__(self) -> B:
        self._check_process()  # before the lock: another thread may have held it when this process was forked
        lifetime.hold()
        self._loader._takers.add(threading.current_thread())
        try:
            return self._take()
        finally:
            lifetime.hold()

    def _take(self) -> B:
        loader = self._loader
        with self._lock:
            self._check_running()
            try:
                batch = self._next()
            except StopIteration:
                self._check_running()
                loader._finished |= self.tells_position
                raise
            except BaseException as error:  # what follows would look like the end
                self._ended_by = self._ended_by or f"its error ({type(error).__name__})"
                raise
            self._check_running()
            loader.bytes_read += int(loader.beton.sizes[next(self._records)].sum())
            self._left -= 1
            self._number += 1
            if self.tells_position:
                loader._delivered += 1
                loader._finished = self._left == 0
            return batch

    def _next(self) -> B:
        self._loader.beton.check_size()
        self._busy = True
        try:
            loader = self._loader
            return loader.transforms(next(self._loaded), loader.now.spec, loader.now.number, self._number)  # type: ignore[return-value]
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):  # torch's, on a CPU
                raise
            size = self._loader.now.spec.batch_bytes
            raise BackendError(
                f"{self._loader.name} loader: no memory for a batch of {size} bytes, besides those in flight. Use a smaller "
                "batch_size or size, or fewer views"
            ) from error
        finally:
            self._busy = False

    def _check_process(self) -> None:
        if os.getpid() != self._loader._process:
            self._loader._check_usable()

    def _check_running(self) -> None:
        self._check_process()
        if not self._ended_by:
            return
        loader = self._loader
        self._loaded.close()  # where ``stop`` came in the middle of ``next``, and could not
        if loader._closed:
            loader._release()
        raise BackendError(f"this iteration over {loader.beton.path} was ended by {self._ended_by}")

    def stop(self, reason: str) -> bool:
        """End it. False in the middle of ``next`` of the same thread (a signal handler): it ends when that returns."""
        self._ended_by = self._ended_by or reason
        with self._lock:
            if not self._busy:
                self._loaded.close()
            return not self._busy
