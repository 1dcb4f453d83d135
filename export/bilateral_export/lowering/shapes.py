"""Shape inference and uses of a model's tensors."""

from __future__ import annotations

from collections import defaultdict

import onnx
import onnx.shape_inference

from bilateral_export.lowering.attention_pattern import PreconditionError
from bilateral_export.lowering.subgraphs import names_read
from bilateral_export.lowering.weights_apart import without_weights


class Shapes:
    """Uses and shapes of a model's tensors, as they were when it was made."""

    def __init__(self, model: onnx.ModelProto) -> None:
        light, _ = without_weights(model)
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.made = {name for node in self.nodes for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(names_read(node)):
                self.users[name].append(node)
        self._shapes: dict[str, list[int | str]] = {
            value.name: [
                size.dim_value if size.HasField("dim_value") else size.dim_param
                for size in value.type.tensor_type.shape.dim
            ]
            for value in [*graph.value_info, *graph.input, *graph.output]
        }
        self._shapes |= {name: list(tensor.dims) for name, tensor in self.constants.items()}

    def size(self, name: str, axis: int) -> int | str | None:
        """Return the size of an axis; None where it is not known."""
        shape = self._shapes.get(name)
        return None if shape is None or axis >= len(shape) else shape[axis]

    def fixed(self, name: str, axis: int) -> int | None:
        """Return the size of an axis where it is a number."""
        size = self.size(name, axis)
        return size if isinstance(size, int) else None

    def rank(self, name: str) -> int | None:
        """Return the number of axes; None where it is not known."""
        shape = self._shapes.get(name)
        return None if shape is None else len(shape)

    def only_user(self, name: str, operator: str) -> onnx.NodeProto:
        """Return the only node that reads a tensor, if it is of this operator.

        Raises:
            PreconditionError: It is another, there are more, or the tensor is an output.
        """
        users = self.users[name]
        if len(users) != 1 or users[0].op_type != operator or name in self.outputs:
            raise PreconditionError(f"{name} does not go to one {operator}")
        return users[0]
