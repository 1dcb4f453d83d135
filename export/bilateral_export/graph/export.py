"""The export of a checkpoint to one ONNX file that every runtime can read."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from bilateral_export import __version__
from bilateral_export.artifact import OnnxArtifact, read_onnx
from bilateral_export.checkpoint.features import with_output
from bilateral_export.checkpoint.labels import with_labels
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.checkpoint.several_sizes import for_sizes
from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file
from bilateral_export.graph.attach import attach_functions
from bilateral_export.graph.optimise import optimise
from bilateral_export.graph.postconditions import check_exported
from bilateral_export.graph.provenance import name_constants, name_nodes
from bilateral_export.graph.spatial_features import use_spatial_features
from bilateral_export.graph.translation import translation_table
from bilateral_export.graph.user_program import conversion_error, traced_program
from bilateral_export.metadata import METADATA_KEY, ArtifactMetadata, Precision
from bilateral_export.models.family import Family, tracing_example
from bilateral_export.models.user_model import UserModel
from bilateral_export.precision import DTYPES, check_bandwidths, to_precision

OPSETS = (18, 20, 21, 22, 23, 24, 25)
# The newest that every Triton release of the last two years loads (bilateral_serving.releases).
DEFAULT_OPSET = 21
BF16_OPSET = 22
# Protobuf refuses messages of 2 GiB; weights go to a file of their own well before that.
EXTERNAL_DATA_BYTES = 3 << 29


def export_checkpoint(
    checkpoint: Path,
    path: Path,
    *,
    precision: Precision = "fp32",
    opset: int | None = None,
    model: str | None = None,
    weights: str | None = None,
    sha256: str | None = None,
    labels: Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    output: str | None = None,
    spatial_features: bool = False,
    accept: Callable[[Checkpoint], None] = lambda _: None,
) -> tuple[OnnxArtifact, Checkpoint]:
    """Write a checkpoint file as ONNX; return what was written, and the checkpoint as exported.

    Args:
        checkpoint: A safetensors checkpoint, or what `torch.save` wrote.
        path: As in `export_onnx`, like `precision`, `opset` and `spatial_features`.
        precision: See there.
        opset: See there.
        model: As in `load_checkpoint`, like `weights` and `sha256`.
        weights: See there.
        sha256: See there.
        labels: Class names, one a line, for checkpoints that carry none.
        image_size: The resolution to move an image classifier to.
        sizes: The sizes of images that one file is to take; empty: one. See `for_sizes`.
        output: What an image classifier returns: logits or features; see `with_output`.
        spatial_features: See `export_onnx`.
        accept: Called with the loaded checkpoint before anything is written; may refuse it.

    Raises:
        UserError: As `load_checkpoint`, `with_labels`, `at_resolution`, `for_sizes`, `export_onnx`.
    """
    loaded = load_checkpoint(checkpoint, model=model, weights=weights, sha256=sha256)
    if labels is not None:
        loaded = with_labels(loaded, labels)
    if image_size is not None:
        loaded = at_resolution(loaded, image_size)
    if output is not None:
        loaded = with_output(loaded, output)
    if sizes:
        loaded = for_sizes(loaded, sizes)
    accept(loaded)
    exported = export_onnx(
        loaded, path, precision=precision, opset=opset, spatial_features=spatial_features
    )
    return exported, loaded


def export_onnx(
    checkpoint: Checkpoint,
    path: Path,
    *,
    precision: Precision = "fp32",
    opset: int | None = None,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
    spatial_features: bool = False,
) -> OnnxArtifact:
    """Write a checkpoint as ONNX (attention nodes, their body, metadata), check and return it.

    Inputs and outputs stay float32 in every precision, so that a client need not know it.

    Args:
        checkpoint: A loaded checkpoint.
        path: The file to write; weights of `external_data_bytes` and more go to `<path>.data`.
        precision: The type of weights and activations.
        opset: Version of the standard operators; None: `DEFAULT_OPSET`, for bf16 `BF16_OPSET`.
        external_data_bytes: From this size on, weights go to a file of their own.
        spatial_features: Write Gaussian spatial kernels as features where they are exact enough
            for the precision: what the fused kernel computes fastest (spatial_features.py).

    Raises:
        UserError: The opset is not supported, a weight or a bandwidth does not survive its
            conversion, or the file cannot be written.
        PostconditionError: The exporter made something else than promised (a defect).
    """
    if opset is None:
        opset = BF16_OPSET if precision == "bf16" else DEFAULT_OPSET
    if opset not in OPSETS:
        raise UserError(
            f"opset {opset} is not supported", f"Choose one of {', '.join(map(str, OPSETS))}."
        )
    if precision == "bf16" and opset < BF16_OPSET:
        raise UserError(
            f"opset {opset} has no bfloat16 convolution",
            f"Use opset {BF16_OPSET} or later for bf16.",
        )
    model = to_precision(checkpoint.build_model(), DTYPES[precision])
    check_bandwidths(model)
    if spatial_features and getattr(checkpoint.card.model, "sizes", None):
        raise UserError(
            "--spatial-features writes features of one grid", "Leave it or --sizes out."
        )
    if spatial_features:
        use_spatial_features(model, DTYPES[precision])
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    external = f"{path.name}.data" if weights >= external_data_bytes else None
    with atomic_file(path) as temporary:
        program = trace_onnx(model, opset)
        _finish(program.model, model, checkpoint, precision)
        ir.save(program.model, temporary, external_data=external)
        check_exported(temporary, _attention_calls(program))
    return read_onnx(path)


def trace_onnx(model: Family, opset: int = DEFAULT_OPSET) -> torch.onnx.ONNXProgram:
    """Trace a model and return the exporter's program, neither named nor checked.

    Args:
        model: Any model of this package, in the dtype the graph is to have.
        opset: Version of the standard operators.

    Raises:
        UserError: A user's own module cannot be traced, or ONNX has no operator for it.
    """
    inputs = model.inputs()
    example = tracing_example(model)
    shapes = tuple(
        {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    tensors = tuple(torch.from_numpy(example[spec.name]).contiguous() for spec in inputs)
    with _quiet():
        own = traced_program(model, tensors) if isinstance(model, UserModel) else None
        try:
            program = torch.onnx.export(
                own or model,
                tensors,
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=opset,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in model.outputs()],
                dynamic_shapes=shapes,
                custom_translation_table=translation_table(),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            if own is None or not isinstance(model, UserModel):
                raise
            raise conversion_error(error, own, model) from error
        assert program is not None
        optimise(program.model)
    return program


def _attention_calls(program: torch.onnx.ONNXProgram) -> int:
    """How often the traced PyTorch program calls the operator, each on other tensors."""
    traced = program.exported_program
    assert traced is not None
    return len(
        {
            (node.args, tuple(node.kwargs.items()))
            for node in traced.graph.nodes
            if node.target is torch.ops.bilateral.attention.default
        }
    )


def _finish(graph: ir.Model, model: Family, checkpoint: Checkpoint, precision: Precision) -> None:
    """Give the traced graph its function bodies, its names and what it says about itself."""
    attach_functions(graph)
    name_nodes(graph, model)
    name_constants(graph, model)
    graph.metadata_props.clear()
    graph.metadata_props[METADATA_KEY] = _metadata(checkpoint, precision).model_dump_json()
    graph.producer_name, graph.producer_version = "bilateral-serve", __version__
    graph.graph.name = checkpoint.card.name


def _metadata(checkpoint: Checkpoint, precision: Precision) -> ArtifactMetadata:
    card = checkpoint.card
    return ArtifactMetadata(
        family=card.model.family,
        name=card.name,
        model=card.model.model_dump(mode="json"),
        precision=precision,
        labels=card.labels,
        preprocessing=card.preprocessing,
        preprocessing_source=checkpoint.preprocessing_source,
        checkpoint_sha256=checkpoint.sha256,
        weights=checkpoint.weights,
        license=card.license,
        versions={
            "bilateral-serve": __version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
        },
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes on packages we do not use and on its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
