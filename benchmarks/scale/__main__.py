"""python -m benchmarks.scale: the speed of one core, a simulation of replicas, and its check against real ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.scale.chart import draw
from benchmarks.scale.measure import CONNECTIONS, measure_core, measure_replicas
from benchmarks.scale.simulation import Bursts, Cost, Outcome, simulate
from benchmarks.soak.clients import ServiceError
from model import ModelError

command = typer.Typer(add_completion=False, help="How many replicas a load needs. See docs/scale.md.")

Weights = Annotated[Path, typer.Option(help="Folder of the bundle.")]
Logs = Annotated[Path, typer.Option(help="Folder for the logs of the services.")]
Limit = Annotated[float, typer.Option(min=0.01, help="Seconds from the arrival of a request to its deadline.")]
Seed = Annotated[int, typer.Option(help="Seed of the arrivals.")]

_WEIGHTS, _LOGS = Path("weights/resnet18-cifar10"), Path("runs/scale")
# Of the capacity: between bursts, and so 150 % in a burst.
_LOAD = 0.5


def _row(name: str, outcome: Outcome) -> str:
    return (
        f"{name:<28}{outcome.requests:>10}{outcome.p50:>7.0f} ms{outcome.p99:>7.0f} ms"
        f"{outcome.refused / outcome.requests:>9.1%}{outcome.late / outcome.requests:>8.1%}"
    )


_HEADER = f"{'':<28}{'requests':>10}{'p50':>10}{'p99':>10}{'refused':>9}{'late':>8}"


@command.command()
def core(
    weights: Weights = _WEIGHTS,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of each measurement.")] = 6.0,
    logs: Logs = _LOGS,
) -> None:
    """Measure images per second of CPU time: the service, decoding alone, and the engine alone."""
    try:
        measured = measure_core(weights, logs, seconds)
    except (ModelError, ServiceError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{'':<8}{'bytes':>12}{'service':>10}{'decode':>10}{'engine':>10}{'Mbit/s':>10}")
    for name, each in measured.items():
        megabits = each.service * each.size * 8 / 1e6
        typer.echo(
            f"{name:<8}{each.size:>12,.0f}{each.service:>8.1f}/s{each.decode:>8.0f}/s{each.engine:>8.0f}/s{megabits:>10.1f}"
        )


@command.command("simulate")
def simulate_replicas(
    rate: Annotated[float, typer.Option(min=0.1, help="Requests per second between bursts.")] = 600.0,
    latency: Annotated[float, typer.Option(min=0.01, help="Milliseconds of a request that is alone.")] = 6.0,
    capacity: Annotated[float, typer.Option(min=0.1, help="Images per second of one replica.")] = 236.0,
    refusal: Annotated[float, typer.Option(min=0, help="Milliseconds of a refused request.")] = 1.0,
    replicas: Annotated[int, typer.Option(min=1, help="Largest number of replicas.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, help="Simulated duration.")] = 30.0,
    limit: Limit = 1.0,
    seed: Seed = 0,
    chart: Annotated[Path | None, typer.Option(help="File for a chart.")] = None,
) -> None:
    """Simulate 1 and more replicas under a load with bursts of three times its rate."""
    cost = Cost.of(latency=latency / 1000, rate=capacity, images=CONNECTIONS, refusal=refusal / 1000)
    arrivals = Bursts(rate).arrivals(seconds, seed)
    outcomes = []
    typer.echo(_HEADER)
    for count in range(1, replicas + 1):
        outcomes.append(simulate(arrivals, replicas=count, cost=cost, limit=limit))
        typer.echo(_row(f"{count} replicas", outcomes[-1]))
    if chart:
        draw(outcomes, chart)


@command.command()
def check(
    replicas: Annotated[list[int] | None, typer.Option(min=1, help="Numbers of replicas; 1 and 2 by default.")] = None,
    weights: Weights = _WEIGHTS,
    seconds: Annotated[float, typer.Option(min=0.5, help="Duration of the measurement with bursts.")] = 30.0,
    calibration: Annotated[float, typer.Option(min=0.1, help="Duration of each calibration.")] = 5.0,
    limit: Limit = 1.0,
    seed: Seed = 0,
    logs: Logs = _LOGS,
) -> None:
    """Compare the simulation with real replicas, each on one CPU: the same requests at the same times."""

    def arrivals_of(capacity: float) -> Sequence[float]:
        return Bursts(_LOAD * capacity).arrivals(seconds, seed)

    summaries = []
    typer.echo(_HEADER)
    try:
        for count in replicas or [1, 2]:
            cost, arrivals, real = measure_replicas(
                count, weights, logs, arrivals_of=arrivals_of, limit=limit, seconds=calibration
            )
            simulated = simulate(arrivals, replicas=count, cost=cost, limit=limit)
            typer.echo(_row(f"{count} replicas, measured", real))
            typer.echo(_row(f"{count} replicas, simulated", simulated))
            summaries.append(
                {
                    "replicas": count,
                    "fixed_ms": round(cost.fixed * 1000, 2),
                    "per_image_ms": round(cost.per_image * 1000, 2),
                    "refusal_ms": round(cost.refusal * 1000, 2),
                    "rate": round(len(arrivals) / seconds, 1),
                }
            )
    except ServiceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for summary in summaries:
        typer.echo(json.dumps(summary))


if __name__ == "__main__":
    command()
