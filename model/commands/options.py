"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    list[str],
    typer.Option(
        metavar="PATH",
        help="Folder that contains cifar-10-batches-py, or folder:PATH for images of your own in PATH/CLASS/* "
        "(docs/your-own-images.md). Can be repeated: further ones are folder:PATH, whose images are added.",
    ),
]
DATA = ["data"]
"""The default of `Data`."""
Cache = Annotated[Path, typer.Option(help="Where the decoded images of folder:PATH are kept.")]
