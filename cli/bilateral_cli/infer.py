"""`bilateral infer`: ask a served classifier or segmenter about files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import DEFAULT_URL, JsonOption, UrlOption, out, print_json, table
from bilateral_export.errors import UserError
from bilateral_export.tensors import FEATURES, Array


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
    from bilateral_cli.segmentation import segment
    from bilateral_export.preprocessing import SegmentationPreprocessing
    from bilateral_serving.client import Client

    with Client(url, timeout_s=timeout) as client:
        info = client.model_metadata(name)
        about = info.metadata
        if about is not None and isinstance(about.preprocessing, SegmentationPreprocessing):
            segment(client, name, files, about, overlay, top, json)
            return
        if overlay is not None:
            raise UserError(
                f"model '{name}' is no segmenter, so it has no overlay", "Leave --overlay out."
            )
        if FEATURES in [output.name for output in info.outputs]:
            _features(files, client.features(name, files), json)
            return
        answers = client.classify(name, files, top)
    each = len(files) // len(answers)
    inputs = [
        " ".join(map(str, files[start : start + each])) for start in range(0, len(files), each)
    ]
    if json:
        print_json(
            [
                {"input": path, "predictions": [vars(prediction) for prediction in answer]}
                for path, answer in zip(inputs, answers, strict=True)
            ]
        )
        return
    rows = [
        (
            path if rank == 0 else "",
            prediction.label,
            f"{prediction.probability:.1%}",
        )
        for path, answer in zip(inputs, answers, strict=True)
        for rank, prediction in enumerate(answer)
    ]
    out.print(table(["input", "label", ">probability"], rows))


def _features(files: list[Path], features: Array, json: bool) -> None:
    """Print the features of each file: all of them for a machine, shape and norm for a person."""
    if json:
        pairs = zip(files, features, strict=True)
        print_json([{"input": path, "features": one.tolist()} for path, one in pairs])
        return
    rows = [
        (str(path), " x ".join(map(str, one.shape)), f"{float((one**2).sum()) ** 0.5:.4g}")
        for path, one in zip(files, features, strict=True)
    ]
    out.print(table(["input", "features", ">norm"], rows))
