"""The compiled module, unseen by the type checker; see csrc/bindings."""

from typing import Any

def __getattr__(name: str) -> Any: ...
