"""Changes that other tools have made to a file that `bilateral export` wrote.

Read from the graph itself and not from the metadata, which a tool copies unread or drops.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator

import onnx
from pydantic import ValidationError

from bilateral_export.artifact import PRECISIONS, parse_metadata
from bilateral_export.graph.provenance import MODULE_KEY
from bilateral_export.metadata import LOWERING_KEY, METADATA_KEY, ArtifactMetadata
from bilateral_export.op import contract
from bilateral_export.op.contract import OperatorVariant
from bilateral_export.op.onnx_body import same_body

_TYPES = {onnx.TensorProto.DataType.Value(name): said for name, said in PRECISIONS.items()} | {
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.UINT4: "uint4",
}
# Operators with weights, and those that stand between a weight and its operator.
_PRODUCTS = frozenset(
    {"MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv"}
    | {"MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    | {"QLinearMatMul", "QLinearConv", "QGemm", "MatMulNBits"}
)
_BETWEEN = frozenset({"Cast", "DequantizeLinear", "Transpose", "Reshape", "Identity"})
_QUANTISED = ("quantize", "integer", "qlinear", "qgemm", "nbits")


def precisions(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the types of the weights in products, such as ("fp32",), most numbers first.

    Positions, bandwidths and features stay float32 in every precision, and do not count.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        for name in node.input if node.op_type in _PRODUCTS else ():
            while (made := producers.get(name)) is not None and made.op_type in _BETWEEN:
                name = made.input[0]
            if made is not None and made.op_type == "Constant":
                tensors[name] = made.attribute[0].t
            tensor = tensors.get(name)
            if tensor is not None and tensor.data_type in _TYPES and len(tensor.dims) > 1:
                counts[_TYPES[tensor.data_type]] += math.prod(tensor.dims)
    return tuple(kind for kind, _ in counts.most_common())


def changes(model: onnx.ModelProto) -> tuple[str, ...]:
    """List what is not as `bilateral export` writes it, one line each.

    A file with neither its metadata nor its nodes is a model from elsewhere: the list is empty.

    Args:
        model: The file; its weights may be left outside.
    """
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = read_metadata(model)
    calls = [node for node in model.graph.node if node.domain == contract.DOMAIN]
    traced = any(e.key == MODULE_KEY for node in model.graph.node for e in node.metadata_props)
    if METADATA_KEY not in properties and not calls and not traced:
        return ()
    found = []
    if METADATA_KEY not in properties:
        found.append(
            "the metadata is gone: no labels, no preprocessing, no checkpoint to compare with"
        )
    elif metadata is None:
        found.append("the metadata is damaged")
    types = precisions(model)
    if metadata is not None and types and types != (metadata.precision,):
        found.append(f"exported as {metadata.precision}, its weights are {' and '.join(types)}")
    kinds = [node.op_type.lower() for node in model.graph.node]
    if quantised := sum(any(word in kind for word in _QUANTISED) for kind in kinds):
        found.append(f"it is quantised: {quantised} nodes")
    if LOWERING_KEY not in properties:
        found += _attention(model, calls, metadata)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outside = {v.name: _TYPES.get(v.type.tensor_type.elem_type) for v in inputs}
    if other := [name for name, kind in outside.items() if kind in ("fp16", "bf16", "fp64")]:
        found.append(f"input {', '.join(other)} is {outside[other[0]]}, where the export has fp32")
    fixed = sorted(
        value.type.tensor_type.shape.dim[0].dim_value
        for value in inputs
        if value.type.tensor_type.shape.dim
        and value.type.tensor_type.shape.dim[0].HasField("dim_value")
    )
    if fixed:
        found.append(f"the batch is fixed at {fixed[0]}")
    return tuple(found)


def _attention(
    model: onnx.ModelProto, calls: list[onnx.NodeProto], metadata: ArtifactMetadata | None
) -> Iterator[str]:
    """Yield what became of the operator's nodes and their bodies."""
    named = [node for node in calls if node.op_type == contract.OP_TYPE]
    if len(named) < len(calls):
        other = next(node.op_type for node in calls if node.op_type != contract.OP_TYPE)
        yield f"the attention is renamed to {other}: neither plugin nor lowering knows it"
    elif not calls and metadata is not None:
        yield (
            "the attention nodes are gone (inlined): it runs, but neither TensorRT's plugin nor a"
            " lowering applies"
        )
    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    operands = {name for node in named for name in node.input[3:]} & tensors.keys()
    narrow = sorted(name for name in operands if tensors[name] != onnx.TensorProto.FLOAT)
    if narrow:
        yield (
            f"the attention takes {', '.join(narrow[:3])} in float32, and the file has"
            f" {_TYPES.get(tensors[narrow[0]], 'another type')}: no runtime opens it"
        )
    if missing := missing_bodies(model):
        yield f"{len(missing)} attention nodes have no function body: only the plugin can run them"
        return
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    bodies = {f.overload: f for f in model.functions if f.domain == contract.DOMAIN}
    for node in named:
        if not same_body(bodies[node.overload], _variant(node), opset):
            yield "the attention's function body is written differently: judge it by parity"
            return


def _variant(node: onnx.NodeProto) -> OperatorVariant:
    said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    texts = {name: v.decode() if isinstance(v, bytes) else v for name, v in said.items()}
    return OperatorVariant.of(texts, len(node.input))


def missing_bodies(model: onnx.ModelProto) -> list[str]:
    """Return the names of the operator's nodes without a function in the file, in graph order."""
    functions = {(f.domain, f.name, f.overload) for f in model.functions}
    return [
        node.name or node.output[0]
        for node in model.graph.node
        if node.domain == contract.DOMAIN
        and (node.domain, node.op_type, node.overload) not in functions
    ]


def read_metadata(model: onnx.ModelProto) -> ArtifactMetadata | None:
    """Return what `bilateral export` wrote about a model; None where that is gone or damaged."""
    with contextlib.suppress(ValidationError):
        return parse_metadata(model)
    return None
