"""``dp4tl-fast subset SRC.beton OUT.beton``: some classes, or a selection, in a file of their own."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.copying import subset as copy_records
from dp4tl_fast.common import cli
from dp4tl_fast.common.checks import class_id
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import check_outputs


def subset(
    src: str,
    out: str,
    *,
    selection: str = "",
    classes: list[str] = [],  # noqa: B006
    cache_dir: str = "",
    cache_limit: str = "",
) -> dict[str, Any]:
    """Copy a selection's records, or some classes, to a smaller .beton. Nothing is decoded; labels stay as they are.

    Args:
        src: The .beton to copy from, or its URL (s3://, gs://, az://, https://), of which only these records are fetched.
        out: The .beton to write.
        selection: A selection made for SRC by ``dp4tl-fast prune``.
        classes: Names or ids of classes, instead of a selection; ``name:0`` or ``id:0`` where a name is another class's id.
        cache_dir: Folder for what is fetched of a URL; the default is ~/.cache/dp4tl_fast.
        cache_limit: Most bytes in it, as 500GB; empty: no limit.
    """
    started = time.perf_counter()
    if bool(selection) == bool(classes):
        raise UsageError("give either `selection=SEL.json` or `classes`")
    check_outputs([("out", out)], [src])
    beton = Beton(src, cache_dir=cache_dir, cache_limit=cache_limit)
    if selection:
        from dp4tl_fast.selection import Selection

        records = Selection.load(selection).indices(beton)
    else:
        records = np.flatnonzero(np.isin(beton.labels, [class_id(name, beton.class_names) for name in classes]))
    with cli.progress((), desc="subset", unit="image", total=len(records)) as bar:
        summary = copy_records(beton, records, out, bar.update)
    return {"out": out, **summary, "seconds": time.perf_counter() - started}


def main(argv: list[str] | None = None) -> int:
    return cli.run(subset, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
