"""Options, streams and exit codes of `tenfold classify`."""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.cli.classify.paths import STDIN, BadPath, Skipped, find_files, is_image, read_path_list
from app.cli.classify.progress import Report
from app.cli.classify.results import (
    CommandError,
    Format,
    Output,
    Result,
    Writer,
    escape_unprintable,
    format_of,
    make_writer,
    plural,
    utf8_path,
)

# 128 plus the signal, as shells report SIGINT and SIGPIPE.
_INTERRUPTED, _BROKEN_PIPE = 130, 141
# Arguments without files that are kept until the first file is found.
_MAX_BAD_PATHS = 100
# The default of TENFOLD_MAX_BODY_BYTES. Importing app.settings here would slow down --help.
_MAX_BYTES = 20_000_000


def classify(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files; folders, for the images in them and their subfolders; patterns such as 'photos/**/*.jpg'; "
            "- for a list of paths, or one image, on standard input.",
            show_default=False,
        ),
    ],
    url: Annotated[str | None, typer.Option(help="Use a running service instead of loading the model here.")] = None,
    model: Annotated[
        str | None, typer.Option(help="With --url: name of a model of the service.  [default: the service's default]")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TENFOLD_API_KEY", help="API key of the service.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes per image, most probable first.")] = 1,
    views: Annotated[
        int | None, typer.Option(min=1, max=5, help="Largest number of views of an image.  [default: 5]")
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest probability of an accepted prediction.  [default: 0]")
    ] = None,
    output_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Format of the results.  [default: by the extension of the output (.csv, .jsonl, .ndjson); without "
            "an output, table on a terminal, else csv]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File for the results, replaced when they are complete. An interrupted run is continued.",
        ),
    ] = None,
    null: Annotated[bool, typer.Option("--null", "-0", help="Paths on standard input end with NUL.")] = False,
    patience: Annotated[
        float, typer.Option(min=0, help="With --url: seconds to retry while the service is busy or unreachable.")
    ] = 60.0,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Size of the largest file that is read.  [default: 20000000]")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of the bundle.  [default: weights/resnet18-cifar10]")
    ] = None,
    engine: Annotated[Literal["auto", "openvino", "onnx", "torch"] | None, typer.Option(help="Runtime.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Device of the network.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=0, help="Threads of the network on a CPU; 0 leaves it to the runtime.")
    ] = None,
) -> int:
    """Classify image files, here or with a running service.

    Results are written to standard output in the order of the files, everything else to standard error. A file that
    cannot be classified has a row with the reason, and the command continues. Without --url the settings of the
    service (TENFOLD_VIEWS, ...) apply here too, unless an option overrides them.

    Exit code: 0, every file was classified; 1, some were not; 2, nothing could be done; 130, Ctrl-C.
    """
    options = {
        "weights": weights,
        "engine": engine,
        "device": device,
        "threads": threads,
        "views": views,
        "min_confidence": min_confidence,
        "max_body_bytes": max_bytes,
    }
    overrides = {name: value for name, value in options.items() if value is not None}
    try:
        by_default: Format = "table" if sys.stdout.isatty() else "csv"
        chosen_format = output_format or (format_of(output) if output else by_default)
        if url is not None:
            for name in ("weights", "engine", "device", "threads"):
                if name in overrides:
                    raise CommandError(f"--{name} has no effect on a service: give either --{name} or --url")
        elif model is not None:
            raise CommandError("--model names a model of a service: give --url too, or --weights for a bundle")
        if null and STDIN not in paths:
            raise CommandError("-0 is for paths on standard input: add - to the arguments")
        skipped = Skipped()
        files = _find_files(paths, b"\0" if null else b"\n", skipped)
        results, writer = Output(output), make_writer(chosen_format, top_k)
        kept = results.resume(writer, (utf8_path(_name_of(file)) for file in files))
        report = Report(
            None if STDIN in paths else lambda: sum(1 for _ in find_files(paths)) - kept,
            skipped,
            bar=sys.stderr.isatty() and (output is not None or not sys.stdout.isatty()),
        )
        if kept:
            report.print(f"{results.partial} has {plural(kept, 'result')}: continuing from there")

        def classify_files() -> Iterator[list[Result]]:
            if url is None:
                from app.cli.classify.local import LocalClassifier

                return LocalClassifier(overrides, top_k).classify(files)
            from app.cli.classify.remote import RemoteClassifier

            return RemoteClassifier(
                url,
                api_key=api_key,
                model=model,
                parameters={"top_k": top_k, "views": views, "min_confidence": min_confidence},
                retry_timeout=patience,
                max_bytes=max_bytes or _MAX_BYTES,
                notify=report.print,
            ).classify(files)

        return _write_results(classify_files, writer, results, report)
    except CommandError as error:
        _print_error(error)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return _BROKEN_PIPE


@functools.wraps(classify)
def main(*args: object, **options: object) -> None:
    """`classify` as a process. Its exit does not wait for threads that wait for a service or decode an image."""
    code = classify(*args, **options)  # type: ignore[arg-type]
    sys.stderr.flush()
    os._exit(code)


def _name_of(file: str | BadPath) -> str:
    return file.path if isinstance(file, BadPath) else file


def _find_files(arguments: Sequence[str], end: bytes, skipped: Skipped) -> Iterator[str | BadPath]:
    """Like `find_files`, after checking that there is at least one file.

    Raises:
        CommandError: there is none.
    """
    listed: Iterable[str] = ()
    if STDIN in arguments:
        stream = sys.stdin.buffer
        listed = [STDIN] if is_image(stream) else read_path_list(stream, end=end)
    files = find_files(arguments, listed, skipped)
    bad_paths: list[BadPath] = []
    for path in files:
        if not isinstance(path, BadPath) or len(bad_paths) == _MAX_BAD_PATHS:
            return chain(bad_paths, [path], files)
        bad_paths.append(path)
    messages = [f"{path.path}: {path.reason}" for path in bad_paths] or ["standard input names no files"]
    for message in messages[:-1]:
        _print_error(message)
    raise CommandError(messages[-1])


def _write_results(
    classify_files: Callable[[], Iterator[list[Result]]], writer: Writer, results: Output, report: Report
) -> int:
    """Write results as they become available.

    Returns:
        The exit code.

    Raises:
        BrokenPipeError: the reader of standard output has closed it.
    """
    interruption: BaseException | None = None
    try:
        for group in classify_files():
            results.write(writer.lines(group))
            report.add(group)
        results.finish()
    except (CommandError, KeyboardInterrupt) as error:
        interruption = error
    finally:
        report.stop_bar()
    if isinstance(interruption, CommandError):
        _print_error(interruption)
    if report.classified or report.failed:
        report.print_summary(complete=interruption is None)
    if interruption is None:
        return 1 if report.failed else 0
    if kept := results.abandon():
        print(f"the results so far are in {escape_unprintable(str(kept))}", file=sys.stderr)
    if isinstance(interruption, KeyboardInterrupt):
        return _INTERRUPTED
    return 1 if report.classified else 2


def _print_error(error: CommandError | str) -> None:
    print(f"error: {escape_unprintable(str(error))}", file=sys.stderr)
