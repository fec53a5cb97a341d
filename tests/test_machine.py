"""Cores and memory that this process may use, in made-up containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dp4tl_fast.common.machine import cores, memory

BOUND = len(os.sched_getaffinity(0))
INSTALLED = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
NONE = str(2**63 - 4096)  # v1's way to say that there is no limit

# proc/self/cgroup, files below sys/fs/cgroup, cores, bytes of memory
CONTAINERS: dict[str, tuple[str, dict[str, str], int, int]] = {
    "no control groups": ("", {}, BOUND, INSTALLED),
    "v2 without limits": ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/b/memory.max": "max\n"}, BOUND, INSTALLED),
    "v2": ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/b/memory.max": "1000000\n"}, 1, 1_000_000),
    "v2, part of a core": ("0::/a\n", {"a/cpu.max": "20000 100000\n"}, 1, INSTALLED),
    "v2, one core and a bit": ("0::/a\n", {"a/cpu.max": "110000 100000\n"}, min(2, BOUND), INSTALLED),
    "v2, more than there is": ("0::/a\n", {"a/cpu.max": "99900000 100000\n", "a/memory.max": NONE}, BOUND, INSTALLED),
    "v2, by a group above": ("0::/a/b\n", {"a/cpu.max": "50000 50000\n", "a/memory.max": "7", "a/b/memory.max": "9"}, 1, 7),
    "v2, in its own name space": ("0::/\n", {"cpu.max": "100000 100000\n", "memory.max": "5\n"}, 1, 5),
    "v2, the host's path": ("0::/docker/12ab\n", {"cpu.max": "100000 100000\n", "memory.max": "5\n"}, 1, 5),
    "v1": (
        "5:memory:/m\n4:cpu,cpuacct:/c\n0::/\n",
        {"cpu,cpuacct/c/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
         "memory/m/memory.limit_in_bytes": "123\n"}, 1, 123,
    ),
    "v1 without limits": (
        "5:memory:/m\n4:cpu,cpuacct:/c\n",
        {"cpu,cpuacct/c/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
         "memory/m/memory.limit_in_bytes": NONE}, BOUND, INSTALLED,
    ),
    "v1, the host's path and separate mounts": (
        "4:cpu,cpuacct:/docker/12ab\n5:memory:/docker/12ab\n",
        {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n", "memory/memory.limit_in_bytes": "77\n"}, 1, 77,
    ),
    "v2 beside v1": ("5:memory:/m\n0::/u\n", {"unified/u/cpu.max": "100000 100000\n", "memory/m/memory.limit_in_bytes": "6"}, 1, 6),
    "broken files": ("0::/a\n", {"a/cpu.max": "\n", "a/memory.max": "much\n"}, BOUND, INSTALLED),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_limits_of_a_container(tmp_path: Path, name: str) -> None:
    groups, files, want_cores, want_memory = CONTAINERS[name]
    for path, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{p}": t for p, t in files.items()}}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert (cores(tmp_path), memory(tmp_path)) == (want_cores, want_memory)


def test_limits_of_this_process() -> None:
    assert 1 <= cores() <= BOUND
    assert 0 < memory() <= INSTALLED
