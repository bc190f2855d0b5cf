"""python -m benchmarks.soak: the service under 1.5 times its capacity for ten minutes."""

import asyncio
import contextlib
import json
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from benchmarks.soak.clients import ServiceError, measure_references
from benchmarks.soak.load import Mix, measure_capacity, overload, recovery_time
from benchmarks.soak.probes import Probes
from benchmarks.soak.report import Outcome, table
from benchmarks.soak.samples import bad_samples, get, good_samples
from benchmarks.soak.service import ServiceProcess
from benchmarks.soak.swaps import ADMIN_KEY, model_name, swap_regularly
from benchmarks.soak.tally import Tally
from benchmarks.soak.wire import NoResponse, Pool

_LOAD_TIMEOUT = 180.0
# Added to the deadline of the service. A request without a response by then is lost.
_EXTRA_TIMEOUT = 10.0
_RECOVERY_TIMEOUT = 60.0
_SWAP_INTERVAL = 20.0


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("weights/resnet18-cifar10"),
    minutes: Annotated[float, typer.Option(min=0.01, help="Duration of the load.")] = 10.0,
    factor: Annotated[float, typer.Option(min=0.1, help="Load as a multiple of the measured capacity.")] = 1.5,
    measure: Annotated[float, typer.Option(min=0.5, help="Seconds for which the capacity is measured.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Seed of the order of the requests.")] = 0,
    swap: Annotated[bool, typer.Option("--swap", help="Load the weights again every 20 seconds of the load.")] = False,
    log: Annotated[Path, typer.Option(help="File for the log of the service.")] = Path("runs/soak.log"),
) -> None:
    """Overload the service with clients of every kind. Print a table and a line of JSON; exit with 1 on a violation."""
    try:
        with ServiceProcess([weights], log, **({"admin_keys": ADMIN_KEY} if swap else {})) as service:
            # After the service has started, which keeps the default limit.
            _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                outcome = runner.run(
                    soak(service, seconds=minutes * 60, factor=factor, measure=measure, seed=seed, swap=swap)
                )
    except ServiceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    Console().print(table(outcome, weights.name))
    violations = outcome.violations()
    if violations:
        for line in (
            *service.error_messages(),
            f"log of the service: {log}",
            *(f"does not hold: {name}" for name in violations),
        ):
            typer.echo(line, err=True)
    typer.echo(json.dumps(outcome.summary()))
    raise typer.Exit(1 if violations else 0)


async def soak(
    service: ServiceProcess, *, seconds: float, factor: float, measure: float, seed: int, swap: bool
) -> Outcome:
    """Run all phases against a running service, and stop it.

    Raises:
        ServiceError: it does not become ready, or fails without load.
    """
    pool = Pool(service.port, service.settings.timeout + _EXTRA_TIMEOUT)
    await _wait_ready(service, pool)
    good = good_samples()
    bad = bad_samples(service.settings.max_body_bytes, service.settings.max_pixels)
    await measure_references(pool, bad)
    mix = Mix(good, bad, await measure_references(pool, good))

    tally, tally_without_load = Tally(), Tally()
    capacity = await measure_capacity(pool, mix, measure, tally_without_load)
    if not capacity:
        lost, statuses = dict(tally_without_load.lost), dict(tally_without_load.statuses)
        raise ServiceError(f"no request succeeded within {measure:g} s: lost {lost}, statuses {statuses}")
    before = service.memory()
    swaps: Counter[str] = Counter()
    swapping = (
        asyncio.create_task(swap_regularly(service.port, await model_name(pool), _SWAP_INTERVAL, swaps))
        if swap
        else None
    )
    with Probes(service.port) as probes:
        load = await overload(pool, mix, rate=factor * capacity, seconds=seconds, seed=seed, tally=tally)
    if swapping:
        swapping.cancel()
        await asyncio.wait([swapping])
    recovery = await recovery_time(
        pool, mix, capacity=capacity, since=load.ended, timeout=_RECOVERY_TIMEOUT, tally=tally_without_load
    )
    await asyncio.gather(*load.waiting)
    after = service.memory()
    pool.close()
    exit_code = await asyncio.to_thread(service.terminate)
    return Outcome(
        capacity=capacity,
        offered=factor * capacity,
        seconds=seconds,
        tally=tally,
        tally_without_load=tally_without_load,
        probe_latencies=probes.latencies,
        probes_failed=probes.failed,
        memory=(before[0], after[0], after[1]) if before and after else None,
        swaps=swaps if swap else None,
        recovery=recovery,
        exit_code=exit_code,
    )


async def _wait_ready(service: ServiceProcess, pool: Pool) -> None:
    ends = time.monotonic() + _LOAD_TIMEOUT
    while time.monotonic() < ends:
        if service.ended:
            raise ServiceError(f"the service exits before it is ready: see {service.log}")
        with contextlib.suppress(NoResponse):  # loading may delay the response on a busy machine
            if (await pool.send(get("/readyz"))).status == 200:
                return
        await asyncio.sleep(0.2)
    raise ServiceError(f"the service is not ready within {_LOAD_TIMEOUT:g} s: see {service.log}")


if __name__ == "__main__":
    typer.run(main)
