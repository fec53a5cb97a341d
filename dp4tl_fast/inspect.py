"""``dp4tl-fast inspect FILE``: what is inside a .beton and whether it is intact, or what a checkpoint holds."""

from __future__ import annotations

import sys
import time
from typing import Any

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.describe import as_text, describe
from dp4tl_fast.beton.verify import verify as verify_records
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.inference import describe as checkpoint


def inspect(
    file: str, *, verify: bool = False, decode: bool = False, workers: int = 0, cache_dir: str = "", cache_limit: str = ""
) -> dict[str, Any]:
    """Show a .beton's header, fields, layout, label mixing, and samples and bytes per class; or describe a checkpoint's network.

    Args:
        file: .beton, written by dp4tl_fast or by FFCV, or its URL (s3://, gs://, az://, https://); or a run folder, checkpoint
            folder or weights file.
        verify: Check every pointer, size, JPEG header and, if the file has a sidecar, checksum.
        decode: Like --verify, and also decode every record.
        workers: Threads for --verify and --decode; 0 uses one per core.
        cache_dir: Folder that keeps what is fetched from a URL; the default is ~/.cache/dp4tl_fast.
        cache_limit: Maximum size of this folder, e.g. 500GB; empty: no limit.
    """
    started = time.perf_counter()
    if checkpoint.is_checkpoint(file):
        if verify or decode:
            raise UsageError("`verify` and `decode`: are for .beton files. Drop them")
        found = checkpoint.describe(file)
        cli.message(checkpoint.as_text(found))
        return found
    beton = Beton(file, cache_dir=cache_dir, cache_limit=cache_limit)
    result = describe(beton)
    if verify or decode:
        with cli.progress((), desc="verify", unit="image", total=beton.num_samples) as bar:
            result["verified"] = verify_records(beton, decode=decode, workers=workers, progress=bar.update)
    result["seconds"] = time.perf_counter() - started
    cli.message(as_text(result))
    return result


def main(argv: list[str] | None = None) -> int:
    return cli.run(inspect, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
