"""``python -m dp4tl_fast.demo``: the whole pipeline on embedded data, full and pruned side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dp4tl_fast.common import cli
from dp4tl_fast.demo.run import demo


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(demo, argv)


if __name__ == "__main__":
    sys.exit(main())
