"""The trained model as a `torch.export` program: what the ONNX exporter starts from."""

from __future__ import annotations

import torch
from torch import nn

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.models.family import Family, tracing_example
from bilateral_export.precision import to_precision
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import TensorSpec


class ExportedRunner(TorchRunner):
    """Runs a checkpoint's exported program on the CPU.

    Where it agrees with eager PyTorch and the ONNX file does not, the fault is in the translation
    to ONNX, not in what was traced.

    Args:
        checkpoint: The trained weights.
        dtype: Of weights and activations.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(checkpoint, dtype)
        self.name = f"torch.export {str(dtype).removeprefix('torch.')}"

    def _load(self) -> nn.Module:
        return trace(
            to_precision(self._checkpoint.build_model(), self._dtype), self._dtype == torch.float64
        ).module()


def trace(model: Family, widened: bool = False) -> torch.export.ExportedProgram:
    """Trace a model with the dimensions of its specs that are named left free.

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
