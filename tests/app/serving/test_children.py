"""Children that decode: what one does costs only its own call."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app.serving.children import AVAILABLE, ChildEnded, ChildError, Children, Result
from model import UnreadableImage
from tests.app.running import ROOT, eventually
from tests.app.serving import misbehaving

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs Linux")

MEMORY = 50_000_000


@asynccontextmanager
async def pool() -> AsyncIterator[Children]:
    children = Children(UnreadableImage, cpu_seconds=1)
    children.start()
    try:
        yield children
    finally:
        children.stop()


def run(main: Callable[[Children], Coroutine[Any, Any, None]]) -> None:
    async def with_pool() -> None:
        async with pool() as children:
            await main(children)

    asyncio.run(with_pool())


def gone(pid: int) -> bool:
    """Whether a process has ended, also if its exit code was not read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def call(children: Children, function: Callable[..., Result], *arguments: Any, data: bytes = b"") -> Result:
    return await children.run(function, *arguments, data=data, memory=MEMORY)


@pytest.mark.parametrize("function", misbehaving.ENDINGS, ids=lambda function: function.__name__)
def test_a_child_that_ends_costs_its_own_call_and_is_replaced(function: Callable[..., Result]) -> None:
    async def main(children: Children) -> None:
        other = asyncio.create_task(call(children, misbehaving.echo, [1, "a"], data=b"other"))
        with pytest.raises(ChildEnded) as ended:
            await call(children, function)
        assert (ended.value.reason == "cpu-time") == (function is misbehaving.loop)
        assert await other == ([1, "a"], b"other")
        assert await call(children, misbehaving.echo, None, data=b"next") == (None, b"next")

    run(main)


@pytest.mark.parametrize("function", [misbehaving.sleep, misbehaving.close_everything, misbehaving.loop])
def test_a_cancelled_call_kills_its_child(function: Callable[..., Result]) -> None:
    async def main(children: Children) -> None:
        pid, _ = await call(children, misbehaving.pid)
        with pytest.raises((TimeoutError, ChildEnded)):
            async with asyncio.timeout(0.3):
                await call(children, function)
        async with asyncio.timeout(20):
            while not gone(pid):
                await asyncio.sleep(0.01)
        assert (await call(children, misbehaving.pid))[0] != pid

    run(main)


def test_what_a_function_raises_is_raised_again() -> None:
    async def main(children: Children) -> None:
        pid, _ = await call(children, misbehaving.pid)
        with pytest.raises(UnreadableImage, match="it is damaged"):
            await call(children, misbehaving.refuse)
        with pytest.raises(ChildError, match=r"in stop_itself\n.*\nRuntimeError: a bug"):
            await call(children, misbehaving.stop_itself)
        assert (await call(children, misbehaving.pid))[0] == pid, "the child goes on"

    run(main)


def test_memory_is_limited_by_the_call() -> None:
    async def main(children: Children) -> None:
        size = 30_000_000
        assert await call(children, misbehaving.allocate, size) == (size, b"")
        with pytest.raises(ChildError, match="MemoryError"):
            await call(children, misbehaving.allocate, 2 * size)
        result = await children.run(misbehaving.allocate, 2 * size, data=b"", memory=4 * size)
        assert result == (2 * size, b"")

    run(main)


def test_a_child_that_was_allowed_much_memory_ends_after_its_call() -> None:
    async def main(children: Children) -> None:
        pid, _ = await children.run(misbehaving.pid, data=b"", memory=10 * MEMORY)
        async with asyncio.timeout(20):
            while not gone(pid):
                await asyncio.sleep(0.01)

    run(main)


def test_a_child_writes_neither_files_nor_to_the_streams_of_the_service(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"

    async def main(children: Children) -> None:
        with pytest.raises(ChildError, match="File too large"):
            await call(children, misbehaving.write_file, str(path))
        assert await call(children, misbehaving.print_much) == ("printed", b"")

    run(main)
    assert path.stat().st_size == 0
    assert capfd.readouterr() == ("", "")


def test_large_files_and_results_arrive_complete() -> None:
    async def main(children: Children) -> None:
        data = os.urandom(20_000_000)
        assert await children.run(misbehaving.echo, 1, data=data, memory=200_000_000) == (1, data)

    run(main)


def test_the_pool_continues_without_its_template_and_its_idle_children() -> None:
    async def main(children: Children) -> None:
        pid, _ = await call(children, misbehaving.pid)
        template = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        for ended in (pid, template):
            os.kill(ended, signal.SIGKILL)
            async with asyncio.timeout(20):
                while not gone(ended):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # the notice
            assert await call(children, misbehaving.echo, 2) == (2, b"")

    run(main)


SERVICE = """
import asyncio
from app.serving.children import Children
from tests.app.serving import misbehaving

async def main():
    children = Children(cpu_seconds=100)
    children.start()
    pid, _ = await children.run(misbehaving.pid, data=b"", memory=10**7)
    print(pid, flush=True)
    await children.run(misbehaving.loop, data=b"", memory=10**7)

asyncio.run(main())
"""


def test_no_child_outlives_a_service_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVICE], cwd=ROOT, stdout=subprocess.PIPE) as service:
        assert service.stdout
        pid = int(service.stdout.readline())
        template = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        service.kill()
    eventually(lambda: gone(pid) and gone(template), "the child and the template have ended")


def test_no_child_is_left_after_the_pool_was_stopped() -> None:
    pids = list[int]()

    async def main(children: Children) -> None:
        pids.append((await call(children, misbehaving.pid))[0])
        busy = asyncio.create_task(call(children, misbehaving.loop))
        await asyncio.sleep(0.1)
        children.stop()
        with suppress(ChildEnded):
            await busy

    run(main)
    eventually(lambda: all(map(gone, pids)), "the children have ended")
