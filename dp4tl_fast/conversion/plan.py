"""All that decides a conversion's bytes, in a form that other processes and machines can be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.beton.layout import record_order
from dp4tl_fast.conversion.conversion import Conversion
from dp4tl_fast.conversion.images import ImageRule
from dp4tl_fast.sources import Source, SourceOptions, open_source


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to convert, and how.

    Attributes:
        src, options: The source; see ``sources.open_source``.
        rule: What is stored of an image.
        layout, seed: The order of records; see ``beton.layout.record_order``.
        skip: Bad images are left out, instead of ending the conversion.
    """

    src: str
    options: SourceOptions
    rule: ImageRule
    layout: str
    seed: int
    skip: bool

    def open(self, scratch: Path | None) -> Listing:
        """List the source; see ``sources.open_source`` for ``scratch`` and errors. Without a folder, nothing is copied."""
        return Listing(self, open_source(self.src, self.options, scratch=scratch, copy=scratch is not None))


class Listing:
    """The source of a plan, listed. A *part* is (number, number of parts); ``None`` is everything."""

    def __init__(self, plan: Plan, source: Source) -> None:
        self.plan, self.source = plan, source

    @cached_property
    def _order(self) -> np.ndarray:
        return record_order(self.source.labels, self.plan.layout, self.plan.seed)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        # The bytes depend on Pillow's codecs, too.
        how = {"layout": self.plan.layout, "rule": asdict(self.plan.rule), "pillow": version("pillow")}
        return {"input": self.source.identity(), **how}

    def order(self, part: tuple[int, int] | None = None) -> np.ndarray:
        """Listing positions of the records, in their order, int64 ``[n]``."""
        (number, parts), n = part or (0, 1), len(self._order)
        return self._order[n * number // parts : n * (number + 1) // parts]

    def identity(self, part: tuple[int, int] | None = None) -> dict[str, Any]:
        """All that the bytes depend on; see ``Conversion.identity``."""
        return {**self._identity, **({"shard": list(part)} if part else {})}

    def conversion(
        self,
        out: Path,
        part: tuple[int, int] | None,
        workers: int,
        must_resume: bool,
        progress: Callable[[int, int], None],
    ) -> Conversion:
        return Conversion(
            source=self.source, order=self.order(part), rule=self.plan.rule, out=out, identity=self.identity(part),
            workers=workers, skip=self.plan.skip, must_resume=must_resume, progress=progress,
        )  # fmt: skip

    def close(self) -> None:
        self.source.close()
