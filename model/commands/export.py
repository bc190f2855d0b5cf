"""The command tenfold export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from model.commands.exits import exit_codes
from model.errors import ModelError

_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    format: Annotated[  # noqa: A002
        Literal["onnx", "torch"], typer.Option(help="onnx, or torch for an archive of torch.export.")
    ] = "onnx",
    out: Annotated[Path | None, typer.Option(help="New file.  [default: NAME.onnx or NAME.pt2]")] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add the ONNX model to the bundle instead, for TENFOLD_ENGINE=onnx.")
    ] = False,
) -> None:
    """Write the network of a bundle as one file for other programs.

    The input is pixels, uint8[N, S, S, 3]: RGB images after resizing and cropping. The normalisation is in the model.
    """
    with exit_codes():
        if add and (out is not None or format != "onnx"):
            raise ModelError("--add is for --format onnx, without --out")
        from model.bundle import open_bundle
        from model.training import exchange

        if add:
            exchange.add_onnx(bundle)
            typer.echo(f"added an ONNX model to {bundle}")
            return
        opened = open_bundle(bundle)
        path = out or Path(opened.card.name + _SUFFIXES[format])
        exchange.require_new(path)
        exchange.write(path, exchange.to_onnx(opened) if format == "onnx" else exchange.to_torch_export(opened))
        crop = opened.card.input.crop
        typer.echo(f"wrote {path}: pixels uint8[N, {crop}, {crop}, 3] to logits, features and maps")
