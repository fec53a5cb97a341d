"""``python -m dp4tl_fast.report``: one self-contained HTML page from run folders."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dp4tl_fast import cli
from dp4tl_fast.beton import Beton
from dp4tl_fast.compare import compare, find_runs, table_rows
from dp4tl_fast.errors import Dp4tlError
from dp4tl_fast.files import write_atomically
from dp4tl_fast.pretrain import read_metrics
from dp4tl_fast.selection import Selection

THUMBNAILS = 24  # of the first kept, the last kept and the first dropped classes each


def report(
    *,
    dirs: list[str],
    out: str = "report.html",
    title: str = "dp4tl_fast report",
    note: list[str] = [],  # noqa: B006
) -> dict[str, Any]:
    """Write a page that compares runs: a table, plots, and what each selection kept and dropped.

    Works from file://, without a network. Finetunings are matched to the pretraining run whose checkpoint they started from.

    Args:
        dirs: Folders with runs in or below them (pretrain's and finetune's --out).
        out: HTML file to write.
        title: The page's title.
        note: Lines to show below the title.
    """
    runs = find_runs([Path(d) for d in dirs])
    rows = compare(runs)
    write_page(Path(out), runs, rows, title=title, notes=note)
    cli.message(f"{len(rows)} rows from {len(runs)} runs -> {out}")
    return {"kind": "report", "out": out, "rows": rows}


def write_page(
    out: Path,
    runs: list[tuple[Path, dict[str, Any]]],
    rows: list[dict[str, Any]],
    *,
    title: str,
    notes: Sequence[str] = (),
) -> None:
    """Render the page for these runs."""
    import jinja2

    from dp4tl_fast import plots

    curves = {folder.name: read_metrics(folder / "metrics.jsonl") for folder, s in runs if s["kind"] == "pretrain"}
    figures = [plots.learning_curves(curves)]
    figures += [plots.tradeoff(rows, mode) for mode in ("lp", "ff") if any(r[f"{mode}_mean"] is not None for r in rows)]
    header, cells = table_rows(rows)
    loader = jinja2.PackageLoader("dp4tl_fast", "templates")
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.j2")
    html = page.render(
        title=title,
        notes=notes,
        header=header,
        cells=cells,
        plots=[plots.svg(f) for f in figures],
        selections=[_describe(*pair) for pair in _selections(runs)],
        environment=json.dumps(environment(), indent=1),
    )
    write_atomically(out, html)


def _selections(runs: list[tuple[Path, dict[str, Any]]]) -> list[tuple[Selection, Path]]:
    """Each scored selection of these runs once, with its source file."""
    found: dict[str, tuple[Selection, Path]] = {}
    for _, summary in runs:
        path = summary.get("selection")
        if summary["kind"] == "pretrain" and path and summary["method"] != "random" and Path(path).exists():
            found.setdefault(path, (Selection.load(path), Path(summary["source"])))
    return list(found.values())


def _describe(selection: Selection, source: Path) -> dict[str, Any]:
    """What the page shows of a selection; without thumbnails where the source file is gone."""
    from dp4tl_fast import plots

    order, kept = selection.ranking(), set(selection.kept_classes)
    try:
        beton: Beton | None = Beton(source)
        selection.check(beton)  # type: ignore[arg-type]
    except Dp4tlError:
        beton = None
    names = beton.class_names if beton else [str(c) for c in range(len(order))]

    def entry(c: int) -> dict[str, Any]:
        return {"name": names[c], "score": f"{selection.scores[c]:g}", "kept": c in kept}

    groups = []
    if beton is not None:
        kept_order, dropped = [c for c in order if c in kept], [c for c in order if c not in kept]
        for label, classes in (
            ("First kept", kept_order[:THUMBNAILS]),
            ("Last kept", kept_order[THUMBNAILS:][-THUMBNAILS:]),
            ("First dropped", dropped[:THUMBNAILS]),
            ("Last dropped", dropped[THUMBNAILS:][-THUMBNAILS:]),
        ):
            items = [
                {**entry(c), "uri": plots.thumbnail(first_image(beton, c))} for c in classes if beton.class_counts[c]
            ]
            groups += [(label, items)] if items else []
    parameters = {k: v for k, v in selection.to_dict().items() if k not in ("scores", "tie_breaks", "kept_classes")}
    return {
        "method": selection.method,
        "kept": len(kept),
        "classes": len(order),
        "plot": plots.svg(plots.class_scores(selection)),
        "thumbs": groups,
        "all": [entry(c) for c in order],
        "parameters": json.dumps(parameters, indent=1),
    }


def first_image(beton: Beton, class_id: int) -> Any:
    """The first record of a class, decoded. uint8 ``[h, w, 3]``."""
    import numpy as np
    from PIL import Image

    i = int((beton.labels == class_id).argmax())
    row, data = beton.images[i], beton.payload(i)
    if row["mode"]:
        return data.reshape(int(row["height"]), int(row["width"]), 3)
    return np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))


def environment() -> dict[str, Any]:
    """Machine and versions, for people who want to repeat a measurement."""
    import os
    import platform
    from importlib.metadata import version

    names = ("torch", "torchvision", "triton", "numpy")
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(report, argv, variadic="dirs")


if __name__ == "__main__":
    sys.exit(main())
