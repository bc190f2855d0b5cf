"""Well-behaved clients, slow clients, and clients that disconnect."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.soak.samples import Sample
from benchmarks.soak.tally import Tally, predictions_of
from benchmarks.soak.wire import NoResponse, Pool

_SLOW_BYTES = 3
_SLOW_INTERVAL = 0.7
# Statuses of a slow upload, in addition to those of an overloaded service.
_TOO_SLOW = frozenset({408})
_LONGEST_WAIT = 1.0

References = Mapping[Sample, Sequence[Any]]
"""Predictions for each good sample by a service that is otherwise idle."""


class ServiceError(Exception):
    """The service fails before there is any load."""


async def measure_references(pool: Pool, samples: Sequence[Sample]) -> dict[Sample, list[Any]]:
    """Send the samples one after the other to an idle service.

    Returns:
        The predictions for each sample that is classified.

    Raises:
        ServiceError: a response does not have the expected status.
    """
    references: dict[Sample, list[Any]] = {}
    for sample in samples:
        try:
            response = await pool.send(sample.request, keep=sample.complete)
        except NoResponse as error:
            raise ServiceError(f"{sample.kind}, without load: {error}") from error
        if response.status not in sample.statuses:
            body = response.body.decode(errors="replace")
            raise ServiceError(f"{sample.kind}, without load: {response.status} {body}")
        if sample.good:
            references[sample] = predictions_of(response)
    return references


async def send(pool: Pool, sample: Sample, references: References, tally: Tally) -> None:
    """Send a request like a well-behaved client, and count the outcome."""
    loop = asyncio.get_running_loop()
    tally.sent[sample.kind] += 1
    started = loop.time()
    try:
        response = await pool.send(sample.request, keep=sample.complete)
    except NoResponse as error:
        tally.lost[f"{sample.kind}: {error}"] += 1
        return
    tally.record(sample, response, loop.time() - started, references.get(sample))


async def upload_slowly(pool: Pool, sample: Sample, tally: Tally, until: asyncio.Event) -> None:
    """Repeatedly upload an image a few bytes at a time. Any outcome is accepted except a failure of the service."""
    while not until.is_set():
        tally.sent["slow upload"] += 1
        try:
            tally.misbehaving[f"slow upload: {await _upload_slowly_once(pool, sample, tally, until)}"] += 1
        except NoResponse as error:
            tally.misbehaving[f"slow upload: {error}"] += 1
        await asyncio.sleep(_SLOW_INTERVAL)  # an overloaded service rejects it at once


async def _upload_slowly_once(pool: Pool, sample: Sample, tally: Tally, until: asyncio.Event) -> str:
    connection = await pool.connect()
    try:
        head = sample.request.index(b"\r\n\r\n") + 4
        connection.write(sample.request[:head])
        reading = asyncio.ensure_future(connection.read_response())
        try:
            for start in range(head, len(sample.request), _SLOW_BYTES):
                connection.write(sample.request[start : start + _SLOW_BYTES])
                await asyncio.wait([reading], timeout=_SLOW_INTERVAL)
                if reading.done():
                    break
                if until.is_set():
                    return "stopped"
            async with asyncio.timeout(pool.timeout):
                response = await reading
        except TimeoutError:
            return "timeout"
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        tally.check_status("slow upload", response, sample.statuses | _TOO_SLOW)
        return str(response.status)
    finally:
        connection.close()


async def disconnect(pool: Pool, sample: Sample, tally: Tally, rng: random.Random) -> None:
    """Close or reset the connection during the upload, or while waiting for the response."""
    waits = rng.random() < 0.5
    kind = "disconnect while waiting" if waits else "disconnect while uploading"
    tally.sent[kind] += 1
    try:
        connection = await pool.connect()
    except NoResponse as error:
        tally.misbehaving[f"{kind}: {error}"] += 1
        return
    sent = len(sample.request) if waits else rng.randrange(1, len(sample.request))
    connection.write(sample.request[:sent])
    await asyncio.sleep(rng.random() ** 3 * _LONGEST_WAIT)
    if rng.random() < 0.5:
        connection.abort()
    else:
        connection.close()
    tally.misbehaving[f"{kind}: done"] += 1
