"""Fill the README's generated blocks from committed files: ``python -m benchmarks.readme [DEMO_FOLDER]``.

With a folder that ``dp4tl-fast demo`` wrote, its summary and pictures are first copied to ``docs/demo``.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from dp4tl_fast.compare import table_rows
from dp4tl_fast.files import write_atomically
from dp4tl_fast.loaders import capabilities
from dp4tl_fast.loaders.capabilities import markdown_table

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "docs/demo"
FILES = ("summary.json", "class-scores.png", "linear-probe.png", "full-finetuning.png")


def blocks() -> dict[str, str]:
    """``{block name: Markdown}``."""
    return {"demo": _demo(), "backends": markdown_table(capabilities()), "loaders": _loaders()}


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
    """Images a second of every loader, JPEG and raw, from the committed run."""
    result = json.loads((ROOT / "benchmarks/results/loaders.json").read_text())
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
        f"Random resized crop to 224 pixels, mirror, normalise to fp16; ImageNet JPEGs of at most 500 pixels a side; 2 threads, "
        f"medians of {rows['jpeg-2-threads', 'ours']['rounds']} interleaved epochs. {machine}.",
        "",
    ])  # fmt: skip


def _demo() -> str:
    summary = json.loads((DEMO / "summary.json").read_text())
    header, cells = table_rows(summary["rows"])
    rule = [":--"] + ["--:"] * (len(header) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *cells)]
    about = summary["environment"]
    return "\n".join(lines) + (
        f"\n\nLabel mapping kept {summary['glyph_classes_kept']} of the {summary['glyph_classes']} glyph classes. Medians and mean "
        f"± standard deviation over {summary['rows'][0]['runs']} seeds; “with pruning” counts training the surrogate, scoring and "
        f"selecting. {about['cores']} cores of {about['cpu']}, torch {about['torch']}; {summary['seconds']:.0f} s in all.\n"
    )


def fill(text: str) -> str:
    """The README with its blocks made anew."""
    for name, body in blocks().items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- /generated -->)"
        text, count = re.subn(pattern, lambda m, body=body: m[1] + body + m[2], text, flags=re.S)
        if count != 1:
            raise SystemExit(f"README.md has {count} blocks named {name!r}; exactly one is needed")
    return text


if __name__ == "__main__":
    if len(sys.argv) > 1:
        DEMO.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(Path(sys.argv[1]) / name, DEMO / name)
    write_atomically(ROOT / "README.md", fill((ROOT / "README.md").read_text()))
