"""The demo, every stage of the pipeline: convert, train a surrogate, score, select, pretrain three times, finetune, report."""

from __future__ import annotations

import json

from benchmarks.gpu_day.setting import Setting
from benchmarks.harness import Suite
from dp4tl_fast.demo import run

COLUMNS = {"pretrain_s": "s", "speedup": "x full", "speedup_with_pruning": "x full", "lp_mean": "top-1", "ff_mean": "top-1"}


def end_to_end(suite: Suite, setting: Setting) -> None:
    """Speed-up and accuracies of the full source, of label mapping and of random choice."""
    out = setting.folder / "demo"
    seeds, per_class, epochs = setting.size((2, 100, run.EPOCHS), (1, 8, 1))
    if setting.rehearsal:  # of so few images the surrogate must see each more often to be worth asking
        run.SURROGATE["epochs"] = 10
    summary = run.demo(out=str(out), seeds=seeds, per_class=per_class, epochs=epochs)
    rows = {row["name"]: row for row in summary["rows"]}
    for column, unit in COLUMNS.items():
        suite.add(f"demo-{column}", {name: [float(row[column])] for name, row in rows.items()}, unit)
    suite.settings["device"] = json.loads((out / "runs/full-0/summary.json").read_text())["device"]
    suite.add("demo-seconds", {"all": [summary["seconds"]]}, "s")
    if not (out / "report.html").exists():
        raise SystemExit(f"{out}: no report.html")
