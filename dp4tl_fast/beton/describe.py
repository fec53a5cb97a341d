"""What a ``.beton`` holds, as a dictionary and as text."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton import jpeg
from dp4tl_fast.beton.layout import label_mixing
from dp4tl_fast.beton.reader import Beton
from dp4tl_fast.common.files import printable

LOOKED_AT, HEADER_BYTES = 200, 1 << 18  # JPEGs, and bytes of each, that say whether there are entry points

TYPE_NAMES = {
    fmt.TYPE_FLOAT: "float", fmt.TYPE_INT: "int", fmt.TYPE_RGB: "RGB image", fmt.TYPE_BYTES: "bytes",
    fmt.TYPE_NDARRAY: "ndarray", fmt.TYPE_JSON: "json", fmt.TYPE_TENSOR: "tensor",
}  # fmt: skip


def describe(beton: Beton) -> dict[str, Any]:
    """Everything about a file that its tables say."""
    images, names = beton.images, beton.class_names
    counts, sizes = beton.class_counts, beton.class_bytes
    return {
        "file": str(beton.path),
        "sidecar": str(beton.sidecar.path or ""),
        "bytes": beton.file_size,
        "version": fmt.VERSION,
        "page_size": beton.page_size,
        "fields": {name: TYPE_NAMES[field.type_id] for name, field in beton.fields.items()},
        "samples": beton.num_samples,
        "layout": beton.layout,
        "label_mixing": label_mixing(beton.labels),
        "jpeg": int((images["mode"] == fmt.MODE_JPEG).sum()),
        "raw": int((images["mode"] == fmt.MODE_RAW).sum()),
        "entry_points": _entry_points(beton),
        "image_bytes": int(sizes.sum()),
        "width": _spread(images["width"]),
        "height": _spread(images["height"]),
        "record_bytes": _spread(beton.sizes),
        "fingerprint": beton.fingerprint,
        "classes": [
            {"id": i, "name": name, "samples": int(counts[i]), "bytes": int(sizes[i])} for i, name in enumerate(names)
        ],
    }


def _entry_points(beton: Beton) -> dict[str, int]:
    """Of up to ``LOOKED_AT`` JPEGs spread over the file: how many have entry points for partial decoding."""
    jpegs = np.flatnonzero(beton.images["mode"] == fmt.MODE_JPEG)
    some = jpegs[np.linspace(0, len(jpegs) - 1, min(LOOKED_AT, len(jpegs)), dtype=np.int64)]
    beton.fetch(some)
    found = 0
    for i in some.tolist():
        with suppress(ValueError):
            found += jpeg.has_entry_points(beton.payload(i)[:HEADER_BYTES].tobytes())
    return {"found": found, "looked_at": len(some)}


def _spread(values: np.ndarray) -> dict[str, int]:
    if len(values) == 0:
        return {"min": 0, "median": 0, "max": 0}
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def as_text(result: dict[str, Any]) -> str:
    """A few lines and a table of classes, for a terminal."""
    mixing = result["label_mixing"]
    total = f"{result['samples']:,} records in {len(result['classes']):,} classes, {_size(result['bytes'])}"
    lines = [
        f"{result['file']}: {total}",
        f"format      version {result['version']}, pages of {_size(result['page_size'])}",
        f"fields      {', '.join(f'{name} ({kind})' for name, kind in result['fields'].items())}",
        f"sidecar     {result['sidecar'] or 'none: classes are named by number, and there are no checksums'}",
        f"images      {result['jpeg']:,} JPEG, {result['raw']:,} raw; "
        + "; ".join(f"{key} {v['min']} / {v['median']} / {v['max']}" for key, v in _spreads(result))
        + " (min / median / max)",
        f"layout      {result['layout']}: {mixing['distinct_classes']:.1f} distinct classes in {mixing['window']} "
        f"consecutive records, {mixing['distinct_classes_if_shuffled']:.1f} in a uniform shuffle",
    ]
    if points := result["entry_points"]["looked_at"]:
        found = result["entry_points"]["found"]
        remedy = "" if found == points else ", which speed up the native loader; `dp4tl-fast relayout` adds them"
        lines.append(f"partial     {found} of {points} JPEGs looked at have entry points for partial decoding{remedy}")
    if "verified" in result:
        checked = result["verified"]
        with_checksums = "checksums and headers" if checked["checksums"] else "headers (the file has no checksums)"
        decoded = ", every image decoded" if checked["decoded"] else ""
        lines.append(f"verified    {checked['records']:,} records: pointers, sizes, {with_checksums}{decoded}")
    lines.append(f"{'id':>6}  {'samples':>9}  {'bytes':>10}  class")
    lines += [f"{c['id']:>6}  {c['samples']:>9,}  {_size(c['bytes']):>10}  {printable(c['name'])}" for c in result["classes"]]
    return "\n".join(lines)


def _spreads(result: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    return [("width", result["width"]), ("height", result["height"]), ("bytes", result["record_bytes"])]


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
