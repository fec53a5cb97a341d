"""``dp4tl-fast export CHECKPOINT OUT``: a network as ONNX, torch.export or torchvision weights."""

from __future__ import annotations

import sys

from dp4tl_fast.common import cli
from dp4tl_fast.inference.export import export


def main(argv: list[str] | None = None) -> int:
    return cli.run(export, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
