"""The trained model as a `torch.export` program: what the ONNX exporter starts from."""

from __future__ import annotations

import torch
from torch import nn

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.models.zoo import exportable
from bilateral_export.runners.torch_runner import TorchRunner
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
        return trace(super()._load(), self._dtype == torch.float64).module()


def trace(model: nn.Module, widened: bool = False) -> torch.export.ExportedProgram:
    """Trace a model with the dimensions of its specs that are named left free.

    Args:
        model: Any model of this package.
        widened: Whether its floating-point inputs are float64, as the reference takes them.

    Returns:
        The program.
    """
    specs = exportable(model).inputs()
    return torch.export.export(
        model,
        tuple(_example(spec, widened) for spec in specs),
        dynamic_shapes=tuple(_free(spec) for spec in specs),
    )


def _example(spec: TensorSpec, widened: bool) -> torch.Tensor:
    # 2, because a size of 1 would be taken for a constant.
    example = torch.zeros(spec.with_batch(2), dtype=getattr(torch, spec.dtype))
    return example.double() if widened and example.is_floating_point() else example


def _free(spec: TensorSpec) -> dict[int, torch.export.Dim]:
    sizes = enumerate(spec.shape)
    return {axis: torch.export.Dim.DYNAMIC for axis, size in sizes if isinstance(size, str)}
