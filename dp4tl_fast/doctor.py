"""``python -m dp4tl_fast.doctor``: what is installed, what works here, and how to fix what does not."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dp4tl_fast.common import cli
from dp4tl_fast.reporting.installed import doctor


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(doctor, argv)


if __name__ == "__main__":
    sys.exit(main())
