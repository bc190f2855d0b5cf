"""Memory of a process, from Linux's /proc, in bytes."""

import re
from contextlib import suppress
from pathlib import Path


def peak(pid: int | str) -> int:
    """Most memory that a process ever held. `forget_peak` resets it."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int | str) -> None:
    """Reset `peak`."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def resident(pid: int | str) -> int:
    """Memory that a process holds."""
    return _status(pid, "VmRSS")


def anonymous(pid: int | str) -> int:
    """Memory of a process without pages of files, which the kernel may drop and read again."""
    return _status(pid, "RssAnon") + _status(pid, "VmSwap")


def family(pid: int) -> list[int]:
    """A process and its descendants, by number."""
    parents = dict[int, int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def total_peak(pid: int) -> int:
    """The sum of `peak` over a process and its descendants that live. Pages that they share count several times."""
    total = 0
    for member in family(pid):
        with suppress(OSError, AssertionError):  # it has ended
            total += peak(member)
    return total


def _status(pid: int | str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
