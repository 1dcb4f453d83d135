"""Attention maps of an exported graph, as further outputs, and their values for an image."""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray
from pydantic import ValidationError

from bilateral_export.artifact import read_metadata
from bilateral_export.errors import UserError
from bilateral_export.explain.maps import KERNELS, AttentionMaps
from bilateral_export.files import atomic_file
from bilateral_export.graph.attach import attention_nodes, variant_of
from bilateral_export.graph.postconditions import check_exported
from bilateral_export.models.family import FamilyConfig, ImageTokens
from bilateral_export.models.registry import parse_config
from bilateral_export.op import contract
from bilateral_export.op.contract import OperatorVariant
from bilateral_export.op.onnx_body import range_step, spatial_step
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

DOMAIN = "ai.bilateral.explain"
OP_TYPE = "AttentionMaps"
OUTPUTS = tuple(f"{kernel}_maps" for kernel in KERNELS)


def explain_onnx(source: Path, target: Path) -> None:
    """Write a copy of an exported image classifier that also returns its attention maps.

    Each attention node stays as it is; a node beside it takes the same queries, keys and positions
    and computes the weights that the fused operator never forms. The copy has the outputs
    `attention_maps`, `range_maps` and `spatial_maps`, float32 `[batch, layer, head, N, N]`: memory
    grows with N squared, which is why the graph that is served does not have them.

    Raises:
        UserError: The source is not an image classifier that `bilateral export` wrote, was lowered,
            or the target cannot be written.
    """
    exported_image(source)
    model = ir.load(source)
    nodes = attention_nodes(model)
    if not nodes:
        raise UserError(
            f"{source} has no attention node: it was lowered for one runtime",
            "Give the file that `bilateral export` wrote.",
        )
    _add_maps(model, nodes)
    # Weights that lay in a file of their own go to one beside the copy.
    external = any(isinstance(v.const_value, ir.ExternalTensor) for v in _weights(model))
    with atomic_file(target) as temporary:
        ir.save(model, temporary, external_data=f"{target.name}.data" if external else None)
        check_exported(temporary, len(nodes))


def onnx_maps(path: Path, image: NDArray[np.float32]) -> AttentionMaps:
    """Run an exported image classifier in ONNX Runtime and return its attention maps.

    A graph without the maps among its outputs gets them in a temporary copy.

    Args:
        path: What `bilateral export` or `explain_onnx` wrote.
        image: The model's input `[C, H, W]`.

    Raises:
        UserError: As `explain_onnx`.
    """
    tokens = exported_image(path)
    with tempfile.TemporaryDirectory() as scratch:
        explained = path
        if not set(OUTPUTS) <= {value.name for value in ir.load(path).graph.outputs}:
            explained = Path(scratch) / "explained.onnx"
            explain_onnx(path, explained)
        with OnnxRuntimeRunner(explained) as runner:
            outputs = runner.run({runner.inputs[0].name: image[None]})
            logits = outputs[runner.outputs[0].name][0]
    attention, range_, spatial = (outputs[name][0].astype(np.float32) for name in OUTPUTS)
    return AttentionMaps(
        attention=attention,
        range=range_,
        spatial=spatial,
        logits=logits.astype(np.float32),
        prefix=tokens.prefix,
        grid=(tokens.grid, tokens.grid),
    )


def exported_image(path: Path) -> ImageTokens:
    """Return the image that an exported image classifier reads.

    Raises:
        UserError: The file is not one.
    """
    metadata = read_metadata(path)
    try:
        return require_image(parse_config(metadata.model), path)
    except ValidationError as error:
        raise _no_image(path, metadata.family) from error


def require_image(config: FamilyConfig, path: Path) -> ImageTokens:
    """Return the image that a file's model reads, on which heat maps are drawn.

    Raises:
        UserError: It is of a family that reads none.
    """
    if config.image is None:
        raise _no_image(path, config.family)
    return config.image


def _no_image(path: Path, family: str) -> UserError:
    return UserError(
        f"{path} is a {family}, not an image classifier",
        "Heat maps are drawn on the image of an image classifier.",
    )


def _weights(model: ir.Model) -> list[ir.Value]:
    return list(model.graph.initializers.values())


def _add_maps(model: ir.Model, nodes: list[ir.Node]) -> None:
    opset = model.opset_imports[""]
    for configuration in {variant_of(node) for node in nodes}:
        function = ir.serde.deserialize_function(_body(configuration, opset))
        model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = 1

    axis = ir.tensor([1], name="explain.layer_axis")
    layer_axis = ir.Value(name=axis.name, const_value=axis)
    model.graph.register_initializer(layer_axis)
    stacks: dict[str, list[ir.Value]] = {name: [] for name in OUTPUTS}
    for number, node in enumerate(nodes):
        maps = _maps_node(node)
        model.graph.append(maps)
        for name, value in zip(OUTPUTS, maps.outputs, strict=True):
            value.name = f"explain.{number}.{name}"
            layer = ir.node("Unsqueeze", [value, layer_axis], name=f"{value.name}/Unsqueeze")
            layer.outputs[0].name = f"{value.name}.layer"
            model.graph.append(layer)
            stacks[name].append(layer.outputs[0])
    for name, layers in stacks.items():
        stack = ir.node("Concat", layers, attributes={"axis": 1}, name=f"explain/{name}")
        output = stack.outputs[0]
        output.name = name
        output.dtype = ir.DataType.FLOAT
        output.shape = _output_shape(nodes)
        model.graph.append(stack)
        model.graph.outputs.append(output)


def _output_shape(nodes: list[ir.Node]) -> ir.Shape:
    query = nodes[0].inputs[0]
    heads = query.shape[1] if query is not None and query.shape is not None else "heads"
    return ir.Shape(["batch", len(nodes), heads, "tokens", "tokens"])


def _maps_node(node: ir.Node) -> ir.Node:
    """The node beside an attention node: the same inputs without the value."""
    configuration = variant_of(node)
    kept = (contract.SCALE, contract.QUERY_PREFIX, contract.KEY_PREFIX)
    query, key, _, *positions = node.inputs
    return ir.Node(
        DOMAIN,
        OP_TYPE,
        [query, key, *positions],
        [node.attributes[name] for name in kept],
        overload=configuration.overload,
        num_outputs=len(OUTPUTS),
        name=f"{node.name}/maps",
    )


def _body(configuration: OperatorVariant, opset: int) -> onnx.FunctionProto:
    """The maps of one attention, out of the same steps as the operator's own body."""
    assert not configuration.causal
    assert not configuration.key_bias
    _, _, _, *positions = contract.input_names(configuration.spatial_kernel, key_bias=False)
    steps = [range_step(configuration.range_kernel).replace("logits_out", "range_logits")]
    steps.append("nothing = Sub (range_logits, range_logits)")
    if configuration.spatial_kernel == "none":
        steps.append("spatial_logits = Identity (nothing)")
    else:
        step = spatial_step(configuration.spatial_kernel)
        # Added to nothing, which gives it the batch axis.
        steps.append(step.replace("logits_in", "nothing").replace("logits_out", "spatial_logits"))
    steps.append("logits = Add (range_logits, spatial_logits)")
    for output, logits in zip(OUTPUTS, ("logits", "range_logits", "spatial_logits"), strict=True):
        steps.append(f"{output} = Softmax <axis = -1> ({logits})")
    text = (
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}],'
        f' overload: "{configuration.overload}">\n'
        f"{OP_TYPE} <scale: float = 1.0, query_prefix: int = 0, key_prefix: int = 0>"
        f" ({', '.join(['query', 'key', *positions])}) => ({', '.join(OUTPUTS)})\n"
        "{\n" + textwrap.indent("\n".join(steps), "    ") + "\n}"
    )
    return onnx.parser.parse_function(text)
