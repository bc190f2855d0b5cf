"""The thread that writes: order, bounds and failures."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from app.feedback.recorder import Recorder
from app.feedback.store import Store, StoreError
from app.telemetry.metrics import Telemetry
from tests.app.feedback.test_store import ENDLESS, numbers, prediction
from tests.app.running import ROOT


def lost(telemetry: Telemetry, reason: str) -> float:
    return telemetry.registry.get_sample_value("tenfold_feedback_lost_total", {"reason": reason}) or 0.0


def run(recorder: Recorder, steps: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        recorder.start()
        await steps()
        await recorder.stop()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_was_recorded_is_found_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "store"
    recorder = Recorder(path, ENDLESS, Telemetry())

    async def steps() -> None:
        for number in range(50):
            recorder.record(prediction(number))
        found = await recorder.find("id-49", 0)
        assert found is not None
        assert await recorder.set_label("id-49", 0, "dog")
        recorder.record(prediction(50))

    run(recorder, steps)
    with Store(path) as store:
        assert numbers(store) == list(range(51)), "what waits at the end is written"


def test_the_limits_hold(tmp_path: Path) -> None:
    path = tmp_path / "store"
    recorder = Recorder(path, ENDLESS._replace(size=1_000_000), Telemetry())

    async def steps() -> None:
        for number in range(40):
            recorder.record(prediction(number, image=bytes(100_000)))
            await recorder.find("", 0)

    run(recorder, steps)
    assert path.stat().st_size < 1_500_000


def test_more_than_fits_in_memory_is_lost_and_counted(tmp_path: Path) -> None:
    telemetry = Telemetry()
    recorder = Recorder(tmp_path / "store", ENDLESS, telemetry)  # whose thread has not started
    for number in range(2_100):
        recorder.record(prediction(number))
    assert lost(telemetry, "busy") == 100
    recorder = Recorder(tmp_path / "store", ENDLESS, telemetry)
    for number in range(6):
        recorder.record(prediction(number, image=bytes(10_000_000)))
    assert lost(telemetry, "busy") == 101


def test_a_store_that_fails_is_counted_and_used_again_when_it_works(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "store"
    telemetry = Telemetry()
    recorder = Recorder(path, ENDLESS, telemetry)

    async def steps() -> None:
        recorder.record(prediction(1))
        with pytest.raises(StoreError, match="cannot be opened"):
            await recorder.find("id-1", 0)
        assert lost(telemetry, "error") == 1
        path.parent.mkdir()
        recorder.record(prediction(2))
        assert await recorder.find("id-2", 0)
        path.rename(path.with_suffix(".old"))
        recorder.record(prediction(3))
        assert await recorder.find("id-3", 0)
        assert await recorder.find("id-2", 0) is None

    run(recorder, steps)


def test_a_damaged_file_is_reported_and_nothing_else_fails(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store(path) as store:
        store.add(prediction(number, image=bytes(5000)) for number in range(20))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    telemetry = Telemetry()
    recorder = Recorder(path, ENDLESS, telemetry)

    async def steps() -> None:
        for number in range(3):
            recorder.record(prediction(number))
            with pytest.raises(StoreError, match="malformed"):
                await recorder.find("id-1", 0)
        assert lost(telemetry, "error") == 3

    run(recorder, steps)


def test_a_full_disk_is_reported_and_nothing_else_fails(tmp_path: Path) -> None:
    """The size of files is limited in a process of its own."""
    code = f"""
import asyncio, resource
from app.feedback.recorder import Recorder
from app.feedback.store import StoreError
from app.telemetry.metrics import Telemetry
from tests.app.feedback.test_recorder import lost
from tests.app.feedback.test_store import ENDLESS, prediction
from pathlib import Path

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    telemetry = Telemetry()
    recorder = Recorder(Path({str(tmp_path / "store")!r}), ENDLESS, telemetry)
    recorder.start()
    for number in range(20):
        recorder.record(prediction(number, image=bytes(50_000)))
        try:
            await recorder.find("id", 0)
        except StoreError as error:
            print(error)
    assert 0 < lost(telemetry, "error") < 20
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    recorder.record(prediction(99))
    assert await recorder.find("id-99", 0)
    await recorder.stop()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be used" in done.stdout
