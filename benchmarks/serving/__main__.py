"""The comparison: python -m benchmarks.serving, Tenfold beside other servers of the same network."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.serving.agreement import expected, reference_pictures
from benchmarks.serving.chart import draw
from benchmarks.serving.payloads import large_jpeg, small_pngs
from benchmarks.serving.report import summary, table
from benchmarks.serving.rounds import Contest, cases_of
from benchmarks.serving.servers import SERVERS, Server, ServerError
from benchmarks.serving.wrk import find_wrk
from model import ModelError

_OPEN_LOOP_SECONDS = 6.0
# Of a terminal or a file that is narrower, the lines are to be broken by it, not the figures by us.
_TABLE_WIDTH = 130


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("weights/resnet18-cifar10"),
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 3,
    seconds: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 3,
    only: Annotated[str, typer.Option(help="Names of servers, with commas between them. Else all.")] = "",
    connections: Annotated[str, typer.Option(help="At a time, with commas between them.")] = "1,32,128",
    pictures: Annotated[int, typer.Option(min=1, help="That a server must answer rightly first.")] = 100,
    data: Annotated[Path, typer.Option(help="Folder of CIFAR-10; without it pictures are drawn.")] = Path("data"),
    open_loop: Annotated[bool, typer.Option(help="Send Tenfold multiples of what it can answer.")] = True,
    deadline: Annotated[float, typer.Option(min=0.01, help="Seconds to an answer, in the open loop.")] = 1.0,
    logs: Annotated[Path, typer.Option(help="Folder for the servers' logs.")] = Path("runs/bench"),
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
    chart: Annotated[Path | None, typer.Option(help="File for a chart, such as bench.png.")] = None,
) -> None:
    """Compare servers of the same weights: a table, and all figures as JSON; 1 if a server failed."""
    servers = _chosen(only)
    counts = _counts(connections)
    console = Console(width=max(Console().width, _TABLE_WIDTH))
    try:
        find_wrk()
        logs.mkdir(parents=True, exist_ok=True)
        payloads = [small_pngs(), large_jpeg()]
        right = expected(weights, reference_pictures(data, pictures), payloads[1])
        with (
            tempfile.TemporaryDirectory(prefix="tenfold-bench-") as bodies,
            Contest(weights, right, payloads, bodies=Path(bodies), logs=logs, say=console.log) as contest,
        ):
            for server in servers:
                contest.enter(server)
            tenfold = next((server for server in servers if server.name == "tenfold"), None)
            contest.run(cases_of(payloads, counts), rounds=rounds, seconds=seconds, ceiling=tenfold is not None)
            if open_loop and tenfold:
                contest.run_open_loop(tenfold, payloads[0], seconds=_OPEN_LOOP_SECONDS, deadline=deadline)
        console.print(table(contest.results))
        if json_file:
            told = summary(contest.results, weights=weights, rounds=rounds, seconds=seconds, failures=contest.failures)
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        if chart and contest.results.loads:
            draw(contest.results, chart)
    except (ServerError, ModelError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for failure in contest.failures:
        typer.echo(f"error: {failure}", err=True)
    raise typer.Exit(1 if contest.failures else 0)


def _chosen(names: str) -> list[Server]:
    known = {server.name: server for server in SERVERS}
    chosen = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(f"there is no {', '.join(unknown)}: choose of {', '.join(known)}")
    return [server for server in SERVERS if server.name in chosen]


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text} is no list of numbers: try 1,32") from error
    if min(counts) < 1:
        raise typer.BadParameter("there must be a connection at least")
    return sorted(set(counts))


if __name__ == "__main__":
    typer.run(main)
