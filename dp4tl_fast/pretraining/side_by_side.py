"""``pretrain --compare``: the same recipe on the whole source and on a selection of it, and what it saved."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli, machine
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.folder import check_run, epoch_size, epochs_of, open_source, settings_of
from dp4tl_fast.reporting.compare import compare
from dp4tl_fast.reporting.runs import find_runs
from dp4tl_fast.reporting.tables import print_table
from dp4tl_fast.training.ranks import on_rank_zero, rank

FULL = "full"


def side_by_side(config: PretrainConfig, train: Callable[[PretrainConfig], dict[str, Any]]) -> dict[str, Any]:
    """Both runs, one after the other, by ``train``; then the page and the summary of all runs below ``config.out``.

    Called on every rank. What can be refused is refused before the first run.

    Raises:
        UsageError: ``config.out`` holds something else, or runs with other settings.
    """
    halves = _halves(config)
    on_rank_zero(lambda: _check(Path(config.out), halves, config.resume))
    for half in halves:
        if rank() == 0:
            cli.message(f"\n— {half.out}: {half.selection or 'the full source'}")
        train(half)
        gc.collect()  # the first network's memory is the second's
    return on_rank_zero(lambda: _tell(Path(config.out)))


def _halves(config: PretrainConfig) -> tuple[PretrainConfig, PretrainConfig]:
    name = Path(config.compare or "").stem
    if name == FULL:
        raise UsageError(f"`compare={config.compare}`: {FULL} is the name of the run on the full source. Rename the selection")
    full = replace(config, compare=None, out=str(Path(config.out) / FULL))
    pruned = replace(full, out=str(Path(config.out) / name), selection=config.compare)
    source, selection = open_source(pruned)
    images = epoch_size(full, source, None)
    if rank() == 0 and selection and not config.epochs and 0 < selection.budget < images:
        cli.message(f"note: {config.compare} is for {selection.budget:,} images; the full source trains on {images:,}, one epoch")
    return replace(full, epochs=epochs_of(full, source, None, selection)), replace(
        pruned, epochs=epochs_of(pruned, source, selection)
    )


def _check(out: Path, halves: tuple[PretrainConfig, ...], resume: bool) -> None:
    """Refuse what either run would refuse, and a folder whose own files are not a comparison's."""
    for half in halves:
        source, selection = open_source(half)
        epoch_size(half, source, selection)
        if half.val and selection is not None:
            selection.for_split(Beton(half.val, **half.cached))
        check_run(half, settings_of(half, source, selection))
    summary = out / "summary.json"
    if (out / "config.yaml").exists():
        raise UsageError(f"{out} holds a run of its own. Give another `out`")
    if summary.exists():
        try:
            kind = json.loads(summary.read_text()).get("kind")
        except (ValueError, AttributeError):
            kind = None
        if kind != "compare":
            raise UsageError(f"{summary} was not written by `compare`. Give another `out`")
        if not resume:
            raise UsageError(f"{out} already holds a comparison. Continue it with `resume`, or give another `out`")
    elif (out / "report.html").exists():
        raise UsageError(f"{out / 'report.html'} was not written by `compare`. Give another `out`")


def _tell(out: Path) -> dict[str, Any]:
    from dp4tl_fast.reporting.page import write_page

    runs = find_runs([out])
    rows = compare(runs)
    summary = {
        "kind": "compare",
        "rows": rows,
        "runs": {str(folder.relative_to(out.resolve())): s for folder, s in runs if s["kind"] == "pretrain"},
        "environment": machine.environment(),
    }
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")  # first: it marks the page as ours
    write_page(out / "report.html", runs, rows, title=f"{out.resolve().name}: full and pruned")
    print_table(rows, "The same recipe on the full source and on a selection", wide=True)
    cli.message(f"{out / 'report.html'} and {out / 'summary.json'} hold the rest")
    return summary
