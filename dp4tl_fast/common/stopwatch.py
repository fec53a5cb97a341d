"""Where a command's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Wall-clock seconds by section. Every moment belongs to one section, the innermost that is running.

    Attributes:
        seconds: Of each section that has run, until the last change of section.
    """

    def __init__(self, outermost: str) -> None:
        self.seconds: dict[str, float] = {}
        self._running = [outermost]
        self._since = time.perf_counter()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.lap()
        self._running.append(name)
        try:
            yield
        finally:
            self.lap()
            self._running.pop()

    def lap(self) -> dict[str, float]:
        """``seconds`` until now."""
        now = time.perf_counter()
        name = self._running[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
        return self.seconds
