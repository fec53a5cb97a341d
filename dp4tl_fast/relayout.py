"""``dp4tl-fast relayout SRC.beton OUT.beton``: another order of records, without loss."""

from __future__ import annotations

import sys
import time
from typing import Any

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.copying import relayout as copy_in_order
from dp4tl_fast.beton.entry_points import wants_entry_points
from dp4tl_fast.common import cli
from dp4tl_fast.common.files import check_outputs


def relayout(src: str, out: str, *, layout: str = "class", seed: int = 0, entry_points: str = "on") -> dict[str, Any]:
    """Copy a .beton, written by dp4tl_fast or by ffcv.DatasetWriter, with its records in another order.

    No image is re-encoded. With layout ``class``, a run on a selection reads one byte range per class.

    Args:
        src: .beton to copy.
        out: .beton to write.
        layout: ``class`` stores each class as one byte range, its records in random order; ``shuffled`` mixes all classes.
        seed: Random seed for the order of records.
        entry_points: ``on`` inserts an index (2.5 % of the bytes) into JPEGs of 128 x 128 pixels and more, so that the native
            loader decodes only what a crop needs; other readers ignore it. ``off`` copies every byte unchanged.
    """
    index_jpegs = wants_entry_points(entry_points)
    check_outputs([("out", out)], [src])
    started = time.perf_counter()
    beton = Beton(src)
    with cli.progress((), desc="relayout", unit="image", total=beton.num_samples) as bar:
        summary = copy_in_order(beton, out, layout, seed, bar.update, index_jpegs)
    if summary["dropped_fields"]:
        cli.message(f"fields not copied (only image, label and index are): {', '.join(summary['dropped_fields'])}")
    return {"out": out, **summary, "layout": layout, "seconds": time.perf_counter() - started}


def main(argv: list[str] | None = None) -> int:
    return cli.run(relayout, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
