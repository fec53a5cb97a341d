"""``python -m dp4tl_fast.selection``: look at selections, compare and combine them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dp4tl_fast.common import cli
from dp4tl_fast.selection.command import selection


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(selection, argv, variadic="action_and_files")


if __name__ == "__main__":
    sys.exit(main())
