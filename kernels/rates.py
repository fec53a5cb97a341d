"""Choose between ways to compute the same bits by how fast they are on this machine.

The rates are measured in a few milliseconds when a choice is first needed. They are kept for the process, and for later
ones on this CPU with these versions in the user's cache folder: ``$XDG_CACHE_HOME/dp4tl_fast/rates``, by default below
``~/.cache``. The environment can make the choice instead: ``DP4TL_FAST_WAYS=linear_argmax=float32``, with commas between
several. ``dp4tl-fast doctor`` measures again and shows the rates: worth doing if the machine was busy the first time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import user_cache, write_atomically
from dp4tl_fast.common.machine import cores, cpu_model, instructions

VARIABLE = "DP4TL_FAST_WAYS"
ROUNDS = 6  # of all ways in turn, after one to warm up; the fastest call counts, the others were held up by other work
_known: dict[str, dict[str, float]] = {}  # the rates that this process has measured or read


def forced(operation: str, ways: Iterable[str]) -> str | None:
    """The way of this operation that the environment asks for, if any. Raises UsageError if there is no such way."""
    for entry in filter(None, os.environ.get(VARIABLE, "").split(",")):
        name, _, way = entry.partition("=")
        if name == operation and way in ways:
            return way
        if name == operation or not way:
            raise UsageError(f"{VARIABLE}={entry}: expected OPERATION=WAY; the ways of {operation} are {', '.join(ways)}")
    return None


@dataclass(frozen=True)
class Race:
    """Ways to do the same work.

    Attributes:
        name: The work, in words.
        versions: Of all that the rates depend on besides the CPU. With it and the name they are found in the cache.
        ways: Functions by name. Each is called a few times, and should take about a millisecond.
        work: Done by one call, in billions of floating-point operations.
    """

    name: str
    versions: str
    ways: Mapping[str, Callable[[], object]]
    work: float

    def fastest(self) -> str:
        rates = self.rates()
        return max(rates, key=rates.__getitem__)

    def rates(self, again: bool = False) -> dict[str, float]:
        """GFLOP/s of every way, as measured by this process or an earlier one, or ``again``."""
        about = [self.name, self.versions, sorted(self.ways), cpu_model(), instructions(), cores()]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        if not again and key not in _known:
            with suppress(OSError):
                _known[key] = _read(folder() / f"{key}.json", self.ways)
        if again or key not in _known:
            _known[key] = self._run()
            with suppress(OSError):  # a cache that cannot be written costs the next process a few milliseconds
                write_atomically(folder() / f"{key}.json", json.dumps({"about": about, "rates": _known[key]}))
        return _known[key]

    def _run(self) -> dict[str, float]:
        seconds = dict.fromkeys(self.ways, math.inf)
        for turn in range(ROUNDS + 1):
            for name, way in self.ways.items():
                start = time.perf_counter()
                way()
                spent = time.perf_counter() - start
                seconds[name] = min(seconds[name], spent) if turn else math.inf
        return {name: self.work / spent for name, spent in seconds.items()}


def folder() -> Path:
    """Where rates are kept for later processes. Raises OSError if the user has no home folder."""
    return user_cache() / "rates"


def _read(path: Path, ways: Iterable[str]) -> dict[str, float]:
    """The rates in a file of ``Race.rates``. Raises OSError if there is none, or it is damaged."""
    try:
        stored = json.loads(path.read_text())["rates"]
        rates = {way: float(stored[way]) for way in ways}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise OSError(f"{path} is damaged: {error}") from error
    if not all(0 < rate < math.inf for rate in rates.values()):
        raise OSError(f"{path} is damaged: rates {rates}")
    return rates
