"""`bilateral explain`: heat maps of where a model looks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import notes, out
from bilateral_export.errors import UserError


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="A PNG or JPEG file.")],
    model: Annotated[
        Path, typer.Argument(help="A checkpoint, run by PyTorch, or an exported .onnx file.")
    ],
    directory: Annotated[Path, typer.Option("--out", help="The directory to make.")] = Path(
        "explained"
    ),
    layer: Annotated[int, typer.Option(help="The layer to show; -1 is the last.")] = -1,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COLUMN", help="Show where this patch looks, not the class token."
        ),
    ] = None,
    heads: Annotated[bool, typer.Option(help="Show each head beside the average.")] = True,
    name: Annotated[
        str | None,
        typer.Option("--model", help="As in `bilateral export`, where a checkpoint needs it."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="As in `bilateral export`, for training checkpoints.")
    ] = None,
) -> None:
    """Show where a model looks in an image, and what each of its two kernels contributes.

    Writes a directory with PNG overlays and a self-contained index.html: the attention of the class
    token (or of a patch) per head and averaged, the range kernel and the spatial kernel by
    themselves, and the same through all layers.

    Example: bilateral explain export/checkpoints/digits/3-0.png digits.onnx
    """
    from bilateral_export.explain import explain as maps
    from bilateral_export.explain.page import View
    from bilateral_serving.client.inputs.images import preprocess, read_image

    with notes.status("Looking"):
        page = maps.explain(
            image.name,
            lambda how: preprocess(read_image(image), how),
            model,
            directory,
            View(layer=layer, patch=_patch(patch), heads=heads),
            name=name,
            weights=weights,
        )
    out.print(str(page), soft_wrap=True)


def _patch(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    row, comma, column = text.partition(",")
    if not comma or not row.strip().isdecimal() or not column.strip().isdecimal():
        raise UserError(f"'{text}' is not a patch", "Give its row and column, such as 3,5.")
    return int(row), int(column)
