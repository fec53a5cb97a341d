"""Where a command computes, and what reads its images: the options that all commands that train or score share."""

from __future__ import annotations

from dataclasses import dataclass

from dp4tl_fast.common.checks import require


@dataclass(kw_only=True)
class Placement:
    """Where to compute.

    Args:
        backend: What reads the images: native, ffcv, dali or torchvision (slow).
        device: auto, cpu, cuda, cuda:1, ...
        workers: Loader threads; 0 means one per core.
    """

    backend: str = "native"
    device: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        require(self.workers >= 0, "workers", self.workers, "0 (one per core) or more")
