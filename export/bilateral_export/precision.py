"""A model in one of the precisions a graph can have, with float32 islands where they are needed."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from bilateral_export.errors import UserError
from bilateral_export.metadata import Precision

Model = TypeVar("Model", bound=nn.Module)

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# Positions and bandwidths feed the spatial term, which the operator takes in float32 whatever the
# tokens' type is (op/README.md). The other islands need no exception here: layer norm computes its
# statistics, and the operator its softmax, in float32.
FLOAT32_NAMES = ("positions", "log_bandwidth", "query_features", "key_features")


# Factors in front of everything else: one that becomes 0 changes what is computed, where a small
# weight among many does not.
SCALE_NAMES = ("coefficients",)


def to_precision(model: Model, dtype: torch.dtype) -> Model:
    """Convert a model's weights in place and return it; the spatial kernel's stay float32.

    Every tensor is looked at. Single weights may become 0: they are below what the others round by.

    Args:
        model: Any model of this package.
        dtype: float32, float16, bfloat16, or float64 for the reference (which has no islands).

    Returns:
        The same model.

    Raises:
        UserError: A value becomes infinite, a scale becomes 0, or a weight matrix nothing but 0.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        island = name.rpartition(".")[2] in FLOAT32_NAMES and dtype != torch.float64
        owner, _, attribute = name.rpartition(".")
        converted = _converted(name, tensor.detach(), torch.float32 if island else dtype)
        getattr(model.get_submodule(owner), attribute).data = converted
    return model


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return one tensor in another type: the only conversion of weights in this package."""
    converted = tensor.to(dtype)
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    kind = str(dtype).removeprefix("torch.")
    if not bool(torch.isfinite(converted).all()):
        raise UserError(
            f"tensor {name} holds {largest:.3g}, and {kind} ends at {torch.finfo(dtype).max:.3g}",
            "Export with --precision bf16 or fp32, which reach 3.4e+38, or scale the weights down"
            " in the checkpoint."
            if largest < torch.finfo(torch.float32).max
            else "The training run diverged, or this is not a weight: look at the checkpoint.",
        )
    lost = (converted == 0) & (tensor != 0)
    last = name.rpartition(".")[2]
    emptied = last == "weight" and bool(lost.any()) and not bool(converted.any())
    if emptied or (last in SCALE_NAMES and bool(lost.any())):
        raise UserError(
            f"tensor {name} becomes 0 in {kind}: its largest value is {largest:.3g}, and {kind}"
            f" begins at {torch.finfo(dtype).smallest_normal:.3g}",
            "Export with --precision bf16 or fp32.",
        )
    return converted


def check_bandwidths(model: nn.Module) -> None:
    """Refuse bandwidths so small that the spatial kernel's factor 1 / (2 sigma^2) is infinite.

    Raises:
        UserError: With the tensor's name and its smallest bandwidth, in float32.
    """
    for name, tensor in model.named_parameters():
        if name.rpartition(".")[2] != "log_bandwidth":
            continue
        sigma = float(tensor.detach().float().exp().min())
        if not sigma**2 * 2 * torch.finfo(torch.float32).max > 1:
            raise UserError(
                f"tensor {name}: exp({float(tensor.min()):.3g}) is a bandwidth of {sigma:.3g},"
                " whose 1 / (2 sigma^2) is infinite in float32",
                "A token then sees nothing but itself. Clamp log_bandwidth in the checkpoint; -10"
                " means the same and is safe.",
            )
