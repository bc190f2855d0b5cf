"""Small and large images at the same time: do requests with small images wait for large ones?"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving.payloads import Body, Payload
from benchmarks.serving.servers import RunningServer, ServerError
from benchmarks.serving.wrk import Load, drive

SMALL_CONNECTIONS, LARGE_CONNECTIONS = 4, 8

# Seconds of the large images before and after the measurement with both.
_MARGIN = 1


@dataclass(slots=True)
class MixedResults:
    """The measurements, one per round.

    Attributes:
        small_alone: small images, without large ones.
        large_alone: large images, without small ones.
        small: small images, while large ones are sent.
        large: large images, while small ones are sent.
    """

    small_alone: list[Load] = field(default_factory=list)
    large_alone: list[Load] = field(default_factory=list)
    small: list[Load] = field(default_factory=list)
    large: list[Load] = field(default_factory=list)


def measure_mixed(
    running: RunningServer, small: Payload, large: Sequence[Payload], folder: Path, *, rounds: int, seconds: int
) -> MixedResults:
    """Measure small and large images, each kind alone and then both at the same time.

    Args:
        running: a server, resumed.
        small: sent on 4 connections.
        large: sent in rotation on 8 connections.
        folder: for the bodies.
        rounds: number of rounds.
        seconds: duration of each measurement.

    Raises:
        ServerError: a measurement fails.
    """
    probe = small.bodies("multipart")[0]
    small_type, small_files = probe.content_type, _write(small.bodies("multipart"), folder / "mixed-small")
    large_bodies = [body for payload in large for body in payload.bodies("multipart")]
    large_type, large_files = large_bodies[0].content_type, _write(large_bodies, folder / "mixed-large")

    def send_small() -> Load:
        return drive(running.url, small_type, small_files, connections=SMALL_CONNECTIONS, seconds=seconds)

    def send_large(seconds: int) -> Load:
        return drive(running.url, large_type, large_files, connections=LARGE_CONNECTIONS, seconds=seconds)

    results = MixedResults()
    for _ in range(rounds):
        results.small_alone.append(send_small())
        results.large_alone.append(send_large(seconds + 2 * _MARGIN))
        running.wait_idle(probe)
        at_once: list[Load] = []
        thread = threading.Thread(target=lambda sent=at_once: sent.append(send_large(seconds + 2 * _MARGIN)))
        thread.start()
        thread.join(_MARGIN)
        results.small.append(send_small())
        thread.join()
        if not at_once:
            raise ServerError("the large images could not be sent: see the messages above")
        results.large += at_once
        running.wait_idle(probe)
    return results


def _write(bodies: Sequence[Body], folder: Path) -> list[Path]:
    """Write the bodies for wrk."""
    folder.mkdir(exist_ok=True)
    paths = [folder / str(number) for number in range(len(bodies))]
    for path, body in zip(paths, bodies, strict=True):
        path.write_bytes(body.data)
    return paths
