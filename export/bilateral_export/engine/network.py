"""A parsed TensorRT network: its inputs and outputs, and the types it computes in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from bilateral_export.engine.installation.library import Library
from bilateral_export.tensors import TensorSpec

# TensorRT's names for types, in NumPy's and in ours for precisions.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "FP4": "float4_e2m1fn",
    "INT8": "int8",
    "INT4": "int4",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_PRECISIONS = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float4_e2m1fn": "fp4",
}
# The layers whose arithmetic decides speed and accuracy; the rest moves or adds.
_COMPUTING = ("MATRIX_MULTIPLY", "CONVOLUTION", "EINSUM", "ATTENTION_INPUT", "PLUGIN_V3")
_PLUGIN = "PLUGIN_V3"


@dataclass(frozen=True)
class NetworkFacts:
    """What a network is, as TensorRT holds it after parsing.

    Attributes:
        inputs, outputs: Its tensors.
        layers: Number of layers by TensorRT's type name.
        types: Number of computing layers (products, convolutions, plugins) by the type they
            compute in; a product of dequantised operands computes in the quantised type.
        plugins: Names of the layers that run through a plugin.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: dict[str, int]
    types: dict[str, int]
    plugins: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The type most of the computing layers compute in, such as "fp16"."""
        return max(self.types, key=lambda name: self.types[name]) if self.types else "none"


def network_facts(network: Any, library: Library) -> NetworkFacts:
    """Return the facts of an `INetworkDefinition`."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
        if layer.get_output(index) is not None
    }
    types: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name in _COMPUTING:
            types[_computed_in(layer, producers)] += 1
    return NetworkFacts(
        inputs=tuple(_tensor(network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_tensor(network.get_output(i)) for i in range(network.num_outputs)),
        layers=dict(sorted(Counter(layer.type.name for layer in layers).items())),
        types=dict(sorted(types.items())),
        plugins=tuple(layer.name for layer in layers if layer.type.name == _PLUGIN),
    )


def dtype_name(data_type: Any) -> str:
    """Return NumPy's name of a TensorRT `DataType`, such as "float16"."""
    name = str(data_type.name)
    return _DTYPES.get(name, name.lower())


def _tensor(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, dtype_name(tensor.dtype), tuple(tensor.shape))


def _computed_in(layer: Any, producers: dict[str, Any]) -> str:
    operand = layer.get_input(0)
    name = dtype_name(operand.dtype)
    producer = producers.get(operand.name)
    # Exporters put a transpose or a reshape between the dequantisation and the product.
    while producer is not None and producer.type.name == "SHUFFLE":
        operand = producer.get_input(0)
        producer = producers.get(operand.name)
    if producer is not None and producer.type.name == "DEQUANTIZE":
        name = dtype_name(producer.get_input(0).dtype)
    return _PRECISIONS.get(name, name)
