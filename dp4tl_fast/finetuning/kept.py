"""Features of a frozen network, kept in the run folder as they come: a pass that was stopped goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import CheckpointError
from dp4tl_fast.common.files import npy_bytes, write_atomically
from dp4tl_fast.loaders import BaseLoader
from dp4tl_fast.training.ranks import gather_objects, on_rank_zero, rank

FOLDER = "features"  # in the run folder, until the last seed is done
PART = "{}-{:012d}.npy"  # of a file's parameter and its first row here
SKIPPED = ".skipped.json"  # beside it, where there are some: records, and why
SAVE_S = 5.0  # seconds of work in a file, at least; at most twice that is lost


def features(
    folder: Path, name: str, loader: BaseLoader, compute: Callable[[], torch.Tensor], guard: Callable[[], None]
) -> torch.Tensor:
    """Features of all records of ``loader``, float32 ``[n, d]`` on the CPU, the same on every rank.

    They are computed in stretches of whole batches, as one pass would have computed them: to the same bits. Each is written to
    ``folder`` by the first rank; those that are there are read.

    Args:
        name: What the images serve as: train, val, test.
        loader: In file order, without dropping any. Of records that it skips, it knows afterwards (``skipped``) as if all had been
            computed now; on the first rank those of earlier processes.
        compute: The features of the records that ``loader`` now has, on every rank; a row for each, also of those skipped.
        guard: Called before anything is written: raises where the folder is another process's by now.

    Raises:
        CheckpointError: A file there cannot be read.
    """
    records, batch = loader.records, loader.spec.global_batch_size
    stored = on_rank_zero(lambda: _stored(folder, name, len(records)))
    parts = [torch.from_numpy(np.array(_read(path))) for path in stored]
    if rank() == 0:
        loader.skipped += [skipped for path in stored for skipped in _skipped(path)]
    done, batches = sum(map(len, parts)), 1
    with cli.progress(None, desc=f"features of {name}", unit="image", total=len(records), initial=done, disable=rank() > 0) as bar:
        while done < len(records):
            begun, known = time.perf_counter(), len(loader.skipped)
            loader.set_records(records[done : done + batches * batch])
            part = compute()
            skipped = [found for mine in gather_objects(loader.skipped[known:]) for found in mine]
            on_rank_zero(partial(_keep, folder / PART.format(name, done), part, skipped, guard))
            batches *= on_rank_zero(partial(_factor, begun))
            parts.append(part)
            done += len(part)
            bar.update(len(part))
    return torch.cat(parts)


def _factor(begun: float) -> int:
    """How many times as long the next stretch shall be."""
    return 2 if time.perf_counter() - begun < SAVE_S else 1


def _keep(path: Path, rows: torch.Tensor, skipped: list[tuple[int, str]], guard: Callable[[], None]) -> None:
    guard()
    try:
        if skipped:
            write_atomically(path.with_suffix(SKIPPED), json.dumps(skipped))
        write_atomically(path, npy_bytes(rows.numpy()))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}). Free some space and continue with `resume`") from None


def _stored(folder: Path, name: str, total: int) -> list[Path]:
    """The files that follow one another from row 0."""
    found, at = [], 0
    while (path := folder / PART.format(name, at)).exists():
        found.append(path)
        at += len(_read(path, total - at))
    return found


def _read(path: Path, most: int | None = None) -> np.ndarray:
    """Mapped."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if rows.ndim != 2 or rows.dtype != np.float32 or len(rows) == 0 or (most is not None and len(rows) > most):
            raise ValueError(f"holds {list(rows.shape)} {rows.dtype}")
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: features that cannot be read ({error}). Remove it to compute them again") from None
    return rows


def _skipped(part: Path) -> list[tuple[int, str]]:
    path = part.with_suffix(SKIPPED)
    try:
        return [(int(record), str(why)) for record, why in json.loads(path.read_text())] if path.exists() else []
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Remove {part} to compute its features again") from None
