"""``python -m dp4tl_fast.prune``: score source classes for a target, keep the best, write a selection."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dp4tl_fast.pruning.run import prune
from dp4tl_fast.training.ranks import run_command


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(prune, argv)


if __name__ == "__main__":
    sys.exit(main())
