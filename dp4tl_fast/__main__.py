"""``dp4tl-fast NAME ...``: the same as ``python -m dp4tl_fast.NAME ...``."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "convert": "convert images to a .beton in which each class can be read alone",
    "merge": "join the shards of a conversion",
    "relayout": "copy a .beton with its records in another order, without decoding",
    "subset": "copy some classes, or a selection, to a smaller .beton",
    "inspect": "show what is inside a .beton or a checkpoint",
    "prune": "score source classes for a target and select the ones to keep",
    "selection": "inspect, compare and combine selections",
    "pretrain": "train on the source, or on a selection of it, and measure the cost",
    "finetune": "train and test on the target: linear probe, full finetuning or kNN",
    "evaluate": "measure a network: accuracy by class and group, confusion, calibration, robustness",
    "predict": "classify photos: files, folders, tars, .beton",
    "export": "export a network to ONNX, torch.export or torchvision weights",
    "report": "write an HTML page that compares runs or selections",
    "demo": "run the whole pipeline on embedded data",
    "doctor": "test what is installed and works here",
}
ROOMS = ("selection", "demo")  # commands that are rooms as well


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: dp4tl-fast COMMAND [options]\n\n" + "\n".join(f"  {n:10} {d}" for n, d in COMMANDS.items()))
        print("\n`dp4tl-fast COMMAND --help` explains a command.")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from dp4tl_fast import __version__

        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        print(f"dp4tl-fast: unknown command {arguments[0]!r}. Known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = f"dp4tl_fast.{arguments[0]}"
    return import_module(f"{module}.__main__" if arguments[0] in ROOMS else module).main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
