"""Eager PyTorch: the trained model in any dtype, float64 for the reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.precision import to_precision
from bilateral_export.runners.base import BaseRunner
from bilateral_export.tensors import Array


class TorchRunner(BaseRunner[nn.Module]):
    """Runs a checkpoint's model in eager PyTorch on the CPU.

    Args:
        checkpoint: The trained weights.
        dtype: Of weights and activations. With float64, floating-point inputs are widened and
            the outputs stay float64: this is the reference.
    """

    how = "torch"

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(f"{self.how} {str(dtype).removeprefix('torch.')}")
        self._checkpoint = checkpoint
        self._dtype = dtype
        described = checkpoint.build_model()
        self.inputs, self.outputs = described.inputs(), described.outputs()

    def _open(self) -> nn.Module:
        """Return the model, ready to be called; other ways to run the same module replace this."""
        return to_precision(self._checkpoint.build_model(), self._dtype)

    def _run(self, loaded: nn.Module, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            UserError: The model cannot take the arrays: a token id or a length beyond its tables.
        """
        tensors = {spec.name: torch.from_numpy(arrays[spec.name].copy()) for spec in self.inputs}
        try:
            with torch.inference_mode():
                return {name: tensor.numpy() for name, tensor in self.forward(tensors).items()}
        except (IndexError, RuntimeError) as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise UserError(
                f"{self.name} cannot take {shapes} ({str(error).partition(chr(10))[0]})",
                "Keep lengths and ids within what the model was trained for.",
            ) from error

    def forward(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what `run` does, on tensors, with history where they want gradients.

        Args:
            tensors: One per input, by name.
        """
        given = [tensors[spec.name] for spec in self.inputs]
        if self._dtype == torch.float64:
            given = [t.double() if t.is_floating_point() else t for t in given]
        result = self.loaded(*given)
        results = result if isinstance(result, tuple) else (result,)
        return {spec.name: tensor for spec, tensor in zip(self.outputs, results, strict=True)}
