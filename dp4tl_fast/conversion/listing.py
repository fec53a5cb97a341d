"""What a conversion would read, and what it did, in words."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from dp4tl_fast.common.files import printable
from dp4tl_fast.sources import Source

EXAMPLES, REASONS = 3, 10  # names per reason; reasons why samples are bad


def listed(src: str, source: Source) -> dict[str, Any]:
    """What a source holds: samples, bytes, ``classes`` (id, name, samples), ``rules``, ``left_out`` and ``bad`` by reason."""
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
    return {
        "src": src,
        "samples": len(source),
        "bytes": int(source.sizes.sum()),
        "rules": source.notes,
        "left_out": left_out(source),
        "left_out_names": [f"{name}: {why}" for name, why in source.left_out],
        "bad": dict(Counter(source.bad.values())),
        "classes": [
            {"id": i, "name": name, "samples": count}
            for i, (name, count) in enumerate(zip(source.class_names, counts.tolist(), strict=True))
        ],
    }


def left_out(source: Source) -> dict[str, int]:
    """How many files were passed over when the source was listed, by reason."""
    return dict(sorted(Counter(why for _, why in source.left_out).items()))


def _counted(count: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"


def as_text(result: dict[str, Any]) -> str:
    """A listing for a terminal."""
    classes = result["classes"]
    counts = f"{_counted(result['samples'], 'image')} in {_counted(len(classes), 'class')}"
    lines = [f"{result['src']}: {counts}, {result['bytes']:,} bytes"]
    lines += [f"rule        {rule}" for rule in result["rules"]]
    for why, count in result["left_out"].items():
        names = [entry.removesuffix(f": {why}") for entry in result["left_out_names"] if entry.endswith(f": {why}")][
            :EXAMPLES
        ]
        lines.append(f"left out    {count:,}: {why} ({', '.join(names)}{', ...' if count > len(names) else ''})")
    bad = sorted(result["bad"].items(), key=lambda item: -item[1])
    lines += [f"bad         {count:,}: {why}" for why, count in bad[:REASONS]]
    lines += [f"bad         {sum(count for _, count in bad[REASONS:]):,}: other reasons"] if len(bad) > REASONS else []
    lines.append(f"{'id':>6}  {'images':>9}  class")
    lines += [f"{c['id']:>6}  {c['samples']:>9,}  {printable(c['name'])}" for c in classes]
    return "\n".join(lines)


def converted_text(result: dict[str, Any], rules: list[str]) -> str:
    """What a conversion did: the last line on the terminal."""
    parts = [f"{result['out']}: {_counted(result['samples'], 'image')} in {_counted(result['classes'], 'class')}"]
    if result["changed"]:
        reasons: Counter[str] = Counter()
        for why, count in result["changed"].items():  # one image may have several
            reasons.update(dict.fromkeys(why.split("; "), count))
        shown = ", ".join(f"{what}: {count:,}" for what, count in reasons.most_common())
        parts.append(f"{sum(result['changed'].values()):,} changed ({shown})")
    if result["skipped"]:
        parts.append(f"{result['skipped']:,} skipped")
    if result["left_out"]:
        parts.append(f"{sum(result['left_out'].values()):,} left out (" + ", ".join(result["left_out"]) + ")")
    if len(parts) > 1:
        parts.append("the audit in its sidecar lists them")
    return "; ".join(parts + rules)
