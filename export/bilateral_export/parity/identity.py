"""Whether an ONNX file says it is what the checkpoint is: weights, labels, preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import numpy_helper
from pydantic import TypeAdapter, ValidationError

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.graph.attach import attention_nodes, configuration_of
from bilateral_export.metadata import METADATA_KEY, ArtifactMetadata
from bilateral_export.models.family import ModelConfig
from bilateral_export.op import contract
from bilateral_export.op.function import same_body
from bilateral_export.parity.report import Check
from bilateral_export.tensors import TensorSpec

STAGE = "file"

_RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)


def read_metadata(path: Path) -> ArtifactMetadata:
    """What an exported file says of itself.

    Raises:
        UserError: It is no ONNX file, or was not made by `bilateral export`.
    """
    try:
        model = onnx.load(require_file(path, "model"), load_external_data=False)
    except UserError:
        raise
    except Exception as error:  # protobuf's DecodeError has no public name
        raise UserError(
            f"{path} is no ONNX model", "Export it again with `bilateral export`."
        ) from error
    for item in model.metadata_props:
        if item.key == METADATA_KEY:
            try:
                return ArtifactMetadata.model_validate_json(item.value)
            except ValidationError as error:
                raise UserError(
                    f"the metadata of {path} is damaged", "Export it again with `bilateral export`."
                ) from error
    raise UserError(f"{path} does not say what it was exported from", "Use `bilateral export`.")


def check_graph(path: Path, inputs: Sequence[TensorSpec]) -> None:
    """Refuse a file that is damaged, lacks its weights, or takes other inputs than the model.

    Args:
        path: The file.
        inputs: The trained model's.

    Raises:
        UserError: `onnx.checker` refuses it, or the inputs' names differ.
    """
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # ValidationError, or protobuf's
        first = str(error).partition("\n")[0]
        raise UserError(
            f"{path} is no valid ONNX model ({first})", "Export it again with `bilateral export`."
        ) from error
    graph = onnx.load(path, load_external_data=False).graph
    taken = [value.name for value in graph.input]
    if missing := [spec.name for spec in inputs if spec.name not in taken]:
        raise UserError(
            f"{path} takes {', '.join(taken)}, and the checkpoint's model {', '.join(missing)}",
            "Give the file that was exported from this checkpoint.",
        )


def body_check(model: onnx.ModelProto) -> Check:
    """Whether the operator's bodies in a file are those that this version writes.

    Numbers need not show a changed body: a runtime may take a narrowing cast away, and another
    one may not.
    """
    changed = []
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    nodes = attention_nodes(ir.serde.deserialize_model(model))
    calls = {(node.overload, configuration_of(node)) for node in nodes}
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


def random_check(model: onnx.ModelProto) -> Check:
    """Whether a file computes the same each time: none of its nodes draws at random.

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
    """The nodes that may draw, in graphs inside these nodes too; `outer` are constants they see."""
    constants = dict(outer)
    for node in nodes:
        # A value that a function's caller gives is no constant.
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and not attribute.ref_attr_name:
                constants[node.output[0]] = attribute.t
        if node.domain in ("", "ai.onnx") and _draws(node, constants):
            yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _drawing(graph.node, constants | _constants(graph))


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers that no caller can replace, and whose values are in the file."""
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
    """Compare what file and checkpoint say. Numbers cannot show swapped labels; this does."""
    card = checkpoint.card
    pairs = {
        "weights": (metadata.checkpoint_sha256, checkpoint.sha256),
        "configuration": (_configuration(metadata), card.model),
        "labels": (misplaced(metadata.labels, card.labels), ()),
        "preprocessing": (metadata.preprocessing, card.preprocessing),
    }
    return [
        Check(
            stage=STAGE,
            name=name,
            detail="as in the checkpoint" if said == true else "not those of the checkpoint",
            passed=said == true,
        )
        for name, (said, true) in pairs.items()
    ]


def _configuration(metadata: ArtifactMetadata) -> ModelConfig | None:
    """The file's configuration, with the defaults of fields that are newer than the file."""
    adapter: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
    try:
        return adapter.validate_python(metadata.model)
    except ValidationError:
        return None


def misplaced(labels: Sequence[str], trained: Sequence[str]) -> tuple[str, ...]:
    """Labels that stand for another class than in the checkpoint.

    New names are no fault (`bilateral export --labels` gives them); a name that moved is.
    """
    if labels and trained and len(labels) != len(trained):
        return tuple(labels)
    places = {label: place for place, label in enumerate(trained)}
    return tuple(label for place, label in enumerate(labels) if places.get(label, place) != place)
