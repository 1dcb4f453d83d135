"""What a model file takes and gives, read from the file itself without its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.metadata import METADATA_KEY, ArtifactMetadata
from bilateral_export.tensors import TensorSpec
from bilateral_serving.datatypes import BATCH

if TYPE_CHECKING:
    import onnx

# ONNX's name of an element type -> NumPy's.
_ELEMENT_TYPES = {
    "FLOAT": "float32",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "DOUBLE": "float64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "BOOL": "bool",
}


# ONNX's name of the type of weights -> what a precision is called.
_PRECISIONS = {
    "FLOAT": "fp32",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "DOUBLE": "fp64",
    "INT8": "int8",
    "UINT8": "int8",
    "INT4": "int4",
    "UINT4": "int4",
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), "fp8"),
}


@dataclass(frozen=True)
class Artifact:
    """A model file and what it says about itself.

    Attributes:
        path: The file.
        companions: Files that must lie beside it under the same names (ONNX external data).
        inputs: Its inputs, in order.
        outputs: Its outputs, in order.
        metadata: The document of `bilateral export`, or None for a model from elsewhere.
        max_batch: The largest batch the file accepts; None where it sets no limit.
        precision: The type of most of its weights, as the file has them; "" if not known.
    """

    path: Path
    companions: tuple[Path, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: ArtifactMetadata | None
    max_batch: int | None = None
    precision: str = ""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Inputs, then outputs."""
        return self.inputs + self.outputs

    @property
    def has_free_batch(self) -> bool:
        """Whether the first axis of every input and output is free, and is one and the same."""
        first = [tensor.shape[0] if tensor.shape else 0 for tensor in self.tensors]
        return isinstance(first[0], str) and len(set(first)) == 1


def remarks(artifact: Artifact) -> tuple[str, ...]:
    """What a file that is served as it is lacks, or has become in another tool; one line each."""
    about, found = artifact.metadata, []
    if about is None:
        found.append(
            "it has no metadata, which other tools drop: clients can neither prepare inputs for it"
            " nor name classes"
        )
    else:
        if about.preprocessing is None:
            found.append("it says no preprocessing: clients cannot prepare inputs from files")
        if not about.labels and about.family.endswith(("classifier", "segmenter")):
            found.append("it says no labels: clients can only number classes")
        if artifact.precision and artifact.precision != about.precision:
            found.append(
                f"its weights are {artifact.precision}, though it was exported as {about.precision}"
            )
    if not artifact.has_free_batch:
        found.append("its batch is fixed: requests are not batched")
    return tuple(found)


def read_onnx(path: Path) -> Artifact:
    """Read an ONNX file's inputs, outputs, external files and metadata, but not its weights.

    Raises:
        UserError: The file is missing, not an ONNX model, lacks an external file, or has an input
            or output that cannot be served.
    """
    # Imported here so that listing and serving a repository needs no onnx.
    import onnx
    from google.protobuf.message import DecodeError

    require_file(path, "model")
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise _not_onnx(path) from error
    if not model.graph.output or not model.opset_import:
        raise _not_onnx(path)

    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = tuple(
        _tensor_spec(path, value) for value in model.graph.input if value.name not in weights
    )
    outputs = tuple(_tensor_spec(path, value) for value in model.graph.output)
    if not inputs:
        raise UserError(f"{path} has no input", "Export a model that takes at least one tensor.")
    return Artifact(
        path,
        _companions(path, model),
        inputs,
        outputs,
        _metadata(path, model),
        precision=_precision(model.graph),
    )


def _not_onnx(path: Path) -> UserError:
    return UserError(
        f"{path} is not an ONNX model", "Give the .onnx file that `bilateral export` wrote."
    )


def _tensor_spec(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if element not in _ELEMENT_TYPES:
        raise UserError(
            f"{path}: tensor '{value.name}' has element type {element}, which is not served",
            f"Export it as one of {', '.join(_ELEMENT_TYPES)}.",
        )
    if not tensor.HasField("shape"):
        raise UserError(
            f"{path}: tensor '{value.name}' has no shape", "Export it with a known rank."
        )
    if not tensor.shape.dim:
        raise UserError(
            f"{path}: tensor '{value.name}' is a scalar, which Triton cannot pass on",
            "Export it with shape [1].",
        )
    # A first axis that is free and has no name is taken for the batch.
    shape = tuple(
        size.dim_value
        if size.HasField("dim_value")
        else size.dim_param or (f"{value.name}.{axis}" if axis else BATCH)
        for axis, size in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, _ELEMENT_TYPES[element], shape)


def _companions(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    locations = {
        str(ExternalDataInfo(tensor).location)
        for tensor in _tensors(model.graph)
        if uses_external_data(tensor)
    }
    companions = []
    for location in sorted(locations):
        if Path(location).name != location:
            raise UserError(
                f"{path} keeps weights in '{location}', which is not a file beside it",
                "Export it again with its external data in the same directory.",
            )
        companions.append(require_file(path.parent / location, f"the weights file of {path.name},"))
    return tuple(companions)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _tensors(subgraph)


def _precision(graph: onnx.GraphProto) -> str:
    import onnx

    counts: Counter[str] = Counter()
    for tensor in _tensors(graph):
        name = _PRECISIONS.get(onnx.TensorProto.DataType.Name(tensor.data_type))
        if name is not None:
            counts[name] += math.prod(tensor.dims)
    return counts.most_common(1)[0][0] if counts else ""


def _metadata(path: Path, model: onnx.ModelProto) -> ArtifactMetadata | None:
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in properties:
        return None
    try:
        return ArtifactMetadata.model_validate_json(properties[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: its '{METADATA_KEY}' metadata is not valid: {where}: {first['msg']}",
            "Export the model again with this version.",
        ) from error
