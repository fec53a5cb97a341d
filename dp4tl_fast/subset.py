"""``dp4tl-fast subset SRC.beton OUT.beton``: some classes, or a selection, in a file of their own."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.copying import subset as copy_records
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import check_outputs


def subset(src: str, out: str, *, selection: str = "", classes: list[str] = []) -> dict[str, Any]:  # noqa: B006
    """Copy a selection's records, or some classes, to a smaller .beton. Nothing is decoded; labels stay as they are.

    Args:
        src: The .beton to copy from.
        out: The .beton to write.
        selection: A selection made for SRC by ``dp4tl-fast prune``.
        classes: Names or ids of classes, instead of a selection.
    """
    started = time.perf_counter()
    if bool(selection) == bool(classes):
        raise UsageError("give either `selection=SEL.json` or `classes`")
    check_outputs([("out", out)], [src])
    beton = Beton(src)
    if selection:
        from dp4tl_fast.selection import Selection

        records = Selection.load(selection).indices(beton)
    else:
        records = np.flatnonzero(np.isin(beton.labels, [_class_id(beton, name) for name in classes]))
    with cli.progress((), desc="subset", unit="image", total=len(records)) as bar:
        summary = copy_records(beton, records, out, bar.update)
    return {"out": out, **summary, "seconds": time.perf_counter() - started}


def _class_id(beton: Beton, name: str) -> int:
    if name in beton.class_names:
        return beton.class_names.index(name)
    if name.isdecimal() and int(name) < beton.num_classes:
        return int(name)
    raise UsageError(f"`classes={name}`: {beton.path} has no such class. `dp4tl-fast inspect` lists them")


def main(argv: list[str] | None = None) -> int:
    return cli.run(subset, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
