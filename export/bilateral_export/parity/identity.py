"""Identity checks of an ONNX file: interface, operator, weights, labels, preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from pydantic import ValidationError

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.graph.attach import attention_nodes, variant_of
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.models.family import Family, FamilyConfig
from bilateral_export.models.registry import parse_config
from bilateral_export.op import contract
from bilateral_export.op.onnx_body import same_body
from bilateral_export.parity.report.document import Check
from bilateral_export.tensors import TensorSpec

STAGE = "file"

_ATTRIBUTES = {
    contract.SCALE,
    contract.RANGE_KERNEL,
    contract.SPATIAL_KERNEL,
    contract.QUERY_PREFIX,
    contract.KEY_PREFIX,
    contract.CAUSAL,
    contract.PLUGIN_NAMESPACE,
    contract.PLUGIN_VERSION,
}

_RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)


def check_graph(path: Path, metadata: ArtifactMetadata, family: str) -> None:
    """Refuse a file that is damaged, lacks its weights, or is of another family.

    Args:
        path: The file.
        metadata: What it says of itself.
        family: The trained model's.

    Raises:
        UserError: `onnx.checker` refuses it, or it is of another family.
    """
    if metadata.family != family:
        raise UserError(
            f"{path} is of family {metadata.family}, the checkpoint of {family}",
            "Give the file that was exported from this checkpoint.",
        )
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # ValidationError, or protobuf's
        first = str(error).partition("\n")[0]
        raise UserError(
            f"{path} is not a valid ONNX model ({first})",
            "Export it again with `bilateral export`.",
        ) from error


def interface_check(model: onnx.ModelProto, trained: Family) -> Check:
    """Check that a file takes and returns what the model does: names, types, ranks, fixed sizes.

    Where it does not, no runtime's answers can be compared with the model's.
    """
    graph = model.graph
    weights = {tensor.name for tensor in [*graph.initializer, *_sparse(graph)]}
    problems = [
        f"a caller may replace the weight {value.name}, which is an input too"
        for value in graph.input
        if value.name in weights
    ]
    for kind, values, specs in (
        ("input", [v for v in graph.input if v.name not in weights], trained.inputs()),
        ("output", list(graph.output), trained.outputs()),
    ):
        given = {value.name: value for value in values}
        wanted = {spec.name: spec for spec in specs}
        problems += [f"it has no {kind} {name}" for name in wanted if name not in given]
        problems += [f"the model has no {kind} {name}" for name in given if name not in wanted]
        problems += [
            f"{kind} {name} is not {spec}"
            for name, spec in wanted.items()
            if name in given and not _fits(given[name], spec)
        ]
    return Check(
        stage=STAGE,
        name="interface",
        detail="; ".join(problems) or "takes and returns what the model does",
        passed=not problems,
    )


def _sparse(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [tensor.values for tensor in graph.sparse_initializer]


def _fits(value: onnx.ValueInfoProto, spec: TensorSpec) -> bool:
    """Return whether a value has a spec's type and, where it says a shape, that shape."""
    tensor = value.type.tensor_type
    if tensor.elem_type != helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)):
        return False
    if not tensor.HasField("shape"):
        return True
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
    return len(sizes) == len(spec.shape) and all(
        size is None or size == wanted for size, wanted in zip(sizes, spec.shape, strict=True)
    )


def body_check(model: onnx.ModelProto) -> Check:
    """Check that the operator's bodies in a file are those that this version writes.

    Numbers need not show a changed body: a runtime may take a narrowing cast away, and another
    one may not.
    """
    changed = []
    standard = ("", "ai.onnx")
    opset = next(entry.version for entry in model.opset_import if entry.domain in standard)
    nodes = [node for node in attention_nodes(ir.serde.deserialize_model(model)) if _whole(node)]
    calls = {(node.overload, variant_of(node)) for node in nodes}
    for overload, configuration in sorted(calls, key=str):
        body = next(
            (f for f in model.functions if (f.domain, f.overload) == (contract.DOMAIN, overload)),
            None,
        )
        if body is None or not same_body(body, configuration, opset):
            changed.append(configuration.overload)
    right = "the operator's" if nodes else "none: the file has no attention nodes (inlined)"
    return Check(
        stage=STAGE,
        name="operator body",
        detail=f"not the operator's: {', '.join(changed)}" if changed else right,
        passed=not changed,
    )


def plugin_check(model: onnx.ModelProto) -> Check:
    """Check that every node of the operator has all of its attributes, and those of the plugin.

    No other runtime reads them, so no number shows it, and TensorRT finds its plugin by them.
    """
    wrong = []
    said = {contract.PLUGIN_NAMESPACE: contract.DOMAIN, contract.PLUGIN_VERSION: contract.VERSION}
    for node in attention_nodes(ir.serde.deserialize_model(model)):
        if not _whole(node):
            odd = ", ".join(sorted(_ATTRIBUTES ^ set(node.attributes)))
            wrong.append(f"{node.name} lacks an attribute, or has one more: {odd}")
            continue
        for name, wanted in said.items():
            if (got := str(node.attributes[name].value)) != str(wanted):
                wrong.append(f"{name} of {node.name} is {got!r}, not {str(wanted)!r}")
    return Check(
        stage=STAGE,
        name="plugin attributes",
        detail="; ".join(wrong) or "those of the operator",
        passed=not wrong,
    )


def _whole(node: ir.Node) -> bool:
    return set(node.attributes) == _ATTRIBUTES


def softmax_check(model: onnx.ModelProto) -> Check:
    """Check that a file has no exponential that large logits make infinite.

    What this package writes has Softmax, which subtracts the largest logit first. A softmax that
    was written out without it agrees with FP64 on ordinary inputs, and no input that is judged
    need have logits large enough to show it: layer norms keep them small.
    """
    bare = []
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        made = {name: node for node in nodes for name in node.output}
        bare += [
            node.name or node.output[0]
            for node in nodes
            if node.op_type == "Exp" and not _below_zero(made.get(node.input[0]), made)
        ]
    return Check(
        stage=STAGE,
        name="softmax",
        detail=f"logits from 89 on (fp16: 12) become infinite at {', '.join(bare)}"
        if bare
        else "no logit is too large",
        passed=not bare,
    )


def _below_zero(node: onnx.NodeProto | None, made: Mapping[str, onnx.NodeProto]) -> bool:
    """Return whether a node subtracts from its input the largest element of it."""
    if node is None or node.op_type != "Sub":
        return False
    largest = made.get(node.input[1])
    return largest is not None and (largest.op_type, largest.input[0]) == (
        "ReduceMax",
        node.input[0],
    )


def random_check(model: onnx.ModelProto) -> Check:
    """Check that a file computes the same each time: none of its nodes draws at random.

    Numbers need not show it: ONNX Runtime's CPU provider passes a Dropout in training mode through,
    and another runtime drops.
    """
    found = [(node, "") for node in _drawing(model.graph.node, _constants(model.graph))]
    for function in model.functions:
        found += [(node, f" in {function.name}") for node in _drawing(function.node, {})]
    drawing = [f"{node.name or node.output[0]} ({node.op_type}){where}" for node, where in found]
    return Check(
        stage=STAGE,
        name="same each time",
        detail=f"drawn at random: {', '.join(drawing)}" if drawing else "nothing is drawn",
        passed=not drawing,
    )


def _drawing(
    nodes: Sequence[onnx.NodeProto], outer: Mapping[str, onnx.TensorProto]
) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that may draw, in nested graphs too; `outer` are constants they see."""
    constants = dict(outer)
    for node in nodes:
        # A value that a function's caller gives is not a constant.
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and not attribute.ref_attr_name:
                constants[node.output[0]] = attribute.t
        if node.domain in ("", "ai.onnx") and _draws(node, constants):
            yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _drawing(graph.node, constants | _constants(graph))


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return initializers that no caller can replace, and whose values are in the file."""
    inputs = {value.name for value in graph.input}
    return {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.name not in inputs and tensor.data_location != onnx.TensorProto.EXTERNAL
    }


def _draws(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Dropout":
        return node.op_type in _RANDOM
    if len(node.input) < 3 or not node.input[2]:  # the default is inference
        return False
    training = constants.get(node.input[2])
    return training is None or bool(numpy_helper.to_array(training).any())


def identity_checks(checkpoint: Checkpoint, metadata: ArtifactMetadata) -> list[Check]:
    """Check that file and checkpoint say the same; numbers cannot show swapped labels."""
    card = checkpoint.card
    pairs = {
        "weights": (metadata.checkpoint_sha256, checkpoint.sha256),
        "configuration": (_configuration(metadata), card.model),
        "preprocessing": (metadata.preprocessing, card.preprocessing),
    }
    checks = [
        Check(
            stage=STAGE,
            name=name,
            detail="as in the checkpoint" if said == true else "not those of the checkpoint",
            passed=said == true,
        )
        for name, (said, true) in pairs.items()
    ]
    return [*checks, labels_check(metadata.labels, card.labels)]


def _configuration(metadata: ArtifactMetadata) -> FamilyConfig | None:
    """Return the file's configuration, with the defaults of fields newer than the file."""
    try:
        return parse_config(metadata.model)
    except ValidationError:
        return None


def labels_check(labels: Sequence[str], trained: Sequence[str]) -> Check:
    """Check that a file's labels are the checkpoint's: as many, and each at its class.

    A checkpoint without labels says nothing of them, and names that are all new were given at
    export (`bilateral export --labels`): both hold. Labels that are gone, have moved, or differ
    where others are the checkpoint's, do not.
    """
    pairs = enumerate(zip(labels, trained, strict=False))
    differ = [place for place, (label, true) in pairs if label != true]
    problem, detail = "", "as in the checkpoint"
    if not trained:
        detail = "the checkpoint has none"
    elif len(labels) != len(trained):
        problem = f"the file has {len(labels) or 'none'}, the checkpoint {len(trained)}"
    elif not set(labels) & set(trained):
        detail = "other names than the checkpoint's, as `bilateral export --labels` gives them"
    elif differ:
        place = differ[0]
        problem = f"class {place} is {labels[place]!r}, in the checkpoint {trained[place]!r}"
        problem += f"; {len(differ)} differ"
    return Check(stage=STAGE, name="labels", detail=problem or detail, passed=not problem)
