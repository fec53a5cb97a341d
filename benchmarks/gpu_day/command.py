"""A day with a GPU: ``python -m benchmarks gpu_day --stage N``, for a bare machine without a network that is lent for minutes.

Stages are complete in themselves and take less than 8 minutes each; their data is generated. Every part of a stage runs in a
process of its own and has its result in OUT/gpu_day-N.json as soon as it ends: a part that fails, hangs or breaks the GPU's context
is named there, with what to look at, and the others still run. ``--rehearse`` runs the same on a CPU at tiny sizes.

What to take along, at most 64 MiB: this checkout, and what `scripts/pack_for_gpu.sh FOLDER` makes of it on a machine with a
network, a compiler and Python 3.12:
  kernels/_native.cpython-312-*.so, kernels/libjpeg.so.62
                                the native module for that Python and its JPEG library (1 MB): without them, and without a compiler,
                                stage 1 checks the Triton kernels and stages 3 and 4 cannot run
  FOLDER/*.whl                  the wheels that such machines lack (2 MB): jsonargparse, docstring-parser, typeshed-client,
                                importlib-resources; the peers flash-kmeans and FlashLib. There:
                                pip install --no-index --no-deps --target /tmp/site FOLDER/*.whl; export PYTHONPATH=/tmp/site
Expected there: Python 3.12, torch 2.11 or newer with torchvision and Triton, numpy, pillow, scikit-learn, matplotlib, numba, rich,
tqdm, pyyaml, jinja2, safetensors, tensorboard; nvidia-ml-py for how busy the GPU is. Too large to carry, and left out by name where
they are not installed: DALI (300 MB), FFCV (compiles against OpenCV), FlashLib's CuteDSL kernels (nvidia-cutlass-dsl, 88 MB).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.child import call_within
from benchmarks.environment import environment
from benchmarks.gpu_day.setting import Setting
from benchmarks.gpu_day.stages import LIMIT, STAGES, Part
from benchmarks.harness import Suite
from dp4tl_fast.common.cli import EXIT_USAGE
from dp4tl_fast.common.files import write_atomically

NAME = "gpu_day"
RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str]) -> int:
    """Exit code 0 if every part ran, 1 if one failed, 2 for a call that cannot work."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {NAME}", description=__doc__, formatter_class=form)
    stages = "; ".join(f"{number}: {stage.title}" for number, stage in STAGES.items())
    parser.add_argument("--stage", type=int, choices=STAGES, help=f"only this one of {stages}")
    parser.add_argument("--out", type=Path, default=Path("build") / NAME, help="folder of the result files (build/gpu_day)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at tiny sizes: shows that the code runs, and no speed")
    options = parser.parse_args(arguments)
    if options.rehearse and options.out.resolve() == RESULTS.resolve():
        parser.error(f"--out {options.out}: a rehearsal measures nothing and belongs elsewhere")
    if not options.rehearse and (lacking := _lacking()):
        print(f"{NAME}: {lacking}", file=sys.stderr)
        return EXIT_USAGE
    numbers = [options.stage] if options.stage else list(STAGES)
    failed = [number for number in numbers if not run_stage(number, options.out, options.rehearse)]
    return 1 if failed else 0


def _lacking() -> str:
    """Why nothing can run here; empty if it can."""
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA GPU that torch can use. Without one: --rehearse"


def run_stage(number: int, out: Path, rehearsal: bool) -> bool:
    """Run the parts of a stage, each in its process, and write what they found after each. Whether all of them succeeded."""
    stage, file = STAGES[number], out / f"{'rehearsal-' if rehearsal else ''}{NAME}-{number}.json"
    begun = time.monotonic()
    result: dict[str, Any] = {
        "environment": environment(), "command": f"python -m benchmarks {NAME} --stage {number}", "rehearsal": rehearsal,
        "rows": [], "goals": [], "parts": [],
    }  # fmt: skip
    print(f"stage {number}: {stage.title}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=f"dp4tl-{NAME}-") as folder:
        for i, part in enumerate(stage.parts):
            left = LIMIT - (time.monotonic() - begun)
            told = _run_part(number, i, part, folder, rehearsal, min(left, part.seconds) if not rehearsal else 10 * LIMIT)
            result["parts"].append({key: told.pop(key) for key in ("part", "seconds", "failed", "look_at") if key in told})
            _merge(result, told)
            write_atomically(file, json.dumps(result, indent=1) + "\n")
    failed = [part["part"] for part in result["parts"] if "failed" in part]
    print(f"stage {number}: {file}; {f'FAILED: {failed}' if failed else 'all parts ran'}", file=sys.stderr, flush=True)
    return not failed


def _run_part(number: int, i: int, part: Part, folder: str, rehearsal: bool, seconds: float) -> dict[str, Any]:
    """What ``part_of_stage`` found, and ``part``, ``seconds`` and, after a failure, ``failed`` and ``look_at``."""
    before = time.monotonic()
    told: dict[str, Any] = {}
    failure = "" if seconds > 0 else f"not begun: the {LIMIT} s of the stage were over"
    if not failure:
        try:
            told = call_within(seconds, part_of_stage, number=number, part=i, folder=folder, rehearsal=rehearsal)
        except RuntimeError as error:
            failure = str(error).strip()
    told |= {"part": part.name, "seconds": round(time.monotonic() - before, 1)}
    if failure:
        last = " / ".join([line for line in failure.splitlines() if line][-2:])
        print(f"{part.name} FAILED: {last}\n  look at {part.look_at}", file=sys.stderr, flush=True)
        told |= {"failed": failure[-1500:], "look_at": part.look_at}
    return told


def part_of_stage(number: int, part: int, folder: str, rehearsal: bool) -> dict[str, Any]:
    """Runs in the child: the rows, goals, settings and what was left out, of one part."""
    if rehearsal:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        import torch

        torch.compiler.set_stance("force_eager")  # a compilation takes a minute of a CPU, and another compiler than a GPU's
    suite = Suite(name=f"{NAME}-rehearsal" if rehearsal else NAME)
    STAGES[number].parts[part].load()(suite, Setting(folder=Path(folder), rehearsal=rehearsal))
    found: dict[str, Any] = {"rows": [], "goals": []}
    suite.add_to(found)
    return found


def _merge(result: dict[str, Any], told: dict[str, Any]) -> None:
    for key, value in told.items():
        if isinstance(value, list):
            result[key] += value
        else:  # {suite: {name: what}}
            for suite, entries in value.items():
                result.setdefault(key, {}).setdefault(suite, {}).update(entries)
