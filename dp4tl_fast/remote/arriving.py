"""Batches of records as they come: what a loader sees of a file elsewhere. Of a local file all of it is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


class Arriving:
    """Batches that come one after another. This one is of a local file: they are there.

    Attributes:
        complete: All of them were there at the start.
    """

    complete = True

    def there(self, i: int) -> bool:
        """Whether batch ``i`` is there."""
        return True

    def wait(self, i: int) -> None:
        """Return once batch ``i`` is there.

        Raises:
            BetonError: It cannot be fetched; the message says why.
            BackendError: ``close`` was called meanwhile.
        """

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Item ``i`` once batch ``i`` is there."""
        for i, item in enumerate(items):
            self.wait(i)
            yield item

    def close(self) -> None:
        """Fetch no more of it. May be called twice, from any thread."""

    def __enter__(self) -> Arriving:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


local = Arriving()
