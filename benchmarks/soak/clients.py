"""The clients: well-behaved ones, slow ones, and those that hang up."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.soak.samples import Sample
from benchmarks.soak.tally import Tally, answer_of
from benchmarks.soak.wire import Lost, Pool

_SLOW_BYTES = 3
_SLOW_EVERY = 0.7
# A slow body may be given up with these, beside what an overloaded service says.
_TOO_SLOW = frozenset({408})
_PATIENCE_OF_THE_VANISHING = 1.0

Answers = Mapping[Sample, Sequence[Any]]


class ServiceError(Exception):
    """The service does not do what must work before it can be put under load."""


async def ask_alone(pool: Pool, samples: Sequence[Sample]) -> dict[Sample, list[Any]]:
    """The answer to each sample while the service has nothing else to do.

    Raises:
        ServiceError: one is not answered as it should be.
    """
    answers: dict[Sample, list[Any]] = {}
    for sample in samples:
        try:
            reply = await pool.exchange(sample.request, keep=sample.whole)
        except Lost as error:
            raise ServiceError(f"{sample.kind}, alone: {error}") from error
        if reply.status not in sample.statuses:
            raise ServiceError(f"{sample.kind}, alone: {reply.status} {reply.body.decode(errors='replace')}")
        if sample.good:
            answers[sample] = answer_of(reply)
    return answers


async def ask(pool: Pool, sample: Sample, answers: Answers, tally: Tally) -> None:
    """Send a request as a well-behaved client does, and count what comes back."""
    loop = asyncio.get_running_loop()
    tally.sent[sample.kind] += 1
    began = loop.time()
    try:
        reply = await pool.exchange(sample.request, keep=sample.whole)
    except Lost as error:
        tally.lost[f"{sample.kind}: {error}"] += 1
        return
    tally.record(sample, reply, loop.time() - began, answers.get(sample))


async def upload_slowly(pool: Pool, sample: Sample, tally: Tally, until: asyncio.Event) -> None:
    """Send a picture a few bytes at a time, again and again; whatever ends it is fine but a failure of the service."""
    while not until.is_set():
        tally.sent["slow upload"] += 1
        try:
            tally.ill[f"slow upload: {await _one_slow_upload(pool, sample, tally, until)}"] += 1
        except Lost as error:
            tally.ill[f"slow upload: {error}"] += 1
            await asyncio.sleep(_SLOW_EVERY)


async def _one_slow_upload(pool: Pool, sample: Sample, tally: Tally, until: asyncio.Event) -> str:
    connection = await pool.connect()
    try:
        head = sample.request.index(b"\r\n\r\n") + 4
        connection.writer.write(sample.request[:head])
        answer = asyncio.ensure_future(connection.reply())
        try:
            for start in range(head, len(sample.request), _SLOW_BYTES):
                connection.writer.write(sample.request[start : start + _SLOW_BYTES])
                await asyncio.wait([answer], timeout=_SLOW_EVERY)
                if answer.done():
                    break
                if until.is_set():
                    return "stopped"
            async with asyncio.timeout(pool.timeout):
                reply = await answer
        except TimeoutError:
            return "no answer in time"
        finally:
            answer.cancel()
            await asyncio.wait([answer])
        tally.judge("slow upload", reply, sample.statuses | _TOO_SLOW)
        return str(reply.status)
    finally:
        connection.close()


async def vanish(pool: Pool, sample: Sample, tally: Tally, rng: random.Random) -> None:
    """Hang up without an answer: in the middle of the upload, or while waiting; politely, or with a reset."""
    waits = rng.random() < 0.5
    kind = "vanished waiting" if waits else "vanished uploading"
    tally.sent[kind] += 1
    try:
        connection = await pool.connect()
    except Lost as error:
        tally.ill[f"{kind}: {error}"] += 1
        return
    sent = len(sample.request) if waits else rng.randrange(1, len(sample.request))
    connection.writer.write(sample.request[:sent])
    await asyncio.sleep(rng.random() ** 3 * _PATIENCE_OF_THE_VANISHING)
    if rng.random() < 0.5:
        connection.abort()
    else:
        connection.close()
    tally.ill[f"{kind}: gone"] += 1
