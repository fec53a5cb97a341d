"""Limits of the container that this process runs in: Linux's control groups, version 1 and 2.

https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cpu_quotas(root: Path) -> list[float]:
    """Cores that each group of this process may use, of those that have a quota. ``root``: of the file system."""
    quotas = []
    for folder in _groups(root, "cpu"):
        words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and all(word.isdecimal() for word in words):  # else "max 100000", or "-1 100000"
            quotas.append(int(words[0]) / max(1, int(words[1])))
    return quotas


def memory_limits(root: Path) -> list[int]:
    """Bytes that each group of this process may use, of those that have a limit; version 1 has a huge one for none."""
    limits = []
    for folder in _groups(root, "memory"):
        words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        if words and words[0].isdecimal():  # else "max"
            limits.append(int(words[0]))
    return limits


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups and of all that hold them.

    In a container the path that the process is told is often the host's: then only the mount's own folder is there, which is the
    container's group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    top = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2; beside version 1 it has a folder of its own
            mount = top / "unified" if (top / "unified").is_dir() else top
        elif controller in controllers.split(","):
            mount = top / controllers if (top / controllers).is_dir() else top / controller
        else:
            continue
        group = mount / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
