"""``python -m benchmarks NAME [--data DIR] [--out F.json]`` measures, ``python -m benchmarks results`` writes the page, and
``python -m benchmarks gpu_day --help`` says what to do on a machine with a GPU.

The table goes to stderr while it is measured; ``--out`` takes ``{"environment", "rows", "goals"}`` as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.harness import Part, Suite
from benchmarks.recipes import RECIPES
from dp4tl_fast.common.cli import EXIT_INTERRUPTED, EXIT_USAGE
from dp4tl_fast.common.errors import Dp4tlError

# name -> module with run(suite); imported only when asked for, because some need torch, FFCV or DALI.
SUITES = {
    name: f"benchmarks.{name}"
    for name in (
        "kernels", "loaders", "io", "startup", "convert", "scale", "parity", "training", "pruning", "end_to_end", "sensitivity",
        "objectives", "predict", "soak",
    )
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["gpu_day"]:
        from benchmarks.gpu_day.command import main as gpu_day

        return gpu_day(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [*SUITES, "all", "results"]
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--data", type=Path, help="folder of data sets (unpacked image folders)")
    parser.add_argument("--work", type=Path, help="keep long suites' runs here: the same command continues an interrupted one")
    sizes = ", ".join(RECIPES)
    help_ = f"what the studies train: {sizes}; auto chooses by the device"
    parser.add_argument("--recipe", default="auto", choices=["auto", *RECIPES], metavar="NAME", help=help_)
    parser.add_argument("--cells", type=_words, default=(), help="run only cells of these names now, e.g. 'full@*,lm-12.5@0.25'")
    parser.add_argument("--targets", type=_words, default=(), help="run only these targets now, e.g. flowers,food")
    parser.add_argument("--seeds", type=_numbers, default=(), help="run only these seeds now, e.g. 0,1")
    help_ = "a result file of the same study, whose runs are not done again; for one that goes on without its --work"
    parser.add_argument("--earlier", type=Path, metavar="F.json", help=help_)
    parser.add_argument("--minutes", type=float, default=0.0, help="how long the soak lasts; 0 is its own hour")
    parser.add_argument("--out", type=Path, help="write environment, rows and goals here as JSON")
    options = parser.parse_args(arguments)
    if options.name == "results":
        from benchmarks.summary import write_results

        print(write_results(), file=sys.stderr)
        return 0
    if options.data is not None and not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder")
    part = Part(cells=options.cells, targets=options.targets, seeds=options.seeds)
    result: dict = {"environment": environment(), "rows": [], "goals": []}
    everywhere = [name for name in SUITES if name != "soak"]  # for hours
    for name in everywhere if options.name == "all" else [options.name]:
        suite = Suite(
            name=name, data=options.data, work=options.work, recipe=options.recipe, part=part, earlier=options.earlier,
            minutes=options.minutes,
        )  # fmt: skip
        try:
            importlib.import_module(SUITES[name]).run(suite)
        except Dp4tlError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return EXIT_USAGE
        except KeyboardInterrupt:
            kept = f"; the same command continues what is in {options.work}" if options.work else ""
            print(f"{name}: interrupted{kept}", file=sys.stderr)
            return EXIT_INTERRUPTED
        except ModuleNotFoundError as error:
            parser.error(f"suite {name!r} compares with {error.name}, not installed here. Run pip install '.[bench,dali,ffcv]'")
        suite.add_to(result)
        if options.out is not None:  # after every suite, so that a later failure loses nothing
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    for goal in result["goals"]:
        asked = f"{'<=' if goal['at_most'] else '>='} {goal['goal']:.4g} {goal['unit']}"
        mark = "met" if goal["met"] else "MISSED"
        print(f"goal {goal['id']:<46} {asked:<28} measured {goal['measured']:<10.4g} {mark}", file=sys.stderr)
    return 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


if __name__ == "__main__":
    sys.exit(main())
