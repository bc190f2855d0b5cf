"""The command: its options, what goes where, and how it ends."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.cli.classify.paths import STDIN, Lost, expand, listed_in
from app.cli.classify.progress import Report
from app.cli.classify.results import Format, Output, Result, Unusable, Writer, shown, writer_of

# As a shell tells of a tool that a signal ended: Ctrl-C, and nobody there to read on.
_INTERRUPTED, _UNREAD = 130, 141
# If the first so many paths give no files, it begins all the same, for it would have to keep them.
_LOST = 100
# As TENFOLD_MAX_BODY_BYTES, if nobody sets it.
_MAX_BYTES = 20_000_000


def main(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files; folders, for the pictures in them and below; patterns such as 'photos/**/*.jpg'; "
            "- for a list of paths on standard input.",
            show_default=False,
        ),
    ],
    url: Annotated[str | None, typer.Option(help="Ask the service there, instead of loading the model here.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TENFOLD_API_KEY", help="For a service that wants one.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to tell of each picture, likeliest first.")] = 1,
    views: Annotated[
        int | None, typer.Option(min=1, max=4, help="Views averaged of a large, oblong picture.  [default: 2]")
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least probability of an accepted answer.  [default: 0]")
    ] = None,
    output_format: Annotated[
        Format | None, typer.Option("--format", help="Of the results.  [default: table on a terminal, else csv]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the results; it takes its place when it is whole.")
    ] = None,
    null: Annotated[bool, typer.Option("--null", "-0", help="Paths on standard input end with NUL.")] = False,
    patience: Annotated[
        float, typer.Option(min=0, help="With --url: seconds to wait for a service that is busy or away.")
    ] = 60.0,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Largest file that is read.  [default: 20000000]")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of the bundle.  [default: weights/resnet18-cifar10]")
    ] = None,
    engine: Annotated[Literal["auto", "openvino", "torch"] | None, typer.Option(help="Runtime.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="What it runs on.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=0, help="Of the network on a CPU; 0 leaves it to the runtime.")
    ] = None,
) -> None:
    """Classify files, here or by a running service.

    Results go to standard output in the order of the files, everything else to standard error. A file that cannot be
    classified has a row that says why, and the others go on. Without --url the service's settings (TENFOLD_VIEWS, ...)
    count here too, where no option says otherwise.

    Exit code: 0, every file was answered; 1, some were not; 2, nothing could be done; 130, Ctrl-C.
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
    given = {name: value for name, value in options.items() if value is not None}
    kind: Format = output_format or ("table" if output is None and sys.stdout.isatty() else "csv")
    try:
        if url is not None and (ours := [name for name in ("weights", "engine", "device", "threads") if name in given]):
            raise Unusable(f"--{ours[0]} is for classifying here and --url for asking a service: give one of the two")
        found = _found(paths, b"\0" if null else b"\n")
        results = Output(output)
        report = Report(
            None if STDIN in paths else lambda: sum(1 for _ in expand(paths)),
            bar=sys.stderr.isatty() and (output is not None or not sys.stdout.isatty()),
        )

        def answers() -> Iterator[list[Result]]:
            if url is None:
                from app.cli.classify.local import Local

                return Local(given, top_k).results(found)
            from app.cli.classify.remote import Remote

            parameters = {"top_k": top_k, "views": views, "min_confidence": min_confidence}
            return Remote(
                url,
                api_key=api_key,
                parameters=parameters,
                patience=patience,
                max_bytes=max_bytes or _MAX_BYTES,
                say=report.say,
            ).results(found)

        code = _run(answers, writer_of(kind, top_k), results, report)
    except Unusable as error:
        _tell(error)
        code = 2
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        code = _UNREAD
    # Not sys.exit: it would wait for threads that wait for a service, or for a picture.
    sys.stderr.flush()
    os._exit(code)


def _found(arguments: Sequence[str], end: bytes) -> Iterator[str | Lost]:
    """As `expand`, once there is anything to classify.

    Raises:
        Unusable: there is not.
    """
    found = expand(arguments, listed_in(sys.stdin.buffer, end=end) if STDIN in arguments else ())
    lost: list[Lost] = []
    for each in found:
        if not isinstance(each, Lost) or len(lost) == _LOST:
            return chain(lost, [each], found)
        lost.append(each)
    sentences = [f"{each.path}: {each.reason}" for each in lost] or ["standard input names no files"]
    for sentence in sentences[:-1]:
        _tell(sentence)
    raise Unusable(sentences[-1])


def _run(answers: Callable[[], Iterator[list[Result]]], writer: Writer, results: Output, report: Report) -> int:
    """Write the results as they come.

    Returns:
        The exit code.

    Raises:
        BrokenPipeError: nobody reads them any more.
    """
    broken_off: BaseException | None = None
    try:
        for group in answers():
            results.write(writer.lines(group))
            report.add(group)
        results.finish()
    except (Unusable, KeyboardInterrupt) as error:
        broken_off = error
    finally:
        report.end()
    if isinstance(broken_off, Unusable):
        _tell(broken_off)
    if report.answered or report.failed:
        report.summary()
    if broken_off is None:
        return 1 if report.failed else 0
    if kept := results.abandon():
        print(f"what was answered is in {shown(str(kept))}", file=sys.stderr)
    if isinstance(broken_off, KeyboardInterrupt):
        return _INTERRUPTED
    return 1 if report.answered else 2


def _tell(error: Unusable | str) -> None:
    print(f"error: {shown(str(error))}", file=sys.stderr)
