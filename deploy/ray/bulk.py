"""Classifies many images on a Ray cluster: python -m deploy.ray.bulk INPUT OUTPUT.

Ray Data hands out the parts of the input to a pool of actors, each of which has the classifier of `tenfold classify`.
An actor writes the results of a part to a file of its own, under another name until it is complete. So a part whose
actor has died is done again as a whole, and a part that exists is not done again.
"""

import json
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.classify.results import CommandError, Result
from app.settings import default_weights
from model import CARD_FILE, ModelError, read_card

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    import ray.data
except ImportError:
    print("error: Ray is not installed: run make ray", file=sys.stderr)
    raise SystemExit(2) from None

from deploy.ray.parts import Part, divide

MANIFEST = "run.json"
OVERRIDES: Mapping[str, Any] = {"models": (), "threads": 1, "decode_threads": 1}
"""Settings of an actor, which has one CPU."""

_OBJECT_STORE = 100_000_000

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        (
            "top_k",
            pa.list_(pa.struct([("label", pa.string()), ("index", pa.int32()), ("probability", pa.float32())])),
        ),
        ("accepted", pa.bool_()),
        ("verdict", pa.string()),
        ("in_distribution", pa.float32()),
        ("error", pa.string()),
        ("version", pa.string()),
    ]
)


class Classify:
    """The actor: it classifies one part at a time and writes its results."""

    def __init__(self, output: str, overrides: Mapping[str, Any], top_k: int, version: str) -> None:
        from app.cli.classify.local import LocalClassifier

        self._classifier = LocalClassifier(overrides, top_k)
        self._output = Path(output)
        self._version = version

    def __call__(self, row: dict[str, str]) -> dict[str, int]:
        """Returns the number of images of the part."""
        part = Part(**json.loads(row["part"]))
        target = self._output / part.name
        partial = target.with_name(f".{part.name}.{uuid.uuid4().hex}.partial")
        images = 0
        try:
            with pq.ParquetWriter(partial, SCHEMA) as writer:
                for results in self._classifier.classify(part.images()):
                    writer.write_table(table_of(results, self._version))
                    images += len(results)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return {"images": images}


def table_of(results: Sequence[Result], version: str) -> pa.Table:
    """Results as rows of the output. A path that is not valid UTF-8 has question marks in place of other bytes."""
    return pa.Table.from_pylist(
        [
            {
                "path": result.path.encode(errors="replace").decode(),
                **{name: result.prediction.get(name) for name in ("top_k", "accepted", "verdict", "in_distribution")},
                "error": result.error,
                "version": version,
            }
            for result in results
        ],
        SCHEMA,
    )


def main(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Folder of images, Parquet file or folder of them.")],
    output: Annotated[Path, typer.Argument(help="Folder for the results. A run that was interrupted is continued.")],
    weights: Annotated[
        Path | None, typer.Option(help="Folder of the bundle.  [default: weights/resnet18-cifar10]")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Column of the Parquet files: images as bytes, or paths.  [default: image or path]"),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Number of actors, each with one CPU.  [default: the CPUs of the cluster]")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, or auto.  [default: a cluster in this process]")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes per image, most probable first.")] = 5,
    part_size: Annotated[int, typer.Option(min=1, help="Images of a folder in each file of the output.")] = 1024,
) -> None:
    """Classify the images of a folder or of Parquet files on a Ray cluster, and write the results as Parquet.

    An image that cannot be classified has a row with the reason. A part that is written is not done again, so the same
    command continues an interrupted run. The settings of the service (TENFOLD_VIEWS, ...) apply here too.

    Exit code: 0, every image was classified; 1, some were not; 2, nothing could be done; 130, Ctrl-C.
    """
    try:
        errors = classify(source, output, weights, column, actors, address, top_k, part_size)
    except (CommandError, ModelError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped; complete parts are kept: continue with the same command", err=True)
        raise typer.Exit(130) from error
    finally:
        ray.shutdown()
    raise typer.Exit(1 if errors else 0)


def classify(
    source: Path,
    output: Path,
    weights: Path | None,
    column: str | None,
    actors: int | None,
    address: str | None,
    top_k: int,
    part_size: int,
) -> int:
    """Classify all parts that the output lacks. Returns the number of images with an error.

    Raises:
        CommandError: the input cannot be used, the output is of another run, there is no cluster, or an actor failed.
        ModelError: the bundle cannot be used.
    """
    folder = (weights or default_weights().get("weights", Path("weights/resnet18-cifar10"))).resolve()
    card = read_card(folder / CARD_FILE)
    if top_k > len(card.labels):
        raise CommandError(f"--top-k is {top_k}: choose 1 to {len(card.labels)}")
    parts, fingerprint = divide(source.resolve(), column, part_size)
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith("TENFOLD_")}
    identity = {
        "input": fingerprint,
        "parts": len(parts),
        "version": card.version,
        "top_k": top_k,
        "settings": settings,
    }
    check_output(output, identity)
    missing = [part for part in parts if not (output / part.name).exists()]
    print(f"{len(parts):,} parts, of which {len(parts) - len(missing):,} are complete", flush=True)
    if missing:
        connect(address, actors)
        prepare(output, identity)
        run(missing, output, {**OVERRIDES, "weights": folder}, top_k, card.version, actors)
        remove_partial(output)  # of an actor that was killed
    errors = count_errors(output / part.name for part in parts)
    print(f"{output} is complete, with {errors:,} images that could not be classified", flush=True)
    return errors


def run(
    missing: Sequence[Part],
    output: Path,
    overrides: Mapping[str, Any],
    top_k: int,
    version: str,
    actors: int | None,
) -> None:
    """Classify parts on the cluster, and report each one that is done.

    Raises:
        CommandError: an actor failed with an error.
    """
    rows = ray.data.from_items(
        [{"part": json.dumps(asdict(part))} for part in missing],  # ASCII, for paths that are not UTF-8
        override_num_blocks=len(missing),
    ).map(
        Classify,
        fn_constructor_args=(str(output.resolve()), overrides, top_k, version),
        compute=ray.data.ActorPoolStrategy(size=min(actors or int(ray.cluster_resources()["CPU"]), len(missing))),
        num_cpus=1,
    )
    began, images = time.monotonic(), 0
    try:
        for done, row in enumerate(rows.iter_rows(), 1):
            images += int(row["images"])
            rate = images / (time.monotonic() - began)
            print(f"{done:,} of {len(missing):,} parts, {images:,} images, {rate:.0f} images/s", flush=True)
    except ray.exceptions.RayError as error:
        raise CommandError(f"an actor failed: {str(error).strip().splitlines()[-1]}") from error


def count_errors(files: Iterable[Path]) -> int:
    """The number of rows with an error, from the statistics in the files."""
    errors = 0
    for file in files:
        found = pq.read_metadata(file)
        column = found.schema.names.index("error")
        for group in range(found.num_row_groups):
            chunk = found.row_group(group).column(column)
            errors += chunk.num_values - chunk.statistics.null_count
    return errors


def check_output(output: Path, identity: Mapping[str, Any]) -> None:
    """Check that the folder of the output does not exist, or is of the same run.

    Raises:
        CommandError: it belongs to another run or has other contents.
    """
    if not output.exists():
        return
    try:
        found = json.loads((output / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"{output} exists and is not of a bulk classification: choose another OUTPUT") from error
    if found != identity:
        raise CommandError(
            f"{output} has results of other images, weights or options: choose another OUTPUT, or move it away"
        )


def prepare(output: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder of the output, and remove the partial files of an interrupted run.

    Raises:
        CommandError: it cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / MANIFEST).write_text(json.dumps(identity, indent=2) + "\n")
        remove_partial(output)
    except OSError as error:
        raise CommandError(f"{output} cannot be written ({error.strerror}): choose another OUTPUT") from error


def remove_partial(output: Path) -> None:
    """Remove the files that interrupted actors have not completed."""
    for partial in output.glob(".*.partial"):
        partial.unlink()


def connect(address: str | None, actors: int | None) -> None:
    """Connect to a cluster, or start one of a single machine that ends with this process.

    Raises:
        CommandError: there is no cluster at the address.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        if address is not None:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if host:  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(address, **quiet)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage statistics by default
            ray.init("local", num_cpus=actors, include_dashboard=False, object_store_memory=_OBJECT_STORE, **quiet)
    except Exception as error:  # some are plain ones
        raise CommandError(
            f"there is no Ray cluster at {address}: start one with ray start --head, or leave out --address"
            if address is not None
            else f"Ray cannot be started here ({str(error).splitlines()[0]}): see /tmp/ray/session_latest/logs"
        ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False


if __name__ == "__main__":
    typer.run(main)
