import asyncio
import gc
import random
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import pytest

from app.serving.children import AVAILABLE
from app.serving.decoding import Decoder, Flow
from model import ImageTooLarge, UnreadableImage, UnsupportedImage, preprocess
from tests.app.fakes import CARD, image_file, photo
from tests.hostile import tiff


@asynccontextmanager
async def decoding(
    *, threads: int = 1, max_bytes: int = 1000, max_pixels: int = 10**6, isolated: bool = False
) -> AsyncIterator[Decoder]:
    decoder = Decoder(threads=threads, max_bytes=max_bytes, max_pixels=max_pixels, isolated=isolated)
    decoder.start()
    try:
        yield decoder
    finally:
        decoder.stop()


class Jobs:
    """Jobs that note when they begin and wait for `release`."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.running = 0
        self._gate = threading.Event()

    def job(self, name: str) -> str:
        self.began.append(name)
        self.running += 1
        assert self._gate.wait(60), "the test never released its jobs"
        self.running -= 1
        return name

    def release(self) -> None:
        self._gate.set()


def submit(decoder: Decoder, jobs: Jobs, name: str, *, size: int, flow: Flow | None = None) -> asyncio.Task[str]:
    return asyncio.create_task(decoder.run(lambda: jobs.job(name), size=size, flow=flow or Flow("a")))


async def until_began(jobs: Jobs, count: int) -> None:
    async with asyncio.timeout(20):
        while len(jobs.began) < count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("isolated", [True, False], ids=["in a child", "in a thread"])
@pytest.mark.parametrize("data", [image_file(), photo()], ids=["small", "large"])
def test_an_image_is_preprocessed(data: bytes, isolated: bool) -> None:
    async def main() -> None:
        async with decoding(isolated=isolated) as decoder:
            found = await decoder.preprocess(data, CARD.input, 2, Flow("a"))
        expected = preprocess(data, CARD.input, max_pixels=10**6, views=2)
        assert (found.pixels == expected.pixels).all()
        assert found.pixels.flags.writeable  # torch warns of others
        assert replace(found, pixels=expected.pixels) == expected

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"cat", UnsupportedImage),
        (image_file()[:-40], UnreadableImage),
        (photo()[:-400], UnreadableImage),
        (image_file(size=(200, 200)), ImageTooLarge),
        (image_file(size=(40, 26)), ImageTooLarge),
    ],
    ids=["text", "a small one cut off", "a large one cut off", "too large", "small and too large"],
)
@pytest.mark.parametrize("isolated", [True, False], ids=["in a child", "in a thread"])
def test_a_bad_image_raises(data: bytes, error: type[Exception], isolated: bool) -> None:
    async def main() -> None:
        async with decoding(isolated=isolated, max_pixels=1039 if error is ImageTooLarge else 10**6) as decoder:
            with pytest.raises(error):
                await decoder.preprocess(data, CARD.input, 1, Flow("a"))

    asyncio.run(main())


def test_a_small_job_passes_large_ones_of_other_requests() -> None:
    async def main() -> None:
        jobs = Jobs()
        async with decoding() as decoder:
            tasks = [submit(decoder, jobs, name, size=100) for name in ("first", "large", "also large")]
            await until_began(jobs, 1)
            tasks.append(submit(decoder, jobs, "small", size=1))
            await asyncio.sleep(0)
            jobs.release()
            await asyncio.gather(*tasks)
        assert jobs.began == ["first", "small", "large", "also large"]

    asyncio.run(main())


def test_requests_take_turns_whatever_their_number_of_images() -> None:
    async def main() -> None:
        jobs = Jobs()
        async with decoding() as decoder:
            flow = Flow("a")
            tasks = [submit(decoder, jobs, f"many {number}", size=10, flow=flow) for number in range(5)]
            await until_began(jobs, 1)
            tasks += [submit(decoder, jobs, "one", size=10), submit(decoder, jobs, "another", size=10)]
            await asyncio.sleep(0)
            jobs.release()
            await asyncio.gather(*tasks)
        assert set(jobs.began[1:4]) == {"many 1", "one", "another"}

    asyncio.run(main())


def test_a_large_job_gets_its_turn_in_a_stream_of_small_ones() -> None:
    async def main() -> None:
        jobs = Jobs()
        jobs.release()
        async with decoding() as decoder:
            large = submit(decoder, jobs, "large", size=50)
            await asyncio.sleep(0)
            first = submit(decoder, jobs, "first", size=1)
            stream = [submit(decoder, jobs, "small", size=10) for _ in range(100)]
            await asyncio.gather(first, large, *stream)
        assert jobs.began.index("large") < 20

    asyncio.run(main())


def test_the_memory_of_running_jobs_is_limited() -> None:
    async def main() -> None:
        jobs = Jobs()
        async with decoding(threads=3, max_bytes=100) as decoder:
            tasks = [submit(decoder, jobs, name, size=size) for name, size in (("a", 60), ("b", 50), ("c", 50))]
            await until_began(jobs, 1)
            await asyncio.sleep(0.1)
            assert jobs.began == ["a"]
            jobs.release()
            await asyncio.gather(*tasks)
            assert sorted(jobs.began) == ["a", "b", "c"]

    asyncio.run(main())


def test_one_small_job_does_not_wait_while_only_large_ones_run() -> None:
    async def main() -> None:
        async with decoding(threads=2, max_bytes=10**9) as decoder:
            jobs = Jobs()
            tasks = [submit(decoder, jobs, f"large {index}", size=10**8) for index in range(3)]
            tasks += [submit(decoder, jobs, f"small {index}", size=10**6) for index in range(2)]
            await until_began(jobs, 3)
            await asyncio.sleep(0.05)
            assert jobs.began == ["large 0", "large 1", "small 0"]
            jobs.release()
            await asyncio.gather(*tasks)
            assert set(jobs.began[3:]) == {"large 2", "small 1"}

    asyncio.run(main())


def test_a_small_job_that_does_not_fit_waits() -> None:
    async def main() -> None:
        async with decoding(threads=2, max_bytes=1_005 * 10**5) as decoder:
            jobs = Jobs()
            tasks = [submit(decoder, jobs, name, size=size) for name, size in (("large", 10**8), ("small", 10**6))]
            await until_began(jobs, 1)
            await asyncio.sleep(0.05)
            assert jobs.began == ["large"]
            jobs.release()
            await asyncio.gather(*tasks)

    asyncio.run(main())


@pytest.mark.skipif(not AVAILABLE, reason="only Linux has the limits")
def test_an_image_that_takes_too_long_is_refused() -> None:
    """Half a minute for a kilobyte: each damaged line of a fax is reported."""
    height, data = 6_000_000, random.Random(3).randbytes(1000)
    tags: dict[int, int | tuple[int, int, int]] = {256: 8, 257: height, 258: 1, 259: 3, 262: 0, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data)}
    reasons = list[str]()

    async def main() -> None:
        decoder = Decoder(threads=1, max_bytes=10**9, max_pixels=50_000_000, timeout=0.5, on_crash=reasons.append)
        decoder.start()
        try:
            async with asyncio.timeout(20):
                with pytest.raises(UnreadableImage, match="too much time"):
                    await decoder.preprocess(tiff(tags, data), CARD.input, 1, Flow("a"))
            assert reasons == ["wall-time"]
            decoder.check_alive()
            # The limit is for one image: the next one may wait and be decoded.
            await asyncio.gather(*(decoder.preprocess(photo(), CARD.input, 1, Flow("a")) for _ in range(3)))
        finally:
            decoder.stop()

    asyncio.run(main())


def test_a_job_above_the_limit_runs_alone() -> None:
    async def main() -> None:
        jobs = Jobs()
        async with decoding(threads=2, max_bytes=100) as decoder:
            tasks = [submit(decoder, jobs, "huge", size=1000)]
            await until_began(jobs, 1)
            tasks.append(submit(decoder, jobs, "small", size=1))
            await asyncio.sleep(0.1)
            assert jobs.began == ["huge"]
            jobs.release()
            await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_cancelled_job_is_not_run() -> None:
    async def main() -> None:
        jobs = Jobs()
        async with decoding() as decoder:
            first = submit(decoder, jobs, "first", size=1)
            await until_began(jobs, 1)
            cancelled = submit(decoder, jobs, "cancelled", size=1)
            last = submit(decoder, jobs, "last", size=1)
            await asyncio.sleep(0)
            cancelled.cancel()
            first.cancel()
            await asyncio.sleep(0)
            jobs.release()
            await last
        assert jobs.began == ["first", "last"]

    asyncio.run(main())


def test_an_error_of_a_job_is_its_own() -> None:
    async def main() -> None:
        def fail() -> None:
            raise RuntimeError("damaged")

        async with decoding() as decoder:
            with pytest.raises(RuntimeError, match="damaged"):
                await decoder.run(fail, size=1, flow=Flow("a"))
            assert await decoder.run(lambda: "next", size=1, flow=Flow("a")) == "next"

    asyncio.run(main())


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
def test_the_memory_of_a_failed_job_does_not_wait_for_the_garbage_collector() -> None:
    class Pixels:
        pass

    held = list[weakref.ref[Pixels]]()

    def fail() -> None:
        pixels = Pixels()
        held.append(weakref.ref(pixels))
        raise RuntimeError("damaged")

    async def main() -> None:
        async with decoding() as decoder:
            with suppress(RuntimeError):
                await decoder.run(fail, size=1, flow=Flow("a"))
            await decoder.run(
                int, size=1, flow=Flow("a")
            )  # the thread has finished the first job when it runs this one

    asyncio.run(main())
    assert held[0]() is None


@pytest.mark.usefixtures("no_collections")
def test_the_file_of_a_cancelled_job_is_released_before_its_turn() -> None:
    class File:
        pass

    async def main() -> None:
        jobs = Jobs()
        async with decoding() as decoder:
            first = submit(decoder, jobs, "first", size=1)
            await until_began(jobs, 1)
            file = File()
            held = weakref.ref(file)
            cancelled = asyncio.create_task(decoder.run(partial(id, file), size=1, flow=Flow("a")))
            del file
            await asyncio.sleep(0)
            cancelled.cancel()
            with suppress(asyncio.CancelledError):
                await cancelled
            assert held() is None
            jobs.release()
            await first

    asyncio.run(main())


def test_jobs_that_wait_are_cancelled_at_the_stop() -> None:
    async def main() -> None:
        jobs = Jobs()
        async with decoding() as decoder:
            first = submit(decoder, jobs, "first", size=1)
            await until_began(jobs, 1)
            second = submit(decoder, jobs, "second", size=1)
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await second
        jobs.release()
        assert await first == "first"

    asyncio.run(main())


def test_models_take_turns_whatever_their_number_of_requests() -> None:
    async def main() -> None:
        jobs = Jobs()
        async with decoding() as decoder:
            tasks = [submit(decoder, jobs, f"flood {number}", size=10, flow=Flow("a")) for number in range(100)]
            await until_began(jobs, 1)
            tasks += [submit(decoder, jobs, name, size=10, flow=Flow("b")) for name in ("one", "another")]
            await asyncio.sleep(0)
            jobs.release()
            await asyncio.gather(*tasks)
        assert jobs.began.index("one") <= 2
        assert jobs.began.index("another") <= 4

    asyncio.run(main())


def test_a_large_job_gets_its_turn_in_a_stream_for_another_model() -> None:
    async def main() -> None:
        jobs = Jobs()
        async with decoding() as decoder:
            tasks = [submit(decoder, jobs, "small", size=10, flow=Flow("a")) for _ in range(100)]
            await until_began(jobs, 1)
            tasks.append(submit(decoder, jobs, "large", size=50, flow=Flow("b")))
            await asyncio.sleep(0)
            jobs.release()
            await asyncio.gather(*tasks)
        assert 3 < jobs.began.index("large") < 10

    asyncio.run(main())


@pytest.mark.skipif(not AVAILABLE, reason="no child processes on this system")
def test_an_image_is_decoded_again_if_the_template_was_killed() -> None:
    """For example by the kernel, when a machine has too little memory. It is not the fault of the image."""
    data = image_file(size=(3000, 2000), kind="WEBP")

    async def main() -> None:
        async with decoding(isolated=True, max_bytes=10**9, max_pixels=5 * 10**7) as decoder:
            decoding_one = asyncio.create_task(decoder.preprocess(data, CARD.input, 1, Flow("a")))
            await asyncio.sleep(0.05)
            assert decoder._children
            assert decoder._children._template
            decoder._children._template.kill()
            assert (await decoding_one).width == 3000

    asyncio.run(main())
