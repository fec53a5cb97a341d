"""``dp4tl-fast merge OUT.beton``: join the shards of a conversion."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from dp4tl_fast.common import cli
from dp4tl_fast.common.files import check_outputs
from dp4tl_fast.conversion.shards import merge_shards


def merge(out: str) -> dict[str, Any]:
    """Join OUT.shard-I-of-N.beton, made by ``convert SRC OUT --shard I/N``, into the file that an unsharded run writes.

    Args:
        out: .beton to write; all shards must be beside it. They are not removed.
    """
    check_outputs([("out", out)], [])
    started = time.perf_counter()
    with cli.progress((), desc="merge", unit="image") as bar:
        summary = merge_shards(Path(out), bar.update)
    return {"out": out, **summary, "seconds": time.perf_counter() - started}


def main(argv: list[str] | None = None) -> int:
    return cli.run(merge, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
