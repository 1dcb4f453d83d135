"""`bilateral infer`: inference on files by a served classifier or segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import DEFAULT_URL, JsonOption, ServersOption, out, print_json, table
from bilateral_cli.options import parse_size


@app.command()
def infer(
    name: Annotated[str, typer.Argument(help="The served model.")],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Images (PNG, JPEG), texts or ListOps expressions, whichever the model takes; two"
            " texts per input for a model that compares documents."
        ),
    ],
    url: ServersOption = DEFAULT_URL,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print for each input.")] = 5,
    overlay: Annotated[
        Path | None,
        typer.Option(help="Directory for a segmenter's overlays, written as `<image>.png`."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIDE|HEIGHTxWIDTH|aspect",
            help="Of images, for a model that was exported with --sizes: 384, 512x384, or aspect to"
            " keep each image's aspect ratio as far as the sizes go. Its own size unless told.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Deadline for each request, in seconds.")] = 10.0,
    json: JsonOption = False,
) -> None:
    """Classify files with a served model and print the most probable labels.

    For a model that was exported without its head, print the shape and norm of its features; with
    --json, the features. For a segmenter, print each class's share of the pixels; with --overlay,
    also write the images tinted in the classes' colours. The server says how files are prepared, so
    this command needs neither torch nor onnx.

    Example: bilateral infer digits export/checkpoints/digits/3-0.png
    """
    from bilateral_serving.client import Client
    from bilateral_serving.client.answers import answer_files
    from bilateral_serving.client.requests import Size

    wanted: Size | None = None
    if size is not None:
        wanted = "aspect" if size == "aspect" else parse_size(size, "--size")
    with Client(url, timeout_s=timeout) as client:
        answers = answer_files(client, name, files, top, overlay, wanted)
    if json:
        print_json([answer.document for answer in answers])
        return
    rows = [
        (answer.input if rank == 0 else "", label, f"{value:{answer.form}}")
        for answer in answers
        for rank, (label, value) in enumerate(answer.classes)
    ]
    out.print(table(["input", "label", f">{answers[0].measure}"], rows))
    if overlay:
        pictures = ", ".join(str(answer.document["overlay"]) for answer in answers)
        out.print(f"Pictures: {pictures}", soft_wrap=True)
