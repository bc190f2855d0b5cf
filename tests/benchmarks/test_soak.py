"""The clients against misbehaving servers, the counts, and a short soak of the real service."""

import asyncio
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak.clients import ServiceError, disconnect, measure_references, send, upload_slowly
from benchmarks.soak.report import Outcome
from benchmarks.soak.samples import Sample, bad_samples, good_samples
from benchmarks.soak.tally import Tally, equivalent, percentile
from benchmarks.soak.wire import NoResponse, Pool, Response
from tests.app.running import ROOT

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CAT = {"cat": 0.7, "dog": 0.3}
GOOD = Sample("image", b"POST /predict HTTP/1.1\r\nContent-Length: 60\r\n\r\n" + bytes(60), frozenset({200}))
BAD = Sample("text", b"POST /predict HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", frozenset({415}))


def body_of(*images: dict[str, float] | str) -> bytes:
    results: list[dict[str, Any]] = [
        {"problem": {"type": each}}
        if isinstance(each, str)
        else {"top_k": [{"label": label, "probability": value} for label, value in each.items()]}
        for each in images
    ]
    return json.dumps({"results": results}).encode()


def encode(status: int, body: bytes = b"", **headers: str) -> bytes:
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def responding(data: bytes) -> Handler:
    """A server that responds to every request with the same bytes and closes the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()

    return handle


def run_against(handle: Handler, client: Callable[[Pool], Awaitable[None]], *, timeout: float = 10.0) -> None:
    """Run clients against a server with this handler."""

    async def handle_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(handle_and_close, "127.0.0.1", 0)
        pool = Pool(server.sockets[0].getsockname()[1], timeout)
        async with server:
            await client(pool)
            pool.close()

    asyncio.run(run())


def count_one(handle: Handler, sample: Sample = GOOD, *, timeout: float = 10.0) -> Tally:
    """The counts for one request, whose reference prediction is CAT."""
    tally = Tally()
    run_against(handle, lambda pool: send(pool, sample, {GOOD: [CAT]}, tally), timeout=timeout)
    assert sum(tally.sent.values()) == 1
    return tally


async def _reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize(
    ("handle", "reasons"),
    [
        (_reset, {"image: ConnectionResetError", "image: no response"}),
        (responding(b""), {"image: no response"}),
        (responding(encode(200, b"whole")[:-2]), {"image: incomplete response"}),
        (responding(b"HTTP/1.1 200 OK\r\nConte"), {"image: incomplete response"}),
        (responding(b"nonsense\r\n\r\n"), {"image: not HTTP"}),
        (responding(b"HTTP/1.1 ok\r\nContent-Length: 0\r\n\r\n"), {"image: not HTTP"}),
        (_silent, {"image: timeout"}),
    ],
    ids=["reset", "empty", "half a body", "half a head", "no HTTP", "no status", "silence"],
)
def test_a_request_without_a_response_is_lost(handle: Handler, reasons: set[str]) -> None:
    tally = count_one(handle, timeout=0.5)
    assert set(tally.lost) <= reasons
    assert sum(tally.lost.values()) == 1
    assert not tally.statuses


def test_a_connection_that_is_not_accepted_is_lost() -> None:
    async def client(pool: Pool) -> None:
        with pytest.raises(NoResponse, match="cannot connect"):
            await Pool(1, 5.0).send(b"")

    run_against(_silent, client)


def test_a_correct_prediction_is_counted() -> None:
    tally = count_one(responding(encode(200, body_of(CAT))))
    assert (tally.statuses[200], len(tally.latencies)) == (1, 1)
    assert not tally.lost + tally.wrong + tally.unexpected


@pytest.mark.parametrize(
    "body",
    [
        body_of({"dog": 0.7, "cat": 0.3}),
        body_of(),
        body_of(CAT, CAT),
        body_of("urn:tenfold:unreadable-picture"),
        b"[]",
        b"?",
    ],
    ids=["another class", "none", "too many", "a problem", "not an object", "not JSON"],
)
def test_another_prediction_than_the_reference_is_wrong(body: bytes) -> None:
    assert count_one(responding(encode(200, body))).wrong == {"image": 1}


@pytest.mark.parametrize(("status", "expected"), [(500, False), (400, False), (200, False), (415, True), (504, True)])
def test_a_status_that_does_not_fit_the_request_is_unexpected(status: int, expected: bool) -> None:
    tally = count_one(responding(encode(status, b"{}")), BAD)
    assert tally.unexpected == ({} if expected else {f"text: {status}": 1})
    assert tally.statuses == {status: 1}


@pytest.mark.parametrize(("headers", "missing"), [({}, 1), ({"Retry_After": "soon"}, 1), ({"Retry_After": "2"}, 0)])
def test_503_must_have_retry_after(headers: dict[str, str], missing: int) -> None:
    tally = count_one(responding(encode(503, b"", **headers)))
    assert tally.without_retry_after == missing
    assert not tally.unexpected


def test_predictions_are_equivalent_within_the_tolerance() -> None:
    assert equivalent([CAT], [{"cat": 0.685, "dog": 0.315}])
    assert not equivalent([CAT], [{"cat": 0.67, "dog": 0.33}])
    assert not equivalent([CAT], [{"cat": 0.7, "frog": 0.3}])
    assert equivalent(["urn:a"], ["urn:a"])
    assert not equivalent(["urn:a"], ["urn:b"])
    tie = {"cat": 0.505, "dog": 0.495}
    assert equivalent([tie], [{"dog": 0.501, "cat": 0.499}]), "equal within the tolerance"
    assert not equivalent([CAT], [dict(reversed(CAT.items()))]), "the same probabilities in another order"


def test_percentiles() -> None:
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([7.0], 99) == 7.0
    assert math.isnan(percentile([], 50))


def test_connections_are_reused() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(60)
            writer.write(encode(200, body_of(CAT)))

    async def client(pool: Pool) -> None:
        for _ in range(3):
            await pool.send(GOOD.request)
        assert connections == 1
        await pool.send(GOOD.request, keep=False)
        await pool.send(GOOD.request)
        assert connections == 2

    run_against(handle, client)


def test_a_slow_upload_sends_a_few_bytes_at_a_time_until_it_is_rejected() -> None:
    pieces: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        pieces.extend([await reader.read(1000), await reader.read(1000)])
        writer.write(encode(500 if len(pieces) > 2 else 408))

    async def client(pool: Pool) -> None:
        until = asyncio.Event()
        task = asyncio.ensure_future(upload_slowly(pool, GOOD, tally, until))
        while len(pieces) < 4:
            await asyncio.sleep(0.05)
        until.set()
        await task

    tally = Tally()
    run_against(handle, client)
    assert {len(piece) for piece in pieces} == {3}
    assert tally.misbehaving["slow upload: 408"] == 1
    assert tally.unexpected == {"slow upload: 500": 1}
    assert not tally.lost


def test_disconnecting_clients() -> None:
    received: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        try:
            while data := await reader.read(1000):
                count += len(data)
        finally:
            received.append(count)

    async def client(pool: Pool) -> None:
        await asyncio.gather(*(disconnect(pool, GOOD, tally, random.Random(seed)) for seed in range(12)))
        while len(received) < 12:
            await asyncio.sleep(0.05)

    tally = Tally()
    run_against(handle, client)
    assert set(tally.sent) == {"disconnect while waiting", "disconnect while uploading"}
    assert tally.misbehaving == {f"{kind}: done": count for kind, count in tally.sent.items()}
    assert max(received) == len(GOOD.request)
    assert min(received) < len(GOOD.request)


def test_a_service_that_fails_without_load_is_an_error() -> None:
    async def client(pool: Pool) -> None:
        with pytest.raises(ServiceError, match="image, without load: 401 key"):
            await measure_references(pool, [GOOD])

    run_against(responding(encode(401, b"key")), client)


def test_samples_of_every_kind_exist() -> None:
    good, bad = good_samples(), bad_samples(1000, 100)
    assert {sample.kind for sample in good} == {"png", "raw bytes", "photo", "several", "several, one damaged"}
    assert all(sample.good for sample in good)
    assert len({sample.request for sample in good}) == len(good), (
        "with duplicates a response to the other request would be accepted"
    )
    assert not [sample for sample in bad if sample.good]
    assert {status for sample in bad for status in sample.statuses} == {400, 413, 415, 422}
    assert [sample.kind for sample in bad if not sample.complete] == ["too large"]


def good_outcome() -> Outcome:
    tally = Tally()
    tally.record(GOOD, Response(200, {}, body_of(CAT)), 0.1, [CAT])
    return Outcome(
        capacity=10.0,
        offered=15.0,
        seconds=1.0,
        tally=tally,
        tally_without_load=Tally(),
        probe_latencies=[0.01] * 100,
        probes_failed={},
        memory=None,
        swaps=None,
        recovery=0.0,
        exit_code=0,
    )


def tally_with(**counts: Any) -> Tally:
    tally = Tally(**counts)
    tally.statuses[200] = 1
    return tally


@pytest.mark.parametrize(
    ("changes", "violations"),
    [
        ({}, []),
        ({"tally": Tally()}, ["some requests succeed"]),
        ({"tally_without_load": tally_with(lost=Counter(a=1))}, ["no request is lost"]),
        ({"tally": tally_with(wrong=Counter(a=1))}, ["no prediction is wrong"]),
        ({"tally": tally_with(unexpected=Counter(a=1))}, ["every status is expected"]),
        ({"tally_without_load": tally_with(without_retry_after=1)}, ["every 503 has Retry-After"]),
        ({"probes_failed": {"/livez: 503": 1}}, ["every probe has status 200"]),
        ({"probe_latencies": [0.01] * 98 + [0.2] * 2}, ["p99 of probes is below 100 ms"]),
        ({"probe_latencies": []}, ["p99 of probes is below 100 ms"]),
        ({"swaps": {"200": 3}}, []),
        ({"swaps": {"200": 3, "422": 1}}, ["every swap succeeds"]),
        ({"swaps": {}}, ["every swap succeeds"]),
        ({"recovery": None}, ["the service recovers"]),
        ({"exit_code": -9}, ["the service exits with 0"]),
        ({"exit_code": None}, ["the service exits with 0"]),
    ],
)
def test_requirements(changes: dict[str, Any], violations: list[str]) -> None:
    outcome = replace(good_outcome(), **changes)
    assert outcome.violations() == violations
    assert json.loads(json.dumps(outcome.summary(), allow_nan=False))["violations"] == violations


@pytest.mark.slow
def test_a_short_soak_of_the_real_service(int8_bundle: Path, tmp_path: Path) -> None:
    settings = {"TENFOLD_DEVICE": "cpu", "TENFOLD_THREADS": "1", "TENFOLD_DRAIN_DELAY": "0", "TENFOLD_QUEUE_SIZE": "64"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENFOLD_")}
    flags = ["--weights", str(int8_bundle), "--minutes", "0.05", "--measure", "1", "--log", str(tmp_path / "log")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *flags],
        cwd=ROOT,
        env={**kept, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    # These depend on time, and may not hold on a busy machine.
    timely = {"p99 of probes is below 100 ms", "the service recovers", "no request is lost"}
    assert all(reason.endswith("timeout") for reason in summary["lost"]), summary["lost"]
    assert set(summary["violations"]) <= timely, done.stdout + done.stderr
    assert done.returncode == (1 if summary["violations"] else 0)
    assert summary["statuses"]["200"] > 0
    assert {"png", "slow upload"} <= summary["sent"].keys()
    assert summary["exit_code"] == 0
    assert summary["memory_peak"] is None or 50 < summary["memory_before"] <= summary["memory_peak"]
    assert "status 200" in done.stdout
