"""Model files: the one reader of ONNX, and what a file takes, gives and says about itself."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bilateral_export.errors import UserError
from bilateral_export.files import require_file, sha256
from bilateral_export.metadata import LOWERING_KEY, METADATA_KEY, ArtifactMetadata
from bilateral_export.op import contract
from bilateral_export.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx

# ONNX's name of the type of weights -> what a precision is called.
PRECISIONS = {
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
    """A model file of any format.

    Attributes:
        path: The file.
        inputs, outputs: Its tensors, in order.
        metadata: The document of `bilateral export`, or None for a model from elsewhere.
        external_files: The files that hold its weights (ONNX external data).
        max_batch: The largest batch the file accepts; None where it sets no limit.
        precision: The type of most of its weights; "" if not known.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: ArtifactMetadata | None = None
    external_files: tuple[Path, ...] = ()
    max_batch: int | None = None
    precision: str = ""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Inputs, then outputs."""
        return self.inputs + self.outputs

    @property
    def bytes(self) -> int:
        """Its size, external files included."""
        return sum(file.stat().st_size for file in (self.path, *self.external_files))

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file; of all hashes, its own first, where it has external files."""
        found = [sha256(file) for file in (self.path, *self.external_files)]
        return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()

    @property
    def judged_as(self) -> tuple[str, ...]:
        """Hashes by which a parity report about it may name it."""
        return (self.sha256,)

    @property
    def has_free_batch(self) -> bool:
        """Whether the first axis of every input and output is free, and is one and the same."""
        first = [tensor.shape[0] if tensor.shape else 0 for tensor in self.tensors]
        return isinstance(first[0], str) and len(set(first)) == 1


@dataclass(frozen=True)
class OnnxArtifact(Artifact):
    """An ONNX file.

    Attributes:
        opset: Version of the standard operators; 0 where it imports none.
        attention: Names of the BilateralAttention nodes, in graph order.
        lowering: What was recorded when it was lowered for a runtime; None for an exported file.
    """

    opset: int = 0
    attention: tuple[str, ...] = ()
    lowering: dict[str, Any] | None = None

    @property
    def judged_as(self) -> tuple[str, ...]:
        """Hashes by which a parity report may name it: its own, and of what it was lowered from."""
        source = (self.lowering or {}).get("source_sha256")
        return (self.sha256, *([source] if source else ()))

    @property
    def attention_nodes(self) -> int:
        """How many BilateralAttention nodes it has."""
        return len(self.attention)


def read_onnx(path: Path) -> OnnxArtifact:
    """Return what an ONNX file takes, gives and says about itself; its weights are not read.

    Raises:
        UserError: The file is missing, not an ONNX model, has no input, lacks an external file, or
            its metadata is not valid.
    """
    model = load_graph(path, weights=False)
    inputs, outputs = interface(model)
    if not inputs:
        raise UserError(f"{path} has no input", "Export a model that takes at least one tensor.")
    return OnnxArtifact(
        path,
        inputs,
        outputs,
        _valid_metadata(path, model),
        require_external_files(path, model),
        precision=_precision(model.graph),
        opset=next((entry.version for entry in model.opset_import if not entry.domain), 0),
        attention=tuple(
            node.name
            for node in model.graph.node
            if (node.domain, node.op_type) == (contract.DOMAIN, contract.OP_TYPE)
        ),
        lowering=document(model, LOWERING_KEY),
    )


def read_metadata(path: Path) -> ArtifactMetadata:
    """Return what an exported file says about itself.

    Raises:
        UserError: As `read_onnx`; or it was not made by `bilateral export`.
    """
    metadata = read_onnx(path).metadata
    if metadata is None:
        raise UserError(f"{path} does not say what it was exported from", "Use `bilateral export`.")
    return metadata


def load_graph(path: Path, weights: bool = True) -> onnx.ModelProto:
    """Return the model of an ONNX file; without `weights`, those in other files are left there.

    Raises:
        UserError: The file is missing, not an ONNX model, or lacks an external file.
    """
    # Imported here so that a client, and listing and serving a repository, need no onnx.
    import onnx
    import onnx.external_data_helper
    from google.protobuf.message import DecodeError

    require_file(path, "model")
    wrong = UserError(
        f"{path} is not an ONNX model", "Give the .onnx file that `bilateral export` wrote."
    )
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise wrong from error
    if not model.graph.output or not model.opset_import:
        raise wrong
    if weights:
        require_external_files(path, model)
        try:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        except Exception as error:  # a file that is too short, or a link: of several types
            raise UserError(
                f"the weights of {path} cannot be read: {error}", "Export it again."
            ) from error
    return model


def interface(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return a graph's inputs, without weights that are inputs too, and its outputs."""
    weights = {initializer.name for initializer in model.graph.initializer}
    return (
        tuple(tensor_spec(value) for value in model.graph.input if value.name not in weights),
        tuple(tensor_spec(value) for value in model.graph.output),
    )


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return a value's name, type and shape; the shape is () where the rank is not known, too."""
    tensor = value.type.tensor_type
    shape = tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or -1
        for size in tensor.shape.dim
    )
    return TensorSpec(value.name, dtype_name(tensor.elem_type), shape)


def dtype_name(element_type: int) -> str:
    """Return NumPy's name of an ONNX element type; "type N" for one that it does not have."""
    import onnx

    try:
        return onnx.helper.tensor_dtype_to_np_dtype(element_type).name
    except KeyError:
        return f"type {element_type}"  # undefined, or of a later ONNX


def external_files(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    """Return the files that hold weights of the model at `path`, whether they exist or not."""
    locations = {
        entry.value
        for tensor in _tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(path.parent / location for location in sorted(locations))


def require_external_files(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    """Return the files that hold weights of the model at `path`.

    Raises:
        UserError: One of them is missing.
    """
    what = f"the weights file of {path.name},"
    return tuple(require_file(file, what) for file in external_files(path, model))


def document(model: onnx.ModelProto, key: str) -> dict[str, Any] | None:
    """Return the JSON document under a metadata key; None where there is none, or it is damaged."""
    text = next((entry.value for entry in model.metadata_props if entry.key == key), "")
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def parse_metadata(model: onnx.ModelProto) -> ArtifactMetadata | None:
    """Return what `bilateral export` wrote about a model; None for a model from elsewhere.

    Raises:
        ValidationError: It is damaged, or of another version.
    """
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return ArtifactMetadata.model_validate_json(entry.value)
    return None


def _valid_metadata(path: Path, model: onnx.ModelProto) -> ArtifactMetadata | None:
    try:
        return parse_metadata(model)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: its '{METADATA_KEY}' metadata is not valid: {where}: {first['msg']}",
            "Export the model again with this version.",
        ) from error


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

    names = {value: name for name, value in onnx.TensorProto.DataType.items()}
    counts: Counter[str] = Counter()
    for tensor in _tensors(graph):
        precision = PRECISIONS.get(names.get(tensor.data_type, ""))
        if precision is not None:
            counts[precision] += math.prod(tensor.dims)
    return counts.most_common(1)[0][0] if counts else ""
