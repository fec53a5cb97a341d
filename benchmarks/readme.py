"""Fill the generated blocks of the README and of docs/, and draw the picture, from committed files:
``python -m benchmarks.readme [DEMO_FOLDER]``.

With a folder that ``dp4tl-fast demo`` wrote, its summary and pictures are first copied to ``docs/demo``.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import end_to_end_page
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.loaders import capabilities
from dp4tl_fast.loaders.capabilities import markdown_table
from dp4tl_fast.reporting.tables import table_rows

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "docs/demo"
RESULTS = ROOT / "benchmarks/results"
END_TO_END, WIDER = "end_to_end-small-16.json", "end_to_end-small-32.json"
FILES = ("summary.json", "class-scores.png", "linear-probe.png", "full-finetuning.png")


def blocks() -> dict[str, dict[str, str]]:
    """``{file: {block name: Markdown}}``."""
    return {
        "README.md": {
            "end_to_end": end_to_end_page.markdown(_result(END_TO_END)), "end_to_end_wider": end_to_end_page.wider(_result(WIDER)),
            "loaders": _loaders(), "gpu": _gpu(),
        },
        "docs/demo.md": {"demo": _demo()},
        "docs/backends.md": {"backends": markdown_table(capabilities())},
    }


LOADERS = {  # subject of the suite -> how the README calls it
    "ours-entry-points": "native, JPEGs with entry points (what `convert` and `relayout` write)",
    "ours": "native, JPEGs as FFCV wrote them",
    "ffcv": "FFCV",
    "torchvision-io": "torchvision's DataLoader, `torchvision.io`",
    "dali-cpu": "DALI on the CPU",
    "torchvision-pil": "torchvision's DataLoader, PIL",
    "spdl": "SPDL",
}


def _loaders() -> str:
    """Images per second of every loader, JPEG and raw, from the committed run."""
    result = json.loads((RESULTS / "loaders.json").read_text())
    rows = {(r["case"], r["subject"]): r for r in result["rows"]}
    machine = result["environment"]["machine"].split(" (")[0]
    lines = ["| loader | JPEG images/s | x FFCV | raw images/s | x FFCV |", "| :-- | --: | --: | --: | --: |"]
    for subject, name in LOADERS.items():
        cells = []
        for case in ("jpeg-2-threads", "raw-2-threads"):
            row = rows.get((case, subject))
            cells += [f"{row['value']:,.0f}", f"{row.get('ratio', 1.0):.2f}"] if row else ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([
        *lines, "",
        f"Random resized crop to 224 pixels, horizontal flip, normalise to fp16; ImageNet JPEGs of at most 500 pixels per side; "
        f"2 threads, medians of {rows['jpeg-2-threads', 'ours']['rounds']} interleaved epochs. {machine}.",
        "",
    ])  # fmt: skip


def _gpu() -> str:
    """What stages 2 and 3 of ``gpu_day`` found, in a paragraph."""
    kernels, feeding = (json.loads((RESULTS / f"gpu_day-{stage}.json").read_text()) for stage in (2, 3))
    rows = {(r["case"], r["subject"]): r for r in feeding["rows"]}
    native, ffcv = (rows["images-on-the-device", backend] for backend in ("native", "ffcv"))
    large, small = (rows[f"resnet{case}-bf16-compile", "native"] for case in ("50-224px", "18-160px"))
    nearest = [g["measured"] for g in kernels["goals"] if g["id"].startswith("gpu_day/nearest") and g["unit"] == "x best peer"]
    return (
        f"On an H100 with {feeding['environment']['cores']} CPU cores, the native loader delivers {native['value']:,.0f} images/s "
        f"to the GPU (224 pixels, generated 80 kB photographs): {native['ratio']:.2f} x DALI, which decodes on the GPU with "
        f"nvJPEG, and {native['ratio'] / ffcv['ratio']:.1f} x FFCV.\n"
        f"In bf16 with `--compile`, ResNet-50 at 224 pixels trains at {large['value']:,.0f} images/s, {large['ratio']:.0%} of "
        f"its rate on a single batch that stays on the GPU; ResNet-18 at 160 pixels trains at {small['value']:,.0f}, "
        f"{small['ratio']:.0%}: there, decoding on the 16 cores is the bottleneck.\n"
        f"Assigning 1.28 million features to their nearest centroids is {min(nearest):.1f} to {max(nearest):.1f} times as fast as "
        "the best of cuBLAS, flash-kmeans and FlashLib.\n"
    )


def _result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def _demo() -> str:
    summary = json.loads((DEMO / "summary.json").read_text())
    header, cells = table_rows(summary["rows"])
    rule = [":--"] + ["--:"] * (len(header) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *cells)]
    about = summary["environment"]
    torch = about.get("versions", about)["torch"]  # older demos had no table of versions
    return "\n".join(lines) + (
        f"\n\nLabel mapping kept {summary['glyph_classes_kept']} of the {summary['glyph_classes']} glyph classes. Medians, or mean "
        f"± standard deviation, over {summary['rows'][0]['runs']} seeds; “with pruning” includes training the surrogate, "
        f"scoring and selecting. {about['cores']} cores of {about['cpu']}, torch {torch}; {summary['seconds']:.0f} s in total.\n"
    )


def _between(body: str, marks: re.Match[str]) -> str:
    return marks[1] + body + marks[2]


def fill(name: str) -> str:
    """A file with its blocks made anew.

    Args:
        name: As in ``blocks``.
    """
    text = (ROOT / name).read_text()
    for block, body in blocks()[name].items():
        pattern = rf"(<!-- generated: {block} -->\n).*?(<!-- /generated -->)"
        text, count = re.subn(pattern, partial(_between, body), text, flags=re.S)
        if count != 1:
            raise SystemExit(f"{name} has {count} blocks named {block!r}; exactly one is needed")
    return text


if __name__ == "__main__":
    if len(sys.argv) > 1:
        DEMO.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(Path(sys.argv[1]) / name, DEMO / name)
    end_to_end_page.draw(_result(END_TO_END), ROOT / end_to_end_page.PICTURE)
    for name in blocks():
        write_atomically(ROOT / name, fill(name))
