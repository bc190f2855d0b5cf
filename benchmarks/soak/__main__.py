"""The soak: python -m benchmarks.soak, the real service at one and a half times what it can do, for ten minutes."""

import asyncio
import contextlib
import json
import resource
import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from benchmarks.soak.clients import ServiceError, ask_alone
from benchmarks.soak.load import Mix, measure_capacity, overload, recovery
from benchmarks.soak.probes import Probes
from benchmarks.soak.report import Outcome, table
from benchmarks.soak.samples import bad_samples, get, good_samples
from benchmarks.soak.service import ServiceProcess
from benchmarks.soak.tally import Tally
from benchmarks.soak.wire import Lost, Pool

_LOADING = 180.0
# Beyond the service's own deadline: what is slower than that is lost.
_PATIENCE = 10.0
_RECOVERY = 60.0


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("weights/resnet18-cifar10"),
    minutes: Annotated[float, typer.Option(min=0.01, help="Of load.")] = 10.0,
    factor: Annotated[float, typer.Option(min=0.1, help="Of the measured capacity.")] = 1.5,
    measure: Annotated[float, typer.Option(min=0.5, help="Seconds that capacity is measured for.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Of the order of the requests.")] = 0,
    log: Annotated[Path, typer.Option(help="File for the service's log.")] = Path("runs/soak.log"),
) -> None:
    """Overload the service with clients of every kind: a table, then a line of JSON; 1 if something did not hold."""
    try:
        with ServiceProcess(weights, log) as service:
            # Only the client's: the service has the limit that it is born with.
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                outcome = runner.run(soak(service, seconds=minutes * 60, factor=factor, measure=measure, seed=seed))
    except ServiceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    Console().print(table(outcome, weights.name))
    broken = outcome.broken()
    if broken:
        for line in (
            *service.error_messages(),
            f"the service's log: {log}",
            *(f"does not hold: {name}" for name in broken),
        ):
            typer.echo(line, err=True)
    typer.echo(json.dumps(outcome.summary()))
    raise typer.Exit(1 if broken else 0)


async def soak(service: ServiceProcess, *, seconds: float, factor: float, measure: float, seed: int) -> Outcome:
    """Run all phases against a service that has been started, and end it.

    Raises:
        ServiceError: it does not become ready, or does not answer while it has nothing else to do.
    """
    pool = Pool(service.port, service.settings.timeout + _PATIENCE)
    await _wait_ready(service, pool)
    good = good_samples()
    bad = bad_samples(service.settings.max_body_bytes, service.settings.max_pixels)
    await ask_alone(pool, bad)
    mix = Mix(good, bad, await ask_alone(pool, good))

    tally, aside = Tally(), Tally()
    capacity = await measure_capacity(pool, mix, measure, aside)
    if not capacity:
        raise ServiceError(f"it answered nothing in {measure:g} s: lost {dict(aside.lost)}, {dict(aside.statuses)}")
    before = service.memory()
    with Probes(service.port) as probes:
        load = await overload(pool, mix, rate=factor * capacity, seconds=seconds, seed=seed, tally=tally)
    back = await recovery(pool, mix, full=capacity, since=load.ended, patience=_RECOVERY, tally=aside)
    await asyncio.gather(*load.waiting)
    after = service.memory()
    pool.close()
    exit_code = await asyncio.to_thread(service.terminate)
    return Outcome(
        capacity=capacity,
        offered=factor * capacity,
        seconds=seconds,
        tally=tally,
        aside=aside,
        probe_seconds=probes.seconds,
        probes_failed=probes.failed,
        memory=(before[0], after[0], after[1]) if before and after else None,
        recovery=back,
        exit_code=exit_code,
    )


async def _wait_ready(service: ServiceProcess, pool: Pool) -> None:
    ends = time.monotonic() + _LOADING
    while time.monotonic() < ends:
        if service.ended:
            raise ServiceError(f"it ends before it is ready: see {service.log}")
        with contextlib.suppress(Lost):  # a busy machine loads for long, and its answers take as long
            if (await pool.exchange(get("/readyz"))).status == 200:
                return
        await asyncio.sleep(0.2)
    raise ServiceError(f"it is not ready within {_LOADING:g} s: see {service.log}")


if __name__ == "__main__":
    typer.run(main)
