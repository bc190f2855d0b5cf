import os
from pathlib import Path

import pytest

from app.cpus import available_cpus, default_threads

ALLOWED = len(os.sched_getaffinity(0))


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def test_without_control_groups_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path / "none", tmp_path / "none") == ALLOWED


def test_on_this_machine_it_is_within_the_affinity_mask() -> None:
    assert 1 <= available_cpus() <= ALLOWED


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, ALLOWED),
        ("0::/\n", {"cpu.max": "99900000 100000\n"}, ALLOWED),
        ("0::/a.slice/b\n", {"a.slice/b/cpu.max": "max 100000\n", "a.slice/cpu.max": "100000 100000\n"}, 1),
        (
            "5:memory:/x\n4:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "20000\n", "cpu/x/cpu.cfs_period_us": "10000"},
            2,
        ),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALLOWED),
        ("4:cpu:/docker/1f\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ("4:cpuset:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALLOWED),
    ],
    ids=[
        "version 2",
        "half a CPU",
        "version 2 without a limit",
        "more than there are",
        "the limit of an ancestor",
        "version 1",
        "version 1 without a limit",
        "version 1 in a container with the host's name",
        "limits of a group that the process is not in",
    ],
)
def test_a_quota_limits_it(membership: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    write(tmp_path, {f"hierarchy/{name}": content for name, content in files.items()} | {"membership": membership})
    assert available_cpus(tmp_path / "hierarchy", tmp_path / "membership") == min(expected, ALLOWED)


def test_a_quota_is_rounded_down(tmp_path: Path) -> None:
    period = 100_000
    quota = int((ALLOWED - 0.5) * period)
    write(tmp_path, {"cpu.max": f"{quota} {period}", "membership": "0::/"})
    assert available_cpus(tmp_path, tmp_path / "membership") == max(1, ALLOWED - 1)


def test_the_runtime_chooses_its_threads_unless_there_is_a_quota(tmp_path: Path) -> None:
    write(tmp_path, {"cpu.max": "max 100000", "membership": "0::/"})
    assert default_threads(tmp_path, tmp_path / "membership") == 0
    write(tmp_path, {"cpu.max": "100000 100000"})
    assert default_threads(tmp_path, tmp_path / "membership") == 1
