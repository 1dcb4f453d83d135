"""`bilateral explain`: heat maps of where a model looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import notes, out
from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from bilateral_export.explain.page import Subject


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
    from bilateral_export.explain.page import View, write_explanation

    with notes.status("Looking"):
        view = View(layer=layer, patch=_patch(patch), heads=heads)
        if model.suffix == ".onnx":
            if name is not None or weights is not None:
                raise UserError(
                    f"{model} is an exported file, which says itself what it is",
                    "Leave --model and --weights out.",
                )
            subject = _of_graph(image, model)
        else:
            subject = _of_checkpoint(image, model, name, weights)
        write_explanation(subject, view, directory)
    out.print(f"{directory / 'index.html'}", soft_wrap=True)


def _patch(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    row, comma, column = text.partition(",")
    if not comma or not row.strip().isdecimal() or not column.strip().isdecimal():
        raise UserError(f"'{text}' is no patch", "Give its row and column, such as 3,5.")
    return int(row), int(column)


def _of_graph(image: Path, model: Path) -> Subject:
    from bilateral_export.artifact import read_metadata
    from bilateral_export.explain.graph import config_of, onnx_maps
    from bilateral_export.explain.page import Subject
    from bilateral_export.preprocessing import ImagePreprocessing
    from bilateral_serving.client.inputs.images import preprocess, read_image

    config_of(model)
    about = read_metadata(model)
    if not isinstance(about.preprocessing, ImagePreprocessing):
        raise _unprepared(model)
    tensor = preprocess(read_image(image), about.preprocessing)
    return Subject(
        model=about.name,
        runtime=f"ONNX Runtime from {model.name} ({_described(about.precision, about.weights)})",
        image_name=image.name,
        tensor=tensor,
        preprocessing=about.preprocessing,
        labels=about.labels,
        maps=onnx_maps(model, tensor),
    )


def _of_checkpoint(image: Path, path: Path, name: str | None, weights: str | None) -> Subject:
    from bilateral_export.checkpoint.load import load_checkpoint
    from bilateral_export.explain.page import Subject
    from bilateral_export.explain.torch_maps import torch_maps
    from bilateral_export.preprocessing import ImagePreprocessing
    from bilateral_serving.client.inputs.images import preprocess, read_image

    loaded = load_checkpoint(path, model=name, weights=weights)
    card = loaded.card
    if (tokens := card.model.image) is None:
        raise UserError(f"{path} is a {card.model.family}", "Heat maps need an image classifier.")
    if not isinstance(card.preprocessing, ImagePreprocessing):
        raise _unprepared(path)
    tensor = preprocess(read_image(image), card.preprocessing)
    return Subject(
        model=card.name,
        runtime=f"PyTorch from {path.name}{f' ({loaded.weights})' if loaded.weights else ''}",
        image_name=image.name,
        tensor=tensor,
        preprocessing=card.preprocessing,
        labels=card.labels,
        maps=torch_maps(loaded.build_model(), tokens, tensor),
    )


def _described(precision: str, weights: str | None) -> str:
    return f"{precision}, weights {weights}" if weights else precision


def _unprepared(path: Path) -> UserError:
    return UserError(
        f"{path} does not say how an image becomes its input",
        "Write the preprocessing into the checkpoint's card.",
    )
