"""``dp4tl-fast predict CHECKPOINT PHOTOS... --out predictions.csv``: what a network sees in photos."""

from __future__ import annotations

import sys

from dp4tl_fast.common import cli
from dp4tl_fast.inference.predict import predict


def main(argv: list[str] | None = None) -> int:
    return cli.run(predict, argv, positional=True, variadic="photos")


if __name__ == "__main__":
    sys.exit(main())
