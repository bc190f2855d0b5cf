"""python -m deploy.rehearse: a rolling update of real service processes behind HAProxy, under load."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from app.cpus import available_cpus
from benchmarks.soak.clients import ServiceError
from benchmarks.soak.phases import Phase, load
from benchmarks.soak.proxy import Proxy
from benchmarks.soak.replicas import Replicas
from benchmarks.soak.samples import good_samples

_HEADER = f"{'':<24}{'requests':>10}{'lost':>6}{'p50':>10}{'p99':>10}"


async def rehearse(replicas: Replicas, proxy: Proxy, *, connections: int, seconds: float) -> tuple[Phase, Phase]:
    """Load the replicas through the proxy, first for some seconds without an update and then during one.

    Returns:
        The requests before and during the update.
    """
    requests = [sample.request for sample in good_samples()]
    async with load(proxy.port, connections, requests) as phases:
        await asyncio.sleep(seconds)
        phases.append(Phase())
        await asyncio.to_thread(replicas.update, proxy)
    before, during = phases
    return before, during


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("weights/resnet18-cifar10"),
    replicas: Annotated[int, typer.Option(min=1, help="Number of replicas.")] = 2,
    connections: Annotated[int, typer.Option(min=1, help="Connections of the load.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of load before the update.")] = 8.0,
    drain_delay: Annotated[float, typer.Option(min=0, help="TENFOLD_DRAIN_DELAY of the replicas.")] = 5.0,
    retries: Annotated[
        list[int] | None, typer.Option(min=0, help="How often the proxy tries again to connect; 0 and 3 by default.")
    ] = None,
    logs: Annotated[Path, typer.Option(help="Folder for the logs of the services.")] = Path("runs/rehearse"),
) -> None:
    """Replace the replicas one by one under load. Print a table; exit with 1 if a request was lost."""
    threads = max(1, available_cpus() // replicas)
    lost = Counter[str]()
    typer.echo(_HEADER)
    try:
        for attempts in retries or [0, 3]:
            group = Replicas(replicas, weights, logs, drain_delay=drain_delay, threads=threads)
            with group.started(), Proxy(group.ports, retries=attempts) as proxy:
                proxy.wait_checked(group.ports[:-1], group.ports[-1:])
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    before, during = runner.run(rehearse(group, proxy, connections=connections, seconds=seconds))
                retried = proxy.retries()
            typer.echo(before.row(f"{attempts} retries, before"))
            typer.echo(f"{during.row(f'{attempts} retries, update')}   connections tried again: {retried}")
            lost += before.lost + during.lost
    except ServiceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for reason, count in lost.most_common():
        typer.echo(f"lost: {count} with {reason}", err=True)
    raise typer.Exit(1 if lost else 0)


command = typer.Typer(add_completion=False)
command.command()(main)

if __name__ == "__main__":
    command()
