"""Upstream's ``.indices`` files: a bare tensor of record numbers, tied to one file's order of records."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.checks import distinct_numbers
from dp4tl_fast.common.errors import SelectionError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.selection.portable import FIX_WEIGHTED, Selection


def export_indices(selection: Selection, beton: Beton, path: str | Path) -> int:
    """Write the surviving record numbers as one int64 tensor. Returns their number.

    Nothing in such a file detects another source than ``beton``: a selection's JSON does.
    """
    import torch

    if selection.weights:
        raise SelectionError(f"a weighted selection draws other records each epoch, which .indices cannot express. {FIX_WEIGHTED}")
    buffer = io.BytesIO()
    records = selection.indices(beton)
    torch.save(torch.from_numpy(np.ascontiguousarray(records)), buffer)
    write_atomically(path, buffer.getvalue())
    return len(records)


def import_indices(path: str | Path, beton: Beton) -> Selection:
    """Read record numbers of ``beton``: whole classes become a class selection, anything else single records.

    Raises:
        SelectionError: Not a tensor of distinct record numbers of ``beton``. Objects are never unpickled.
    """
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here: zip, pickle, key and OS errors
        reason = str(error).splitlines()[0]
        raise SelectionError(f"{path}: not a tensor that loads without unpickling objects ({reason})") from None
    whole = isinstance(tensor, torch.Tensor) and not tensor.is_floating_point() and not tensor.is_complex()
    if not whole or tensor.ndim != 1 or len(tensor) == 0:
        raise SelectionError(f"{path}: must hold one non-empty 1-d tensor of whole numbers")
    try:
        records = distinct_numbers(tensor.numpy(), beton.num_samples, f"{beton.path}: record")
    except SelectionError as error:
        raise SelectionError(f"{path}: not made for this file? {error}") from None
    selection = Selection.of_records(beton, records, method="imported")
    if selection.kept_samples == int(beton.class_counts[selection.kept_classes].sum()):
        kept = np.array(selection.kept_classes)
        return Selection.of_classes(beton, kept, method="imported", scores=np.array(selection.scores))
    return selection
