"""The one thing that passes from pruning to pretraining, and the command ``dp4tl-fast selection``."""

from __future__ import annotations

from collections.abc import Sequence

from dp4tl_fast.selection.portable import SCHEMA, Selection, rank, records_of, same_source

__all__ = ["SCHEMA", "Selection", "main", "rank", "records_of", "same_source"]


def main(argv: Sequence[str] | None = None) -> int:
    from dp4tl_fast.selection.command import main as command

    return command(argv)
