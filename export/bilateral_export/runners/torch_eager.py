"""The model as it was trained: eager PyTorch, in any dtype, float64 for the reference."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.precision import to_precision
from bilateral_export.tensors import Array, TensorSpec, check_arrays


class TorchRunner:
    """Runs a checkpoint's model in eager PyTorch on the CPU.

    Args:
        checkpoint: The trained weights.
        dtype: Of weights and activations. With float64, floating-point inputs are widened and
            the outputs stay float64: this is the reference.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        self.name = f"torch {str(dtype).removeprefix('torch.')}"
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._model: nn.Module | None = None
        described = checkpoint.build_model()
        self.inputs: tuple[TensorSpec, ...] = described.inputs()
        self.outputs: tuple[TensorSpec, ...] = described.outputs()

    def __enter__(self) -> TorchRunner:
        self._model = self._load()
        return self

    def _load(self) -> nn.Module:
        """The model, ready to be called; other ways to run the same module replace this."""
        return to_precision(self._checkpoint.build_model(), self._dtype)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._model = None

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see `Runner.run`.

        Raises:
            UserError: The model cannot take the arrays: a token id or a length beyond its tables.
        """
        assert self._model is not None, "use the runner as a context manager"
        check_arrays(self.inputs, arrays, self.name)
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
        """`run` on tensors, with history where they want gradients.

        Args:
            tensors: One per input, by name.
        """
        assert self._model is not None, "use the runner as a context manager"
        given = [tensors[spec.name] for spec in self.inputs]
        if self._dtype == torch.float64:
            given = [t.double() if t.is_floating_point() else t for t in given]
        result = self._model(*given)
        results = result if isinstance(result, tuple) else (result,)
        return {spec.name: tensor for spec, tensor in zip(self.outputs, results, strict=True)}
