"""``python -m dp4tl_fast.report``: one self-contained HTML page from run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli, machine
from dp4tl_fast.common.errors import Dp4tlError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.reporting.compare import compare, group, recipe
from dp4tl_fast.reporting.finding import finding
from dp4tl_fast.reporting.runs import find_runs, read_metrics
from dp4tl_fast.reporting.tables import Column, as_csv, main_and_cost
from dp4tl_fast.selection import Selection, same_source
from dp4tl_fast.selection.names import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Source: TypeAlias = "str | Path | Beton"  # of a selection

THUMBNAILS = 24  # of the first kept, the last kept and the first dropped classes each


def report(
    *,
    dirs: list[str],
    out: str = "report.html",
    title: str = "dp4tl_fast report",
    note: list[str] = [],  # noqa: B006
    source: str = "",
    names: str = "",
) -> dict[str, Any]:
    """Write an HTML page that compares runs or selections: a table, plots, and what each selection kept and dropped.

    The page works offline, opened from disk. Finetuning runs are matched to the pretraining run whose checkpoint they started from.

    Args:
        dirs: Folders with runs in or below them (--out of pretrain and finetune); or selections (.json), to compare them.
        out: HTML file to write.
        title: Title of the page.
        note: Text to show below the title; repeat the flag for several lines.
        source: The selections' source .beton, for class names and thumbnails.
        names: File with readable class names; each line has the class's name, a tab and the text to show (Tiny-ImageNet's
            words.txt has this format).
    """
    files = [d for d in dirs if d.endswith(".json")]
    folders = [Path(d) for d in dirs if d not in files]
    runs = find_runs(folders) if folders else []
    rows = compare(runs)
    selections = _selections(runs) + [(f, Selection.load(f), Path(source)) for f in files]
    write_page(Path(out), runs, rows, title=title, notes=note, selections=selections, names=names)
    _save_plots(out, selections[-len(files) :] if files else [])
    cli.message(f"{len(rows)} rows from {len(runs)} runs, {len(selections)} selections -> {out}")
    return {"kind": "report", "out": out, "rows": rows}


def write_page(
    out: Path,
    runs: list[tuple[Path, dict[str, Any]]],
    rows: list[dict[str, Any]],
    *,
    title: str,
    notes: Sequence[str] = (),
    selections: list[tuple[str, Selection, Source]] | None = None,
    names: str = "",
) -> None:
    """Render the page for these runs and selections (name, selection, source file); by default the runs' selections."""
    import jinja2

    from dp4tl_fast.reporting import plots

    main, cost = main_and_cost(rows)
    selections = _selections(runs) if selections is None else selections
    loader = jinja2.PackageLoader("dp4tl_fast.reporting", "templates")
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.j2")
    html = page.render(
        title=title,
        notes=notes,
        finding=finding(rows) or _of_selections(selections),
        rows=len(rows),
        tables=[("main", _table(main, rows)), ("cost", _table(cost, rows))],
        tradeoffs=[(caption, plots.svg(figure)) for caption, figure in _tradeoffs(rows)],
        plots=[(caption, plots.svg(figure)) for caption, figure in _figures(runs, rows)],
        csv="data:text/csv;charset=utf-8," + quote(as_csv(rows)),
        overlap=_overlap(selections),
        selections=[_describe(*entry, names) for entry in selections],
        environment=json.dumps(machine.environment(), indent=1),
    )
    write_atomically(out, html)


def _table(columns: list[Column], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Titles, and whether words stand below them; of every row each cell's text and the value that it is sorted by."""
    titles = [(c.title, any(isinstance(c.value(r), str) for r in rows)) for c in columns]
    return {"titles": titles, "rows": [[(c.cell(r), c.value(r)) for c in columns] for r in rows]}


def _of_selections(selections: list[tuple[str, Selection, Source]]) -> str:
    """What the first selection keeps, in one sentence."""
    for _, s, _ in selections[:1]:
        targets = " and ".join(str(t.get("name", "")) for t in s.targets)
        kept = f"{len(s.kept_classes):,} of {len(s.scores):,} classes, {s.kept_samples:,} of {s.source['samples']:,} images"
        return f"{s.method}{f' for {targets}' if targets else ''} keeps {kept}."
    return ""


def _tradeoffs(rows: list[dict[str, Any]]) -> list[tuple[str, Figure]]:
    """Accuracy over time with everything counted, for each target and way to measure it, with a line below each."""
    from dp4tl_fast.reporting import plots

    targets = {row["target"]: [r for r in rows if r["target"] == row["target"]] for row in rows}
    return [
        (f"Top-1 of the {name}{f' on {target}' if len(targets) > 1 else ''} over the time it took to get there: "
         "training the surrogate, scoring, selecting, pretraining.", plots.tradeoff(some, mode))
        for target, some in targets.items()
        for mode, name in plots.MODES.items() if any(r.get(f"{mode}_mean") is not None for r in some)
    ]  # fmt: skip


def _figures(runs: list[tuple[Path, dict[str, Any]]], rows: list[dict[str, Any]]) -> list[tuple[str, Figure]]:
    """What else the page shows of runs, with a line below each."""
    from dp4tl_fast.reporting import plots

    found = []
    if rows:
        text = "Where the time went: the selection's stages, then pretraining (in the method's colour)."
        once = [row for i, row in enumerate(rows) if not any(_same_runs(row, before) for before in rows[:i])]
        found.append((text, plots.where_time_went(once)))
    curves = [
        plots.Curve(each.method, plots.described(row, rows), s["pruning_s"], epochs)
        for each in group(runs)
        for folder, s in each.runs
        for row in [s | {"name": each.name, "settings": each.settings}]
        if (epochs := read_metrics(folder / "metrics.jsonl"))
    ]
    validated = [c for c in curves if any("val_top_1" in row for row in c.epochs)]
    if validated:
        text = "Validation accuracy over time. A pruned run is validated on the classes it kept, which are fewer to tell apart."
        found.append((text, plots.learning_curves(validated, "val_top_1")))
    if curves:
        found.append(("Training loss over time; a line starts after its selection was made.", plots.learning_curves(curves)))
    return found


def _same_runs(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows differ in the target alone."""
    return all(row[key] == other[key] for key in ("name", "classes_kept", "samples")) and recipe(row) == recipe(other)


def report_selections(paths: Sequence[str], source: Source, out: str, names: str = "") -> None:
    """A page of selections alone, and its plots as SVG and PNG beside it."""
    selections = [(path, Selection.load(path), source) for path in paths]
    first = selections[0][1]
    title = f"{first.method}: {len(first.kept_classes)} of {first.source['classes']} classes kept"
    write_page(Path(out), [], [], title=title, selections=selections, names=names)
    _save_plots(out, selections)
    cli.message(f"report -> {out}")


def _save_plots(out: str, selections: list[tuple[str, Selection, Source]]) -> None:
    from dp4tl_fast.reporting import plots

    for path, selection, _ in selections:
        stem = Path(out).with_name(f"{Path(out).stem}-{Path(path).stem}")
        for name, figure in (("scores", plots.class_scores(selection)), ("clusters", plots.cluster_votes(selection))):
            if figure is not None:
                write_atomically(f"{stem}-{name}.svg", plots.svg(figure))
                plots.save(figure, Path(f"{stem}-{name}.png"))


def _overlap(selections: list[tuple[str, Selection, Source]]) -> dict[str, Any] | None:
    """What each pair keeps alike, of what either keeps, for selections of one source.

    In classes; in samples where single records were chosen, if the source is at hand (else two selections that take
    different records of the same classes would look alike, and nothing is said).
    """
    names = [name for name, _, _ in selections]
    if len(names) < 2 or not all(same_source(s, selections[0][1]) for _, s, _ in selections):
        return None
    unit, kept = "classes", [np.array(s.kept_classes) for _, s, _ in selections]
    if any(s.records is not None for _, s, _ in selections):
        beton = _source(*selections[0][1:])
        if beton is None:
            return None
        unit, kept = "samples", [s.indices(beton) for _, s, _ in selections]

    def share(a: np.ndarray, b: np.ndarray) -> str:
        both = len(np.intersect1d(a, b, assume_unique=True))
        return f"{100 * both / (len(a) + len(b) - both):.0f} %"

    rows = [[share(a, b) for b in kept] for a in kept]
    return {"names": [Path(n).stem for n in names], "rows": rows, "unit": unit}


def _source(selection: Selection, source: Source) -> Beton | None:
    """The selection's source, unless it is gone or is another file by now."""
    try:
        beton = source if isinstance(source, Beton) else Beton(source)
        selection.check(beton)
    except Dp4tlError:
        return None
    return beton


def _selections(runs: list[tuple[Path, dict[str, Any]]]) -> list[tuple[str, Selection, Source]]:
    """Each scored selection of these runs once: path, selection, source file. One that has changed since the run is left out."""
    found: dict[str, tuple[str, Selection, Path]] = {}
    for folder, summary in runs:
        path = summary.get("selection")
        if summary["kind"] != "pretrain" or not path or summary["method"] == "random" or path in found or not Path(path).exists():
            continue
        selection = Selection.load(path)
        if summary.get("selection_sha256") in (None, selection.kept_sha256):
            found[path] = (path, selection, summary["source"])
        else:
            cli.message(f"note: {path} now keeps other classes than when {folder} was trained; it is not shown")
    return list(found.values())


def _describe(name: str, selection: Selection, source: Source, names_file: str) -> dict[str, Any]:
    """What the page shows of a selection; without thumbnails where the source file is gone."""
    from dp4tl_fast.reporting import plots

    order, kept = selection.ranking(), set(selection.kept_classes)
    beton = _source(selection, source)
    names = readable(beton.class_names, names_file) if beton else [str(c) for c in range(len(order))]

    ranks = {c: rank for rank, c in enumerate(order.tolist())}

    def entry(c: int) -> dict[str, Any]:
        tie = f"{selection.tie_breaks[c]:.4g}" if selection.tie_breaks else ""
        samples = int(beton.class_counts[c]) if beton else ""
        score = f"{selection.scores[c]:g}"
        return {"id": c, "rank": ranks[c] + 1, "name": names[c], "score": score, "tie": tie, "samples": samples, "kept": c in kept}

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
    long = ("cluster_votes", "kept_clusters")
    parameters["parameters"] = {k: v for k, v in selection.parameters.items() if k not in long}
    clusters = plots.cluster_votes(selection)
    return {
        "file": Path(name).name,
        "method": selection.method,
        "targets": ", ".join(str(t.get("name", "")) for t in selection.targets),
        "drawn": f"{selection.epoch_size:,}" if selection.weights else "",
        "accuracy": selection.surrogate.get("accuracy"),
        "kept_samples": f"{selection.kept_samples:,}",
        "samples": f"{selection.source['samples']:,}",
        "clusters": plots.svg(clusters) if clusters else "",
        "kept": len(kept),
        "classes": len(order),
        "plot": plots.svg(plots.class_scores(selection)),
        "thumbs": groups,
        "all": [entry(c) for c in order],
        "parameters": json.dumps(parameters, indent=1),
    }


def first_image(beton: Beton, class_id: int) -> Any:
    """The first record of a class, decoded. uint8 ``[h, w, 3]``."""

    from dp4tl_fast.common.pictures import open_picture

    i = int((beton.labels == class_id).argmax())
    row, data = beton.images[i], beton.payload(i)
    if row["mode"]:
        return data.reshape(int(row["height"]), int(row["width"]), 3)
    return np.asarray(open_picture(data.tobytes()).convert("RGB"))
