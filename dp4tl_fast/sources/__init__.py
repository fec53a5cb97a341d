"""Where images come from: one module a kind, chosen by what ``SRC`` is."""

from __future__ import annotations

from dp4tl_fast.sources.base import Source
from dp4tl_fast.sources.folder import FolderSource

__all__ = ["Source", "open_source"]


def open_source(src: str) -> Source:
    """List the samples of ``src``.

    Raises:
        SourceError: It is missing, empty or of no known kind.
    """
    return FolderSource(src)
