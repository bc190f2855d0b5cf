"""python -m benchmarks.serving: comparison of Tenfold with other servers of the same network."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.serving.agreement import compute_reference, reference_images
from benchmarks.serving.chart import draw
from benchmarks.serving.payloads import LARGEST_PHOTO_SIZE, large_jpeg, small_pngs
from benchmarks.serving.report import summary, table
from benchmarks.serving.rounds import Comparison, cases_of
from benchmarks.serving.servers import SERVERS, Server, ServerError
from benchmarks.serving.wrk import find_wrk
from model import ModelError

_OPEN_LOOP_SECONDS = 6.0
# Long enough for the p99 of small images and the rate of large ones.
_MIXED_SECONDS = 10
# Narrower terminals wrap whole lines, which keeps the numbers readable.
_TABLE_WIDTH = 130


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("weights/resnet18-cifar10"),
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 3,
    seconds: Annotated[int, typer.Option(min=1, help="Duration of each measurement.")] = 3,
    only: Annotated[str, typer.Option(help="Comma-separated names of servers, all by default.")] = "",
    connections: Annotated[str, typer.Option(help="Comma-separated numbers of connections.")] = "1,32,128",
    images: Annotated[int, typer.Option(min=1, help="Images on which a server must agree first.")] = 100,
    data: Annotated[Path, typer.Option(help="Folder of CIFAR-10. Without it, images are generated.")] = Path("data"),
    open_loop: Annotated[bool, typer.Option(help="Send multiples of its capacity to Tenfold.")] = True,
    tensors: Annotated[bool, typer.Option(help="Send tensors by the Open Inference Protocol to Tenfold.")] = True,
    mixed: Annotated[bool, typer.Option(help="Send small and large images at the same time.")] = True,
    deadline: Annotated[float, typer.Option(min=0.01, help="Deadline in the open loop, in seconds.")] = 1.0,
    logs: Annotated[Path, typer.Option(help="Folder for the logs of the servers.")] = Path("runs/bench"),
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all results.")] = None,
    chart: Annotated[Path | None, typer.Option(help="File for a chart, such as bench.png.")] = None,
) -> None:
    """Compare servers of the same weights. Exit with 1 if a server failed."""
    servers = _parse_servers(only)
    counts = _parse_counts(connections)
    console = Console(width=max(Console().width, _TABLE_WIDTH))
    try:
        find_wrk()
        logs.mkdir(parents=True, exist_ok=True)
        payloads = [small_pngs(), large_jpeg()]
        reference = compute_reference(weights, reference_images(data, images), payloads[1])
        with (
            tempfile.TemporaryDirectory(prefix="tenfold-bench-") as bodies,
            Comparison(weights, reference, payloads, bodies=Path(bodies), logs=logs, notify=console.log) as comparison,
        ):
            for server in servers:
                comparison.add(server)
            tenfold = next((server for server in servers if server.name == "tenfold"), None)
            comparison.run(cases_of(payloads, counts), rounds=rounds, seconds=seconds, ceiling=tenfold is not None)
            if tensors and tenfold:
                comparison.run_tensors(tenfold, payloads[0], rounds=rounds, seconds=seconds)
            if mixed:
                large = [payloads[1], large_jpeg(size=LARGEST_PHOTO_SIZE)]
                comparison.run_mixed(payloads[0], large, rounds=rounds, seconds=_MIXED_SECONDS)
            if open_loop and tenfold:
                comparison.run_open_loop(tenfold, payloads[0], seconds=_OPEN_LOOP_SECONDS, deadline=deadline)
        console.print(table(comparison.results))
        if json_file:
            content = summary(
                comparison.results, weights=weights, rounds=rounds, seconds=seconds, failures=comparison.failures
            )
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if chart and comparison.results.loads:
            draw(comparison.results, chart)
    except (ServerError, ModelError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for failure in comparison.failures:
        typer.echo(f"error: {failure}", err=True)
    raise typer.Exit(1 if comparison.failures else 0)


def _parse_servers(names: str) -> list[Server]:
    known = {server.name: server for server in SERVERS}
    chosen = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
    return [server for server in SERVERS if server.name in chosen]


def _parse_counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,32") from error
    if min(counts) < 1:
        raise typer.BadParameter("there must be at least one connection")
    return sorted(set(counts))


if __name__ == "__main__":
    typer.run(main)
