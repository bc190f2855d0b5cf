"""The number of CPUs that this process may use, in a container too."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_HIERARCHY = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus(hierarchy: Path = _HIERARCHY, membership: Path = _MEMBERSHIP) -> int:
    """CPUs in the process's affinity mask, or fewer if a control group limits its CPU time.

    Args:
        hierarchy: where the control groups are mounted, of version 2 or 1.
        membership: file that names the control groups of the process.

    Returns:
        At least 1. A quota of 2.5 CPUs counts as 2.
    """
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, math.floor(min([allowed, *_quotas(hierarchy, membership)])))


def default_threads(hierarchy: Path = _HIERARCHY, membership: Path = _MEMBERSHIP) -> int:
    """Threads for a network on a CPU, if no setting says.

    OpenVINO and PyTorch count the CPUs of the affinity mask, but ignore the quota of a control group, which then stops
    all their threads for a part of each period.

    Returns:
        `available_cpus` if there is a quota, else 0: the runtime's choice.
    """
    return available_cpus(hierarchy, membership) if any(_quotas(hierarchy, membership)) else 0


def _quotas(hierarchy: Path, membership: Path) -> Iterator[float]:
    """CPU quotas of the process's control groups and their ancestors, in CPUs."""
    for line in _read(membership).splitlines():
        _, controllers, name = line.split(":", maxsplit=2)
        # In a container the name may be that on the host, of which only the last ancestor, the mount itself, exists.
        path = PurePosixPath(name.lstrip("/"))
        for group in (path, *path.parents):
            if not controllers:  # version 2
                quota, _, period = _read(hierarchy / group / "cpu.max").partition(" ")
            elif "cpu" in controllers.split(","):
                quota = _read(hierarchy / "cpu" / group / "cpu.cfs_quota_us")
                period = _read(hierarchy / "cpu" / group / "cpu.cfs_period_us")
            else:
                break
            if quota.isdecimal() and period.isdecimal():  # no limit is "max" in version 2, -1 in version 1
                yield int(quota) / int(period)


def _read(file: Path) -> str:
    """Content of a file, empty if there is no such file."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
