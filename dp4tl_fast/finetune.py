"""``python -m dp4tl_fast.finetune``: what a pretrained network is worth on the target."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.training.ranks import run_command


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(finetune, argv)


if __name__ == "__main__":
    sys.exit(main())
