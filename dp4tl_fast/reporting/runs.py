"""Read run folders: which finished, and what each epoch measured. ``pretraining`` and ``finetuning`` write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp4tl_fast.common.errors import UsageError

FORMER_GROUPS = ("moco", "adv")  # settings that older versions wrote as moco_queue, now moco.queue

Runs = list[tuple[Path, dict[str, Any]]]  # folder and summary


def find_runs(folders: list[Path]) -> Runs:
    """All finished runs below these folders, as ``(folder, summary)``, in path order."""
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        for path in sorted(folder.rglob("summary.json")):
            try:
                summary = json.loads(path.read_text())
            except ValueError as error:
                raise UsageError(f"{path}: not readable ({error}). Run again what made it") from None
            if isinstance(summary, dict) and "kind" in summary:
                runs.append((path.parent.resolve(), summary))
    if not any(summary["kind"] == "pretrain" for _, summary in runs):
        raise UsageError(f"{', '.join(map(str, folders))}: no finished pretraining run there. Give run folders")
    return runs


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The finished epochs of a run; a half-written last line is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings under dotted names, as the flags spell them: ``{"moco": {"queue": 8}}`` -> ``{"moco.queue": 8}``.

    Names of older versions become today's.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        group, _, rest = name.partition("_")
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": inner for key, inner in flat(value).items()}
        else:
            found[f"{group}.{rest}" if group in FORMER_GROUPS and rest else name] = value
    return found
