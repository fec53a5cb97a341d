"""``dp4tl-fast selection ACTION FILE...``: look at selections, compare and combine them."""

from __future__ import annotations

import json
from typing import Any

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import SelectionError, UsageError
from dp4tl_fast.selection.names import readable
from dp4tl_fast.selection.portable import FIX_WEIGHTED, Selection, same_source
from dp4tl_fast.selection.upstream import export_indices, import_indices

ACTIONS = {"show": 1, "diff": 2, "union": 2, "intersect": 2, "export": 1, "import": 1}  # action -> files at least


def selection(*, action_and_files: list[str], source: str = "", names: str = "", out: str = "", top: int = 20) -> dict[str, Any]:
    """Inspect, compare and combine selections.

    show A.json: print the method, parameters, what is kept, and the top-ranked classes.
    diff A.json B.json: print the classes that only one of them keeps.
    union A.json B.json ...: write what any of them keeps to --out.
    intersect A.json B.json ...: write what all of them keep to --out.
    export A.json: write upstream's .indices tensor to --out.
    import A.indices: convert upstream's .indices tensor to a selection, written to --out.

    Args:
        action_and_files: One of the actions above, and its files.
        source: Source .beton: needed by union, intersect, export and import; for show and diff, it gives the class names.
        names: Text file with readable class names (with --source); each line has the class's name, a tab and the text to show.
        out: File to write.
        top: Maximum number of classes to list.
    """
    action, *files = action_and_files
    if action not in ACTIONS:
        raise UsageError(f"selection {action}: known actions are {', '.join(ACTIONS)}")
    if len(files) < ACTIONS[action] or (len(files) > ACTIONS[action] and action not in ("union", "intersect")):
        raise UsageError(f"selection {action}: takes {ACTIONS[action]} file(s), but {len(files)} were given")
    if action in ("show", "diff"):
        beton = Beton(source) if source else None
        return _show(files[0], beton, names, top) if action == "show" else _diff(files, beton, names, top)
    if not source or not out:
        raise UsageError(f"selection {action}: needs `source=S.beton` and `out=FILE`")
    beton = Beton(source)
    chosen = [] if action == "import" else [Selection.load(file) for file in files]
    for file, one in zip(files, chosen, strict=False):
        if one.weights:
            raise SelectionError(f"{file}: is weighted: epochs draw other records, but `{action}` needs fixed ones. {FIX_WEIGHTED}")
    if action == "export":
        count = export_indices(chosen[0], beton, out)
        cli.message(f"{count:,} record numbers of {source} -> {out}")
        return {"kind": "selection", "out": out, "records": count}
    if action == "import":
        result = import_indices(files[0], beton)
    else:
        result, *others = chosen
        for other in others:
            result = getattr(result, action)(other, beton)
    result.save(out)
    cli.message(f"{_summary(result)} -> {out}")
    return {"kind": "selection", "out": out, **result.to_dict()}


def _show(path: str, beton: Beton | None, names_file: str, top: int) -> dict[str, Any]:
    chosen = Selection.load(path)
    names, kept = _names(chosen, beton, names_file), set(chosen.kept_classes)
    cli.message(f"{path}: {_summary(chosen)}")
    for label, value in (
        ("parameters", chosen.parameters), ("surrogate", chosen.surrogate), ("targets", chosen.targets),
        ("seconds", chosen.seconds), ("source", chosen.source),
    ):  # fmt: skip
        if value:
            cli.message(f"  {label}: {json.dumps(value) if len(json.dumps(value)) < 300 else '(long; see the file)'}")
    for c in chosen.ranking()[:top].tolist():
        cli.message(f"  {chosen.scores[c]:>12g}  {'kept   ' if c in kept else 'dropped'}  {names[c]}")
    return {"kind": "selection", **chosen.to_dict()}


def _diff(files: list[str], beton: Beton | None, names_file: str, top: int) -> dict[str, Any]:
    a, b = (Selection.load(f) for f in files)
    if not same_source(a, b):
        raise SelectionError(f"{files[0]} and {files[1]} are of different sources: {a.source} and {b.source}")
    names = _names(a, beton, names_file)
    mine, theirs = set(a.kept_classes), set(b.kept_classes)
    both = len(mine & theirs)
    cli.message(f"{both} classes in both; of {len(mine | theirs)} in either, {100 * both / len(mine | theirs):.0f} %")
    for file, only in ((files[0], mine - theirs), (files[1], theirs - mine)):
        more = f" and {len(only) - top} more" if len(only) > top else ""
        cli.message(f"only in {file} ({len(only)}): " + ", ".join(names[c] for c in sorted(only)[:top]) + more)
    return {"kind": "diff", "both": both, "only": [sorted(mine - theirs), sorted(theirs - mine)]}


def _names(chosen: Selection, beton: Beton | None, names_file: str) -> list[str]:
    if beton is None:
        return [str(c) for c in range(chosen.source["classes"])]
    chosen.check(beton)
    return readable(beton.class_names, names_file)


def _summary(chosen: Selection) -> str:
    records = "" if chosen.records is None else " (single records)"
    drawn = f", of which every epoch draws {chosen.epoch_size:,}" if chosen.weights else ""
    return (
        f"{chosen.method}, {len(chosen.kept_classes)} of {chosen.source['classes']} classes, "
        f"{chosen.kept_samples:,} of {chosen.source['samples']:,} samples{records}{drawn}"
    )

