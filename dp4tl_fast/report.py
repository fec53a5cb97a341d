"""``python -m dp4tl_fast.report``: one self-contained HTML page from run folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dp4tl_fast.common import cli
from dp4tl_fast.reporting.page import report


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(report, argv, variadic="dirs")


if __name__ == "__main__":
    sys.exit(main())
