"""The `torch.export` program of a trained model, from which the ONNX exporter starts."""

from __future__ import annotations

import torch
from torch import nn

from bilateral_export.models.family import Family, tracing_example
from bilateral_export.precision import to_precision
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import TensorSpec


class ExportedRunner(TorchRunner):
    """Runs a checkpoint's exported program on the CPU.

    Where it agrees with eager PyTorch and the ONNX file does not, the fault is in the translation
    to ONNX, not in what was traced.

    Its arguments are those of `TorchRunner`.
    """

    how = "torch.export"

    def _open(self) -> nn.Module:
        model = to_precision(self._checkpoint.build_model(), self._dtype)
        return trace(model, self._dtype == torch.float64).module()


def trace(model: Family, widened: bool = False) -> torch.export.ExportedProgram:
    """Return a model's program, with the named dimensions of its specs left free.

    Args:
        model: Any model of this package.
        widened: Whether its floating-point inputs are float64, as the reference takes them.

    Returns:
        The program.
    """
    example = tracing_example(model)
    tensors = [torch.from_numpy(example[spec.name]).contiguous() for spec in model.inputs()]
    if widened:
        tensors = [t.double() if t.is_floating_point() else t for t in tensors]
    shapes = tuple(_free(spec) for spec in model.inputs())
    return torch.export.export(model, tuple(tensors), dynamic_shapes=shapes)


def _free(spec: TensorSpec) -> dict[int, torch.export.Dim]:
    sizes = enumerate(spec.shape)
    return {axis: torch.export.Dim.DYNAMIC for axis, size in sizes if isinstance(size, str)}
