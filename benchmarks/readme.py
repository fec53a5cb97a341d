"""Fill the README's generated blocks, and draw its pictures, from committed files: ``python -m benchmarks.readme [DEMO_FOLDER]``.

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
# The first that is committed; the last is of an older form: a sweep over the share of the classes for one broad target.
END_TO_END = ("end_to_end-small-32.json", "end_to_end-small-16.json", "end_to_end-cpu.json")
FILES = ("summary.json", "class-scores.png", "linear-probe.png", "full-finetuning.png")


def blocks() -> dict[str, str]:
    """``{block name: Markdown}``."""
    return {
        "demo": _demo(),
        "end_to_end": end_to_end(_newest()),
        "backends": markdown_table(capabilities()),
        "loaders": _loaders(),
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
        f"Random resized crop to 224 pixels, mirror, normalise to fp16; ImageNet JPEGs of at most 500 pixels a side; 2 threads, "
        f"medians of {rows['jpeg-2-threads', 'ours']['rounds']} interleaved epochs. {machine}.",
        "",
    ])  # fmt: skip


def _newest() -> dict[str, Any]:
    return json.loads(next(path for name in END_TO_END if (path := RESULTS / name).exists()).read_text())


def end_to_end(result: dict[str, Any]) -> str:
    """Tables and picture of the newest committed result."""
    return end_to_end_page.markdown(result) if "tables" in result else _sweep(result)


def _sweep(result: dict[str, Any]) -> str:
    """A row for each share of the classes, a column for each method and way to finetune."""
    methods, modes = ("lm", "fm", "random"), {"lp": "LP %", "ff": "FF %"}
    settings, machine = result["settings"]["end_to_end"], result["environment"]["machine"]
    epochs = settings["network"]["epochs"]
    full = next(r for r in result["comparison"] if r["name"] == "full")
    rules = {
        row["value"]: f"`--keep {row['subject'].removeprefix('lm ')}`"
        for row in result["rows"]
        if row["case"] == "classes" and "auto" in row["subject"]
    }

    def accuracy(row: dict[str, Any] | None, mode: str) -> str:
        return f"{100 * row[f'{mode}_mean']:.1f} ± {100 * row[f'{mode}_std']:.1f}" if row else ""

    def times(row: dict[str, Any]) -> str:
        with_pruning = row["pretrain_s"] + row["pruning_s"]
        return f"{full['pretrain_s'] / row['pretrain_s']:.2f}x | {full['pretrain_s'] / with_pruning:.2f}x"

    header = ["classes", "speed-up", "with pruning", *(f"{m} {name}" for name in modes.values() for m in methods)]
    lines = ["| " + " | ".join(header) + " |", "| :-- |" + " --: |" * (len(header) - 1)]
    same = " | ".join(f"full: **{accuracy(full, mode)}** | | " for mode in modes)
    lines.append(f"| {full['classes_kept']}, all | 1.00x | 1.00x | {same} |")
    kept = {(r["epochs"], r["classes_kept"]) for r in result["comparison"] if r["name"] == "lm"}
    for length, classes in sorted(kept, key=lambda key: (key[0] != epochs, -key[1])):
        found = {
            r["name"]: r for r in result["comparison"] if (r["epochs"], r["classes_kept"]) == (length, classes) and r is not full
        }
        note = f", {length} epochs" if length != epochs else f", {rules[classes]}" if classes in rules else ""
        cells = [accuracy(found.get(m), mode) for mode in modes for m in methods]
        lines.append(f"| {classes}{note} | {times(found['lm'])} | {' | '.join(cells)} |")
    return "\n".join([
        *lines, "",
        f"Tiny-ImageNet ({settings['source']}) to CIFAR-10 ({settings['target']}); {settings['network']['arch']} at "
        f"{settings['network']['size']} pixels, {epochs} epochs; mean ± standard deviation over {settings['seeds']} seeds; "
        f"times of label mapping, medians. {machine}.",
        "",
    ])  # fmt: skip


def draw_end_to_end() -> None:
    """The accuracy over time of the newest committed result, in the pictures that the README shows."""
    from dp4tl_fast.reporting import plots

    result = _newest()
    if "tables" in result:
        end_to_end_page.draw(result, ROOT / end_to_end_page.PICTURE)
        return
    for mode in ("lp", "ff"):
        plots.save(plots.tradeoff(result["comparison"], mode), ROOT / f"docs/end-to-end-{mode}.png")


def _demo() -> str:
    summary = json.loads((DEMO / "summary.json").read_text())
    header, cells = table_rows(summary["rows"])
    rule = [":--"] + ["--:"] * (len(header) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *cells)]
    about = summary["environment"]
    torch = about.get("versions", about)["torch"]  # older demos had no table of versions
    return "\n".join(lines) + (
        f"\n\nLabel mapping kept {summary['glyph_classes_kept']} of the {summary['glyph_classes']} glyph classes. Medians and mean "
        f"± standard deviation over {summary['rows'][0]['runs']} seeds; “with pruning” counts training the surrogate, scoring and "
        f"selecting. {about['cores']} cores of {about['cpu']}, torch {torch}; {summary['seconds']:.0f} s in all.\n"
    )


def _between(body: str, marks: re.Match[str]) -> str:
    return marks[1] + body + marks[2]


def fill(text: str) -> str:
    """The README with its blocks made anew."""
    for name, body in blocks().items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- /generated -->)"
        text, count = re.subn(pattern, partial(_between, body), text, flags=re.S)
        if count != 1:
            raise SystemExit(f"README.md has {count} blocks named {name!r}; exactly one is needed")
    return text


if __name__ == "__main__":
    if len(sys.argv) > 1:
        DEMO.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(Path(sys.argv[1]) / name, DEMO / name)
    draw_end_to_end()
    write_atomically(ROOT / "README.md", fill((ROOT / "README.md").read_text()))
