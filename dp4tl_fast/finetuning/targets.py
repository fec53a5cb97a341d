"""A target by its .beton file, or by name: a data set of torchvision's is converted once and kept."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from dp4tl_fast.common import cli

CACHE = ".dp4tl-cache"  # beside a command's --out


def target_path(spec: str, out: str) -> str:
    """The .beton of a target: ``x.beton`` or its URL as given; of ``torchvision:NAME?root=DIR&split=test`` the one in the cache
    beside ``out``.

    Raises:
        SourceError: torchvision does not know it.
    """
    if not spec.startswith("torchvision:"):
        return spec
    from dp4tl_fast.conversion.run import convert

    digest = hashlib.sha256(spec.encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9]+", "-", spec.removeprefix("torchvision:").split("root=")[0]).strip("-")
    path = Path(out).absolute().parent / CACHE / f"{name}-{digest}.beton"
    if not path.exists():
        cli.message(f"{spec}: converting it to {path}, once")
    convert(spec, str(path), resume=path.exists())
    return str(path)
