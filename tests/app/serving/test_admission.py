import asyncio
import contextlib

import pytest

from app.engine.errors import TooManyUploads
from app.serving.admission import Limits


def limits_of(*models: str, max_uploads: int = 10) -> Limits:
    return Limits(models, max_uploads=max_uploads, max_held_bytes=1000)


def test_room_is_released_after_an_error_and_a_cancellation() -> None:
    async def main() -> None:
        limits = limits_of("a")
        with pytest.raises(RuntimeError), limits.upload("a"):
            raise RuntimeError

        async def hold() -> None:
            with limits.upload("a"):
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        await asyncio.sleep(0)
        assert limits.uploads.used == {"a": 1}
        task.cancel()
        await asyncio.wait([task])
        assert limits.uploads.used == {"a": 0}

    asyncio.run(main())


def test_uploads_are_limited() -> None:
    limits = limits_of("a", max_uploads=2)
    with limits.upload("a"), limits.upload("a"):
        with pytest.raises(TooManyUploads), limits.upload("a"):
            pass
        assert limits.uploads.used == {"a": 2}
    assert limits.uploads.used == {"a": 0}


def test_bytes_of_bodies_are_limited_and_released() -> None:
    limits = limits_of("a")
    limits.hold_bytes("a", 600)
    limits.hold_bytes("a", 400)
    with pytest.raises(TooManyUploads):
        limits.hold_bytes("a", 1)
    limits.hold_bytes("a", -1001)
    limits.hold_bytes("a", 1000)


def test_a_flood_for_one_model_leaves_the_others_their_shares() -> None:
    limits = limits_of("a", "b", max_uploads=40)
    with contextlib.ExitStack() as stack:
        for _ in range(30):  # a quarter is the other model's share
            stack.enter_context(limits.upload("a"))
        with pytest.raises(TooManyUploads, match="30 uploads for a"), limits.upload("a"):
            pass
        with limits.upload("b"):
            assert limits.uploads.used == {"a": 30, "b": 1}
    limits.hold_bytes("a", 750)
    with pytest.raises(TooManyUploads):
        limits.hold_bytes("a", 1)
    limits.hold_bytes("b", 249)


def test_bytes_of_a_request_for_no_model_have_no_share() -> None:
    limits = limits_of("a")
    limits.hold_bytes("", 500)
    with pytest.raises(TooManyUploads):
        limits.hold_bytes("", 1)
