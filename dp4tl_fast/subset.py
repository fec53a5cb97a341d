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
    """Copy the records of a selection, or some classes, to a smaller .beton. Nothing is decoded; labels do not change.

    Args:
        src: .beton to copy from, or its URL (s3://, gs://, az://, https://); from a URL, only these records are fetched.
        out: .beton to write.
        selection: Selection made for SRC by ``dp4tl-fast prune``.
        classes: Names or ids of the classes to copy, instead of a selection; repeat the flag for several. Write ``name:0`` or
            ``id:0`` if one class's name is another's id.
        cache_dir: Folder that keeps what is fetched from a URL; the default is ~/.cache/dp4tl_fast.
        cache_limit: Maximum size of this folder, e.g. 500GB; empty: no limit.
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
