"""Memory of a process, from Linux's /proc, in bytes."""

import re
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


def _status(pid: int | str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
