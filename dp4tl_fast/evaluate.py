"""``dp4tl-fast evaluate CHECKPOINT DATA.beton``: accuracy, by class and by group, confusion, calibration, robustness."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dp4tl_fast.inference.evaluate import evaluate
from dp4tl_fast.training.ranks import run_command


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(evaluate, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
