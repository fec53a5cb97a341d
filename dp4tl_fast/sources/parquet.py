"""Parquet files with an image column and a label column, as on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.spool import SpoolSource
from dp4tl_fast.sources.table import LABEL_COLUMNS

BATCH_ROWS = 256


class ParquetSource(SpoolSource):
    """Rows of the files in sorted order. The image column holds bytes, or structs with ``bytes``; labels are integers.

    Class names are taken from the schema's ``huggingface`` entry where there is one.

    Raises:
        SourceError: pyarrow is missing, a column is missing, or a row has no image or label.
    """

    def __init__(self, paths: list[Path], scratch: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise SourceError("Parquet needs pyarrow. Install it with `pip install dp4tl_fast[parquet]`") from None
        super().__init__(str(paths[0]), scratch)
        try:
            schema = pq.read_schema(paths[0])
            image, label = _image_column(schema, pa), _label_column(schema, pa)
            if image is None or label is None:
                wanted = "a column of image bytes" if image is None else "an integer column named label"
                raise SourceError(f"{paths[0]}: has no {wanted} (it has {', '.join(schema.names)})")
            self.class_names = _names(schema, label)
            self._spool(_rows(paths, image, label, pq))
        except pa.ArrowException as error:
            raise SourceError(f"{paths[0]}: cannot be read as Parquet: {error}") from None


def _rows(paths: list[Path], image: str, label: str, pq: Any) -> Iterator[tuple[int, bytes]]:
    for path in paths:
        row = 0
        for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS, columns=[image, label]):
            for value, target in zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True):
                data = value.get("bytes") if isinstance(value, dict) else value
                if not data or target is None:
                    raise SourceError(f"{path}: row {row} has no {'label' if data else 'image bytes'}")
                yield int(target), data
                row += 1


def _image_column(schema: Any, pa: Any) -> str | None:
    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    return "image" if "image" in found else next(iter(found), None)


def _label_column(schema: Any, pa: Any) -> str | None:
    found = [field.name for field in schema if pa.types.is_integer(field.type)]
    return next((name for name in LABEL_COLUMNS if name in found), None)


def _names(schema: Any, label: str) -> list[str]:
    """The names of a ``datasets.ClassLabel``, if the schema describes one."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        return [str(name) for name in feature["names"]]
    except (KeyError, ValueError, TypeError):
        return []
