"""`bilateral export`: a checkpoint to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bilateral_cli.app import app
from bilateral_cli.console import JsonOption, notes, out, print_json
from bilateral_cli.options import parse_size, parse_sizes
from bilateral_export.errors import UserError
from bilateral_export.metadata import Precision
from bilateral_export.preprocessing import ImagePreprocessing, Preprocessing

if TYPE_CHECKING:
    from bilateral_export.artifact import OnnxArtifact
    from bilateral_export.checkpoint.load import Checkpoint


# As the image classifier's configuration has them; importing it would import torch.
Output = Literal["logits", "tokens", "cls", "pooled"]


@app.command()
def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint: a .safetensors file, what torch.save wrote, or a Hugging Face or"
            " timm folder."
        ),
    ],
    onnx: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    precision: Annotated[
        Precision,
        typer.Option(
            help="Type of weights and activations: fp32, fp16 or bf16. Layer norm statistics, the"
            " softmax and the spatial term stay in float32, inputs and outputs too."
        ),
    ] = "fp32",
    opset: Annotated[
        int | None,
        typer.Option(help="Version of the standard operators (default 21; 22 for bf16)."),
    ] = None,
    for_triton: Annotated[
        str | None,
        typer.Option(
            metavar="RELEASE",
            help="A Triton release that is to load the file, such as 24.10: takes the newest opset"
            " that its ONNX Runtime loads.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A known model's name, or a JSON configuration or card, for checkpoints that do"
            " not say which model they are; or a JSON document of what the weights do not show,"
            ' such as {"heads": 6}. `bilateral models` lists the known ones. Or a model of your'
            " own, my_model.py:build: this RUNS that file's code (`bilateral new` writes one)."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Which weights of a training checkpoint to take: an entry such as model_ema, or"
            " a prefix of names such as teacher. (with its dot)."
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIDE|HEIGHTxWIDTH",
            help="Move an image classifier to this resolution: learned positions are interpolated,"
            " coordinates rescaled.",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,SIZE,...",
            help="One file for several sizes of an image classifier's images, each a side or"
            " HEIGHTxWIDTH: 224,384,512x384. It takes every height from the smallest to the"
            " largest, and every width, in whole patches, and computes what --image-size exports"
            " for one of them. Parity checks the sizes named, the corners and its own.",
        ),
    ] = None,
    output: Annotated[
        Output | None,
        typer.Option(
            help="What an image classifier returns: logits, or features: all its tokens, its class"
            " token (cls), or what its head reads (pooled). Without a head: features, the class"
            " token unless told."
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(
            metavar="HEX", help="Refuse the checkpoint, before it is read, if this is not its hash."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Class names, one a line, for checkpoints that carry none."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Write <name>.explain.onnx too, which also returns its attention maps.",
        ),
    ] = False,
    spatial_features: Annotated[
        bool,
        typer.Option(
            "--spatial-features",
            help="In 16 bits, write Gaussian spatial kernels as position features where they are"
            " exact enough: what the plugin's kernel computes fastest.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Export a checkpoint to one ONNX file that every runtime can read.

    Each attention is one `ai.bilateral::BilateralAttention` node, with its body in standard
    operators inside the file: plain ONNX Runtime runs it, TensorRT takes the plugin where it is
    loaded. The file is checked before it gets its name.

    Example: bilateral export export/checkpoints/digits_bilateral.safetensors digits.onnx
    """
    from bilateral_export.explain.graph import explain_onnx, require_image
    from bilateral_export.graph.export import export_checkpoint
    from bilateral_serving.releases import opset_for

    def accept(loaded: Checkpoint) -> None:
        if explain:
            require_image(loaded.card.model, checkpoint)
        if explain and sizes is not None:
            raise UserError("--explain draws its maps on one grid", "Leave --sizes out for it.")

    if for_triton is not None:
        if opset is not None:
            raise UserError("--opset and --for-triton were both given", "Give one of them.")
        opset = opset_for(for_triton, precision)
    with notes.status(f"Exporting {checkpoint}"):
        exported, loaded = export_checkpoint(
            checkpoint,
            onnx,
            precision=precision,
            opset=opset,
            model=model,
            weights=weights,
            sha256=sha256,
            labels=labels,
            image_size=None if image_size is None else parse_size(image_size, "--image-size"),
            sizes=[] if sizes is None else parse_sizes(sizes, "--sizes"),
            output=output,
            spatial_features=spatial_features,
            accept=accept,
        )
        if explain:
            explain_onnx(onnx, onnx.with_suffix(".explain.onnx"))
    if json:
        print_json(_as_json(exported, loaded, precision))
    else:
        _print(exported, loaded, precision)


def _as_json(exported: OnnxArtifact, loaded: Checkpoint, precision: Precision) -> dict[str, Any]:
    how = loaded.card.preprocessing
    return {
        "path": exported.path,
        "bytes": exported.bytes,
        "opset": exported.opset,
        "precision": precision,
        "attention_nodes": exported.attention_nodes,
        "inputs": list(map(str, exported.inputs)),
        "outputs": list(map(str, exported.outputs)),
        "checkpoint_sha256": loaded.sha256,
        "weights": loaded.weights,
        "other_weights": loaded.other_weights,
        "preprocessing": how.model_dump(mode="json") if how else None,
        "preprocessing_source": loaded.preprocessing_source,
        "notes": loaded.notes,
    }


def _print(exported: OnnxArtifact, loaded: Checkpoint, precision: Precision) -> None:
    out.print(
        f"{exported.path}: {loaded.card.name}, {precision}, opset {exported.opset},"
        f" {exported.attention_nodes} attention nodes, {exported.bytes / 1e6:.1f} MB",
        soft_wrap=True,
        markup=False,
    )
    out.print(f"  in:  {', '.join(map(str, exported.inputs))}", markup=False)
    out.print(f"  out: {', '.join(map(str, exported.outputs))}", markup=False)
    for line in _about(loaded):
        out.print(f"  {line}", markup=False, soft_wrap=True)


def _about(checkpoint: Checkpoint) -> list[str]:
    """What was taken from the checkpoint, and what was not."""
    how = checkpoint.card.preprocessing
    if how is None:
        lines = ["preprocessing: none; to serve files, give --model a card that has it"]
    else:
        lines = [f"preprocessing: {_summary(how)}; from {checkpoint.preprocessing_source}"]
    if checkpoint.weights is not None:
        lines.append(f"weights: {checkpoint.weights}")
    for other in checkpoint.other_weights:
        lines.append(f"not taken: the weights under {other}; --weights {other} takes them")
    return lines + [f"note: {note}" for note in checkpoint.notes]


def _summary(how: Preprocessing) -> str:
    if isinstance(how, ImagePreprocessing):
        resized = f"shorter side to {how.resize}"
        if isinstance(how.resize, tuple):
            resized = f"resized to {how.resize[0]}x{how.resize[1]}"
        return (
            f"{resized} ({how.interpolation}), centre {how.height}x{how.width},"
            f" mean {', '.join(f'{m:g}' for m in how.mean)},"
            f" deviation {', '.join(f'{s:g}' for s in how.std)}"
            + (f"; takes {how.sizes}" if how.sizes else "")
        )
    sizes = how.model_dump(mode="json", include={"window", "stride", "length", "height", "width"})
    return ", ".join([how.kind, *(f"{name} {value}" for name, value in sizes.items())])
