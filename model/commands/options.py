"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    list[str],
    typer.Option(
        metavar="PATH",
        help="Folder that contains cifar-10-batches-py, or folder:PATH for images of your own in PATH/CLASS/*, or of a "
        "CSV file PATH (docs/your-own-images.md). It can be repeated: the images of further ones are added.",
    ),
]
DATA = ["data"]
"""The default of `Data`."""
Cache = Annotated[Path, typer.Option(help="Where the decoded images of folder:PATH are kept.")]
