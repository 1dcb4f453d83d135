"""`bilateral infer`: ask a served classifier or segmenter about files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import DEFAULT_URL, JsonOption, UrlOption, out, print_json, table


@app.command()
def infer(
    name: Annotated[str, typer.Argument(help="The served model.")],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Images (PNG, JPEG), texts, or ListOps expressions, as the model takes them; two"
            " texts an input for a model that compares documents."
        ),
    ],
    url: UrlOption = DEFAULT_URL,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each input.")] = 5,
    overlay: Annotated[
        Path | None,
        typer.Option(help="Directory for a segmenter's pictures, `<image>.png` each."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Deadline of each request, in seconds.")] = 10.0,
    json: JsonOption = False,
) -> None:
    """Classify files with a served model and print the most probable labels.

    Of a segmenter it prints each class's share of the pixels, and with --overlay writes the images
    tinted in the classes' colours. The files are prepared as the artifact's metadata says, which
    the server hands out: this command needs neither torch nor onnx.

    Example: bilateral infer digits export/checkpoints/digits/3-0.png
    """
    from bilateral_serving.client import Client
    from bilateral_serving.client.answers import answer_files

    with Client(url, timeout_s=timeout) as client:
        answers = answer_files(client, name, files, top, overlay)
    if json:
        print_json([answer.document for answer in answers])
        return
    rows = [
        (answer.input if rank == 0 else "", label, f"{value:.1%}")
        for answer in answers
        for rank, (label, value) in enumerate(answer.classes)
    ]
    out.print(table(["input", "label", f">{answers[0].measure}"], rows))
    if overlay:
        pictures = ", ".join(str(answer.document["overlay"]) for answer in answers)
        out.print(f"Pictures: {pictures}", soft_wrap=True)
