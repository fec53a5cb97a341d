"""``python -m dp4tl_fast.pretrain``: train on a source, or on a selection of it, and measure."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dp4tl_fast.pretraining.run import pretrain
from dp4tl_fast.training.ranks import run_command


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(pretrain, argv)


if __name__ == "__main__":
    sys.exit(main())
