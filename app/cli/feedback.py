"""The commands of `tenfold feedback`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from app.cli.classify.results import plural

StorePath = Annotated[Path, typer.Argument(help="File of TENFOLD_FEEDBACK.", show_default=False)]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@contextmanager
def _errors() -> Iterator[None]:
    """A store that cannot be used is reported in a sentence, with exit code 1."""
    from app.feedback.store import StoreError

    try:
        yield
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@app.command()
def export(
    store: StorePath,
    folder: Annotated[Path, typer.Argument(help="New folder for the images.", show_default=False)],
) -> None:
    """Write the labelled images to a folder.

    They are FOLDER/CLASS/*, for tenfold train --data folder:FOLDER. FOLDER/labels.csv has all labelled predictions.
    Images of none of the classes are in FOLDER-none, for tenfold train --outliers FOLDER-none.
    """
    from app.feedback.export import CSV_FILE, others_folder
    from app.feedback.export import export as write
    from app.feedback.store import Store

    with _errors(), Store(store, create=False) as opened:
        done = write(opened, folder)
    print(f"{folder} has {plural(done.images, 'image')}, and {CSV_FILE} of {plural(done.rows, 'labelled prediction')}")
    if done.others:
        print(f"{others_folder(folder)} has {plural(done.others, 'image')} of none of the classes")
    if done.images + done.others < done.rows:
        print("the service stores images with TENFOLD_FEEDBACK_IMAGES=1")


@app.command()
def delete(
    store: StorePath,
    request_ids: Annotated[list[str] | None, typer.Argument(help="IDs of requests.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all predictions.")] = False,
) -> None:
    """Delete the predictions of some requests, or all.

    Their images are deleted too. The service may run meanwhile.
    """
    from app.feedback.store import Store

    if everything == bool(request_ids):
        print("error: name request IDs, or give --all", file=sys.stderr)
        raise typer.Exit(2)
    with _errors(), Store(store, create=False) as opened:
        removed = opened.remove(None if everything else request_ids)
    print(f"deleted {plural(removed, 'prediction')}")
