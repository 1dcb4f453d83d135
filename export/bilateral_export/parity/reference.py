"""The reference of a comparison: the trained model in FP64, and in the budget's precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.metadata import Precision
from bilateral_export.models.family import Family
from bilateral_export.parity.bisection.oracle import Oracle, Trace
from bilateral_export.precision import DTYPES, to_precision
from bilateral_export.runners.torch_eager import TorchRunner


@dataclass(frozen=True)
class ReferenceSpec:
    """The reference that a candidate is compared with.

    Attributes:
        weights: What the trained weights were rounded to before anything else; "fp32" leaves
            weights that were trained in float32 as they are.
        rounding: The precision of the arithmetic that eager PyTorch's error is measured in.
    """

    weights: Precision
    rounding: Precision

    def reference(self, checkpoint: Checkpoint) -> TorchRunner:
        """Return the model in FP64."""
        return RoundedRunner(checkpoint, self.weights, torch.float64)

    def eager(self, checkpoint: Checkpoint) -> TorchRunner:
        """Return the model in eager PyTorch, in the precision."""
        return RoundedRunner(checkpoint, self.weights, DTYPES[self.rounding])

    def oracles(self, checkpoint: Checkpoint) -> tuple[Oracle, Oracle]:
        """Return the same two node by node: the model in FP64, and in eager PyTorch."""
        wide = Trace(rounded(checkpoint.build_model(), self.weights, torch.float32))
        narrow = wide
        if self.rounding != "fp32":
            model = rounded(checkpoint.build_model(), self.weights, DTYPES[self.rounding])
            narrow = Trace(model)
        return Oracle(wide, widened=True), Oracle(narrow, widened=False)


class RoundedRunner(TorchRunner):
    """Eager PyTorch with weights that were rounded to one precision and are used in another.

    Args:
        checkpoint: The trained weights.
        weights: What they are rounded to; "fp32" does not touch wider ones.
        dtype: What is computed in.
    """

    def __init__(self, checkpoint: Checkpoint, weights: Precision, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, dtype)
        self._weights = weights

    def _open(self) -> nn.Module:
        return rounded(self._checkpoint.build_model(), self._weights, self._dtype)


def rounded(model: Family, weights: Precision, dtype: torch.dtype) -> Family:
    """Round a model's weights to a precision, then convert them to a type, in place."""
    if weights != "fp32":
        model = to_precision(model, DTYPES[weights])
    return to_precision(model, dtype)
