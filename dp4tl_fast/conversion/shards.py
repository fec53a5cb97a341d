"""A conversion in parts, on several machines: each part is a .beton of its own; merged they are the file of one run."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.beton.copying import copy_records
from dp4tl_fast.beton.reader import Beton
from dp4tl_fast.beton.sidecars import AuditRow, sidecar
from dp4tl_fast.common.errors import BetonError, UsageError
from dp4tl_fast.conversion.conversion import nothing_stored

ENVIRONMENTS = (  # (part, number of parts, first part's number) as launchers set them
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("RANK", "WORLD_SIZE", None),
    ("SLURM_PROCID", "SLURM_NTASKS", None),
)


def parse_shard(shard: str) -> tuple[int, int] | None:
    """``"I/N"`` -> ``(I, N)``; ``"auto"`` from the environment; ``""`` -> ``None``."""
    if not shard:
        return None
    if shard == "auto":
        shard = _from_environment()
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(f"`shard={shard}`: must be I/N with 0 <= I < N, or auto")
    return int(match[1]), int(match[2])


def _from_environment() -> str:
    for part, parts, first in ENVIRONMENTS:
        if part in os.environ and parts in os.environ:
            return f"{int(os.environ[part]) - int(os.environ.get(first or '', '0'))}/{os.environ[parts]}"
    names = " nor ".join(part for part, _, _ in ENVIRONMENTS)
    raise UsageError(f"`shard=auto`: neither {names} is set. Give `shard=I/N`")


def shard_path(out: Path, part: int, parts: int) -> Path:
    return out.with_name(f"{out.stem}.shard-{part}-of-{parts}{out.suffix}")


def merge_shards(out: Path, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Join the shards of ``out``, which lie beside it, to what one run would have written. The shards stay.

    Raises:
        BetonError: A shard is missing or unfinished, they are not parts of one conversion, or no image could be stored.
    """
    name = re.compile(rf"{re.escape(out.stem)}\.shard-\d+-of-\d+{re.escape(out.suffix)}")
    paths = sorted(path for path in out.parent.glob("*.shard-*") if name.fullmatch(path.name))
    if not paths:
        raise BetonError(f"{shard_path(out, 0, 1).name.replace('0-of-1', 'I-of-N')}: none found beside {out}")
    return join(paths, out, progress)


def join(paths: Sequence[Path], out: Path, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Join these shards, which lie in one folder, to ``out``; see ``merge_shards``."""
    betons = [Beton(path) for path in paths]
    infos = [_info(beton) for beton in betons]
    parts = infos[0]["identity"]["shard"][1]
    identity = _without_shard(infos[0])
    for path, info in zip(paths, infos, strict=True):
        if _without_shard(info) != identity or info["identity"]["shard"][1] != parts:
            raise BetonError(f"{path}: made from other input or flags than {paths[0]}. Convert it again, or remove it")
    by_part = {info["identity"]["shard"][0]: beton for beton, info in zip(betons, infos, strict=True)}
    if missing := sorted(set(range(parts)) - set(by_part)):
        first = shard_path(out, missing[0], parts)
        raise BetonError(f"{first}: missing; {len(missing)} of {parts} shards have not been made yet")
    shards = [beton for _, beton in sorted(by_part.items())]
    summary = _sum(infos)
    if summary["samples"] == 0:
        raise nothing_stored(out, summary["listed"])
    records = [(beton, np.arange(beton.num_samples)) for beton in shards]
    audit = _joined_audits(shards)
    copied = copy_records(records, out, summary["listed"], identity, progress, summary, audit)
    return {**summary, "bytes": copied["bytes"], "shards": parts}


def _info(beton: Beton) -> dict[str, Any]:
    info = beton.sidecar.info()
    if info is None or not isinstance(info["identity"].get("shard"), list) or len(info["identity"]["shard"]) != 2:
        raise BetonError(f"{sidecar(str(beton.path))}: missing, or not of a shard. Convert the shard again")
    return info


def _without_shard(info: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info["identity"].items() if key != "shard"}


def _sum(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of one run over everything, with its keys in the same order."""
    changed: Counter[str] = Counter()
    for info in infos:
        changed.update(info["changed"])
    totals = {key: sum(info[key] for info in infos) for key in ("samples", "listed", "byte_for_byte", "skipped")}
    return {
        "samples": totals["samples"],
        "classes": infos[0]["classes"],
        "listed": totals["listed"],
        "byte_for_byte": totals["byte_for_byte"],
        "changed": dict(sorted(changed.items())),
        "skipped": totals["skipped"],
        "left_out": infos[0].get("left_out", {}),
    }


def _joined_audits(shards: list[Beton]) -> Iterator[AuditRow]:
    first = 0
    for number, beton in enumerate(shards):
        for row in beton.sidecar.audit():
            record = int(row["record"]) + first if row["record"] else ""
            if row["index"] or number == 0:  # every shard lists what was left out of the source
                yield row["index"], record, row["source"], row["what"]
        first += beton.num_samples
