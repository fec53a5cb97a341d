"""``python -m dp4tl_fast.convert``: images to a .beton laid out so that a class can be read alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dp4tl_fast.common import cli
from dp4tl_fast.conversion.run import convert


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(convert, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
