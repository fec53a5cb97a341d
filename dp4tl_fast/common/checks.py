"""One wording for a parameter out of range: name, value, rule."""

from __future__ import annotations

from collections.abc import Collection

from dp4tl_fast.common.errors import UsageError


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raise ``UsageError`` unless ``ok``: "`batch_size=0`: must be at least 1"."""
    if not ok:
        raise UsageError(f"`{name}={value}`: must be {rule}")


def require_one_of(name: str, value: str, known: Collection[str]) -> None:
    """Raise ``UsageError`` unless ``value`` is one of ``known``, which the message lists."""
    *most, last = known
    require(value in known, name, value, f"{', '.join(most)} or {last}")
