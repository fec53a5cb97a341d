"""The one thing that passes from pruning to pretraining, and the command ``dp4tl-fast selection`` (``command``)."""

from dp4tl_fast.selection.portable import SCHEMA, Selection, rank, records_of, same_source

__all__ = ["SCHEMA", "Selection", "rank", "records_of", "same_source"]
